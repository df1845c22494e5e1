"""Password checks in threads: they take milliseconds of a core each, and strangers decide how many are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from broker.auth.api import BackendError
from broker.auth.hashes import PasswordHash
from broker.log import get_logger

CHECK_THREADS: Final = 2
#: Checks that wait, and how long the last of them may be expected to take until it is done: half of what
#: `connect_timeout` is by default. Who would wait longer hears at once that it should come later; an answer after the
#: client was given up is work for nobody.
MAX_WAITING: Final = 64
PATIENCE_S: Final = 5.0
#: What the duration of one more check counts in the expectation.
_WEIGHT: Final = 0.2

_log = get_logger("authentication")


class Busy(BackendError):
    """So many checks wait that one more would come too late. Said once in the log, counted with every CONNECT."""


class Checks:
    """All password checks of a node: at most `threads` at a time, at most `waiting` that wait for their turn, and none
    that would not be done within `patience_s`, as checks have been taking.

    The hashing runs without the interpreter's lock, so the turn of everybody else goes on.
    """

    __slots__ = ("_admitted", "_bound", "_clock", "_each_s", "_full", "_limiter", "_patience_s", "_threads")

    def __init__(
        self,
        threads: int = CHECK_THREADS,
        waiting: int = MAX_WAITING,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._limiter = trio.CapacityLimiter(threads)
        self._threads = threads
        self._patience_s = patience_s
        self._clock = clock
        #: How long a check takes.
        self._each_s = 0.0
        self._bound = threads + waiting
        self._admitted = 0
        self._full = False

    async def check(self, found: PasswordHash, password: bytes) -> bool:
        """Whether this is the password; Busy at the bound. A check that has begun ends even if its caller does not
        wait for it."""
        expected_s = (self._admitted + 1) / self._threads * self._each_s
        if self._admitted >= self._bound or (self._admitted >= self._threads and expected_s > self._patience_s):
            if not self._full:
                self._full = True
                _log.warning("authentication.busy", waiting=self._admitted, each_s=round(self._each_s, 3))
            raise Busy("too many password checks wait")
        self._admitted += 1
        try:
            return await trio.to_thread.run_sync(self._timed, found, password, limiter=self._limiter)
        finally:
            self._admitted -= 1
            if self._admitted * 2 < self._bound and expected_s * 2 < self._patience_s:
                self._full = False

    def _timed(self, found: PasswordHash, password: bytes) -> bool:
        began = self._clock()
        right = found.verify(password)
        took_s = self._clock() - began
        self._each_s = took_s if not self._each_s else self._each_s + _WEIGHT * (took_s - self._each_s)
        return right


#: One for each run of the event loop: authenticators share it, so that their number multiplies nothing.
_CHECKS: trio.lowlevel.RunVar[Checks] = trio.lowlevel.RunVar("password checks")


async def check(found: PasswordHash, password: bytes) -> bool:
    """See `Checks.check`."""
    try:
        checks = _CHECKS.get()
    except LookupError:
        checks = Checks()
        _CHECKS.set(checks)
    return await checks.check(found, password)
