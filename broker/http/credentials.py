"""Who sends a request: API key (Bearer or Basic) or login (cookie), as the desk knows them.

Answers of the desk count for `REMEMBERED_S`, so that one who asks often costs the nodes little. An address that used up
its rate with what is no credential is refused before anybody is asked, all but those whose credential was right lately.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec
from starlette.requests import Request

from broker.admin.api import FORBIDDEN, TOO_MANY, UNAUTHORIZED, AdminError, Caller, Desk, Scope, permits
from broker.admin.key_document import LONGEST_SECRET, looks_generated, read_token
from broker.admin.keyring import Identity, unauthorized, wrong_csrf
from broker.http.guests import guest_of
from broker.http.rates import Rates
from broker.limits.places import origin_of

COOKIE: Final = "rookery_login"
CSRF_HEADER: Final = "x-csrf-token"
REMEMBERED_S: Final = 1.0
#: How long one whose credential was right is not taken for a stranger.
TRUSTED_S: Final = 600.0
_KEPT: Final = 1000
_NAME_MAX: Final = 64
#: Who asks on behalf of the HTTP server itself.
INSIDE: Final = Caller()
_IDENTIFY: Final = "auth.identify"
_WHOSE: Final = "auth.whose"
_SAFE: Final = frozenset({"GET", "HEAD"})


class Credentials:
    """Of one HTTP server."""

    def __init__(self, desk: Desk, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._desk = desk
        self._clock = clock
        self._rates = Rates(rate, clock)
        #: By the digest of a question: when it was answered, and what.
        self._known: dict[bytes, tuple[float, Identity]] = {}
        #: What nobody can have guessed, and was wrong: when.
        self._wrong: dict[bytes, float] = {}
        self._salt = os.urandom(16)

    def admit_stranger(self, request: Request) -> None:
        """Count a request that needs no credential. Raises AdminError (429)."""
        self._admit(f"ip:{origin(request)}")

    async def caller(self, request: Request, wanted: Scope) -> Identity:
        """Who sends the request, and may do what needs `wanted`. Raises AdminError (401, 403, 429, 503)."""
        return _permitted(await self.identity(request), wanted)

    async def still(self, request: Request, wanted: Scope) -> None:
        """Whether who sent the request may go on with what needs `wanted`. Raises AdminError (401, 403, 429, 503)."""
        _permitted(await self._ask(*_question(request)), wanted)

    async def identity(self, request: Request) -> Identity:
        """Who sends the request. Raises AdminError (401, 403, 429, 503)."""
        guest = guest_of(request.scope)
        guest.known = False
        stranger = f"ip:{origin(request)}"
        try:
            operation, arguments = _question(request)
        except AdminError:
            self._admit(stranger)
            raise
        trusted = self._was_right(operation, arguments)
        if not trusted:
            self._admit(stranger)
        try:
            identity = await self._ask(operation, arguments)
        except AdminError:
            if trusted:
                self._admit(stranger)
            raise
        if not trusted:
            self._rates.give_back(stranger)
        guest.known = True
        self._admit(f"key:{identity.name}")
        if operation == _WHOSE:
            _check_page(request, identity)
        return identity

    def forget(self, token: str) -> None:
        """This login has ended."""
        self._known.pop(self._digest(_WHOSE, {"token": token}), None)

    def _admit(self, name: str) -> None:
        if not self._rates.allows(name):
            raise AdminError(TOO_MANY, "too many requests", "this is more than http_rate allows")

    def _was_right(self, operation: str, arguments: Mapping[str, str]) -> bool:
        known = self._known.get(self._digest(operation, arguments))
        return known is not None and self._clock() < known[0] + TRUSTED_S

    async def _ask(self, operation: str, arguments: Mapping[str, str]) -> Identity:
        digest = self._digest(operation, arguments)
        known = self._known.get(digest)
        if known is not None and self._clock() < known[0] + REMEMBERED_S:
            return known[1]
        if self._clock() < self._wrong.get(digest, -REMEMBERED_S) + REMEMBERED_S:
            raise unauthorized()
        try:
            identity = msgspec.convert(await self._desk.call(operation, arguments, INSIDE), Identity)
        except AdminError as error:
            if error.status == UNAUTHORIZED:
                self._known.pop(digest, None)
                if operation == _WHOSE or looks_generated(arguments["secret"]):
                    _keep(self._wrong, digest, self._clock())
            raise
        _keep(self._known, digest, (self._clock(), identity))
        return identity

    def _digest(self, operation: str, arguments: Mapping[str, str]) -> bytes:
        asked = msgspec.json.encode((operation, arguments))
        return hashlib.blake2b(asked, key=self._salt, digest_size=16).digest()


def _question(request: Request) -> tuple[str, dict[str, str]]:
    """What to ask the desk. Raises AdminError (401)."""
    given = request.headers.get("authorization")
    if given is not None:
        name, secret = read_authorization(given)
        return _IDENTIFY, {"name": name, "secret": secret, "origin": origin(request)}
    token = request.cookies.get(COOKIE, "")
    if not token or len(token) > LONGEST_SECRET or not token.isascii():
        raise unauthorized()
    return _WHOSE, {"token": token}


def _permitted(identity: Identity, wanted: Scope) -> Identity:
    if not permits(identity.scope, wanted):
        raise AdminError(
            FORBIDDEN, "not allowed", f"this needs the scope {wanted}, and {identity.name} has {identity.scope}"
        )
    return identity


V = TypeVar("V")


def _keep(memory: dict[bytes, V], key: bytes, value: V) -> None:
    """What was kept longest goes first."""
    memory.pop(key, None)
    if len(memory) >= _KEPT:
        del memory[next(iter(memory))]
    memory[key] = value


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
