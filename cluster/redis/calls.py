"""Several commands in one pipeline, awaited together."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from cluster.api import Poller
from cluster.redis.pipeline import Part, Pipeline


class Gathering:
    """The replies to a number of commands, as they come: a link answers in the order of its commands."""

    __slots__ = ("_done", "_left", "replies")

    def __init__(self, left: int) -> None:
        self.replies: list[object] = []
        self._left = left
        self._done = trio.Event()

    def answered(self, reply: object) -> None:
        """The `then` of each of them."""
        self.replies.append(reply)
        if len(self.replies) == self._left:
            self._done.set()

    async def wait(self) -> list[object]:
        """Returns when all were answered."""
        await self._done.wait()
        return self.replies


async def gather(link: Pipeline, poller: Poller, commands: Sequence[tuple[Part, ...]]) -> list[object]:
    """Sends commands as one batch and returns their raw replies (see `requests.result`)."""
    if not commands:
        return []
    gathering = Gathering(len(commands))
    for command in commands:
        link.command(command, gathering.answered)
    poller.wake()
    return await gathering.wait()
