"""The port between what operators use (HTTP, the parent of workers) and the nodes: operations by name, in JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol

import msgspec

from broker.errors import BrokerError

Scope = Literal["viewer", "operator", "admin"]

VIEWER: Final[Scope] = "viewer"
OPERATOR: Final[Scope] = "operator"
ADMIN: Final[Scope] = "admin"

#: Each may do what those before it may.
SCOPES: Final[tuple[Scope, ...]] = (VIEWER, OPERATOR, ADMIN)

BAD_REQUEST: Final = 400
UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
UNPROCESSABLE: Final = 422
TOO_MANY: Final = 429
FAILED: Final = 500
UNAVAILABLE: Final = 503
TIMED_OUT: Final = 504


def permits(held: str, wanted: str) -> bool:
    """Whether a credential with the scope `held` may do what needs `wanted`."""
    return held in SCOPES and SCOPES.index(held) >= SCOPES.index(wanted)


class AdminError(BrokerError):
    """Something cannot be done. `status` is that of HTTP; `title` says what kind of failure it is, in a few words."""

    def __init__(self, status: int, title: str, detail: str = "") -> None:
        super().__init__(detail or title)
        self.status = status
        self.title = title
        self.detail = detail or title


class Caller(msgspec.Struct, frozen=True):
    """Who asks: the name of the credential ("" inside of the broker) and its scope."""

    name: str = ""
    scope: Scope = ADMIN


_INSIDE: Final = Caller()

#: Who asked for what is carried out now.
CALLER: Final[ContextVar[Caller]] = ContextVar("caller", default=_INSIDE)


class Desk(Protocol):
    """Where operations are carried out: a node, or the parent of several, which hands them on."""

    async def call(self, operation: str, arguments: Mapping[str, Any], caller: Caller) -> Any:
        """Carry out an operation that answers once. Arguments (as texts, where they come from a URL) and result are
        values that JSON can hold. Raises AdminError."""
        ...

    def stream(
        self, operation: str, arguments: Mapping[str, Any], caller: Caller
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Carry out an operation that tells things one after the other, until the iteration ends or is left.

        Raises AdminError when it is entered."""
        ...
