"""What goes wrong, as problem+json (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from starlette.responses import Response

from broker.admin.api import AdminError

PROBLEM_TYPE: Final = "application/problem+json"

_RETRY_AFTER: Final = {429: "5", 503: "2"}
_NO_STORE: Final = {"Cache-Control": "no-store"}


class Problem(msgspec.Struct, kw_only=True):
    """Why there is no answer. `title` says what kind of failure it is, `detail` what is wrong with this request."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    instance: str = ""


def problem(status: int, title: str = "", detail: str = "", instance: str = "") -> Response:
    """The response."""
    body = Problem(title=title or HTTPStatus(status).phrase, status=status, detail=detail, instance=instance)
    headers: dict[str, str] = dict(_NO_STORE)
    if status == 401:
        # Browsers must not ask for a password on their own: the dashboard has its own form.
        headers["WWW-Authenticate"] = 'Bearer realm="rookery"'
    if status in _RETRY_AFTER:
        headers["Retry-After"] = _RETRY_AFTER[status]
    return Response(msgspec.json.encode(body), status, headers, PROBLEM_TYPE)


def problem_of(error: AdminError, instance: str) -> Response:
    """The response for what could not be done."""
    return problem(error.status, error.title, error.detail[:2000], instance)


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer."""
    body = msgspec.json.encode(content)
    return Response(body, status, {**_NO_STORE, **(headers or {})}, "application/json")
