"""The REST API of a node, with nothing but the standard library."""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import os
import socket
import ssl
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import click

from broker.cli.tables import plain
from broker.config import SETTINGS, Endpoint
from broker.errors import ConfigError

DEFAULT_URL: Final = "http://127.0.0.1:18083"
#: What help says in place of it.
SHOWN_URL: Final = f"what ROOKERY_HTTP or the file ROOKERY_CONFIG say, else {DEFAULT_URL}"
PREFIX: Final = "/api/v1"

EXIT_FAILED: Final = 1
EXIT_NOT_ALLOWED: Final = 3
EXIT_NOT_FOUND: Final = 4
EXIT_NO_ANSWER: Final = 5
EXIT_INCOMPLETE: Final = 6

_STATUSES: Final = {
    401: EXIT_NOT_ALLOWED,
    403: EXIT_NOT_ALLOWED,
    404: EXIT_NOT_FOUND,
    502: EXIT_NO_ANSWER,
    503: EXIT_NO_ANSWER,
    504: EXIT_NO_ANSWER,
}

#: Events: a node says something every 15 s.
SILENCE_S: Final = 60.0

F = TypeVar("F", bound=Callable[..., object])


class ApiFailure(click.ClickException):
    """What a node refused, or why there was no answer. `exit_code` is one of EXIT_..., `status` that of HTTP or 0."""

    def __init__(self, message: str, exit_code: int, status: int = 0) -> None:
        super().__init__(plain(" ".join(message.split())))  # it may quote what a client chose
        self.exit_code = exit_code  # type: ignore[misc]
        self.status = status


