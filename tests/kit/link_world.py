"""What tests of links need: a reactor that flushes them, and something that collects replies."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

import trio

from cluster.redis.address import StoreAddress
from cluster.redis.link import RedisLink
from cluster.redis.links import Link
from tests.kit.poller import EpollPoller

LinkT = TypeVar("LinkT", bound=Link)


@contextlib.asynccontextmanager
async def reactor() -> AsyncIterator[EpollPoller]:
    with EpollPoller() as poller:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.serve)
            yield poller
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def connected(link: LinkT, poller: EpollPoller) -> AsyncIterator[LinkT]:
    """Connected, and flushed after each turn."""
    poller.flushing.append(link)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.keep_connected)
        try:
            yield link
        finally:
            link.close()
            poller.flushing.remove(link)


@contextlib.asynccontextmanager
async def linked(address: StoreAddress, answer_timeout_s: float = 5.0) -> AsyncIterator[RedisLink]:
    async with (
        reactor() as poller,
        connected(RedisLink(address, poller, answer_timeout_s=answer_timeout_s), poller) as link,
    ):
        yield link


class Expected:
    """Collects replies; `wait` returns when there are `count`."""

    def __init__(self, count: int) -> None:
        self.replies: list[object] = []
        self._count = count
        self._all = trio.Event()

    def then(self, reply: object) -> None:
        self.replies.append(reply)
        if len(self.replies) == self._count:
            self._all.set()

    async def wait(self) -> list[object]:
        with trio.fail_after(30):
            await self._all.wait()
        return self.replies


class CuttingProxy:
    """Forwards connections to a server on loopback; `cut` breaks all of them, somewhere within a reply or a request."""

    def __init__(self, port: int) -> None:
        self.cuts = 0
        self.port = 0
        self._target = port
        self._scopes: set[trio.CancelScope] = set()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._forward, listeners)

    def cut(self) -> None:
        self.cuts += bool(self._scopes)
        for scope in self._scopes:
            scope.cancel()

    async def _forward(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                async with (
                    client,
                    await trio.open_tcp_stream("127.0.0.1", self._target) as server,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._copy, client, server, scope)
                    nursery.start_soon(self._copy, server, client, scope)
            finally:
                self._scopes.discard(scope)

    async def _copy(self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            # Small pieces: a cut is rarely between two replies.
            while data := await source.receive_some(700):
                await target.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
