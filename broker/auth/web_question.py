"""Questions to a web service: a template, filled in so that no value can become anything but a value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, urlsplit

import trio

from broker.auth.api import ALLOW, DENY, IGNORE, BackendError
from broker.auth.claims import json_object
from broker.auth.http_client import WebClient, check_url
from broker.auth.template import Lookup, Template
from broker.errors import ConfigError

#: Characters that end a path segment, for some servers even when they are encoded.
_PATH_FORBIDDEN: Final = "/\\"
_RESULTS: Final = {"allow": ALLOW, "deny": DENY, "ignore": IGNORE}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Headers that the transport makes.
_OWN_HEADERS: Final = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"}
)


class Improper(Exception):
    """A value of the client cannot be sent where it belongs: nobody is asked."""


class Rendered:
    """One question, ready to be sent; equal ones have an equal `key`."""

    __slots__ = ("content", "headers", "url")

    def __init__(self, url: str, headers: Sequence[tuple[str, str]], content: bytes | None) -> None:
        self.url = url
        self.headers = headers
        self.content = content

    @property
    def key(self) -> object:
        return self.url, tuple(self.headers), self.content


class WebQuestion:
    """The template of the questions to one service. ConfigError for what can make no request.

    Missing values are empty in a query or body, and Improper in the path.
    """

    def __init__(
        self, url: str, method: str, body: str, headers: Sequence[str], more: frozenset[str] = frozenset()
    ) -> None:
        check_url("url", url)
        self._method = method.upper()
        try:
            parts = urlsplit(url)
            self._origin = f"{parts.scheme}://{parts.netloc}"
            self._path = [Template(part, more) for part in (parts.path or "/").split("/")]
            query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            self._query = [(name, Template(value, more)) for name, value in query]
            fields = parse_qsl(body, keep_blank_values=True, strict_parsing=bool(body))
            self._body = [(name, Template(value, more)) for name, value in fields]
        except ValueError as error:
            raise ConfigError(f"url, body: {error}") from None
        self._headers: list[tuple[str, Template]] = []
        for line in headers:
            name, colon, value = line.partition(":")
            if not colon or not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
                raise ConfigError(f"headers: {name!r:.40} cannot be set")
            try:
                self._headers.append((name, Template(value.strip(), more)))
            except ValueError as error:
                raise ConfigError(f"headers: {name}: {error}") from None
        templates = [*self._path, *(template for _, template in (*self._query, *self._body, *self._headers))]
        #: Names of all placeholders in it.
        self.names = frozenset(name for template in templates for name in template.names)

    def render(self, lookup: Lookup) -> Rendered:
        """The question for some values; Improper if one of them cannot be where it is."""
        path = "/".join(self._segment(template, lookup) for template in self._path)
        query = [(name, _filled(template, lookup)) for name, template in self._query]
        body = [(name, _filled(template, lookup)) for name, template in self._body]
        headers = [(name, _header(_filled(template, lookup))) for name, template in self._headers]
        content: bytes | None = None
        if self._method == "GET":
            query += body
        else:
            headers.append(("Content-Type", "application/json"))
            content = json.dumps(dict(body)).encode("ascii")
        encoded = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)
        headers.append(("Accept", "application/json"))
        return Rendered(f"{self._origin}{path}{'?' if encoded else ''}{encoded}", headers, content)

    def _segment(self, template: Template, lookup: Lookup) -> str:
        if not template.names:
            return template.text

        def value(name: str) -> str:
            found = lookup(name)
            if not found or any(character in _PATH_FORBIDDEN or not character.isprintable() for character in found):
                raise Improper(name)
            return found

        segment = template.render(value, quote=_quoted)
        # A segment of dots is a way to another path.
        if not segment.strip("."):
            raise Improper(template.names[0])
        return segment


class WebService:
    """A service and how it is asked."""

    def __init__(self, question: WebQuestion, method: str, timeout_s: float, pool: int, ca_certs: Path | None) -> None:
        self.question = question
        self._method = method.upper()
        self._client = WebClient(timeout_s, pool, ca_certs)

    async def ask(self, question: Rendered) -> tuple[int, Mapping[str, object]]:
        """ALLOW, DENY or IGNORE, and what else is in the answer; BackendError for anything else."""
        answer = await self._client.ask(self._method, question.url, question.headers, question.content)
        if answer.status == 204:
            return ALLOW, {}
        if answer.status in (401, 403):
            return DENY, {}
        if answer.status != 200:
            raise BackendError(f"status {answer.status}")
        try:
            found = json_object(answer.body)
        except ValueError as error:
            raise BackendError(f"{error!s:.200}") from None
        result = found.get("result")
        if not isinstance(result, str) or result not in _RESULTS:
            raise BackendError(f"result is {result!r:.60}, not allow, deny or ignore")
        return _RESULTS[result], found

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `WebClient`."""
        await self._client.serve(task_status=task_status)


def _filled(template: Template, lookup: Lookup) -> str:
    return template.render(lambda name: lookup(name) or _NOTHING, quote=_present) if template.names else template.text


#: Stands for a missing value, which a template would refuse; no text of a client has it.
_NOTHING: Final = "\0"


def _present(value: str) -> str:
    return "" if value == _NOTHING else value


def _quoted(value: str) -> str:
    return quote(value, safe="")


def _header(value: str) -> str:
    if not value.isascii() or not (value.isprintable() or not value):
        raise Improper("header")
    return value
