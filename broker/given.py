"""Which messages the sessions of this node that have no queue already got."""

from __future__ import annotations

from typing import Final

#: So many messages are remembered.
LIMIT: Final = 65_536


class Given:
    """Message ids, the latest last, with a number each. `count` is that of the last one.

    A subscription that was made when `count` was below the number of a message has had it.
    """

    __slots__ = ("_numbers", "count")

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.count = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def note(self, message_id: bytes) -> int:
        """A message is given out now; returns its number if it was before, or 0."""
        numbers = self._numbers
        before = numbers.pop(message_id, 0)
        self.count += 1
        numbers[message_id] = self.count
        if len(numbers) > LIMIT:
            del numbers[next(iter(numbers))]
        return before
