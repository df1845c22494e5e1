"""As much of a Kubernetes API server as Helm needs for install, upgrade, rollback and uninstall: it stores objects.

Nothing is run, defaulted or validated (schemas.py does that); a patch is merged, an apply replaces.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.chart.helm import Resource

_PROTOBUF = b"k8s\0"
#: Kinds by their plurals, in each group and version.
_KINDS = {
    "v1": {
        "configmaps": "ConfigMap",
        "pods": "Pod",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apps/v1": {"deployments": "Deployment", "statefulsets": "StatefulSet", "replicasets": "ReplicaSet"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "batch/v1": {"jobs": "Job"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}


class ApiServer:
    """The objects of a cluster by (plural, namespace, name), and a kubeconfig for it."""

    def __init__(self, folder: Path) -> None:
        self.objects: dict[tuple[str, str, str], Resource] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.objects))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.kubeconfig = folder / "kubeconfig"
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {"server": url}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": "mqtt"}}],
            "users": [{"name": "it", "user": {}}],
            "current-context": "it",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def find(self, plural: str, name: str) -> Resource:
        """An object of the namespace `mqtt`."""
        return self.objects[plural, "mqtt", name]

    def start(self) -> None:
        """Serve, on a port of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """A server while the block lasts."""
    server = ApiServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _handler(objects: dict[tuple[str, str, str], Resource]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Nobody reads it."""

        def do_GET(self) -> None:
            path, query = self._asked()
            if path == ["version"]:
                return self._say({"major": "1", "minor": "35", "gitVersion": "v1.35.0"})
            if path == ["api"]:
                return self._say({"kind": "APIVersions", "versions": ["v1"]})
            if path == ["apis"]:
                return self._say({"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups()})
            if "/".join(path[1:]) in _KINDS:
                return self._say(_resources("/".join(path[1:])))
            key = self._key(path)
            if key is None:
                return self._missing(path)
            if key[2]:
                return self._say(objects[key]) if key in objects else self._missing(path)
            items = [item for known, item in objects.items() if known[0] == key[0] and key[1] in ("", known[1])]
            for selector in query.get("labelSelector", []):
                items = [item for item in items if _selected(selector, item)]
            version, kind = _kind(key[0])
            return self._say({"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items})

        def do_POST(self) -> None:
            path, _ = self._asked()
            item = self._read()
            plural, namespace, _ = self._key(path) or ("", "", "")
            key = (plural, namespace, item["metadata"]["name"])
            if key in objects:
                return self._say({"kind": "Status", "status": "Failure", "reason": "AlreadyExists", "code": 409}, 409)
            item["metadata"].setdefault("namespace", namespace)
            objects[key] = item
            return self._say(item, 201)

        def do_PUT(self) -> None:
            path, _ = self._asked()
            item = self._read()
            key = self._key(path)
            assert key is not None
            objects[key] = item
            self._say(item)

        def do_PATCH(self) -> None:
            path, _ = self._asked()
            change = self._read()
            key = self._key(path)
            assert key is not None
            if "apply-patch" in (self.headers["Content-Type"] or ""):
                objects[key] = change
            elif key not in objects:
                return self._missing(path)
            else:
                objects[key] = _patched(objects[key], change)
            return self._say(objects[key])

        def do_DELETE(self) -> None:
            path, _ = self._asked()
            self._read()
            key = self._key(path)
            if key is None or key not in objects:
                return self._missing(path)
            return self._say(objects.pop(key))

        def _asked(self) -> tuple[list[str], dict[str, list[str]]]:
            parts = urlsplit(self.path)
            return [part for part in parts.path.split("/") if part], parse_qs(parts.query)

        def _key(self, path: list[str]) -> tuple[str, str, str] | None:
            rest = path[2:] if path[0] == "api" else path[3:]
            namespace = ""
            if rest[:1] == ["namespaces"] and len(rest) > 2:
                namespace, rest = rest[1], rest[2:]
            if not rest or not any(rest[0] in kinds for kinds in _KINDS.values()):
                return None
            return rest[0], namespace, rest[1] if len(rest) > 1 else ""

        def _read(self) -> Resource:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if body.startswith(_PROTOBUF):
                return _secret(body.removeprefix(_PROTOBUF))
            loaded: Resource = yaml.safe_load(body) if body else {}
            return loaded

        def _missing(self, path: list[str]) -> None:
            self._say(
                {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": f"{path}"}, 404
            )

        def _say(self, answer: Resource, status: int = 200) -> None:
            body = json.dumps({"apiVersion": "v1", **answer}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _secret(written: bytes) -> Resource:
    """A Secret in protobuf: Helm writes its releases so, and reads JSON as well. Of other kinds nothing is needed."""
    known = dict(_fields(written))
    if b"Secret" not in known[1]:
        return {}
    secret = list(_fields(known[2]))
    meta = list(_fields(dict(secret)[1]))
    names = dict(meta)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": names[1].decode(), "namespace": names[3].decode(), "labels": dict(_entries(meta, 11))},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in _entries(secret, 2)},
        "type": dict(secret)[3].decode(),
    }


def _entries(fields: list[tuple[int, bytes]], number: int) -> Iterator[tuple[str, str]]:
    """A map: messages of key and value."""
    for each, value in fields:
        if each == number:
            entry = dict(_fields(value))
            yield entry[1].decode(), entry.get(2, b"").decode()


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the fields of a message; numbers among them are left out."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        size = varint()
        if tag & 7 == 2:
            yield tag >> 3, message[at : at + size]
            at += size


def _kind(plural: str) -> tuple[str, str]:
    return next((version, kinds[plural]) for version, kinds in _KINDS.items() if plural in kinds)


def _groups() -> list[Resource]:
    found = []
    for each in _KINDS:
        group, _, version = each.rpartition("/")
        if group:
            shown = {"groupVersion": each, "version": version}
            found.append({"name": group, "versions": [shown], "preferredVersion": shown})
    return found


def _resources(version: str) -> Resource:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList",
        "groupVersion": version,
        "resources": [
            {"name": plural, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
            for plural, kind in _KINDS[version].items()
        ],
    }


def _selected(selector: str, item: Resource) -> bool:
    labels = item["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, _, value in (each.partition("=") for each in selector.split(",")))


def _patched(item: Any, change: Any) -> Any:
    """A JSON merge patch; lists are replaced."""
    if not isinstance(change, dict):
        return change
    result = dict(item) if isinstance(item, dict) else {}
    for key, value in change.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _patched(result.get(key), value)
    return result
