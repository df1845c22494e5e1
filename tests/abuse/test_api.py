"""The HTTP port under abuse: MQTT clients notice nothing, memory is bounded, others are answered, the node can stop."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from broker.http.events import STREAMS_OF_ONE
from broker.http.guests import CONNECTIONS_MAX, OF_ADDRESS_MAX
from broker.http.operations import OPERATIONS_OF_ONE
from broker.http.serving import HEAD_BYTES
from tests.abuse.conftest import attended
from tests.abuse.world import AbusedNode
from tests.kit.api import ADMIN_ARGUMENTS
from tests.kit.broker_process import ADMIN_SECRET

MIB = 1 << 20
AUTHORIZATION = "Authorization: Basic " + base64.b64encode(f"admin:{ADMIN_SECRET}".encode()).decode()


@pytest.fixture
def arguments() -> tuple[str, ...]:
    return ADMIN_ARGUMENTS


async def connect(node: AbusedNode, address: str = "127.0.0.1") -> trio.SocketStream:
    """A connection to the HTTP port, from this address."""
    assert node.http is not None
    host, _, port = node.http.rpartition(":")
    return await trio.open_tcp_stream(host, int(port), local_address=address)


async def rest(stream: trio.SocketStream) -> bytes:
    """Everything until the server closes."""
    found = b""
    try:
        async for part in stream:
            found += part
    except trio.BrokenResourceError:
        pass
    return found


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    """A request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


async def is_answered(node: AbusedNode, address: str = "127.0.0.1") -> None:
    """Somebody else asks and gets an answer."""
    for path in ("/readyz", "/api/v1/nodes"):
        async with await connect(node, address) as stream:
            await stream.send_all(get(path, AUTHORIZATION, "Connection: close"))
            assert (await rest(stream)).startswith(b"HTTP/1.1 200 ")


async def push(stream: trio.SocketStream, content: bytes, times: int) -> None:
    """Send as much of it as the server takes."""
    try:
        for _ in range(times):
            await stream.send_all(content)
    except trio.BrokenResourceError:
        pass


async def test_huge_bodies(node: AbusedNode) -> None:
    before = node.rss_bytes()

    async def post(*headers: str) -> None:
        async with await connect(node) as stream:
            head = get("/api/v1/keys", AUTHORIZATION, "Content-Type: application/json", *headers, method="POST")
            await stream.send_all(head)
            async with trio.open_nursery() as nursery:
                chunk = (
                    bytes(MIB) if "Transfer-Encoding: chunked" not in headers else b"100000\r\n" + bytes(MIB) + b"\r\n"
                )
                nursery.start_soon(push, stream, chunk, 50)
                found = await rest(stream)
                nursery.cancel_scope.cancel()
            assert found == b"" or found.startswith(b"HTTP/1.1 4")

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(post, f"Content-Length: {50 * MIB}")
            nursery.start_soon(post, "Transfer-Encoding: chunked")
            nursery.start_soon(post, "Content-Length: 99999999999999999999999")
    await is_answered(node)
    await node.goes_on(5)
    assert node.rss_bytes() - before < 64 * MIB


async def test_bodies_for_those_who_take_none(node: AbusedNode) -> None:
    for path, method in (("/healthz", "POST"), ("/api/v1/nodes", "GET"), ("/nowhere", "PUT"), ("/", "POST")):
        async with await connect(node) as stream:
            await stream.send_all(get(path, f"Content-Length: {200 * MIB}", method=method))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(push, stream, bytes(MIB), 200)
                found = await rest(stream)
                nursery.cancel_scope.cancel()
            assert found == b"" or found.startswith(b"HTTP/1.1 4")
    await is_answered(node)


async def test_heads_without_end(node: AbusedNode) -> None:
    before = node.rss_bytes()

    async def send(head: bytes) -> None:
        async with await connect(node) as stream:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(push, stream, head, 200)
                found = await rest(stream)
                nursery.cancel_scope.cancel()
            assert found == b"" or found.startswith(b"HTTP/1.1 4")

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(send, b"GET /" + bytes(HEAD_BYTES).replace(b"\0", b"a"))
            nursery.start_soon(send, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000)
            nursery.start_soon(send, b"GET / HTTP/1.1\r\nX: " + b"z" * 2 * HEAD_BYTES)
    await is_answered(node)
    await node.goes_on(5)
    assert node.rss_bytes() - before < 64 * MIB


