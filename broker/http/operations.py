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

from broker.admin.api import BAD_REQUEST, FORBIDDEN, UNAUTHORIZED, AdminError, Caller, Desk
from broker.admin.operations import Operation
from broker.http.credentials import Credentials
from broker.http.events import STREAMS_KEPT, STREAMS_MAX, STREAMS_OF_ONE, EventStream, gone
from broker.http.front import ANSWER_S, not_allowed
from broker.http.guests import guest_of
from broker.http.problems import json_response
from broker.http.shapes import Shape
from broker.http.shares import Shares

PREFIX: Final = "/api/v1"

#: Longest that the body of a request may take, and that of one who is not known yet.
BODY_S: Final = 30.0
STRANGERS_BODY_S: Final = 5.0
#: How long an operation goes on for a client that sends no more. Perhaps it still listens.
GONE_S: Final = 2.0
#: Operations of one HTTP server at a time, until their answers are taken; those of one credential; those for admins.
#: With the event streams these are fewer than there are connections, so that there is room for who is not known.
OPERATIONS_MAX: Final = 300
OPERATIONS_OF_ONE: Final = 100
OPERATIONS_KEPT: Final = 50
#: How often it is seen that whoever follows a stream may still do so; how long that may be unknown.
CHECK_S: Final = 1.0
UNCHECKED_S: Final = 30.0


class Limits:
    """What callers share in one server."""

    __slots__ = ("operations", "streams")

    def __init__(self) -> None:
        self.operations = Shares("operations", OPERATIONS_MAX, OPERATIONS_OF_ONE, OPERATIONS_KEPT)
        self.streams = Shares("event streams", STREAMS_MAX, STREAMS_OF_ONE, STREAMS_KEPT)


class Place:
    """All operations of one path: an ASGI app."""

    def __init__(
        self, shapes: Iterable[Shape], desk: Desk, credentials: Credentials, max_body: int, limits: Limits
    ) -> None:
        self._shapes = {shape.operation.method: shape for shape in shapes}
        self._desk = desk
        self._credentials = credentials
        self._max_body = max_body
        self._limits = limits
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
        shares = self._limits.streams if operation.events else self._limits.operations
        guest = guest_of(request.scope)
        with shares.taken(caller):
            guest.served = True
            try:
                if operation.events:
                    await self._follow(operation, arguments, caller, request, receive, send)
                else:
                    await self._carry_out(operation, arguments, caller, request, receive, send)
            finally:
                guest.served = False

    async def _carry_out(
        self,
        operation: Operation[Any],
        arguments: dict[str, Any],
        caller: Caller,
        request: Request,
        receive: Receive,
        send: Send,
    ) -> None:
        answer: Response | None = None
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_given_up, receive, nursery.cancel_scope)
            try:
                with trio.fail_after(ANSWER_S):
                    result = await self._desk.call(operation.name, arguments, caller)
                # Only the bytes wait for the client.
                answer = (
                    Response(status_code=204) if operation.status == 204 else json_response(result, operation.status)
                )
                del result
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if answer is not None:
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

        async def refused() -> AdminError:
            return await self._refused(request, operation)

        async with self._desk.stream(operation.name, arguments, caller) as items:
            await EventStream(operation.subject, items, refused).run(receive, send)

    async def _refused(self, request: Request, operation: Operation[Any]) -> AdminError:
        """Returns when whoever follows may do so no more, or when that was unknown for too long."""
        confirmed = trio.current_time()
        while True:
            await trio.sleep(CHECK_S)
            try:
                await self._credentials.still(request, operation.scope)
                confirmed = trio.current_time()
            except AdminError as error:
                if error.status in (UNAUTHORIZED, FORBIDDEN) or trio.current_time() - confirmed > UNCHECKED_S:
                    return error


async def _given_up(receive: Receive, scope: trio.CancelScope) -> None:
    await gone(receive)
    await trio.sleep(GONE_S)
    scope.cancel()


async def read_body(request: Request, most: int, within_s: float = BODY_S) -> bytes:
    """The body of a request, JSON if there is any. Raises AdminError (400, 408, 413, 415)."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    body = b""
    try:
        with trio.fail_after(within_s):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _too_large(most)
    except trio.TooSlowError:
        raise AdminError(408, "the request takes too long", f"a body must be here within {within_s:g} s") from None
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
    limits = Limits()
    by_path: dict[str, list[Shape]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, []).append(Shape(operation))
    ordered = sorted(by_path, key=_generality)
    return [Route(PREFIX + path, Place(by_path[path], desk, credentials, max_body, limits)) for path in ordered]


def _generality(path: str) -> list[int]:
    """Literal names before arguments, and those before such as take all the rest."""
    return [2 if ":path}" in part else 1 if part.startswith("{") else 0 for part in re.split("/", path)]
