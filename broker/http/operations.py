"""The operations of `broker.admin` below /api/v1."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from broker.admin.api import BAD_REQUEST, TOO_MANY, AdminError, Caller, Desk
from broker.admin.operations import Operation
from broker.http.credentials import Credentials
from broker.http.events import STREAMS_MAX, EventStream
from broker.http.front import ANSWER_S, not_allowed
from broker.http.problems import json_response
from broker.http.shapes import Shape

PREFIX: Final = "/api/v1"

#: Longest that the body of a request may take.
BODY_S: Final = 30.0


class Counter:
    """Of the event streams of one server."""

    __slots__ = ("streams",)

    def __init__(self) -> None:
        self.streams = 0


class Place:
    """All operations of one path: an ASGI app."""

    def __init__(
        self, shapes: Iterable[Shape], desk: Desk, credentials: Credentials, max_body: int, counter: Counter
    ) -> None:
        self._shapes = {shape.operation.method: shape for shape in shapes}
        self._desk = desk
        self._credentials = credentials
        self._max_body = max_body
        self._counter = counter
        methods = [*self._shapes, "OPTIONS"] + (["HEAD"] if "GET" in self._shapes else [])
        self._allowed = ", ".join(sorted(methods))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        method = scope["method"]
        if method == "OPTIONS":
            self._credentials.admit_stranger(request)
            await Response(status_code=204, headers={"Allow": self._allowed})(scope, receive, send)
            return
        shape = self._shapes.get("GET" if method == "HEAD" else method)
        if shape is None:
            await not_allowed(scope["path"], self._allowed)(scope, receive, send)
            return
        await self._answer(shape, request, receive, send)

    async def _answer(self, shape: Shape, request: Request, receive: Receive, send: Send) -> None:
        operation = shape.operation
        identity = await self._credentials.caller(request, operation.scope)
        body = await read_body(request, self._max_body)
        arguments = shape.read(request.path_params, request.scope["query_string"], body)
        caller = Caller(identity.name, identity.scope)
        if operation.events:
            await self._follow(operation, arguments, caller, request, receive, send)
            return
        with trio.fail_after(ANSWER_S):
            result = await self._desk.call(operation.name, arguments, caller)
        answer = Response(status_code=204) if operation.status == 204 else json_response(result, operation.status)
        await answer(request.scope, receive, send)

    async def _follow(
        self,
        operation: Operation[Any],
        arguments: dict[str, Any],
        caller: Caller,
        request: Request,
        receive: Receive,
        send: Send,
    ) -> None:
        if request.method == "HEAD":
            await Response(status_code=200, media_type="text/event-stream")(request.scope, receive, send)
            return
        if self._counter.streams >= STREAMS_MAX:
            raise AdminError(TOO_MANY, "too many streams", f"{STREAMS_MAX} are followed already")
        self._counter.streams += 1
        try:
            async with self._desk.stream(operation.name, arguments, caller) as items:
                await EventStream(operation.subject, items).run(receive, send)
        finally:
            self._counter.streams -= 1


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request, JSON if there is any. Raises AdminError (400, 408, 413, 415)."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    body = b""
    try:
        with trio.fail_after(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _too_large(most)
    except trio.TooSlowError:
        raise AdminError(408, "the request takes too long", f"a body must be here within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise AdminError(BAD_REQUEST, "the body is not complete") from None
    if body:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise AdminError(415, "not JSON", "the body must be of the type application/json")
    return body


def _too_large(most: int) -> AdminError:
    return AdminError(413, "the body is too large", f"http_max_body is {most} bytes")


def routes(
    operations: Iterable[Operation[Any]], desk: Desk, credentials: Credentials, max_body: int
) -> list[BaseRoute]:
    """One for each path, the particular ones before the general ones."""
    counter = Counter()
    by_path: dict[str, list[Shape]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, []).append(Shape(operation))
    ordered = sorted(by_path, key=_generality)
    return [Route(PREFIX + path, Place(by_path[path], desk, credentials, max_body, counter)) for path in ordered]


def _generality(path: str) -> list[int]:
    """Literal names before arguments, and those before such as take all the rest."""
    return [2 if ":path}" in part else 1 if part.startswith("{") else 0 for part in re.split("/", path)]