async def test_nonsense(node: AbusedNode) -> None:
    dice = random.Random(5)

    async def send(content: bytes) -> None:
        async with await connect(node) as stream:
            await push(stream, content, 1)
            await stream.send_eof()
            await rest(stream)

    for _ in range(20):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                noise = dice.randbytes(dice.randrange(1, 5000))
                nursery.start_soon(send, noise)
                nursery.start_soon(send, get("/" + "".join(chr(dice.randrange(33, 127)) for _ in range(50))))
                nursery.start_soon(send, get("/readyz") * dice.randrange(1, 30) + noise)
    await is_answered(node)
    await node.goes_on(5)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /api/v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["nothing", "heads", "bodies"],
)
async def test_more_slow_clients_than_there_is_room(node: AbusedNode, sent: bytes) -> None:
    """They are sent away, and others are served all the time: whether from the same address or not."""
    before = node.descriptors()
    async with trio.open_nursery() as nursery:

        async def dawdle(number: int) -> None:
            async with await connect(node, f"127.0.0.{2 + number % 3}") as stream:
                await push(stream, sent, 1)
                assert b"HTTP/1.1 2" not in await rest(stream)

        for number in range(CONNECTIONS_MAX + 50):
            nursery.start_soon(dawdle, number)
        for _ in range(5):
            await is_answered(node)
            await is_answered(node, "127.0.0.2")
            assert node.descriptors() <= before + CONNECTIONS_MAX + 5
            await node.goes_on(5)
        nursery.cancel_scope.cancel()
    await node.until(lambda: node.descriptors() <= before + 5, "closing")


async def test_one_address_has_half_of_the_room(node: AbusedNode) -> None:
    before = node.descriptors()
    async with AsyncExitStack() as stack:
        for _ in range(OF_ADDRESS_MAX + 50):
            await stack.enter_async_context(await connect(node))
        await is_answered(node)
        assert node.descriptors() <= before + OF_ADDRESS_MAX + 5
    await node.until(lambda: node.descriptors() <= before + 5, "closing")


@asynccontextmanager
async def followed(node: AbusedNode, many: int) -> AsyncIterator[list[trio.SocketStream]]:
    """Event streams, of which nothing is read but the status."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(many):
            stream = await stack.enter_async_context(await connect(node))
            await stream.send_all(get("/api/v1/events/clients", AUTHORIZATION))
            assert (await stream.receive_some(13)) == b"HTTP/1.1 200 "
            found.append(stream)
        yield found


async def test_many_streams(node: AbusedNode) -> None:
    async with followed(node, STREAMS_OF_ONE):
        async with await connect(node) as stream:
            await stream.send_all(get("/api/v1/events/clients", AUTHORIZATION, "Connection: close"))
            assert (await rest(stream)).startswith(b"HTTP/1.1 429 ")
        await is_answered(node)
        await node.goes_on(5)

    async def room() -> bool:
        async with await connect(node) as stream:
            await stream.send_all(get("/api/v1/events/clients", AUTHORIZATION))
            return await stream.receive_some(13) == b"HTTP/1.1 200 "

    while not await room():  # the test's own time limit ends this
        pass


async def test_clients_that_left_their_requests(node: AbusedNode) -> None:
    """Nobody waits for the answers: there is room for more, and nothing is left of them."""
    body = b'{"topic": "abuse/mute", "timeout_s": 60}'
    fields = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    head = get("/api/v1/requests", AUTHORIZATION, *fields, method="POST")
    mute = await node.client()
    await mute.subscribe("abuse/mute")
    before = node.descriptors()
    for _ in range(5):
        for _ in range(OPERATIONS_OF_ONE + 20):
            async with await connect(node) as stream:
                await stream.send_all(head + body)
        await node.goes_on(5)
    await node.until(lambda: node.descriptors() <= before + 5, "closing")
    await is_answered(node)


async def test_answers_that_are_not_read(node: AbusedNode) -> None:
    """Each takes the largest file again and again."""
    before = node.rss_bytes()
    async with AsyncExitStack() as stack:
        for number in range(200):
            stream = await stack.enter_async_context(await connect(node, f"127.0.0.{2 + number % 3}"))
            with trio.move_on_after(0.05):
                await push(stream, get("/vendor/mqtt.min.js", "Accept-Encoding: identity"), 100)
        await is_answered(node)
        await node.goes_on(5)
    assert node.rss_bytes() - before < 100 * MIB


async def test_a_node_stops_whoever_does_not_read(tmp_path: Path) -> None:
    node = AbusedNode(tmp_path / "stops", "memory", *ADMIN_ARGUMENTS)
    node.start()
    try:
        async with attended(node), followed(node, 5), AsyncExitStack() as stack:
            for _ in range(20):
                stream = await stack.enter_async_context(await connect(node))
                with trio.move_on_after(1):  # until buffers are full
                    await push(stream, get("/vendor/mqtt.min.js", "Accept-Encoding: identity"), 200)
            await is_answered(node)
            await node.goes_on(5)
        stalled = [await connect(node) for _ in range(5)]
        for stream in stalled:
            with trio.move_on_after(1):
                await push(stream, get("/vendor/mqtt.min.js", "Accept-Encoding: identity"), 200)
        await trio.to_thread.run_sync(node.stop)
        for stream in stalled:
            await stream.aclose()
    finally:
        node.kill()
    assert "Traceback" not in node.whole_log()
