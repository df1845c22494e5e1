"""Delayed messages, as operators see them: in the order in which they are due, over all partitions."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heapreplace
from typing import cast

from broker.log import get_logger
from cluster.inspection import DelayedMessage, Place, make_id, parse_id
from cluster.keys import DELAYED, DELAYED_TIMER, TIMERS, Keys
from cluster.records import unpack_message
from cluster.redis.asking import Asking
from cluster.redis.pipeline import Part

_log = get_logger("cluster")


class _Timers:
    """What was read of the timers of one partition: places behind `last`, the next one at the end."""

    __slots__ = ("_after", "_due_ms", "_last", "_number", "_prefix", "more", "places")

    def __init__(self, number: int, prefix: bytes, last: Place) -> None:
        due_ms, partition, message_id = last
        self._number = number
        self._prefix = prefix
        self._last = last
        #: Where to go on: at this time, behind this timer ("": with the first one).
        self._due_ms: int = due_ms + 1 if number < partition else due_ms
        self._after = DELAYED_TIMER + message_id if number == partition else b""
        self.places: list[Place] = []
        self.more = True

    def command(self, limit: int) -> tuple[Part, ...]:
        """What reads on."""
        return "FCALL", "rk1_delayed_part", 1, self._prefix, self._due_ms, self._after, limit

    def take(self, reply: Sequence[int | bytes]) -> None:
        """What it read."""
        due_ms, after, *flat = reply
        found = [
            (cast(int, due_ms), self._number, cast(bytes, name))
            for due_ms, name in zip(flat[::2], flat[1::2], strict=True)
        ]
        self.places = sorted((place for place in found if place > self._last), reverse=True)
        self.more = after != b""
        if self.more:
            self._due_ms, self._after = cast(int, due_ms), cast(bytes, after)


class DelayedView:
    """Pages through the timers. The id of a message is its place."""

    def __init__(self, keys: Keys, asking: Asking) -> None:
        self._prefixes = keys.partitions
        self._asking = asking

    async def page(self, after: str, limit: int) -> list[DelayedMessage]:
        """See `Inspection.delayed`."""
        last = parse_id(after) if after else (0, -1, b"")
        while True:
            places = await self._places(last, limit)
            records = await self._asking.all(
                [("HGET", self._prefixes[number] + DELAYED, message_id) for _, number, message_id in places]
            )
            found: list[DelayedMessage] = []
            for place, record in zip(places, cast("list[bytes | None]", records), strict=True):
                message = _unpacked(place, record)
                if message is not None:
                    found.append(message)
            if found or not places:
                return found
            last = places[-1]  # they were all published meanwhile

    async def _places(self, last: Place, limit: int) -> list[Place]:
        """The first ones behind `last`."""
        parts = [_Timers(number, prefix, last) for number, prefix in enumerate(self._prefixes)]
        portion = 2 * limit // len(parts) + 8  # they lie evenly
        await self._read_on(parts, portion)
        ready = [(part.places[-1], part) for part in parts if part.places]
        heapify(ready)
        found: list[Place] = []
        while ready and len(found) < limit:
            place, part = ready[0]
            found.append(place)
            part.places.pop()
            await self._read_on([part], portion)
            if part.places:
                heapreplace(ready, (part.places[-1], part))
            else:
                heappop(ready)
        return found

    async def _read_on(self, parts: Sequence[_Timers], limit: int) -> None:
        """Until each has a place or is at its end."""
        while empty := [part for part in parts if part.more and not part.places]:
            replies = await self._asking.in_turns([part.command(limit) for part in empty])
            for part, reply in zip(empty, replies, strict=True):
                part.take(cast("list[int | bytes]", reply))

    async def one(self, delayed_id: str) -> DelayedMessage | None:
        """See `Inspection.delayed_message`."""
        place = due_ms, number, message_id = parse_id(delayed_id)
        if number >= len(self._prefixes):
            return None
        prefix = self._prefixes[number]
        due, record = await self._asking.all(
            [("ZSCORE", prefix + TIMERS, DELAYED_TIMER + message_id), ("HGET", prefix + DELAYED, message_id)]
        )
        if due is None or int(float(cast(bytes, due))) != due_ms:
            return None
        return _unpacked(place, cast("bytes | None", record))

    async def cancel(self, delayed_id: str) -> bool:
        """See `Inspection.cancel_delayed`."""
        due_ms, number, message_id = parse_id(delayed_id)
        if number >= len(self._prefixes):
            return False
        reply = await self._asking.one(
            "FCALL", "rk1_cancel_delayed", 1, self._prefixes[number], message_id, due_ms, durable=True
        )
        return reply == 1


def _unpacked(place: Place, record: bytes | None) -> DelayedMessage | None:
    """None: it was published or taken back."""
    if record is None:
        return None
    message = unpack_message(record)
    if message is None:
        _log.warning("cluster.unknown_record", kind="delayed", format=record[0])
        return None
    return DelayedMessage(make_id(place), place[0], message)
