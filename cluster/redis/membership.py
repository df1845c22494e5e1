"""This process as a member: its incarnation, its lease, the store's clock, and the dead it cleans up after."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from cluster.api import LEASE_S
from cluster.keys import Keys
from cluster.policy import ALONE_S, CALL_VALID_S, ClusterLimits
from cluster.redis.pipeline import Part
from cluster.redis.requests import result

#: The version of keys, records and functions together.
LAYOUT = 1

_REAP_SESSIONS = 200
#: Answers to a beat.
_SUPERSEDED, _READMITTED = 1, 2

Call = Callable[..., Awaitable[object]]
Calls = Callable[[Sequence[tuple[Part, ...]]], Awaitable[list[object]]]

_log = get_logger("cluster")


def monotonic_s() -> float:
    """A clock that also counts while the machine is suspended, where there is one."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Membership:
    """The lease of one incarnation. Every time that counts is the store's; the own clock only measures intervals."""

    def __init__(self, node_name: str, keys: Keys) -> None:
        self.node_name = node_name
        self.node = node_name.encode()
        #: 0 until it has joined.
        self.incarnation = 0
        self.incarnation_text = b"0"
        self.member = b""
        #: Another process has this node's name or place: this one may not write any more.
        self.superseded = False
        #: The store had lost its data and took this node in again; whoever acts on it sets it back.
        self.readmitted = False
        self._keys = keys
        self._offset_ms = time.time() * 1000 - monotonic_s() * 1000
        self._beat_sent_s = -1e9
        self._others = True

    def now_ms(self) -> int:
        """Store time as well as it is known here."""
        return int(monotonic_s() * 1000 + self._offset_ms)

    def valid_until_ms(self) -> int:
        """Until when a call that is built now may be executed (rule 5)."""
        lease_end_ms = self._beat_sent_s * 1000 + self._offset_ms + LEASE_S * 1000
        return int(min(self.now_ms() + CALL_VALID_S * 1000, lease_end_ms))

    def holds_lease(self) -> bool:
        """Whether this node may write; the lease counts from when its last renewal was sent."""
        return not self.superseded and monotonic_s() - self._beat_sent_s < LEASE_S

    def alone(self) -> bool:
        """See `Cluster.alone`."""
        return not (self.superseded or self._others) and monotonic_s() - self._beat_sent_s <= ALONE_S

    def heard(self, store_ms: int, sent_s: float | None = None) -> None:
        """The store's clock showed this, just now or in answer to what was sent at `sent_s`."""
        now_s = monotonic_s()
        middle_s = now_s if sent_s is None else (now_s + sent_s) / 2
        self._offset_ms = store_ms - middle_s * 1000

    async def join(self, call: Call) -> list[bytes]:
        """Becomes the live member and returns the dead ones that are to be reaped. Raises ClusterError."""
        deadline_s = monotonic_s() + LEASE_S + 1.0
        partitions = len(self._keys.partitions)
        while True:
            sent_s = monotonic_s()
            reply = cast("list[bytes | int]", await call(
                "FCALL", "rk1_join", 1, self._keys.members, self.node, LAYOUT, partitions, int(LEASE_S * 1000)
            ))  # fmt: skip
            status = reply[0]
            if status == b"joined":
                break
            found = reply[1].decode() if isinstance(reply[1], bytes) else str(reply[1])
            if status == b"layout":
                raise ClusterError(f"the store's data has layout version {found}, this broker has {LAYOUT}")
            if status == b"partitions":
                raise ClusterError(f"the store was set up with {found} partitions, not with {partitions}")
            if sent_s > deadline_s:
                raise ClusterError(
                    f"another node ({found}) is live in this store; this version runs one node per store "
                    "(use another namespace, or stop that node)"
                )
            await trio.sleep(min(1.0, int(reply[2]) / 1000 + 0.01))
        self.incarnation = int(reply[1])
        self.incarnation_text = b"%d" % self.incarnation
        self.member = b"%s:%d" % (self.node, self.incarnation)
        self.heard(int(reply[2]), sent_s)
        self._beat_sent_s = sent_s
        self._others = False
        return [member for member in reply[3:] if isinstance(member, bytes)]

    async def beat(self, call: Call) -> None:
        """Renews the lease and the knowledge of the store's clock; sets `superseded` if it is gone."""
        sent_s = monotonic_s()
        partitions = len(self._keys.partitions)
        lease_ms = int(LEASE_S * 1000)
        reply = cast("list[int | bytes]", await call(
            "FCALL", "rk1_beat", 1, self._keys.members, self.node, self.incarnation, lease_ms, LAYOUT, partitions
        ))  # fmt: skip
        self.heard(int(reply[0]), sent_s)
        if reply[1] == _SUPERSEDED:
            self.superseded = True
            return
        if reply[1] == _READMITTED:
            _log.error("cluster.store_lost_data", node=self.node_name)
            self.readmitted = True
        self._beat_sent_s = sent_s
        self._others = len(reply) > 3

    async def reap(self, calls: Calls, dead: Sequence[bytes], limits: ClusterLimits) -> None:
        """Fences dead members everywhere and frees all they owned; may be repeated."""
        grace_ms = int(limits.will_failover_grace_s * 1000)
        for member in dead:
            node, _, incarnation = member.rpartition(b":")
            left = [*self._keys.partitions, *self._keys.retained, self._keys.routes]
            while left:
                replies = await calls(
                    [
                        ("FCALL", "rk1_reap", 1, prefix, node, incarnation, grace_ms, _REAP_SESSIONS,
                         limits.inflight + 64)
                        for prefix in left
                    ]
                )  # fmt: skip
                left = [prefix for prefix, reply in zip(left, replies, strict=True) if cast(int, result(reply)) > 0]
            await calls([("FCALL", "rk1_buried", 1, self._keys.members, member)])
            _log.info("cluster.reaped", member=member.decode("utf-8", "replace"))
