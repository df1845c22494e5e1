"""Operations that tell things one after the other, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
import trio
from starlette.types import Message, Receive, Send

from broker.admin.api import AdminError
from broker.log import get_logger

#: A comment goes out so often, so that proxies keep the connection and dead clients are noticed.
HEARTBEAT_S: Final = 15.0
#: Streams of one HTTP server at a time, those of one credential, and those that only the scope admin may have.
STREAMS_MAX: Final = 100
STREAMS_OF_ONE: Final = 20
STREAMS_KEPT: Final = 20

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"connection", b"close"),
]

_log = get_logger("http")


async def _never() -> AdminError:
    await trio.sleep_forever()
    raise AssertionError


class EventStream:
    """Sends items as events called `name`, until they end or the client has gone. An error ends it with an event
    `error`, whose data say what it was; so does what `refused` returns, as soon as it does."""

    def __init__(
        self, name: str, items: AsyncIterator[Any], refused: Callable[[], Awaitable[AdminError]] = _never
    ) -> None:
        self._name = name.encode()
        self._items = items
        self._refused = refused
        self._sending = trio.Lock()

    async def run(self, receive: Receive, send: Send) -> None:
        """Answers the request."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._say(send, b": hello\n\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_left, receive, nursery.cancel_scope)
            nursery.start_soon(self._beat, send)
            nursery.start_soon(self._watch, send, nursery.cancel_scope)
            await self._tell(send)
            nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send) -> None:
        try:
            async for item in self._items:
                await self._say(send, event(self._name, item))
        except AdminError as error:
            await self._say(send, _failure(error))
        except Exception:
            _log.exception("http.stream_failed", subject=self._name.decode())
            await self._say(send, event(b"error", {"status": 500, "title": "an error of the server"}))

    async def _watch(self, send: Send, scope: trio.CancelScope) -> None:
        error = await self._refused()
        # At once, even where the client does not read.
        with trio.move_on_after(1):
            await self._say(send, _failure(error))
        scope.cancel()

    async def _beat(self, send: Send) -> None:
        while True:
            await trio.sleep(HEARTBEAT_S)
            await self._say(send, b": alive\n\n")

    async def _say(self, send: Send, content: bytes) -> None:
        async with self._sending:
            await send({"type": "http.response.body", "body": content, "more_body": True})


def event(name: bytes, item: Any) -> bytes:
    """JSON has no line ends of its own, so one line of data holds it."""
    return b"event: " + name + b"\ndata: " + msgspec.json.encode(item) + b"\n\n"


def _failure(error: AdminError) -> bytes:
    return event(b"error", {"status": error.status, "title": error.title})


async def gone(receive: Receive) -> None:
    """Returns when the client has left, or at least sends no more."""
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def _left(receive: Receive, scope: trio.CancelScope) -> None:
    await gone(receive)
    scope.cancel()
