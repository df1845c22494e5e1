"""The tasks beside the reactor: they go on when it has worked for long, and may not wait while it waits for more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Others(trio.abc.Instrument):
    """What the trio loop does beside the task that asks: seen only while it asks, so that it costs nothing else."""

    def __init__(self) -> None:
        self._steps = 0
        #: A task was woken since `go_on` returned.
        self.woken = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task runs."""
        self._steps += 1

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """A task will run."""
        self.woken = True

    def readable(self) -> None:
        """What another task waits for is there: it will be woken as soon as trio looks."""
        self.woken = True

    def writable(self) -> None:
        """Never asked for."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What follows is seen."""
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)

    async def go_on(self, seconds: float) -> bool:
        """Let the others go on until they all wait for something (then True), or for so long. Only while `watched`."""
        until = time.monotonic() + seconds
        quiet = 0
        # A task that goes from step to step may take them before and after this one by turns: nobody was there only
        # if nobody was seen in two passes in a row.
        while quiet < 2:
            if time.monotonic() > until:
                return False
            self._steps = 0
            await trio.lowlevel.checkpoint()
            quiet = quiet + 1 if self._steps <= 1 else 0
        self.woken = False
        return True


def trio_epoll() -> int | None:
    """The descriptor on which this trio loop waits for what its tasks wait for. Trio does not tell it: None if it is
    not where it was in the versions known."""
    try:
        from trio._core._run import GLOBAL_RUN_CONTEXT

        return GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno()
    except (ImportError, AttributeError):
        return None
