"""Logins for browsers: a secret for a cookie. No operation of `broker.admin`: cookies are a matter of HTTP."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from broker.admin.api import BAD_REQUEST, AdminError, Desk, Scope
from broker.admin.key_document import LONGEST_SECRET
from broker.admin.keyring import Login, unauthorized
from broker.http.credentials import COOKIE, INSIDE, Credentials, origin
from broker.http.operations import STRANGERS_BODY_S, read_body
from broker.http.problems import json_response

_BODY_MAX = 4096


class LoginRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The name of an API key and its secret."""

    name: str
    secret: str


class WhoAmI(msgspec.Struct, kw_only=True):
    """Who asks. `csrf_token` belongs into the header X-CSRF-Token of each request that changes something and has the
    cookie; it is null for keys. `expires_at_ms` null: never."""

    name: str
    scope: Scope
    csrf_token: str | None = None
    expires_at_ms: int | None = None


class Logins:
    """The three places."""

    def __init__(self, desk: Desk, credentials: Credentials) -> None:
        self._desk = desk
        self._credentials = credentials

    async def login(self, request: Request) -> Response:
        """POST: begins a login; the cookie is for the same site only, and no script can read it."""
        self._credentials.admit_stranger(request)
        body = await read_body(request, _BODY_MAX, STRANGERS_BODY_S)
        try:
            given = msgspec.json.decode(body or b"{}", type=LoginRequest)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise AdminError(BAD_REQUEST, "invalid arguments", str(error)) from None
        if not 0 < len(given.name) <= 64 or not 0 < len(given.secret) <= LONGEST_SECRET:
            raise unauthorized()
        arguments = {"name": given.name, "secret": given.secret, "origin": origin(request)}
        opened = msgspec.convert(await self._desk.call("auth.open", arguments, INSIDE), Login)
        answer = json_response(
            WhoAmI(
                name=opened.name, scope=opened.scope, csrf_token=opened.csrf, expires_at_ms=int(opened.expires * 1000)
            )
        )
        _set_cookie(answer, request, opened.token, max(1, int(opened.expires - time.time())))
        return answer

    async def logout(self, request: Request) -> Response:
        """POST: ends the login of the cookie."""
        identity = await self._credentials.identity(request)
        await read_body(request, _BODY_MAX)
        answer = Response(status_code=204)
        if identity.csrf is not None:
            token = request.cookies[COOKIE]
            await self._desk.call("auth.close", {"token": token}, INSIDE)
            self._credentials.forget(token)
            _set_cookie(answer, request, "", 0)
        return answer

    async def whoami(self, request: Request) -> Response:
        """GET: who asks."""
        identity = await self._credentials.identity(request)
        return json_response(
            WhoAmI(
                name=identity.name,
                scope=identity.scope,
                csrf_token=identity.csrf,
                expires_at_ms=None if identity.expires is None else int(identity.expires * 1000),
            )
        )


def _set_cookie(answer: Response, request: Request, token: str, max_age_s: int) -> None:
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, token, max_age=max_age_s, path="/", secure=secure, httponly=True, samesite="strict")
