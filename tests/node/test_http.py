"""The HTTP server with a desk of the test's own: strangers, streams, clients that leave or do not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from broker.admin.api import UNAVAILABLE, AdminError, Caller
from broker.admin.catalogue import SUBJECTS
from broker.admin.key_document import token_of
from broker.admin.keyring import unauthorized
from broker.config import Endpoint, Settings
from broker.http import events, operations, serving
from broker.http.app import HttpServer
from broker.http.guests import Guests
from broker.http.report import DRAINING, READY, Report

assert SUBJECTS

SECRET = "0" * 64
#: Long enough to fill what the system keeps on both sides.
LARGE = 16 << 20


class Desk:
    """Knows everybody whose name is not in `unknown`; the scope is the first part of the name."""

    def __init__(self) -> None:
        self.unknown = {"nobody"}
        self.away = False
        self.asked = Counter[str]()
        #: Operations that were begun and are not over.
        self.open = 0
        self.waits = trio.Event()
        self.size = 0

    async def call(self, operation: str, arguments: Mapping[str, Any], caller: Caller) -> Any:
        self.asked[operation] += 1
        if operation in ("auth.begin", "auth.tidy"):
            return None
        if operation == "auth.whose":
            raise unauthorized()
        if operation == "auth.identify":
            if self.away:
                raise AdminError(UNAVAILABLE, "away")
            if arguments["name"] in self.unknown:
                raise unauthorized()
            return {"name": arguments["name"], "scope": arguments["name"].partition("-")[0]}
        self.open += 1
        try:
            if operation == "messages.request":
                await self.waits.wait()
        finally:
            self.open -= 1
        return {"items": ["x" * self.size]}

    @asynccontextmanager
    async def stream(
        self, operation: str, arguments: Mapping[str, Any], caller: Caller
    ) -> AsyncIterator[AsyncIterator[Any]]:
        async def nothing() -> AsyncIterator[Any]:
            yield {}
            await self.waits.wait()

        self.open += 1
        try:
            yield nothing()
        finally:
            self.open -= 1


class Source:
    name = "a"
    told = READY

    async def reports(self) -> list[Report]:
        return [Report("a", self.told)]

    async def statuses(self) -> list[Report]:
        return await self.reports()

    def ended(self) -> Any:
        return None


class World:
    """A server and its clients."""

    def __init__(self, desk: Desk, source: Source, port: int) -> None:
        self.desk = desk
        self.source = source
        self.port = port
        self.streams: list[trio.SocketStream] = []

    async def connect(self, address: str = "127.0.0.1") -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port, local_address=address)
        self.streams.append(stream)
        return stream

    async def send(self, *lines: str, body: str = "", address: str = "127.0.0.1") -> trio.SocketStream:
        """A connection with a request."""
        stream = await self.connect(address)
        if body:
            lines = (*lines, "Content-Type: application/json", f"Content-Length: {len(body)}")
        await stream.send_all("\r\n".join([*lines, "Host: x", "", body]).encode())
        return stream

    async def status(self, *lines: str, body: str = "", address: str = "127.0.0.1") -> int:
        """Of a request."""
        async with await self.send(*lines, body=body, address=address) as stream:
            return status_of(await stream.receive_some(13))


def status_of(answer: bytes | bytearray) -> int:
    """0 without answer."""
    return int(answer[9:12] or 0)


def key(name: str) -> str:
    return f"Authorization: Bearer {token_of(name, SECRET)}"


async def rest(stream: trio.SocketStream) -> bytes:
    """Everything until the server closes."""
    found = b""
    try:
        async for part in stream:
            found += part
    except trio.BrokenResourceError:
        pass
    return found


async def until(condition: Callable[[], bool]) -> None:
    """The test's own time limit ends this."""
    while not condition():
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def world_of(rate: int = 0) -> AsyncIterator[World]:
    desk = Desk()
    source = Source()
    server = HttpServer(source, Endpoint("http", "127.0.0.1", 0), desk, Settings(node_name="a", http_rate=rate))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        world = World(desk, source, int(server.authority.rpartition(":")[2]))
        try:
            yield world
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            for stream in world.streams:
                stream.socket.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with world_of() as found:
        yield found


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little room."""
    monkeypatch.setattr("broker.http.app.Guests", lambda: Guests(most=8, of_address=4, unread_max=2 * LARGE))


SLOW_LOGIN = ("POST /api/v1/login HTTP/1.1", "Content-Type: application/json", "Content-Length: 100")


@pytest.mark.usefixtures("few")
async def test_strangers_cannot_keep_others_out(world: World) -> None:
    async with await world.send("POST /api/v1/requests HTTP/1.1", key("operator"), body='{"topic": "a"}') as served:
        await until(lambda: world.desk.open == 1)
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            slow = [await world.send(*SLOW_LOGIN, body="", address=address) for _ in range(6)]
            assert await world.status("GET /healthz HTTP/1.1") == 200
            assert await world.status("GET /api/v1/nodes HTTP/1.1", key("viewer"), address=address) == 200
            for stream in slow:
                await stream.aclose()
        world.desk.waits.set()
        assert status_of(await served.receive_some(13)) == 200


async def test_strangers_have_little_time_for_a_body(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.http.login.STRANGERS_BODY_S", 0.01)
    assert await world.status(*SLOW_LOGIN) == 408


async def test_an_answer_must_be_taken_as_a_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who takes a little now and then gets no more time for it."""
    monkeypatch.setattr(serving, "SEND_S", 0.2)
    world.desk.size = LARGE
    async with await world.send("GET /api/v1/nodes HTTP/1.1", key("viewer")) as slow:
        taken = 0
        with pytest.raises(trio.BrokenResourceError):
            while True:
                part = await slow.receive_some(1)
                taken += len(part)
                if not part:
                    raise trio.BrokenResourceError
        assert taken < LARGE


