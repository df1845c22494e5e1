"""Lines about what strangers do, of which there may be a flood: some are written, the others are counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Lines of one kind in a second.
LINES: Final = 10


class Quiet:
    """Ask `tells` before each line."""

    __slots__ = ("_clock", "_kinds")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By kind: the second, the lines in it, those that were not written since the last that was.
        self._kinds: dict[str, tuple[int, int, int]] = {}

    def tells(self, kind: str) -> int | None:
        """None: keep silent. Else how many lines of this kind were not written since the last one. Kinds are ours:
        nothing that clients choose may be one."""
        now = int(self._clock())
        second, lines, silent = self._kinds.get(kind, (now, 0, 0))
        if second != now:
            lines = 0
        if lines >= LINES:
            self._kinds[kind] = (now, lines, silent + 1)
            return None
        self._kinds[kind] = (now, lines + 1, 0)
        return silent
