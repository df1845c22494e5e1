"""Turns of those who share something scarce: first come, first served, and each a portion."""

from __future__ import annotations

from typing import Final

#: Rounds that a portion is kept for somebody who does not use it.
KEPT_ROUNDS: Final = 2


class Turns:
    """Who waits, and who was given what."""

    __slots__ = ("_given", "_round", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[object, None] = {}
        #: What is left of the portions, and the round in which they were given.
        self._given: dict[object, tuple[int, int]] = {}
        self._round = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def wait(self, who: object) -> None:
        """Stand in line, or stay there."""
        self._waiting[who] = None

    def given(self, who: object) -> int:
        """What is left of the portion of `who`."""
        return self._given[who][0] if who in self._given else 0

    def use(self, who: object, amount: int) -> int:
        """Take from the portion of `who`; returns what was not in it."""
        left, since = self._given.pop(who, (0, 0))
        if left > amount:
            self._given[who] = (left - amount, since)
        return max(0, amount - left)

    def end(self, who: object) -> None:
        """The turn of `who` is over, whatever is left of it."""
        self._given.pop(who, None)

    def reclaim(self) -> int:
        """The next round: what was given before and not used comes back."""
        self._round += 1
        late = [who for who, (_, since) in self._given.items() if self._round - since > KEPT_ROUNDS]
        return sum(self._given.pop(who)[0] for who in late)

    def give(self, turns: int, portion: int) -> int:
        """The first so many in line get a portion each; returns how many did."""
        first = list(self._waiting)[: max(0, turns)]
        for who in first:
            del self._waiting[who]
            self._given[who] = (portion, self._round)
        return len(first)
