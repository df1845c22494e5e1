"""Requests that come through proxies: whom they are from, and whether they came over TLS, as trusted ones say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from broker.admin.api import TOO_MANY, AdminError
from broker.http.guests import Guests, guest_of
from broker.limits.places import origin_of
from broker.transport.forwarded import Trusted, client_address

_FOR: Final = "x-forwarded-for"
_PROTO: Final = "x-forwarded-proto"


class Behind:
    """The ASGI app before those that answer: they find in the scope the client, not the proxy. What X-Forwarded-For and
    X-Forwarded-Proto say counts from the networks `trusted` only; from anybody else it is as if it was not there."""

    def __init__(self, app: ASGIApp, trusted: Trusted, guests: Guests) -> None:
        self._app = app
        self._trusted = trusted
        self._guests = guests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if scope["type"] == "http" and client is not None and client[0] in self._trusted:
            seen = client_address(client[0], client[1], _FOR, _values(scope, _FOR), self._trusted)
            scope = {**scope, "client": seen, "scheme": _scheme(scope)}
            if not self._guests.serves(guest_of(scope), origin_of(seen[0])):
                raise AdminError(
                    TOO_MANY, "too many requests", "so many requests of this address are not served at a time"
                )
        await self._app(scope, receive, send)


def _values(scope: Scope, wanted: str) -> list[str]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    name = wanted.encode()
    return [value.decode("latin-1") for each, value in headers if each == name]


def _scheme(scope: Scope) -> str:
    """What the nearest proxy says, which comes last; what it left standing of others does not count."""
    told = ",".join(_values(scope, _PROTO)).rpartition(",")[2].strip().lower()
    return told if told in ("http", "https") else str(scope["scheme"])
