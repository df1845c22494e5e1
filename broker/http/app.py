"""Health and counters over HTTP: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import hypercorn.config
import hypercorn.trio
import trio

from broker.config import Endpoint
from broker.errors import ConfigError
from broker.http.exposition import exposition

if TYPE_CHECKING:
    from broker.http.view import NodeView

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class HttpServer:
    """Hypercorn on trio, one per node. Raises ConfigError if the address cannot be used."""

    def __init__(self, node: NodeView, endpoint: Endpoint) -> None:
        self._node = node
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
        status, kind, body = self._answer(scope["method"], scope["path"])
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, method: str, path: str) -> tuple[int, bytes, bytes]:
        if path not in ("/healthz", "/readyz", "/metrics"):
            return 404, b"text/plain", b"try /healthz, /readyz or /metrics\n"
        if method not in ("GET", "HEAD"):
            return 405, b"text/plain", b"only GET\n"
        if path == "/metrics":
            return 200, b"text/plain; version=0.0.4; charset=utf-8", exposition(self._node)
        if path == "/healthz":
            return 200, b"application/json", b'{"status": "alive"}\n'
        health = self._node.cluster.health()
        why = None
        if self._node.server.draining:
            why = "draining"
        elif not self._node.ready:
            why = "starting"
        elif not health.available:
            why = "the store cannot be reached"
        body = {
            "status": why or "ready",
            "node": self._node.name,
            "store": health.kind,
            "store_version": health.version,
            "durability": health.durability,
            "store_round_trip_ms": round(health.round_trip_ms, 3),
            "connections": self._node.metrics.connections,
        }
        return 503 if why else 200, b"application/json", json.dumps(body).encode() + b"\n"