@dataclass(frozen=True, slots=True)
class Api:
    """One node, or the parent of several. `key` is `rk_...` or `NAME:SECRET`, "" for none."""

    url: str = DEFAULT_URL
    key: str = ""
    ca_file: str = ""
    timeout_s: float = 10.0

    def call(
        self, method: str, path: str, query: Sequence[tuple[str, str]] = (), body: Any = None, wait_s: float = 0.0
    ) -> bytes:
        """The body of an answer; `wait_s` is how long the node may work in addition. Raises ApiFailure."""
        connection, response = self._ask(method, path, query, body, self.timeout_s + wait_s)
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from None
        finally:
            connection.close()

    def events(self, path: str, query: Sequence[tuple[str, str]] = ()) -> Iterator[Any]:
        """What the node tells, one value after the other, until it ends. Raises ApiFailure."""
        silence_s = max(SILENCE_S, self.timeout_s)
        connection, response = self._ask("GET", path, query, None, self.timeout_s, "text/event-stream", silence_s)
        try:
            name, data = "", ""
            for raw in response:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    data = line[5:].strip()
                elif not line and data:
                    value = json.loads(data)
                    if name == "error":
                        raise _refusal(int(value["status"]), data.encode())
                    name, data = "", ""
                    yield value
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise self._silent(error) from None
        finally:
            connection.close()

    def _ask(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Any,
        timeout_s: float,
        accept: str = "application/json",
        silence_s: float = 0.0,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        headers = {"Accept": accept, **self._authorization()}
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        target = parts.path.rstrip("/") + PREFIX + path + ("?" + urlencode(query) if query else "")
        connection = self._connection(timeout_s)
        try:
            connection.request(method, target, content, headers)
            taken = connection.sock  # the response may be all that has it from here on
            response = connection.getresponse()
            if silence_s and taken is not None:
                taken.settimeout(silence_s)
            if 200 <= response.status < 300:
                return connection, response
            raise _refusal(response.status, response.read(65536))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._silent(error) from None
        except ApiFailure:
            connection.close()
            raise

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """Directly: a node is no business of a proxy, whatever http_proxy says."""
        parts = urlsplit(self.url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise click.UsageError(f"--ca-file {self.ca_file}: {error}") from None
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)

    def _authorization(self) -> dict[str, str]:
        if not self.key:
            return {}
        if ":" in self.key:
            return {"Authorization": "Basic " + base64.b64encode(self.key.encode()).decode()}
        return {"Authorization": f"Bearer {self.key}"}

    def _silent(self, error: Exception) -> ApiFailure:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        if isinstance(error, socket.gaierror):
            reason = error.strerror or "unknown host"
        elif isinstance(error, OSError) and error.strerror and not isinstance(error, ssl.SSLError):
            reason = error.strerror
        return ApiFailure(f"{self.url}: {reason}", EXIT_NO_ANSWER)


def _refusal(status: int, body: bytes) -> ApiFailure:
    text = f"HTTP status {status}"
    try:
        problem = json.loads(body)
        text = str(problem.get("detail") or problem.get("title") or text)
    except (ValueError, AttributeError):
        if status == 404:
            text = "there is no such thing, or no API here (HTTP status 404)"
    if status == 401:
        text += " (ROOKERY_API_KEY, --key, --key-file)"
    return ApiFailure(text, _STATUSES.get(status, EXIT_FAILED), status)


def path_of(template: str, values: Mapping[str, str]) -> str:
    """A path with values in place of names in braces: `/clients/{client_id}`."""
    parts = []
    for part in template.split("{"):
        name, found, rest = part.partition("}")
        if not found:
            parts.append(part)
            continue
        name, _, kind = name.partition(":")
        parts.append(quote(values[name], safe="/" if kind == "path" else "") + rest)
    return "".join(parts)


def own_url() -> str:
    """Where the node of this machine serves HTTP, as far as the environment tells: as it tells `rookery serve`.

    What else is wrong with the configuration, or may not be read, does not matter here."""
    (setting,) = (each for each in SETTINGS if each.attribute == "http")
    try:
        raw: object = os.environ.get(setting.variable)
        if raw is None:
            raw = tomllib.loads(Path(os.environ["ROOKERY_CONFIG"]).read_text("utf-8"))[setting.name]
        endpoint = setting.parse(raw, "")
    except (KeyError, OSError, ValueError, ConfigError):
        return DEFAULT_URL
    if not isinstance(endpoint, Endpoint):
        raise click.UsageError("http is off at the node of this machine: --url or ROOKERY_API_URL name another node")
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return f"http://{dataclasses.replace(endpoint, host=everywhere.get(endpoint.host, endpoint.host)).authority}"


# -- options of commands


def api_options(command: F) -> F:
    """Gives a command the options that say which API is asked; the command gets them as `**options`."""
    parameters = command.__dict__.setdefault("__click_params__", [])
    parameters.extend(reversed(api_parameters()))
    return command


def api_parameters() -> list[click.Option]:
    """The options themselves."""
    return [
        click.Option(
            ["--url"],
            envvar="ROOKERY_API_URL",
            default=own_url,
            show_default=SHOWN_URL,
            show_envvar=True,
            metavar="URL",
            help="HTTP server of a node.",
        ),
        click.Option(
            ["--key"],
            envvar="ROOKERY_API_KEY",
            show_envvar=True,
            metavar="KEY",
            help="API key, rk_... or NAME:SECRET. Other users of the machine see what is on a command line.",
        ),
        click.Option(
            ["--key-file"],
            envvar="ROOKERY_API_KEY_FILE",
            show_envvar=True,
            metavar="FILE",
            help="File whose first line is the API key.",
        ),
        click.Option(["--ca-file"], metavar="FILE", help="Certificates to trust for https, in place of the system's."),
        click.Option(
            ["--timeout"],
            default=10.0,
            show_default=True,
            type=click.FloatRange(0.1, 600),
            help="Seconds to wait for an answer.",
        ),
    ]


def take_api(options: dict[str, Any]) -> Api:
    """The API that options of `api_parameters` name, which are removed from `options`."""
    url = str(options.pop("url", None) or own_url())
    key, key_file = options.pop("key", None), options.pop("key_file", None)
    ca_file, timeout_s = options.pop("ca_file", None), options.pop("timeout", 10.0)
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise click.UsageError(f"--url {url!r:.80} is no HTTP address")
    if not key and key_file:
        key = _first_line(Path(key_file))
    key = (key or "").rstrip("\r\n")
    if not key.isprintable() or not (":" in key or key.isascii()):
        raise click.UsageError("the API key has characters that do not print")
    if parts.username is not None:
        raise click.UsageError("--url: give the key with ROOKERY_API_KEY, --key or --key-file, not in the address")
    return Api(url.rstrip("/"), key, ca_file or "", float(timeout_s))


def _first_line(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline(4096)
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--key-file {os.fspath(path)}: {getattr(error, 'strerror', None) or error}") from None
