"""HTTP as such: places, methods, errors, bodies, headers, pages."""

from __future__ import annotations

import gzip
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx
import pytest
from openapi_spec_validator import validate

from broker.admin.catalogue import SUBJECTS
from broker.admin.operations import OPERATIONS
from broker.http.files import HERE
from tests.kit.api import ADMIN, admin_of, client_of
from tests.kit.broker_process import BrokerProcess

assert SUBJECTS


@pytest.fixture
def admin(http_node: BrokerProcess) -> Iterator[httpx.Client]:
    with admin_of(http_node) as client:
        yield client


def raw(node: BrokerProcess, request: bytes) -> bytes:
    """All that is answered until the server closes, which it may do before it has read everything."""
    assert node.http is not None
    host, _, port = node.http.rpartition(":")
    found = b""
    with suppress(ConnectionError), socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        with suppress(OSError):  # it may be closed already
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            found += part
    return found


def is_problem(answer: httpx.Response, status: int) -> bool:
    told = answer.json()
    return (
        answer.status_code == status == told["status"]
        and answer.headers["content-type"] == "application/problem+json"
        and {"type", "title", "detail", "instance"} <= set(told)
        and answer.headers["cache-control"] == "no-store"
    )


def test_document_is_valid_and_complete(http_node: BrokerProcess) -> None:
    with client_of(http_node) as nobody:
        answer = nobody.get("/openapi.json")
    api = answer.json()
    validate(api)
    told = {
        operation["operationId"]: operation["x-rookery-scope"]
        for methods in api["paths"].values()
        for operation in methods.values()
        if "x-rookery-scope" in operation
    }
    assert told == {operation.name: operation.scope for operation in OPERATIONS.values()}
    assert {"/login", "/logout", "/whoami"} <= set(api["paths"])


@pytest.mark.parametrize("path", ["/nothing", "/", "", "/clients/", "/nodes/a/b", "//nodes", "/keys/x/rotate/"])
def test_places_that_are_not(admin: httpx.Client, http_node: BrokerProcess, path: str) -> None:
    assert is_problem(httpx.get(f"http://{http_node.http}/api/v1{path}", auth=ADMIN), 404)


@pytest.mark.parametrize("path", ["/nowhere", "/dashboard/app.js", "/../pyproject.toml", "/%2e%2e/app.py", "/app.py"])
def test_pages_that_are_not(http_node: BrokerProcess, path: str) -> None:
    found = raw(http_node, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert found.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "PROPFIND", "DELETE"])
def test_methods_that_are_not(admin: httpx.Client, method: str) -> None:
    answer = admin.request(method, "/nodes")
    assert is_problem(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


def test_head_and_options(admin: httpx.Client) -> None:
    got, head = admin.get("/nodes"), admin.head("/nodes")
    assert (head.status_code, head.content) == (200, b"")
    assert abs(int(head.headers["content-length"]) - len(got.content)) < 20
    asked = admin.options("/keys", headers={"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"})
    assert (asked.status_code, asked.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "piece",
    [
        "a%2Fb",
        "%00",
        "%C3%A4",
        "%ff",
        "%",
        "%zz",
        "a%20b",
        "..%2f..%2f",
        "%2e",
        "+",
        "x" * 5000,
        "%C3%A4" * 32_000,
        "%F0%9F%A6%86",
        "%0a",
    ],
)
def test_pieces_of_paths_may_be_anything(admin: httpx.Client, http_node: BrokerProcess, piece: str) -> None:
    for path in (f"/keys/{piece}", f"/nodes/{piece}/drain", f"/clients/{piece}", f"/retained/messages/{piece}"):
        method = "DELETE" if path.startswith("/keys") else "POST" if path.endswith("/drain") else "GET"
        credential = "Basic YWRtaW46YSBzZWNyZXQgZm9yIHRlc3Rz"
        head = f"{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: {credential}\r\nConnection: close\r\n\r\n"
        found = raw(http_node, head.encode())
        assert re.match(rb"HTTP/1\.1 4\d\d ", found), found[:200]
        assert b"application/problem+json" in found


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", "application/x-www-form-urlencoded", 415),
        (b"{}", "", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b'"x"', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"name": "\xff"}', "application/json", 400),
        (b'{"name": "\\ud800", "scope": "viewer"}', "application/json", 400),
        (b'{"name": "a", "scope": "viewer", "expires_in_s": 1e999}', "application/json", 400),
        (b'{"name": "a", "scope": "viewer", "expires_in_s": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"name": "a", "scope": "viewer", "secret": "\\ud800\\ud800\\ud800\\ud800"}', "application/json", 400),
        (b'{"name": "a", "scope": "viewer", "secret": "' + b"x" * 2_000_000 + b'"}', "application/json", 413),
        (b"{}", "application/json; charset=utf-8", 400),
    ],
)
def test_bodies_that_are_refused(admin: httpx.Client, body: bytes, kind: str, status: int) -> None:
    answer = admin.post("/keys", content=body, headers={"Content-Type": kind} if kind else {})
    assert is_problem(answer, status), answer.text


