"""Few at a time of what costs much: others wait for their turn, and not for long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from broker.admin.api import UNAVAILABLE, AdminError

#: Reads of payloads, looks at all that a node knows, and other questions that it answers, at a time.
READERS: Final = 2
LOOKING: Final = 4
ANSWERING: Final = 8

#: How long a turn is waited for.
WAIT_S: Final = 5.0


class Turns:
    """So many at a time."""

    def __init__(self, most: int) -> None:
        self._limiter = trio.CapacityLimiter(most)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """In order of arrival. Raises AdminError (503) if it does not come; not twice in a task."""
        came = False
        with trio.move_on_after(WAIT_S):
            await self._limiter.acquire()
            came = True
        if not came:
            raise AdminError(UNAVAILABLE, "busy", f"the node is busy with other such requests for {WAIT_S:g} s")
        try:
            yield
        finally:
            self._limiter.release()
