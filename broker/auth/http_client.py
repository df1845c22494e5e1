"""Web services that are asked: bounded in time, size and number, and nothing of one question is left for the next."""

from __future__ import annotations

import http.cookiejar
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import trio

from broker.auth.api import BackendError
from broker.errors import ConfigError
from broker.values import Url

try:
    import httpx
except ImportError:  # pragma: no cover
    raise ConfigError("asking web services needs the package httpx: install rookery[http]") from None

# They log every question with its URL, and with it what clients sent.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

MAX_ANSWER_BYTES: Final = 64 * 1024
_CLOSE_S: Final = 1.0


class Answer:
    """Status and body of one answer."""

    __slots__ = ("body", "status")

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body


class WebClient:
    """Asks one service, at most `pool` questions at a time; `serve` closes its connections at the end.

    No redirects are followed, no cookies kept, no proxies or passwords taken from the environment. ConfigError for
    an authority file that cannot be read.
    """

    def __init__(self, timeout_s: float, pool: int, ca_certs: Path | None = None) -> None:
        self._timeout_s = timeout_s
        # In front of the connections, so that those never have to queue questions themselves.
        self._limiter = trio.CapacityLimiter(pool)
        no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
        self._client = httpx.AsyncClient(
            verify=_context(ca_certs),
            timeout=None,  # noqa: S113 (one deadline for the whole question, below)
            limits=httpx.Limits(max_connections=pool, max_keepalive_connections=pool, keepalive_expiry=30.0),
            follow_redirects=False,
            trust_env=False,
            cookies=no_cookies,
        )

    async def ask(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        content: bytes | None = None,
        limit: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """One question and its whole answer, waiting for a free connection included; BackendError for none in time,
        or one of more than `limit` bytes."""
        try:
            with trio.fail_after(self._timeout_s):
                async with self._limiter:
                    try:
                        return await self._ask(method, url, headers, content, limit)
                    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                        # Most likely a kept connection that the service closed at the same moment.
                        return await self._ask(method, url, headers, content, limit)
        except trio.TooSlowError:
            raise BackendError(f"no answer within {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
            # The text of an error may have the URL in it, and with it what clients sent.
            raise BackendError(f"no answer: {type(error).__name__}") from None

    async def _ask(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], content: bytes | None, limit: int
    ) -> Answer:
        # What is compressed could become any size.
        given = [("Accept-Encoding", "identity"), ("User-Agent", "rookery"), *headers]
        async with self._client.stream(method, url, headers=given, content=content) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BackendError("the answer is compressed, which was not asked for")
            body = bytearray()
            too_long = False
            try:
                async for part in response.aiter_raw():
                    if not too_long:
                        body += part
                    if len(body) > limit and not too_long:
                        # Then the iteration ends by itself: left half way, its generators would stay behind.
                        too_long = True
                        await response.aclose()
            except (httpx.HTTPError, httpx.StreamError):
                if not too_long:
                    raise
            if too_long:
                raise BackendError(f"the answer has more than {limit} bytes")
        return Answer(response.status_code, bytes(body))

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Nothing, until cancelled."""
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(_CLOSE_S, shield=True):
                await self._client.aclose()


def check_url(option: str, url: str) -> None:
    """ConfigError for what is no URL of a web service: http or https, a host, nothing secret, nothing superfluous."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{option} = {Url().masked(url)!r:.80}: must be http://HOST/PATH or https://HOST/PATH")
    if "@" in parts.netloc:
        raise ConfigError(f"{option}: no user or password may be in the URL, which is shown and logged; use headers")
    if parts.fragment or "#" in url:
        raise ConfigError(f"{option} = {url!r:.80}: has a fragment (#), which is never sent")
    if "${" in parts.scheme + parts.netloc:
        raise ConfigError(f"{option} = {url!r:.80}: placeholders may be in path and query only")


def _context(ca_certs: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca_certs is None else str(ca_certs))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_certs = {str(ca_certs)!r}: {error.strerror or error}") from None