async def test_the_status_of_a_node_that_is_not_ready(world: World) -> None:
    for target in ("/readyz", "/readyz?unready=404"):
        assert await world.status(f"GET {target} HTTP/1.1") == 200
    world.source.told = DRAINING
    for target, status in {"": 503, "?unready=404": 404, "?unready=200": 503, "?unready=40%34": 404, "?x": 503}.items():
        assert await world.status(f"GET /readyz{target} HTTP/1.1") == status


@pytest.mark.usefixtures("few")
async def test_what_is_not_read_is_bounded(world: World) -> None:
    world.desk.size = LARGE
    slow = []
    for _ in range(4):
        stream = await world.send("GET /api/v1/nodes HTTP/1.1", key("viewer"), "Connection: close")
        begun = b""
        while not begun.partition(b"\r\n\r\n")[2]:  # the body is on its way
            begun += await stream.receive_some(100)
        slow.append((stream, begun))
    found = [len(begun + await rest(stream)) for stream, begun in reversed(slow)]
    assert found[0] > LARGE
    assert sum(size > LARGE for size in found) <= 2


async def test_a_server_stops_where_heads_of_answers_are_not_read() -> None:
    """Answers without body: whatever waits for its client is the head of one."""
    async with world_of() as world:
        for _ in range(3):
            stream = await world.connect()
            with trio.move_on_after(0.2):  # until buffers are full
                while True:
                    await stream.send_all(b"HEAD /api/docs/reference.js HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)


async def test_a_client_that_has_gone_leaves_no_operation(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "GONE_S", 0.01)
    for _ in range(5):
        async with await world.send("POST /api/v1/requests HTTP/1.1", key("operator"), body='{"topic": "a"}'):
            await until(lambda: world.desk.open == 1)
        await until(lambda: world.desk.open == 0)


async def test_a_client_that_has_gone_is_noticed_behind_what_it_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "GONE_S", 0.01)
    monkeypatch.setattr(serving, "NOTICE_S", 0.01)
    async with await world.send("POST /api/v1/requests HTTP/1.1", key("operator"), body='{"topic": "a"}') as stream:
        await stream.send_all(b"GET /healthz HTTP/1.1\r\n")
        await until(lambda: world.desk.open == 1)
    await until(lambda: world.desk.open == 0)


async def test_who_sends_no_more_may_still_listen(world: World) -> None:
    async with await world.send("POST /api/v1/requests HTTP/1.1", key("operator"), body='{"topic": "a"}') as stream:
        await until(lambda: world.desk.open == 1)
        await stream.send_eof()
        world.desk.waits.set()
        assert status_of(await rest(stream)) == 200


