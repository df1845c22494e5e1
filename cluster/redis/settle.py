"""What receivers and publishers are done with: acknowledgements and inbound QoS 2 ids, one call per partition.

All of it is idempotent and carries the session's token, so the link simply sends it again after a lost connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar, cast

import hiredis
import trio

from broker.errors import ClusterError, SessionLost, StoreUnavailable
from cluster.api import SessionRef
from cluster.policy import MAX_CALL_SESSIONS
from cluster.records import pack_arguments
from cluster.redis.callbacks import Then, call_then
from cluster.redis.links import Link
from cluster.redis.replies import error_from

#: Acknowledgements of a session go out when there are so many, or after so long: a crash repeats no more than these.
HELD_ACKNOWLEDGEMENTS: Final = 64
HELD_S: Final = 0.02


class _Work:
    """What waits for one ownership of a session; the first six are the record that the store gets."""

    __slots__ = ("received", "ref", "released", "sent_seq", "settled", "thens")

    def __init__(self, ref: SessionRef) -> None:
        self.ref = ref
        self.sent_seq = 0
        self.settled: list[int] = []
        self.received: list[int] = []
        self.released: list[int] = []
        self.thens: list[Then] = []

    def record(self) -> tuple[object, ...]:
        """As `rk1_settle` takes it."""
        return self.ref.session_id, self.ref.token, self.sent_seq, self.settled, self.received, self.released


class _Reservation:
    """Inbound packet ids with their message ids for one ownership of a session."""

    __slots__ = ("ref", "thens", "values")

    def __init__(self, ref: SessionRef) -> None:
        self.ref = ref
        self.values: list[int | bytes] = []
        self.thens: list[Then] = []

    def record(self) -> tuple[object, ...]:
        """As `rk1_reserve` takes it."""
        return self.ref.session_id, self.ref.token, *self.values


_T = TypeVar("_T", _Work, _Reservation)


class SettleBox:
    """The partitions with something to settle: at the end of this turn, or after acknowledgements were held a while."""

    __slots__ = ("_filled", "_held", "due", "refused")

    def __init__(self) -> None:
        self.due: list[Settler] = []
        #: Those that the store refused: due again when it takes a beat.
        self.refused: list[Settler] = []
        self._held: list[Settler] = []
        self._filled = trio.Event()

    def hold(self, settler: Settler) -> None:
        """A first acknowledgement that may wait."""
        self._held.append(settler)
        self._filled.set()

    def pump(self) -> None:
        """Sends what is due."""
        settlers = list(self.due)
        self.due.clear()
        for settler in settlers:
            settler.pump()

    def retry(self) -> None:
        """The store takes calls."""
        refused, self.refused = self.refused, []
        for settler in refused:
            settler.go_on()

    async def serve(self, wake: Callable[[], None]) -> None:
        """Lets no acknowledgement be held for longer than HELD_S."""
        while True:
            await self._filled.wait()
            await trio.sleep(HELD_S)
            self._filled = trio.Event()
            held, self._held = self._held, []
            for settler in held:
                settler.touch()
            wake()


class Settler:
    """The acknowledgements of one partition. One call is under way at a time; meanwhile the next is gathered."""

    __slots__ = (
        "_again",
        "_dirty",
        "_link",
        "_lost",
        "_outbox",
        "_prefix",
        "_refused",
        "_reservations",
        "_reserving",
        "_settling",
        "_work",
    )

    def __init__(self, prefix: bytes, link: Link, outbox: SettleBox, lost: Callable[[SessionRef], None]) -> None:
        self._prefix = prefix
        self._link = link
        self._outbox = outbox
        self._lost = lost
        self._work: dict[bytes, _Work] = {}
        self._reservations: dict[bytes, _Reservation] = {}
        self._settling = self._reserving = self._dirty = self._again = self._refused = False

    def acknowledge(self, ref: SessionRef, seq: int, sent_seq: int) -> None:
        """See `Cluster.acknowledge`. May wait for others to come."""
        work = self._work.get(ref.token)
        if work is None:
            if not self._work:
                self._outbox.hold(self)
            work = self._work[ref.token] = _Work(ref)
        work.settled.append(seq)
        if sent_seq > work.sent_seq:
            work.sent_seq = sent_seq
        if len(work.settled) >= HELD_ACKNOWLEDGEMENTS:
            self.touch()

    def received(self, ref: SessionRef, seq: int, sent_seq: int, then: Then) -> None:
        """See `Cluster.received`."""
        work = self._urgent(ref)
        work.received.append(seq)
        work.sent_seq = max(work.sent_seq, sent_seq)
        work.thens.append(then)

    def release(self, ref: SessionRef, packet_id: int, then: Then) -> None:
        """See `Cluster.release`."""
        work = self._urgent(ref)
        work.released.append(packet_id)
        work.thens.append(then)

    def _urgent(self, ref: SessionRef) -> _Work:
        self.touch()
        work = self._work.get(ref.token)
        if work is None:
            work = self._work[ref.token] = _Work(ref)
        return work

    def reserve(self, ref: SessionRef, packet_id: int, message_id: bytes, then: Then) -> None:
        """See `Cluster.reserve`."""
        self.touch()
        reservation = self._reservations.get(ref.token)
        if reservation is None:
            reservation = self._reservations[ref.token] = _Reservation(ref)
        reservation.values += (packet_id, message_id)
        reservation.thens.append(then)

    def touch(self) -> None:
        """What waits goes out at the end of this turn."""
        if not self._dirty:
            self._dirty = True
            self._outbox.due.append(self)

    def pump(self, everything: bool = False) -> None:
        """Sends what is due; `everything` also what else would wait for the answer to an earlier call."""
        self._dirty = False
        if self._refused and not everything:
            return
        while self._reservations and (everything or not self._reserving):
            self._reserving = True
            reservations = _take(self._reservations)
            self._send(b"rk1_reserve", reservations, self._reserved, self._reserve_again)
        while self._work and (everything or not self._settling):
            self._settling = True
            work = _take(self._work)
            self._send(b"rk1_settle", work, self._settled, self._settle_again)
        # What was due and has to wait for the answer under way goes then.
        self._again = bool(self._work or self._reservations)

    def _send(
        self, name: bytes, batch: Sequence[_T], then: Callable[[], None], again: Callable[[Sequence[_T]], None]
    ) -> None:
        arguments = pack_arguments([each.record() for each in batch])

        def answered(reply: object) -> None:
            then()
            if _may_pass(reply):
                again(batch)
                self._wait()
                return
            if self._again:
                self._again = False
                self.touch()
            self._answer(reply, batch)

        self._link.command((b"FCALL", name, b"1", self._prefix, arguments), answered, resend=True, durable=True)

    def _wait(self) -> None:
        """The store refused a call and may take it later: nothing goes out before that."""
        if not self._refused:
            self._refused = True
            self._outbox.refused.append(self)

    def go_on(self) -> None:
        """What was refused is due."""
        self._refused = self._again = False
        self.touch()

    def _reserve_again(self, batch: Sequence[_Reservation]) -> None:
        newer, self._reservations = self._reservations, {each.ref.token: each for each in batch}
        for token, each in newer.items():
            older = self._reservations.setdefault(token, each)
            if older is not each:
                older.values += each.values
                older.thens += each.thens

    def _settle_again(self, batch: Sequence[_Work]) -> None:
        newer, self._work = self._work, {each.ref.token: each for each in batch}
        for token, each in newer.items():
            older = self._work.setdefault(token, each)
            if older is not each:
                older.sent_seq = max(older.sent_seq, each.sent_seq)
                older.settled += each.settled
                older.received += each.received
                older.released += each.released
                older.thens += each.thens

    def _reserved(self) -> None:
        self._reserving = False

    def _settled(self) -> None:
        self._settling = False

    def _answer(self, reply: object, batch: Sequence[_Work | _Reservation]) -> None:
        if not isinstance(reply, list):
            error: Exception = ClusterError(f"answer {reply!r:.80}")
            if isinstance(reply, hiredis.ReplyError):
                error = error_from(reply)
            elif isinstance(reply, Exception):
                error = reply
            for each in batch:
                for then in each.thens:
                    call_then(then, error)
            return
        lost = frozenset(cast("list[int]", reply))
        for position, each in enumerate(batch, 1):
            failure: Exception | None = None
            if position in lost:
                failure = SessionLost(f"session of {each.ref.client_id[:64]!r} has another owner")
                self._lost(each.ref)
            for then in each.thens:
                call_then(then, failure)


def _may_pass(reply: object) -> bool:
    """Whether the store refused a call that it may take later."""
    if isinstance(reply, hiredis.ReplyError):
        return isinstance(error_from(reply), StoreUnavailable)
    return False


def _take(waiting: dict[bytes, _T]) -> list[_T]:
    """The oldest, as many as one call may have."""
    names = list(waiting)[:MAX_CALL_SESSIONS]
    return [waiting.pop(name) for name in names]
