"""Questions to the store that somebody waits for: never for long, and also where an older library is in place."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final, cast

import trio

from broker.errors import StoreUnavailable
from cluster.api import Poller
from cluster.redis.calls import gather
from cluster.redis.library import patched
from cluster.redis.links import Link
from cluster.redis.pipeline import Part
from cluster.redis.requests import result

#: How long an answer is waited for.
_ANSWER_S: Final = 5.0

#: Commands that are sent together where each takes the store a while.
_TOGETHER: Final = 8


class Asking:
    """All methods raise StoreUnavailable or ClusterError."""

    def __init__(self, link: Link, poller: Poller) -> None:
        self._link = link
        self._poller = poller

    async def one(self, *parts: Part, durable: bool = False) -> object:
        """The answer to a command."""
        return await self.within(patched(self._link, lambda: self._link.call(*parts, durable=durable)))

    async def all(self, commands: Sequence[tuple[Part, ...]]) -> list[object]:
        """The answers to commands that are sent as one batch."""
        found = await self.within(patched(self._link, lambda: self._gathered(commands)))
        return cast("list[object]", found)

    async def in_turns(self, commands: Sequence[tuple[Part, ...]]) -> list[object]:
        """The same, sent a few at a time: in between the store answers others."""
        found: list[object] = []
        for first in range(0, len(commands), _TOGETHER):
            found += await self.all(commands[first : first + _TOGETHER])
        return found

    async def _gathered(self, commands: Sequence[tuple[Part, ...]]) -> list[object]:
        return [result(reply) for reply in await gather(self._link, self._poller, commands)]

    async def within(self, answer: Awaitable[object]) -> object:
        """The answer, if it comes in time."""
        with trio.move_on_after(_ANSWER_S):
            return await answer
        raise StoreUnavailable(f"no answer of the store within {_ANSWER_S:g} s")
