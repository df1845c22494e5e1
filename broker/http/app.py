"""The HTTP server of a node, or of the parent of workers: health, metrics, the API and the dashboard."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any, Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router

from broker.admin.api import AdminError, Desk
from broker.admin.catalogue import SUBJECTS
from broker.admin.key_document import token_of
from broker.admin.keyring import FirstKey
from broker.admin.operations import OPERATIONS
from broker.config import Endpoint, Settings
from broker.errors import ConfigError
from broker.http import files, operations, serving
from broker.http.behind import Behind
from broker.http.credentials import INSIDE, Credentials
from broker.http.front import Front, Methods, not_found
from broker.http.guests import Guests
from broker.http.login import Logins
from broker.http.openapi import document
from broker.http.report import READY, Report, Source, ready
from broker.http.scraping import Scrapes
from broker.log import get_logger
from broker.transport.forwarded import Trusted

#: How often the desk is asked to see that there is an admin's key, and to forget logins that are over.
_TIDY_S: Final = 60.0
_RETRY_S: Final = 0.25

assert SUBJECTS, "what they declare is served"

_log = get_logger("http")


class HttpServer:
    """Hypercorn on trio, one per node or per parent of workers. Raises ConfigError if the address cannot be used."""

    def __init__(self, source: Source, endpoint: Endpoint, desk: Desk, settings: Settings) -> None:
        self._source = source
        self._scrapes = Scrapes(source)
        self._desk = desk
        self._settings = settings
        self._credentials = Credentials(desk, settings.http_rate)
        self._document = b""
        family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        try:
            self._socket = socket.create_server((endpoint.host, endpoint.port), family=family, backlog=128)
        except OSError as error:
            raise ConfigError(f"http = {endpoint.authority}: {error.strerror or error}") from None
        self._socket.setblocking(False)
        host, port = self._socket.getsockname()[:2]
        self.authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._guests = Guests()
        self._proxies = Trusted(settings.http_trusted_proxies)
        router = Router(self._routes(), redirect_slashes=False, default=not_found)
        self._app = Front(Behind(router, self._proxies, self._guests))

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled."""
        with self._socket:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serving.serve, self._app, self._socket, self._guests, self._proxies)
                nursery.start_soon(self._look_after_keys)
                task_status.started()

    def _routes(self) -> list[BaseRoute]:
        credentials = self._credentials
        logins = Logins(self._desk, credentials)
        prefix = operations.PREFIX
        return [
            Route("/healthz", Methods(GET=self._healthz)),
            Route("/readyz", Methods(GET=self._readyz)),
            Route("/metrics", Methods(GET=self._metrics)),
            Route(f"{prefix}/openapi.json", Methods(GET=self._openapi)),
            Route(f"{prefix}/login", Methods(POST=logins.login)),
            Route(f"{prefix}/logout", Methods(POST=logins.logout)),
            Route(f"{prefix}/whoami", Methods(GET=logins.whoami)),
            *operations.routes(OPERATIONS.values(), self._desk, credentials, self._settings.http_max_body),
            *files.routes("reference", "/api/docs", credentials),
            *files.routes("dashboard", "", credentials),
        ]

    # -- keys

    async def _look_after_keys(self) -> None:
        while True:
            try:
                first = await self._desk.call("auth.begin", {}, INSIDE)
                if first is not None:
                    _show(msgspec.convert(first, FirstKey))
                await self._desk.call("auth.tidy", {}, INSIDE)
            except AdminError:  # no node has joined yet, or the store cannot be reached
                await trio.sleep(_RETRY_S)
                continue
            except Exception:
                _log.exception("http.keys_failed")
            await trio.sleep(_TIDY_S)

    # -- answers

    async def _healthz(self, request: Request) -> Response:
        reports = await self._source.statuses()
        # Alive is whoever answers: what /readyz complains about is not mended by a restart.
        shown = _shown(self._source.name, ready(reports), reports)
        return _json({**shown, "status": "alive", "readiness": shown["status"]}, 200)

    async def _readyz(self, request: Request) -> Response:
        reports = await self._source.statuses()
        status = ready(reports)
        # HAProxy leaves the clients of a node alone that answers 404 (http-check disable-on-404), and may cut off
        # those of one that does not answer.
        unready = 404 if request.query_params.get("unready") == "404" else 503
        return _json(_shown(self._source.name, status, reports), 200 if status == READY else unready)

    async def _metrics(self, request: Request) -> Response:
        if self._settings.metrics_access == "open":
            self._credentials.admit_stranger(request)
        else:
            await self._credentials.caller(request, "viewer")
        body, kind = await self._scrapes.answer(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": kind, "Cache-Control": "no-store"})

    async def _openapi(self, request: Request) -> Response:
        self._credentials.admit_stranger(request)
        if not self._document:  # takes a moment: MQTT clients do not wait for it
            self._document = await trio.to_thread.run_sync(_document)
        return Response(self._document, headers={"Cache-Control": "no-cache"}, media_type="application/json")


def _document() -> bytes:
    return msgspec.json.encode(document(OPERATIONS.values()))


def _show(first: FirstKey) -> None:
    """Once, where only those who run the node look: no log event has a secret."""
    line = "=" * 78
    text = (
        f"{line}\nThere was no API key of the scope admin. One was made; it is shown this once:\n"
        f"    name    {first.name}\n    secret  {first.secret}\n    token   {token_of(first.name, first.secret)}\n"
        "Log in with name and secret at the HTTP address, or send the token: Authorization: Bearer TOKEN\n"
        f"{line}\n"
    )
    sys.stderr.write(text)
    sys.stderr.flush()


def _json(shown: dict[str, Any], status: int) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(json.dumps(shown).encode() + b"\n", status, headers, "application/json")


def _shown(name: str, status: str, reports: list[Report]) -> dict[str, Any]:
    if len(reports) == 1 and reports[0].node == name:
        return reports[0].shown()
    return {"status": status, "node": name, "workers": [report.shown() for report in reports]}
