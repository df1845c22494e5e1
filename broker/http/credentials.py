"""Who sends a request: API key (Bearer or Basic) or login (cookie), as the desk knows them.

Answers of the desk count for `REMEMBERED_S`, so that one who asks often costs the nodes little.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from starlette.requests import Request

from broker.admin.api import FORBIDDEN, TOO_MANY, AdminError, Caller, Desk, Scope, permits
from broker.admin.key_document import LONGEST_SECRET, read_token
from broker.admin.keyring import Identity, unauthorized, wrong_csrf
from broker.http.rates import Rates
from broker.limits.places import origin_of

COOKIE: Final = "rookery_login"
CSRF_HEADER: Final = "x-csrf-token"
REMEMBERED_S: Final = 1.0
_KEPT: Final = 1000
_NAME_MAX: Final = 64
#: Who asks on behalf of the HTTP server itself.
INSIDE: Final = Caller()
_SAFE: Final = frozenset({"GET", "HEAD"})


class Credentials:
    """Of one HTTP server."""

    def __init__(self, desk: Desk, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._desk = desk
        self._clock = clock
        self._rates = Rates(rate, clock)
        self._known: dict[bytes, tuple[float, Identity]] = {}
        self._salt = os.urandom(16)

    def admit_stranger(self, request: Request) -> None:
        """Count a request that needs no credential. Raises AdminError (429)."""
        self._admit(f"ip:{origin(request)}")

    async def caller(self, request: Request, wanted: Scope) -> Identity:
        """Who sends the request, and may do what needs `wanted`. Raises AdminError (401, 403, 429, 503)."""
        identity = await self.identity(request)
        if not permits(identity.scope, wanted):
            raise AdminError(
                FORBIDDEN, "not allowed", f"this needs the scope {wanted}, and {identity.name} has {identity.scope}"
            )
        return identity

    async def identity(self, request: Request) -> Identity:
        """Who sends the request. Raises AdminError (401, 403, 429, 503)."""
        try:
            identity, by_cookie = await self._identify(request)
        except AdminError:
            self._admit(f"ip:{origin(request)}")
            raise
        self._admit(f"key:{identity.name}")
        if by_cookie:
            _check_page(request, identity)
        return identity

    def _admit(self, name: str) -> None:
        if not self._rates.allows(name):
            raise AdminError(TOO_MANY, "too many requests", "this is more than http_rate allows")

    async def _identify(self, request: Request) -> tuple[Identity, bool]:
        given = request.headers.get("authorization")
        if given is not None:
            name, secret = read_authorization(given)
            arguments = {"name": name, "secret": secret, "origin": origin(request)}
            return await self._ask("auth.identify", arguments), False
        token = request.cookies.get(COOKIE, "")
        if not token or len(token) > LONGEST_SECRET or not token.isascii():
            raise unauthorized()
        return await self._ask("auth.whose", {"token": token}), True

    async def _ask(self, operation: str, arguments: Mapping[str, Any]) -> Identity:
        digest = hashlib.blake2b(msgspec.json.encode(arguments), key=self._salt, digest_size=16).digest()
        known = self._known.get(digest)
        if known is not None and known[0] > self._clock():
            return known[1]
        self._known.pop(digest, None)
        identity = msgspec.convert(await self._desk.call(operation, arguments, INSIDE), Identity)
        if len(self._known) >= _KEPT:
            del self._known[next(iter(self._known))]
        self._known[digest] = (self._clock() + REMEMBERED_S, identity)
        return identity

    def forget(self) -> None:
        """A login has ended."""
        self._known.clear()


def origin(request: Request) -> str:
    """Where a request comes from: an IP address, the /64 of IPv6."""
    return origin_of(request.client.host) if request.client is not None else ""


def read_authorization(header: str) -> tuple[str, str]:
    """Name and secret of an Authorization header. Raises AdminError (401)."""
    scheme, _, value = header.partition(" ")
    found: tuple[str, str] | None = None
    if scheme.lower() == "bearer":
        found = read_token(value.strip())
    elif scheme.lower() == "basic":
        try:
            text = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise unauthorized() from None
        name, colon, secret = text.partition(":")
        found = (name, secret) if colon and secret else None
    if found is None or not 0 < len(found[0]) <= _NAME_MAX or len(found[1]) > LONGEST_SECRET:
        raise unauthorized()
    if not found[1].isprintable():
        raise unauthorized()
    return found


def _check_page(request: Request, identity: Identity) -> None:
    """A login that a browser sends along: was it a page of ours that asked?"""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise wrong_csrf()
    if request.method in _SAFE:
        return
    given = request.headers.get(CSRF_HEADER, "").encode()
    if identity.csrf is None or not hmac.compare_digest(given, identity.csrf.encode()):
        raise wrong_csrf()
