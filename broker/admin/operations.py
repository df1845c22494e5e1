"""What operators can do, declared once: HTTP routes, the OpenAPI document, `rookery ctl` and tests follow from it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

import msgspec

from broker.admin.api import BAD_REQUEST, AdminError, Scope

if TYPE_CHECKING:
    from broker.admin.office import Office

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

A = TypeVar("A", bound=msgspec.Struct)
T = TypeVar("T")


class Nothing(msgspec.Struct, frozen=True):
    """No arguments, or no result (HTTP 204)."""


class Page(msgspec.Struct, Generic[T], kw_only=True):
    """A part of a list. `cursor` is where the next part begins; null: this was the last.

    `missing_nodes` did not answer in time: what only they know is not among the items."""

    items: list[T]
    cursor: str | None = None
    missing_nodes: list[str] = []


class Operation(Generic[A]):
    """One of them. `path` is below /api/v1, with the names of arguments in braces; a GET or DELETE has its other
    arguments in the query string, others in a JSON object as body. `result` is a type that msgspec knows, Nothing for
    an answer without body.

    With `events` the operation answers with server-sent events, and `result` is what each of them holds."""

    __slots__ = (
        "arguments",
        "description",
        "events",
        "handler",
        "method",
        "name",
        "path",
        "result",
        "scope",
        "status",
        "summary",
    )

    def __init__(
        self,
        name: str,
        scope: Scope,
        method: Method,
        path: str,
        summary: str,
        arguments: type[A],
        result: Any,
        handler: Callable[..., Any],
        *,
        status: int = 200,
        events: bool = False,
    ) -> None:
        self.name = name
        self.scope = scope
        self.method = method
        self.path = path
        self.summary = summary
        self.description = (handler.__doc__ or "").strip()
        self.arguments = arguments
        self.result = result
        self.handler = handler
        self.status = 204 if result is Nothing else status
        self.events = events

    @property
    def path_names(self) -> list[str]:
        """Arguments that are parts of the path. One that may contain slashes is declared as `{name:path}`."""
        return [name.partition(":")[0] for name in re.findall(r"{([^}]+)}", self.path)]

    @property
    def subject(self) -> str:
        """What the operation is about: `clients` of `clients.list`."""
        return self.name.partition(".")[0]

    def read(self, arguments: Any) -> A:
        """The arguments as declared. Raises AdminError (400) that says which one is wrong."""
        try:
            return msgspec.convert(arguments, self.arguments, strict=False)
        except (msgspec.ValidationError, UnicodeError) as error:
            raise AdminError(BAD_REQUEST, "invalid arguments", str(error)) from None


#: By name. Complete once `broker.admin.catalogue` is imported.
OPERATIONS: Final[dict[str, Operation[Any]]] = {}

#: What HTTP servers ask of nodes on their own behalf: no operator can, there is no way to these. By name.
INTERNAL: Final[dict[str, Operation[Any]]] = {}

Answering = Callable[["Office", A], Awaitable[Any]]
Telling = Callable[["Office", A], AbstractAsyncContextManager[AsyncIterator[Any]]]


def operation(
    name: str,
    scope: Scope,
    method: Method,
    path: str,
    summary: str,
    arguments: type[A],
    result: Any,
    *,
    status: int = 200,
) -> Callable[[Answering[A]], Answering[A]]:
    """Declares an operation whose handler is `async def handler(office, arguments) -> result`; it may raise AdminError,
    and ClusterError, which becomes 503."""

    def declare(handler: Answering[A]) -> Answering[A]:
        _add(Operation(name, scope, method, path, summary, arguments, result, handler, status=status))
        return handler

    return declare


def events(
    name: str, scope: Scope, path: str, summary: str, arguments: type[A], item: Any
) -> Callable[[Telling[A]], Telling[A]]:
    """Declares a GET of server-sent events; its handler is an async context manager of an iterator of items."""

    def declare(handler: Telling[A]) -> Telling[A]:
        _add(Operation(name, scope, "GET", path, summary, arguments, item, handler, events=True))
        return handler

    return declare


def internal(name: str, arguments: type[A], result: Any) -> Callable[[Answering[A]], Answering[A]]:
    """Declares what only the HTTP server of the node, or of the parent of workers, may ask."""

    def declare(handler: Answering[A]) -> Answering[A]:
        assert name not in INTERNAL, f"{name} is declared twice"
        INTERNAL[name] = Operation(name, "admin", "GET", "", "", arguments, result, handler)
        return handler

    return declare


def _add(declared: Operation[Any]) -> None:
    assert declared.name not in OPERATIONS, f"{declared.name} is declared twice"
    OPERATIONS[declared.name] = declared
