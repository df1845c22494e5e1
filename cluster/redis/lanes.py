"""Adding calls to one hash tag: numbered, one under way at a time, repeated until the store has answered.

While a call is under way, what comes is gathered for the next one. So a lost answer, a full store or a paused node
leave no gap and no doubt about what follows (GUARANTEES section 4, rule 5), and a busy tag batches by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import hiredis

from broker.errors import ClusterError, StoreFull, StoreUnavailable
from broker.log import get_logger
from cluster.redis.membership import Membership
from cluster.redis.pipeline import Part
from cluster.redis.replies import error_from

if TYPE_CHECKING:
    from cluster.redis.links import Link

_OK, _GAP, _LATE, _FENCED, _FREE, _BUSY = range(6)

#: Calls that bring messages of publishers.
_MESSAGES = (b"rk1_enqueue", b"rk1_delay", b"rk1_retain")

_log = get_logger("cluster")


class Outbox:
    """The lanes with something to send: at the end of the turn, or later because the store said so.

    While the store is nearly `full`, messages of publishers are taken as if it had refused them for want of room."""

    __slots__ = ("due", "full", "later")

    def __init__(self) -> None:
        self.full = False
        self.due: list[Lane] = []
        self.later: list[Lane] = []

    def pump(self) -> None:
        """Sends what is due, where the store can be reached. To be called only while there is a lease."""
        lanes, self.due = self.due, []
        for lane in lanes:
            if lane.reachable():
                lane.pump()
            else:
                self.due.append(lane)

    def retry(self) -> None:
        """What was put off is due again."""
        lanes, self.later = self.later, []
        for lane in lanes:
            lane.waits = False
            lane.touch()


class Lane:
    """The way of adding calls to one prefix. Subclasses build calls and take their answers."""

    __slots__ = ("_call", "_link", "_member", "_number", "_outbox", "_uncertain", "dirty", "prefix", "sent", "waits")

    def __init__(self, prefix: bytes, link: Link, member: Membership, outbox: Outbox) -> None:
        self.prefix = prefix
        self._link = link
        self._member = member
        self._outbox = outbox
        self._number = 0
        self._call: tuple[Part, ...] | None = None
        #: In the outbox.
        self.dirty = False
        #: The call under way is on the current connection.
        self.sent = False
        #: The call under way may have been executed.
        self._uncertain = False
        #: In the outbox for later.
        self.waits = False

    def reachable(self) -> bool:
        """Whether the part of the store that this lane leads to can be reached."""
        return self._link.up_for(self.prefix)

    def put_off(self) -> None:
        """There is something to send, but the store said not now: with the next beat, or when more comes."""
        if not self.waits:
            self.waits = True
            self._outbox.later.append(self)

    def touch(self) -> None:
        """There is something to send at the end of this turn."""
        if not self.dirty:
            self.dirty = True
            self._outbox.due.append(self)

    def pump(self) -> None:
        """Sends the call under way if that is due, or builds and sends the next one."""
        self.dirty = False
        if self.sent:
            return
        if self._call is None:
            self._call = self.build()
            if self._call is None:
                return
            if self._outbox.full and self._call[0] in _MESSAGES:
                self._refused(StoreFull("the store is nearly full"), True)
                return
        else:
            self._call = self.renewed(self._call)
        name, *arguments = self._call
        self._send(cast(bytes, name), arguments, self._answered)

    def _send(self, name: bytes, arguments: Sequence[Part], then: Callable[[object], None]) -> None:
        """Calls a function of the store under the next number."""
        member = self._member
        self.sent = True
        self._link.command(
            (
                b"FCALL",
                name,
                b"1",
                self.prefix,
                member.node,
                member.incarnation_text,
                member.valid_until_ms(),
                self._number + 1,
                *arguments,
            ),
            then,
            durable=True,
        )

    def _answered(self, reply: object) -> None:
        self.sent = False
        if isinstance(reply, list):
            status, value = cast("tuple[int, bytes]", reply)
            if status == _OK:
                self._number += 1
                self._call = None
                self._uncertain = False
                self.done(value)
                if self.has_more():
                    self.touch()
                return
            if status == _GAP:
                self._uncertain = False
                # Nothing was under way: the store begins to count anew (an older state of it came back).
                self._number = int(value)
            elif status == _LATE:
                self._member.heard(int(value))
            elif status == _BUSY:
                self._uncertain = False
                self.busy()
                return
            else:
                self._member.fenced()
            self.touch()
            return
        if isinstance(reply, StoreUnavailable):
            self._uncertain = True
            self.touch()  # outcome unknown: the same number again on the next connection
            return
        error = error_from(reply) if isinstance(reply, hiredis.ReplyError) else ClusterError(f"answer {reply!r:.80}")
        if isinstance(error, StoreUnavailable):
            self.put_off()
            return
        full = isinstance(error, StoreFull)
        if full and self._uncertain:
            # A full store refuses the call before it can say whether its number was executed already.
            self._send(b"rk1_outcome", (), self._outcome_known)
            return
        if not full:
            _log.error("cluster.call_failed", call=str(self._call and self._call[0]), error=str(error)[:200])
        self._refused(error, full)

    def _outcome_known(self, reply: object) -> None:
        if isinstance(reply, list) and reply[0] == _FREE:
            self.sent = False
            self._uncertain = False
            self._refused(StoreFull("the store is full"), True)
        else:
            self._answered(reply)

    def _refused(self, error: ClusterError, full: bool) -> None:
        self._call = None
        if self.failed(error, full):
            self.put_off()
        elif self.has_more():
            self.touch()

    def has_more(self) -> bool:
        """Whether `build` would build something."""
        raise NotImplementedError

    def build(self) -> tuple[Part, ...] | None:
        """The function's name and its arguments from the fifth on; None if there is nothing to do."""
        raise NotImplementedError

    def renewed(self, call: tuple[Part, ...]) -> tuple[Part, ...]:
        """The call that was built last, before it is sent once more."""
        return call

    def busy(self) -> None:
        """The call that was built last found its receiver's stream full, and left nothing behind."""
        self.put_off()

    def done(self, value: bytes) -> None:
        """The call that was built last was executed, just now or before."""
        raise NotImplementedError

    def failed(self, error: ClusterError, full: bool) -> bool:
        """The call that was built last was refused and left nothing behind; `full`: for want of room.

        True if what is left waits for room: it would be refused too."""
        raise NotImplementedError
