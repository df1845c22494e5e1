"""Password checks in threads: they take milliseconds of a core each, and strangers decide how many are asked for."""

from __future__ import annotations

from typing import Final

import trio

from broker.auth.api import BackendError
from broker.auth.hashes import PasswordHash
from broker.log import get_logger

CHECK_THREADS: Final = 2
#: Checks that wait. With 100 ms each the last of them waits some seconds, less than clients have patience.
MAX_WAITING: Final = 64

_log = get_logger("authentication")


class Busy(BackendError):
    """So many checks wait that one more would come too late. Said once in the log, counted with every CONNECT."""


class Checks:
    """All password checks of a node: at most `threads` at a time, and at most `waiting` that wait for their turn.

    The hashing runs without the interpreter's lock, so the turn of everybody else goes on.
    """

    __slots__ = ("_admitted", "_bound", "_full", "_limiter")

    def __init__(self, threads: int = CHECK_THREADS, waiting: int = MAX_WAITING) -> None:
        self._limiter = trio.CapacityLimiter(threads)
        self._bound = threads + waiting
        self._admitted = 0
        self._full = False

    async def check(self, found: PasswordHash, password: bytes) -> bool:
        """Whether this is the password; Busy at the bound. A check that has begun ends even if its caller does not
        wait for it."""
        if self._admitted >= self._bound:
            if not self._full:
                self._full = True
                _log.warning("authentication.busy", waiting=self._bound)
            raise Busy("too many password checks wait")
        self._admitted += 1
        try:
            return await trio.to_thread.run_sync(found.verify, password, limiter=self._limiter)
        finally:
            self._admitted -= 1
            if self._admitted * 2 < self._bound:
                self._full = False


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
