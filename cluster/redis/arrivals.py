"""What other nodes send here: messages for ephemeral sessions, and word of what they stored for sessions here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Protocol, cast

from broker.log import get_logger
from broker.message import Message
from broker.session.run import Run
from cluster.api import ClusterEvents, SessionRef
from cluster.keys import partition_of
from cluster.records import PUSHED_MESSAGE, PUSHED_RUN, queue_flags, unpack_body, unpack_push, unpack_stored
from cluster.redis.feed import Entries

_log = get_logger("cluster")


class GroupArrivals(Protocol):
    """Takes the part of an entry that is for groups."""

    def given(self, flat: Sequence[int | bytes], bodies: Sequence[bytes]) -> None:
        """Entries of groups that were given to this node, flat as they lie in the stream."""

    def missed(self, partition: int) -> None:
        """Some may have been lost."""


class Attached:
    """The sessions that are connected to this node, and since which entry of the owner's stream each is."""

    def __init__(self, partitions: int) -> None:
        self._count = partitions
        self._sessions: dict[bytes, tuple[SessionRef, int]] = {}
        #: Being attached: the store may take this node for the owner already.
        self._coming: dict[bytes, int] = {}
        #: Have to look into their queues: what came for them came before anyone here knew them.
        self.looks: dict[bytes, None] = {}

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._sessions

    def coming(self, identifier: bytes) -> None:
        """Its attach begins."""
        self._coming[identifier] = self._coming.get(identifier, 0) + 1

    def came(self, identifier: bytes) -> None:
        """Its attach ended, with `attach` before that if it is here."""
        left = self._coming[identifier] - 1
        if left:
            self._coming[identifier] = left
        else:
            del self._coming[identifier]

    def attach(self, ref: SessionRef, after: int) -> None:
        """It is here; entries of the stream up to `after` are of an earlier time, perhaps of an older session."""
        self._sessions[ref.session_id] = ref, after

    def detach(self, ref: SessionRef) -> None:
        """It is not here any more, unless it came anew."""
        if self.has(ref):
            del self._sessions[ref.session_id]

    def may_have(self, identifier: bytes) -> bool:
        """Whether it is here, or is being attached."""
        return identifier in self._sessions or identifier in self._coming

    def has(self, ref: SessionRef) -> bool:
        """Whether it is here, by this very attach."""
        found = self._sessions.get(ref.session_id)
        return found is not None and found[0].token == ref.token

    def refs(self) -> list[SessionRef]:
        """All that are here."""
        return [ref for ref, _ in self._sessions.values()]

    def refs_of_partition(self, partition: int) -> list[SessionRef]:
        """Those in one partition."""
        return [ref for ref, _ in self._sessions.values() if partition_of(ref.session_id, self._count) == partition]

    def takes(self, identifier: bytes, number: int) -> bool:
        """Whether the entry with this number is for it; if not, but perhaps it is, it will look."""
        found = self._sessions.get(identifier)
        if found is not None and number > found[1]:
            return True
        if found is not None or identifier in self._coming:
            self.looks[identifier] = None
        return False

    def restart(self, partition: int, last: int) -> None:
        """The stream of the partition has another history: entries up to `last` are of an earlier time now."""
        for identifier in self.of_partition(partition):
            self._sessions[identifier] = self._sessions[identifier][0], last

    def of_partition(self, partition: int) -> list[bytes]:
        """All that are in it."""
        return [each for each in self._sessions if partition_of(each, self._count) == partition]


class Arrivals:
    """Reads entries and tells the broker; what is of an unknown format is skipped and reported."""

    def __init__(self, attached: Attached, groups: GroupArrivals) -> None:
        self.events: ClusterEvents | None = None
        self._attached = attached
        self._groups = groups

    def pushed(self, entries: Entries) -> None:
        """Of this node's in-stream."""
        events = self.events
        if events is None:
            return
        for _, fields in entries:
            parts = unpack_push(fields[1])
            if parts is None:
                _log.warning("cluster.unknown_record", kind="push", format=fields[1][0])
                continue
            _deliver(iter(parts), events)

    def stored(self, partition: int, entries: Entries) -> None:
        """Of the stream of this node in a partition."""
        if self.events is None:
            return
        for number, fields in entries:
            values = unpack_stored(fields[1])
            if values is None:
                _log.warning("cluster.unknown_record", kind="delivery", format=fields[1][0])
                # Whatever it says is in the queues too.
                self.missed(partition)
                continue
            bodies, sessions, groups = values[:3]
            if sessions:
                self._tell(number, cast("list[bytes]", bodies), sessions)
            if groups:
                self._groups.given(groups, cast("list[bytes]", bodies))

    def _tell(self, number: int, bodies: Sequence[bytes], sessions: Sequence[int | bytes]) -> None:
        events = cast(ClusterEvents, self.events)
        messages: dict[int, Message] = {}
        for at in range(0, len(sessions), 4):
            identifier, seq, prefix, index = cast("tuple[bytes, int, bytes, int]", sessions[at : at + 4])
            if not self._attached.takes(identifier, number):
                continue
            flags = queue_flags(prefix)
            if not index or flags is None:
                events.deliver_stored(identifier, seq, None, 0, False, ())
                continue
            message = messages.get(index)
            if message is None:
                message = messages[index] = unpack_body(bodies[index - 1])
            events.deliver_stored(identifier, seq, message, *flags)

    def missed(self, partition: int) -> None:
        """Entries of that stream were lost: the queues have what they told of."""
        self.look(self._attached.of_partition(partition))
        self._groups.missed(partition)

    def look(self, identifiers: Collection[bytes]) -> None:
        """These sessions look into their queues."""
        if self.events is not None:
            for each in identifiers:
                self.events.deliver_stored(each, 0, None, 0, False, ())

    def flush(self) -> None:
        """The end of a turn: those that came meanwhile look, as far as they are there."""
        looks = self._attached.looks
        ready = [each for each in looks if each in self._attached]
        for each in ready:
            del looks[each]
        self.look(ready)

    def forget(self) -> None:
        """Nobody waits for what never came."""
        self._attached.looks.clear()


def _deliver(parts: Iterator[object], events: ClusterEvents) -> None:
    frames = events.deliver_frame
    for kind in parts:
        if kind == 4 or kind == 5:
            frames(kind, cast(bytes, next(parts)))
        elif kind == PUSHED_RUN + 4 or kind == PUSHED_RUN + 5:
            data, count, accepted_at_ms, publisher = cast("tuple[bytes, int, int, bytes]", tuple(islice(parts, 4)))
            if data[0] & 6:
                events.deliver_packets(Run(kind - PUSHED_RUN, data, count, accepted_at_ms, publisher))
            else:
                frames(kind - PUSHED_RUN, data, count)
        elif kind == PUSHED_MESSAGE:
            body = unpack_body(cast(bytes, next(parts)))
            events.deliver(body, cast(bool, next(parts)), cast("list[bytes]", next(parts)))
        else:
            _log.warning("cluster.unknown_record", kind="push", format=str(kind)[:20])
            return
