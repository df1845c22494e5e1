"""Several commands in one pipeline, awaited together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import trio

from cluster.api import Poller
from cluster.redis.links import Link
from cluster.redis.pipeline import Part


class Gathering:
    """The replies to a number of commands: the shards of a Redis Cluster answer in whatever order."""

    __slots__ = ("_done", "_left", "replies")

    def __init__(self, count: int) -> None:
        self.replies: list[object] = [None] * count
        self._left = count
        self._done = trio.Event()

    def then(self, number: int) -> Callable[[object], None]:
        """The `then` of one of them."""
        return partial(self._answered, number)

    def _answered(self, number: int, reply: object) -> None:
        self.replies[number] = reply
        self._left -= 1
        if not self._left:
            self._done.set()

    async def wait(self) -> list[object]:
        """Returns when all were answered."""
        await self._done.wait()
        return self.replies


async def gather(
    link: Link, poller: Poller, commands: Sequence[tuple[Part, ...]], resend: bool = False, durable: bool = False
) -> list[object]:
    """Sends commands as one batch and returns their raw replies, in their order (see `requests.result`)."""
    if not commands:
        return []
    gathering = Gathering(len(commands))
    for number, command in enumerate(commands):
        link.command(command, gathering.then(number), resend, durable=durable)
    poller.wake()
    return await gathering.wait()
