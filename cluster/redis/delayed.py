"""Delayed messages, as operators see them: in the order in which they are due, over all partitions."""

from __future__ import annotations

import heapq
from itertools import islice
from typing import cast

from broker.log import get_logger
from cluster.inspection import DelayedMessage, Place, make_id, parse_id
from cluster.keys import DELAYED, Keys
from cluster.records import unpack_message
from cluster.redis.asking import Asking

_log = get_logger("cluster")


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
                message = unpack_message(record) if record is not None else None
                if message is not None:
                    found.append(DelayedMessage(make_id(place), place[0], message))
                elif record is not None:
                    _log.warning("cluster.unknown_record", kind="delayed", format=record[0])
            if found or not places:
                return found
            last = places[-1]  # they were all published meanwhile

    async def _places(self, last: Place, limit: int) -> list[Place]:
        due_ms, partition, message_id = last
        replies = await self._asking.all(
            [
                (
                    "FCALL",
                    "rk1_delayed",
                    1,
                    prefix,
                    due_ms + 1 if number < partition else due_ms,
                    message_id if number == partition else b"",
                    limit,
                )
                for number, prefix in enumerate(self._prefixes)
            ]
        )
        pages: list[list[Place]] = []
        for number, reply in enumerate(replies):
            flat = cast("list[int | bytes]", reply)
            pages.append(
                [(cast(int, due), number, cast(bytes, name)) for due, name in zip(flat[::2], flat[1::2], strict=True)]
            )
        return list(islice(heapq.merge(*pages), limit))

    async def cancel(self, delayed_id: str) -> bool:
        """See `Inspection.cancel_delayed`."""
        due_ms, number, message_id = parse_id(delayed_id)
        if number >= len(self._prefixes):
            return False
        reply = await self._asking.one(
            "FCALL", "rk1_cancel_delayed", 1, self._prefixes[number], message_id, due_ms, durable=True
        )
        return reply == 1
