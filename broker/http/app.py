"""Health and counters over HTTP: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.config
import hypercorn.trio
import trio

from broker.admin.api import Desk
from broker.config import Endpoint, Settings
from broker.errors import ConfigError
from broker.http.report import READY, Report, Source, ready
from broker.http.scraping import Scrapes

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class HttpServer:
    """Hypercorn on trio, one per node or per parent of workers. Raises ConfigError if the address cannot be used."""

    def __init__(self, source: Source, endpoint: Endpoint, desk: Desk, settings: Settings) -> None:
        self._source = source
        self._scrapes = Scrapes(source)
        self._desk = desk
        self._settings = settings
        family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
        try:
            self._socket = socket.create_server((endpoint.host, endpoint.port), family=family, backlog=128)
        except OSError as error:
            raise ConfigError(f"http = {endpoint.authority}: {error.strerror or error}") from None
        host, port = self._socket.getsockname()[:2]
        self.authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def serve(self, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves until cancelled."""
        config = hypercorn.config.Config()
        config.bind = [f"fd://{self._socket.fileno()}"]
        config.accesslog = None
        config.errorlog = None
        config.graceful_timeout = 0.5
        await hypercorn.trio.serve(self._app, config, task_status=task_status, mode="asgi")  # type: ignore[arg-type]

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if scope["type"] != "http":
            return
        status, kind, body = await self._answer(scope["method"], scope["path"])
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, method: str, path: str) -> tuple[int, bytes, bytes]:
        if path not in ("/healthz", "/readyz", "/metrics"):
            return 404, b"text/plain", b"try /healthz, /readyz or /metrics\n"
        if method not in ("GET", "HEAD"):
            return 405, b"text/plain", b"only GET\n"
        if path == "/metrics":
            text, kind = await self._scrapes.answer()
            return 200, kind.encode(), text
        reports = await self._source.reports()
        status = ready(reports)
        shown = _shown(self._source.name, status, reports)
        if path == "/healthz":  # alive is whoever answers: what /readyz complains about is not mended by a restart
            shown = {**shown, "status": "alive", "readiness": status}
        body = json.dumps(shown).encode() + b"\n"
        return 200 if path == "/healthz" or status == READY else 503, b"application/json", body


def _shown(name: str, status: str, reports: list[Report]) -> dict[str, Any]:
    if len(reports) == 1 and reports[0].node == name:
        return reports[0].shown()
    return {"status": status, "node": name, "workers": [report.shown() for report in reports]}
