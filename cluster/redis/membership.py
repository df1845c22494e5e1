"""This process as a member: its incarnation, its lease, the store's clock, and who else is there."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, cast

import trio

from broker import __version__
from broker.errors import ClusterError, Fenced, StoreUnavailable
from broker.log import get_logger
from cluster import layout
from cluster.api import LEASE_S
from cluster.keys import Keys
from cluster.policy import ALONE_S, BEAT_S, CALL_VALID_S
from cluster.redis.library import NAME
from cluster.redis.signals import BEAT, channel

if TYPE_CHECKING:
    from cluster.redis.links import Link

#: How often one that joins asks whether all others know of it.
_ADMISSION_POLL_S = 0.02
#: What members tell of themselves to operators: version and function library.
BUILD = f"{__version__} {NAME}"
#: Answers to a beat.
_SUPERSEDED, _READMITTED, _BURIED = 1, 2, 3

Call = Callable[..., Awaitable[object]]

_log = get_logger("cluster")


def monotonic_s() -> float:
    """A clock that also counts while the machine is suspended, where there is one."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _nothing(*_: object) -> None:
    """Nobody wants to know."""


class Membership:
    """The lease of one incarnation. Every time that counts is the store's; the own clock only measures intervals.

    Members are named `<name>:<incarnation>`."""

    def __init__(self, node_name: str, keys: Keys) -> None:
        self.node_name = node_name
        self.node = node_name.encode()
        #: 0 until it has joined.
        self.incarnation = 0
        self.incarnation_text = b"0"
        self.member = b""
        #: Others have this node's name or took it for dead: it may not write any more.
        self.superseded = False
        #: The last beat was refused.
        self.refused = False
        #: The store had lost its data and took this node in again; whoever acts on it sets it back.
        self.readmitted = False
        #: All that are not buried, with this one; in the order of their names.
        self.members: tuple[bytes, ...] = ()
        #: The version of `members`: it grows with every change.
        self.mver = 0
        #: What every live member can do, see `layout.FEATURES`.
        self.lowest_feature = layout.FEATURES
        #: Called after each answered beat, and with members that are gone for good, and with dead ones to reap.
        self.on_beat: Callable[[], None] = _nothing
        self.on_gone: Callable[[Sequence[bytes]], None] = _nothing
        self.on_dead: Callable[[Sequence[bytes]], None] = _nothing
        self._keys = keys
        self._offset_ms = time.time() * 1000 - monotonic_s() * 1000
        self._beat_sent_s = -1e9
        #: Since when the store answered without a break; None while it is away.
        self._steady_since_s: float | None = None
        self._soon = trio.Event()
        self._end: ClusterError | None = None

    def now_ms(self) -> int:
        """Store time as well as it is known here."""
        return int(monotonic_s() * 1000 + self._offset_ms)

    def valid_until_ms(self) -> int:
        """Until when a call that is built now may be executed (rule 5)."""
        lease_end_ms = self._beat_sent_s * 1000 + self._offset_ms + LEASE_S * 1000
        return int(min(self.now_ms() + CALL_VALID_S * 1000, lease_end_ms))

    def holds_lease(self) -> bool:
        """Whether anything may leave this node; the lease counts from when its last renewal was sent. Where this
        process was stopped for longer, False until a beat was answered. For each turn: it costs a look at the clock."""
        return not self.superseded and monotonic_s() - self._beat_sent_s < LEASE_S

    def lease_age_s(self) -> float:
        """Since the last answered beat was sent; 0 before the first."""
        return monotonic_s() - self._beat_sent_s if self.incarnation else 0.0

    def well(self) -> bool:
        """Whether the store takes what this node writes, as far as the last beat tells."""
        return not self.refused and self.holds_lease()

    def alone(self) -> bool:
        """See `Cluster.alone`."""
        return len(self.members) == 1 and not self.superseded and monotonic_s() - self._beat_sent_s <= ALONE_S

    def heard(self, store_ms: int, sent_s: float | None = None) -> None:
        """The store's clock showed this, just now or in answer to what was sent at `sent_s`."""
        now_s = monotonic_s()
        middle_s = now_s if sent_s is None else (now_s + sent_s) / 2
        self._offset_ms = store_ms - middle_s * 1000

    def fenced(self) -> None:
        """The store refused a call of this node for good: stop writing, and ask why."""
        self.superseded = True
        self.beat_soon()

    def beat_soon(self) -> None:
        """Someone waits for this node to look at the members."""
        self._soon.set()

    def link_up(self) -> None:
        """A store connection was made."""
        self._steady_since_s = monotonic_s()

    def link_down(self) -> None:
        """It was lost. Others may have had no better luck, so nobody is taken for dead for a while."""
        self._steady_since_s = None

    async def look(self, call: Call) -> None:
        """Before it joins, and before anything is written: whether the store has the layout of this version. Raises
        ClusterError with what to do."""
        if self.incarnation:
            return
        found = await call("HGET", self._keys.members + b"meta", "layout")
        if isinstance(found, bytes) and found != b"%d" % layout.LAYOUT:
            raise ClusterError(layout.refusal(found.decode()))

    async def join(self, call: Call) -> None:
        """Becomes a member; what it accepts is safe only after `admitted`. Raises ClusterError."""
        sent_s = monotonic_s()
        partitions = len(self._keys.partitions)
        reply = cast("list[bytes | int]", await call(
            "FCALL", "rk1_join", 1, self._keys.members, self.node, layout.LAYOUT, partitions, int(LEASE_S * 1000),
            layout.FEATURES, BUILD,
        ))  # fmt: skip
        status = reply[0]
        found = reply[1].decode() if isinstance(reply[1], bytes) else str(reply[1])
        if status == b"layout":
            raise ClusterError(layout.refusal(found))
        if status == b"partitions":
            raise ClusterError(f"the store was set up with partitions = {found}, this node has {partitions}")
        self.incarnation = int(found)
        self.incarnation_text = b"%d" % self.incarnation
        self.member = b"%s:%d" % (self.node, self.incarnation)
        self.heard(int(reply[2]), sent_s)
        self.mver = int(reply[3])
        self._beat_sent_s = sent_s
        self.link_up()
        await self.beat(call)

    async def admitted(self, call: Call) -> None:
        """Returns when every live member knows of this one; `serve` must run. Raises ClusterError."""
        joined = self.mver
        deadline_s = monotonic_s() + LEASE_S + 1.0
        await self._hint(call)
        while await call("FCALL", "rk1_unseen", 1, self._keys.members, joined, self.member):
            if monotonic_s() > deadline_s:
                raise ClusterError("other nodes are live in this store but take no notice of this one")
            await trio.sleep(_ADMISSION_POLL_S)

    async def beat(self, call: Call) -> None:
        """Renews the lease and the knowledge of the store's clock and of the members. If this node may not go on,
        it sets `superseded`, and `serve` raises."""
        sent_s, refused = monotonic_s(), self.superseded
        steady_s = self._steady_since_s
        steady = steady_s is not None and sent_s - steady_s >= LEASE_S
        # Not when it is executed late: the beats of others may wait behind it.
        bury_until_ms = self.now_ms() + int(BEAT_S * 1000) if steady else 0
        reply = cast("list[object]", await call(
            "FCALL", "rk1_beat", 1, self._keys.members, self.node, self.incarnation, int(LEASE_S * 1000),
            layout.LAYOUT, len(self._keys.partitions), self.mver, bury_until_ms, layout.FEATURES, BUILD,
        ))  # fmt: skip
        self.refused = False
        status = reply[1]
        self.heard(cast(int, reply[0]), sent_s)
        if monotonic_s() - sent_s > BEAT_S:
            # The store, or this node, stood still, and perhaps the beats of others wait behind this one.
            self.link_up()
        if status == _SUPERSEDED:
            self._stop(ClusterError(f"another process with the node name {self.node_name!r} took over"))
        elif status == _BURIED or refused:
            # Refused elsewhere, though it is a member: the store forgot that it was buried, but not all that followed.
            self._stop(Fenced(f"node {self.node_name!r} did not reach the store for too long and was taken for dead"))
        else:
            if status == _READMITTED:
                _log.error("cluster.store_lost_data", node=self.node_name)
                self.readmitted = True
            self._beat_sent_s = sent_s
            self._adopt(*cast("tuple[int, int, list[bytes], list[bytes]]", reply[2:6]))

    def _stop(self, error: ClusterError) -> None:
        self._end = error
        self.fenced()

    def _adopt(self, mver: int, lowest_feature: int, members: list[bytes], dead: list[bytes]) -> None:
        before = self.members
        self.members, self.lowest_feature = tuple(sorted(members)), lowest_feature
        if mver != self.mver:
            # Whoever joined waits for the next beat to tell that this node knows.
            self.mver = mver
            self.beat_soon()
        if gone := [member for member in before if member not in members]:
            _log.info("cluster.members_gone", members=_text(gone))
            self.on_gone(gone)
        if new := [member for member in members if member not in before and member != self.member]:
            _log.info("cluster.members_came", members=_text(new))
        if dead:
            self.on_dead(dead)
        self.on_beat()

    async def serve(self, link: Link) -> None:
        """Beats for ever, in time and when asked to. Raises Fenced where this node was taken for dead, ClusterError
        where another process has its name."""
        while self._end is None:
            with trio.move_on_after(BEAT_S):
                await self._soon.wait()
            self._soon = trio.Event()
            if not link.up_for(self._keys.members):
                # Asked to be soon or not: there is nobody to ask.
                await trio.sleep(_ADMISSION_POLL_S)
                continue
            try:
                await self.beat(link.call)
            except ClusterError as error:
                self.refused = True
                tell = _log.warning if isinstance(error, StoreUnavailable) else _log.error
                tell("cluster.beat_failed", reason=str(error)[:200])
                if self._steady_since_s is not None:
                    # Others are refused as well: nobody is taken for dead for a while.
                    self.link_up()
        raise self._end

    async def leave(self, call: Call) -> None:
        """Gives up the lease: others may free what is left at once."""
        await call("FCALL", "rk1_leave", 1, self._keys.members, self.member)
        await self._hint(call)

    async def _hint(self, call: Call) -> None:
        """Others look at the members at once, where this reaches them, and not with their next beat."""
        for member in self.members:
            if member != self.member:
                await call("SPUBLISH", channel(self._keys, member), BEAT)


def _text(members: Sequence[bytes]) -> str:
    return " ".join(member.decode("utf-8", "replace") for member in members)