async def test_one_credential_has_a_share_of_operations(world: World) -> None:
    waiting = ("POST /api/v1/requests HTTP/1.1", key("operator-1"))
    for _ in range(operations.OPERATIONS_OF_ONE):
        await world.send(*waiting, body='{"topic": "a"}')
    await until(lambda: world.desk.open == operations.OPERATIONS_OF_ONE)
    assert await world.status(*waiting, body='{"topic": "a"}') == 429
    assert await world.status("GET /api/v1/nodes HTTP/1.1", key("operator-2")) == 200


FOLLOW = "GET /api/v1/stats/live HTTP/1.1"


async def follow(world: World, name: str) -> trio.SocketStream | None:
    stream = await world.send(FOLLOW, key(name))
    if status_of(await stream.receive_some(13)) == 200:
        return stream
    await stream.aclose()
    return None


async def test_one_credential_has_a_share_of_streams(world: World) -> None:
    found = []
    for name in ("viewer-1", "viewer-2", "viewer-3", "operator-1", "operator-2", "admin"):
        streams = [await follow(world, name) for _ in range(events.STREAMS_OF_ONE + 1)]
        found.append(sum(stream is not None for stream in streams))
    assert found == [20, 20, 20, 20, 0, 20]


async def test_a_stream_ends_with_its_credential(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "CHECK_S", 0.01)
    monkeypatch.setattr("broker.http.credentials.REMEMBERED_S", 0.0)
    stream = await follow(world, "viewer")
    assert stream is not None
    world.desk.away = True  # then it goes on
    before = world.desk.asked["auth.identify"]
    await until(lambda: world.desk.asked["auth.identify"] > before + 3)
    assert world.desk.open == 1
    world.desk.away = False
    world.desk.unknown.add("viewer")
    told = await rest(stream)
    assert b'event: error\ndata: {"status":401' in told and told.endswith(b"0\r\n\r\n")
    assert world.desk.open == 0


async def test_a_stream_ends_when_nobody_knows_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "CHECK_S", 0.01)
    monkeypatch.setattr(operations, "UNCHECKED_S", 0.0)
    monkeypatch.setattr("broker.http.credentials.REMEMBERED_S", 0.0)
    stream = await follow(world, "viewer")
    assert stream is not None
    world.desk.away = True
    assert b'event: error\ndata: {"status":503' in await rest(stream)


async def test_guesses_cost_the_store_no_more_than_the_rate() -> None:
    async with world_of(rate=5) as world:
        assert await world.status("GET /api/v1/nodes HTTP/1.1", key("viewer")) == 200
        statuses = [
            await world.status("GET /api/v1/nodes HTTP/1.1", f"Cookie: rookery_login={number:064x}")
            for number in range(100)
        ]
        assert set(statuses) == {401, 429}
        assert world.desk.asked["auth.whose"] == statuses.count(401) < 50
        # Who was right lately is none of them, whoever comes from the same address; others from elsewhere neither.
        assert await world.status("GET /api/v1/nodes HTTP/1.1", key("viewer")) == 200
        assert await world.status("GET /api/v1/nodes HTTP/1.1", key("operator")) == 429
        assert await world.status("GET /api/v1/nodes HTTP/1.1", key("operator"), address="127.0.0.2") == 200


async def test_a_wrong_secret_that_nobody_guessed_is_asked_for_once(world: World) -> None:
    for _ in range(10):
        assert await world.status("GET /api/v1/nodes HTTP/1.1", key("nobody")) == 401
        assert await world.status("GET /api/v1/nodes HTTP/1.1", "Cookie: rookery_login=abc") == 401
    assert world.desk.asked["auth.identify"] < 10 and world.desk.asked["auth.whose"] < 10


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://x/api/v1/nodes", 200),
        ("HTTPS://user@x:18083/api/v1/nodes?", 200),
        ("http://x", 200),
        ("http://x?a=/b", 200),
        ("http:///healthz", 200),
        ("http://x/nowhere", 404),
        ("ftp://x/healthz", 404),
        ("/http://x/healthz", 404),
        ("http:/healthz", 404),
        ("*", 404),
    ],
)
async def test_targets_with_scheme_and_host(world: World, target: str, status: int) -> None:
    assert await world.status(f"GET {target} HTTP/1.1", key("viewer")) == status
