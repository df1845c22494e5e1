"""A small reactor for tests: one trio task, one private epoll, and a flush at the end of each turn."""

from __future__ import annotations

import os
import select
from types import TracebackType
from typing import Protocol

import trio

from cluster.api import Readiness


class Flushing(Protocol):
    def flush(self) -> None: ...


class EpollPoller:
    """A `cluster.api.Poller`; start `serve` in a nursery and list in `flushing` what is flushed after each turn."""

    def __init__(self) -> None:
        self.flushing: list[Flushing] = []
        self.turns = 0
        self._handlers: dict[int, Readiness] = {}
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)

    def __enter__(self) -> EpollPoller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._epoll.close()
        os.close(self._bell)

    def register(self, fd: int, handler: Readiness) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def watch_writable(self, fd: int, wanted: bool) -> None:
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def unregister(self, fd: int) -> None:
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    async def serve(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.turns += 1
            for fd, events in self._epoll.poll(0):
                if fd == self._bell:
                    os.eventfd_read(fd)
                    continue
                if events & ~select.EPOLLOUT and (handler := self._handlers.get(fd)):
                    handler.readable()
                if events & select.EPOLLOUT and (handler := self._handlers.get(fd)):
                    handler.writable()
            for each in self.flushing:
                each.flush()
