"""Time as the broker uses it: a monotonic `now` for deadlines, epoch milliseconds for what is stored.

Ring 0 never reads a clock, it is given `now`; the shells read one of these, which a test replaces.
"""

from __future__ import annotations

import time
from typing import Protocol

import trio


class Clock(Protocol):
    """Where a shell gets the time from."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC, as stored in `*_at_ms`; may jump when the host's clock is set."""
        ...


class SystemClock:
    """The clocks of the operating system; usable outside of a trio run."""

    __slots__ = ()

    def monotonic(self) -> float:
        """Seconds of the system's monotonic clock."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000


class TrioClock:
    """The clock of the running trio loop: under trio's `MockClock` both readings move together.

    The wall time is that of the moment the object was made, plus what the loop's clock moved on since; it does not
    follow a host clock that is set later, so a node uses `SystemClock`.
    """

    __slots__ = ("_offset_ms",)

    def __init__(self) -> None:
        self._offset_ms = time.time_ns() / 1e6 - trio.current_time() * 1e3

    def monotonic(self) -> float:
        """Seconds of the trio clock."""
        return trio.current_time()

    def wall_ms(self) -> int:
        """Milliseconds since the epoch, moved on by the loop's clock."""
        return int(self._offset_ms + trio.current_time() * 1e3)