def test_a_body_without_length_is_measured(admin: httpx.Client) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    answer = admin.post("/keys", content=parts(), headers={"Content-Type": "application/json"})
    assert is_problem(answer, 413)


@pytest.mark.parametrize(
    "query", ["x=1", "%ff=1", "limit=0&limit=1", "name=null", "&".join(f"a{n}=" for n in range(200))]
)
def test_queries_that_are_refused(admin: httpx.Client, http_node: BrokerProcess, query: str) -> None:
    assert is_problem(httpx.get(f"http://{http_node.http}/api/v1/keys?{query}", auth=ADMIN), 400)


def test_a_body_is_for_those_who_expect_one(admin: httpx.Client) -> None:
    answer = admin.request("DELETE", "/keys/nobody", json={"name": "x"})
    assert is_problem(answer, 400)


def test_every_answer_keeps_pages_in_bounds(http_node: BrokerProcess) -> None:
    for path in ("/", "/healthz", "/metrics", "/nowhere", "/api/v1/nodes", "/api/docs"):
        headers = httpx.get(f"http://{http_node.http}{path}").headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "server" not in headers and not [name for name in headers if name.startswith("access-control")]


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value and value[0] != "#"]


@pytest.mark.parametrize("page", ["/", "/api/docs"])
def test_pages_need_only_what_is_served(http_node: BrokerProcess, page: str) -> None:
    with httpx.Client(base_url=f"http://{http_node.http}") as client:
        parser = _References()
        parser.feed(client.get(page).text)
        assert parser.found
        for reference in parser.found:
            assert "//" not in reference
            answer = client.get(urljoin(page, reference))
            assert answer.status_code == 200, reference
            assert "etag" in answer.headers or reference.endswith("openapi.json")


def test_files_are_cached_and_compressed(http_node: BrokerProcess) -> None:
    url = f"http://{http_node.http}/api/docs/reference.js"
    content = (HERE / "reference" / "reference.js").read_bytes()
    plain = httpx.get(url, headers={"Accept-Encoding": "identity"})
    assert (plain.content, plain.headers["content-type"]) == (content, "text/javascript; charset=utf-8")
    with httpx.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as packed:
        assert gzip.decompress(b"".join(packed.iter_raw())) == content
        assert packed.headers["vary"] == "Accept-Encoding"
    again = httpx.get(url, headers={"If-None-Match": plain.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.post(url).status_code == 405


def test_documents_are_stable_json(http_node: BrokerProcess) -> None:
    first, second = (httpx.get(f"http://{http_node.http}/api/v1/openapi.json").content for _ in range(2))
    assert first == second and json.loads(first)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"\x10\x10\x00\x04MQTT\x04\x02\x00<\x00\x04abcd",  # MQTT
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_request(http_node: BrokerProcess, request_: bytes) -> None:
    found = raw(http_node, request_)
    assert found == b"" or re.match(rb"HTTP/1\.1 4\d\d ", found), found[:100]
    assert found == b"" or b"application/problem+json" in found
    assert httpx.get(f"http://{http_node.http}/readyz").status_code == 200


def test_upgrades_are_not_offered(http_node: BrokerProcess) -> None:
    for upgrade in ("websocket", "h2c"):
        head = f"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: {upgrade}\r\n"
        head += "HTTP2-Settings: AAMAAABkAAQAAP__\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        assert raw(http_node, head.encode()).startswith(b"HTTP/1.1 200 ")


def test_requests_may_follow_each_other_at_once(http_node: BrokerProcess) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    found = raw(http_node, one * 20)
    assert found.count(b"HTTP/1.1 200 ") == 20


def test_no_defect_was_met(http_node: BrokerProcess) -> None:
    """The last of this file: what the tests above did to the node left nothing in its log."""
    log = http_node.log()
    for word in ("Traceback", "http.failed", "http.connection_failed", "http.keys_failed"):
        assert word not in log, log[-3000:]
