"""Reading payloads from the store for operators: little at a time, so that nothing else of the node waits for it.

How large a payload is shows when it is here, and each may be as large as a packet. So a few are read at first, and more
at a time as long as they are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, TypeVar

import msgspec

from broker.admin.paging import PAGE_BYTES, size_of
from broker.message import Message

#: Payload bytes that one read aims at, and messages that it has at most.
READ_BYTES: Final = 512 * 1024
READ_MAX: Final = 16
_FIRST: Final = 2

#: Payload bytes that are read for one answer, whatever little of them is shown.
ANSWER_BYTES: Final = 4 * 1024 * 1024

S = TypeVar("S", bound=msgspec.Struct)


class Reading(Generic[S]):
    """The messages of one answer: while `going`, `count()` more are to be read; those are told by `read`, and what is
    shown of each by `add` while there is `room`."""

    def __init__(self, limit: int) -> None:
        self.items: list[S] = []
        self._limit = limit
        self._count = _FIRST
        self._read_bytes = 0
        self._shown_bytes = 0

    @property
    def room(self) -> bool:
        """Whether the answer takes more of what was read."""
        return len(self.items) < self._limit and self._shown_bytes < PAGE_BYTES

    @property
    def going(self) -> bool:
        """Whether more is to be read."""
        return self.room and self._read_bytes < ANSWER_BYTES

    def count(self) -> int:
        """How many are to be read next."""
        return min(self._count, self._limit - len(self.items))

    def read(self, messages: Sequence[Message | None]) -> None:
        """These came."""
        size = sum(len(each.payload) + len(each.properties) for each in messages if each is not None)
        self._read_bytes += size
        fits = READ_BYTES * len(messages) // max(1, size)
        self._count = max(1, min(2 * self._count, fits, READ_MAX))

    def add(self, item: S) -> None:
        """One more is shown."""
        self.items.append(item)
        self._shown_bytes += size_of(item)
