"""What every answer has in common: headers against misuse by pages, errors without tracebacks, an end to bodies."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.admin.api import FAILED, TIMED_OUT, AdminError
from broker.http.problems import problem, problem_of
from broker.log import get_logger

#: Longest an operation may take; events go on for longer.
ANSWER_S: Final = 90.0
#: How long a client may go on sending a body that is refused: closing at once would lose the answer on its way.
LINGER_S: Final = 2.0

_CSP: Final = (
    "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
_HEADERS: Final = [
    (b"content-security-policy", _CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

_log = get_logger("http")


class Front:
    """The ASGI app around all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        exchange = _Exchange(scope, receive, send)
        # Routes match the path as it was written: %2F is part of a client id, not the end of it.
        path = scope["raw_path"].decode("ascii", "replace")
        scope = {**scope, "path": path, "root_path": ""}
        answer: Callable[[Scope, Receive, Send], Awaitable[None]]
        try:
            await self._app(scope, exchange.receive, exchange.send)
            return
        except AdminError as error:
            answer = problem_of(error, path) if _is_api(path) else PlainTextResponse(f"{error.detail}\n", error.status)
        except trio.TooSlowError:
            answer = problem(TIMED_OUT, instance=path)
        except Exception:
            reference = secrets.token_hex(4)
            _log.exception("http.failed", method=scope["method"], path=path[:200], reference=reference)
            detail = f"a defect of the server; its log has more under the reference {reference}"
            answer = problem(FAILED, detail=detail, instance=path)
        if not exchange.started:
            await answer(scope, exchange.receive, exchange.send)


def _is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


Handler = Callable[[Request], Awaitable[Response]]


class Methods:
    """The ASGI app of one path: an answer for each method. HEAD is GET without the body, which hypercorn leaves out."""

    def __init__(self, **handlers: Handler) -> None:
        self._handlers = {**handlers, **({"HEAD": handlers["GET"]} if "GET" in handlers else {})}
        self._allowed = ", ".join(sorted([*self._handlers, "OPTIONS"]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is not None:
            answer = await handler(Request(scope, receive))
        elif scope["method"] == "OPTIONS":
            answer = Response(status_code=204, headers={"Allow": self._allowed})
        else:
            answer = not_allowed(scope["path"], self._allowed)
        await answer(scope, receive, send)


def not_allowed(path: str, allowed: str) -> Response:
    """405."""
    answer = problem(405, detail=f"here are {allowed}", instance=path)
    answer.headers["Allow"] = allowed
    return answer


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI app for what is nowhere."""
    if _is_api(scope["path"]):
        raise AdminError(404, "no such place", "the document of all places is /api/v1/openapi.json")
    await PlainTextResponse("not found\n", 404)(scope, receive, send)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, value in scope["headers"] if value != b"0"}
        self.started = False
        self._unread = b"content-length" in names or b"transfer-encoding" in names
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = [*message.get("headers", ()), *_HEADERS]
            if self._unread:
                headers.append((b"connection", b"close"))
            await self._send({**message, "headers": headers})
        elif self._unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            with trio.move_on_after(LINGER_S):
                await self._discard()
            async with trio.open_nursery() as nursery:  # nobody else makes room for what still comes
                nursery.start_soon(self._discard)
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
                nursery.cancel_scope.cancel()
        else:
            await self._send(message)

    async def _discard(self) -> None:
        while self._unread:
            await self.receive()
