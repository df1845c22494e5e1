"""WebSocket connections over sockets in memory: framing, pressure, deadlines and the end."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
import trio

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import Connack, Connect, Disconnect, Pingreq, Publish, Suback
from broker.options.listener import Listener, ListenerOptions
from broker.peer import Peer as Address
from broker.session.quotas import Quotas
from broker.transport.entrance import Entrance
from broker.transport.upgrade import MAX_HEAD_BYTES, MAX_HEAD_LINES
from broker.transport.websocket import BACKLOG_BYTES, WebSockets, _Wire
from tests.kit.websocket_client import Headers, WebSocketWire, frame
from tests.node.kit import MemorySocket, Peer, World, serving

LISTENER = Listener("ws", "127.0.0.1", 8083, "/mqtt", ListenerOptions())
PING = b"\xc0\0"
PONG = b"\xd0\0"


class WebPeer(Peer):
    """A client at the other end of a WebSocket connection over a memory socket."""

    def __init__(self, world: World, socket: MemorySocket, version: int) -> None:
        super().__init__(world, socket, None, version)  # type: ignore[arg-type]
        self.wire = WebSocketWire()

    def put(self, *packets: object) -> None:
        data = b"".join(bytes(encode(packet, self.version)) for packet in packets)  # type: ignore[arg-type]
        self.socket.feed(self.wire.binary(data))

    def read(self) -> bytes:
        """What came in messages since the last look."""
        data = bytes(self.socket.sent[self._taken :])
        self._taken += len(data)
        answer = self.wire.receive(data)
        if answer:
            self.socket.feed(answer)
        return self.wire.take()

    def _collect(self) -> None:
        self._frames.feed(self.read())
        while (packet := self._frames.next_frame()) is not None:
            first_byte, body = packet
            self.inbox.append(decode(first_byte, body, 0, len(body), self.version, False))

    async def open(
        self, path: str = "/mqtt", subprotocols: Sequence[str] = ("mqtt",), headers: Headers = (), more: bytes = b""
    ) -> int:
        """Ask for the upgrade; returns the status."""
        self.socket.feed(self.wire.request(path, subprotocols, headers) + more)
        await self.world.settle()
        self._collect()
        return self.wire.status

    async def feed(self, *chunks: bytes) -> bytes:
        """Send raw bytes, return the MQTT that came for them."""
        self.socket.feed(*chunks)
        await self.world.settle()
        return self.read()


class Web:
    """WebSocket connections of a world."""

    def __init__(self, world: World, listener: Listener = LISTENER) -> None:
        self.world = world
        self.listener = listener
        entrance = Entrance(world.reactor, world.metrics, 1 << 20, lambda: len(world.server.connections))
        self.sockets = WebSockets(entrance, world.server.start, world.server.accept)

    def plug(self, version: int = 5, address: Address | None = None) -> WebPeer:
        """A network connection."""
        socket, stream = self.world.plug(address)
        self.sockets.accept(stream, self.listener)
        return WebPeer(self.world, socket, version)

    async def connect(self, client_id: str = "w", version: int = 5, keep_alive_s: int = 0) -> WebPeer:
        """A connected client."""
        peer = self.plug(version)
        assert await peer.open() == 101
        peer.put(Connect(version, client_id, True, keep_alive_s, None, None, None, None))
        assert (await peer.expect(Connack)).reason_code == 0
        return peer


def with_options(**options: object) -> Listener:
    return dataclasses.replace(LISTENER, options=ListenerOptions(**options))  # type: ignore[arg-type]


async def test_messages_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        web = Web(world)
        peer = await web.connect()
        other = await world.subscriber("plain", "a/#")
        await peer.subscribe("b/#", qos=2)
        await peer.expect(Suback)
        peer.put(Publish("a/1", b"from the web", 0, False, False, 0, None))
        assert await other.payloads() == [b"from the web"]
        other.put(*(Publish("b/1", b"%d" % n, 0, False, False, 0, None) for n in range(5)))
        assert await peer.payloads() == [b"0", b"1", b"2", b"3", b"4"]
        assert len(peer.wire.messages) == 3  # CONNACK, SUBACK, and what one turn sent


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_packets_split_anywhere(autojump_clock: trio.testing.MockClock, size: int) -> None:
    async with serving() as world:
        peer = Web(world).plug()
        assert await peer.open() == 101
        data = bytes(encode(Connect(5, "split", True, 0, None, None, None, None), 5)) + 3 * PING
        frames = b"".join(frame(data[at : at + size]) for at in range(0, len(data), size))
        answer = b"".join([await peer.feed(frames[at : at + 5]) for at in range(0, len(frames), 5)])
        assert answer.startswith(b"\x20") and answer.endswith(3 * PONG)


async def test_packets_joined_are_answered_in_one_message(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        peer = await Web(world).connect()
        del peer.wire.messages[:]
        assert await peer.feed(frame(5 * PING)) == 5 * PONG
        assert peer.wire.messages == [10]


async def test_fragments_with_a_ping_between(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        peer = await Web(world).connect()
        assert await peer.feed(frame(PING[:1], 0x02) + frame(b"", 0x00) + frame(b"hello", 0x89)) == b""
        assert peer.wire.pongs == [b"hello"]
        assert await peer.feed(frame(PING[1:] + PING, 0x80)) == 2 * PONG


async def test_frames_behind_the_request(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        peer = Web(world).plug()
        first = frame(bytes(encode(Connect(5, "hasty", True, 0, None, None, None, None), 5)))
        assert await peer.open(more=first) == 101
        assert (await peer.expect(Connack)).reason_code == 0


@pytest.mark.parametrize(
    "wrong, code",
    [
        (frame(b"text", 0x81), 1003),
        (b"\x82\x02" + PING, 1002),  # not masked
        (frame(PING, 0xC2), 1002),  # a reserved bit, as of compression
        (frame(PING, 0x80), 1002),  # the end of nothing
        (frame(b"\xff\xff", 0x81), 1007),
        (frame(b"\x10\x00"), 1002),  # MQTT: a second CONNECT
        (frame(b"\x30\xff\xff\xff\x7f"), 1009),
        (frame(b"\xe0\x00"), 1000),
    ],
)
async def test_close_codes(autojump_clock: trio.testing.MockClock, wrong: bytes, code: int) -> None:
    async with serving() as world:
        peer = await Web(world).connect()
        await peer.feed(wrong)
        assert peer.wire.code == code
        await world.settle()
        assert peer.closed()
        assert not world.server.connections


async def test_a_huge_frame_is_not_collected(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Quotas(max_packet_size=1000)) as world:
        peer = await Web(world).connect()
        packets = [await peer.feed(frame(b"\x30\xff\xff\x03" + bytes(100), size=1 << 40))]
        assert packets[0][:3] == b"\xe0" + packets[0][1:2] + b"\x95"
        assert peer.wire.code == 1009


async def test_a_huge_message_of_small_packets_is_none(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(Quotas(max_packet_size=1000)) as world:
        peer = await Web(world).connect()
        count = 100_000
        data = frame(count * PING)
        got = b"".join([await peer.feed(data[at : at + 65536]) for at in range(0, len(data), 65536)])
        assert got == count * PONG


async def test_close_codes_of_the_server(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        web = Web(world)
        first = await web.connect("same")
        await web.connect("same")
        assert (await first.expect(Disconnect)).reason_code == 0x8E
        assert first.wire.code == 1008
        old = await web.connect("old", version=4)
        world.server.start(lambda: world.server.drain(1000, 5))
        await world.settle()
        old.read()
        assert old.wire.code == 1001


async def test_the_closing_handshake(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        peer = await Web(world).connect()
        peer.socket.feed(frame(b"\xe0\0"))
        await world.settle()
        assert not peer.closed()  # it waits for the answer
        peer.read()
        await world.settle()
        assert peer.closed() and world.tasks() == 0
        silent = await Web(world).connect()
        silent.socket.feed(frame(b"\xe0\0"))
        await world.settle()
        await trio.sleep(5)
        assert silent.closed() and world.tasks() == 0


async def test_a_close_frame_is_answered_after_what_came_before(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        other = await world.subscriber("other", "#", qos=0)
        peer = await Web(world).connect()
        data = bytes(encode(Publish("a", b"last words", 0, False, False, 0, None), 5))
        await peer.feed(frame(data) + peer.wire.closing(1001))
        assert peer.wire.code == 1001
        assert await other.payloads() == [b"last words"]
        assert world.metrics.disconnects["connection_lost"] == 1


@pytest.mark.parametrize("how", ["finish", "reset"])
async def test_gone_without_a_word(autojump_clock: trio.testing.MockClock, how: str) -> None:
    async with serving() as world:
        peer = await Web(world).connect()
        getattr(peer.socket, how)()
        await world.settle()
        assert peer.closed()
        assert world.metrics.disconnects["connection_lost"] == 1 and world.tasks() == 0


async def test_an_owner_that_fails(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as world:
        peer = await Web(world).connect()
        [connection] = world.server.connections

        def fail(data: bytes) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(type(connection), "_process", lambda self, data: fail(data))
        await peer.feed(frame(PING))
        assert peer.wire.code == 1011
        assert world.metrics.disconnects["connection_lost"] == 1


async def test_keep_alive(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        peer = await Web(world).connect(keep_alive_s=10)
        for _ in range(5):
            await trio.sleep(10)
            assert await peer.feed(frame(PING)) == PONG
        await trio.sleep(14)
        assert not peer.closed()
        await trio.sleep(3)
        assert (await peer.expect(Disconnect)).reason_code == 0x8D
        assert peer.wire.code == 1008


async def test_a_client_that_never_connects(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(connect_timeout_s=5.0) as world:
        peer = Web(world).plug()
        assert await peer.open() == 101
        await trio.sleep(6)
        assert peer.closed() and world.tasks() == 0


@pytest.mark.parametrize("sent", [b"", b"GET /mqtt HTTP/1.1\r\n", b"GET /mqtt HTTP/1.1\r\nHost: x\r\nA: b\r\n"])
async def test_the_handshake_takes_too_long(autojump_clock: trio.testing.MockClock, sent: bytes) -> None:
    async with serving() as world:
        web = Web(world, with_options(handshake_timeout_s=3.0))
        peer = web.plug()
        await peer.feed(sent)
        assert world.tasks() == 0  # nothing is spent on it yet
        await trio.sleep(2)
        assert not peer.closed() and web.sockets.handshakes == 1
        await trio.sleep(2)
        assert peer.closed() and web.sockets.handshakes == 0
        assert world.metrics.rejected["websocket_timeout"] == 1


async def test_too_many_handshakes(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.transport.websocket.MAX_HANDSHAKES", 3)
    async with serving() as world:
        web = Web(world)
        waiting = [web.plug() for _ in range(3)]
        late = web.plug()
        await world.settle()
        assert late.closed() and world.metrics.rejected["websocket_handshakes"] == 1
        assert await waiting[0].open() == 101
        assert await web.plug().open() == 101


@pytest.mark.parametrize(
    "request_line, headers, status",
    [
        (b"GET / HTTP/1.1", b"", 404),
        (b"GET /mqtt/x HTTP/1.1", b"", 404),
        (b"GET /mqtt?x=1 HTTP/1.1", b"", 101),
        (b"POST /mqtt HTTP/1.1", b"", 400),
        (b"GET /mqtt HTTP/1.1", b"X: " + bytes(3) + b"\r\n", 400),
        (b"GET /mqtt HTTP/1.1", b"X: " + MAX_HEAD_BYTES * b"x" + b"\r\n", 431),
        (b"GET /mqtt HTTP/1.1", MAX_HEAD_LINES * b"X: y\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"", 0),
        (b"\x10\x0c\x00\x04MQTT", b"", 0),
        (b"GET /m\xffqtt HTTP/1.1", b"", 400),
        (b"GET /mqtt HTTP/1.1", b"Host: " + 70 * b"x" + b".\xff\r\n", 400),
    ],
)
async def test_requests(
    autojump_clock: trio.testing.MockClock, request_line: bytes, headers: bytes, status: int
) -> None:
    async with serving() as world:
        web = Web(world)
        peer = web.plug()
        rest = WebSocketWire().request().partition(b"\r\n")[2]
        peer.socket.feed(request_line + b"\r\n" + headers + rest)
        await world.settle()
        answer = bytes(peer.socket.sent)
        assert answer.startswith(b"HTTP/1.1 %d " % status if status else b"")
        assert peer.closed() is (status != 101)
        assert web.sockets.handshakes == 0
        assert sum(world.metrics.rejected.values()) == (status != 101)
        assert len(world.server.connections) == (status == 101)


@pytest.mark.parametrize(
    "missing", [b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n", b"Sec-WebSocket-Version: 13\r\n"]
)
async def test_incomplete_requests(autojump_clock: trio.testing.MockClock, missing: bytes) -> None:
    async with serving() as world:
        peer = Web(world).plug()
        request = WebSocketWire().request()
        assert missing in request
        peer.socket.feed(request.replace(missing, b""))
        await world.settle()
        assert bytes(peer.socket.sent).startswith(b"HTTP/1.1 400 ")
        assert peer.closed() and world.tasks() == 0


@pytest.mark.parametrize(
    "offered, required, status, answered",
    [
        (["mqtt"], True, 101, "mqtt"),
        (["mqttv3.1"], True, 101, "mqttv3.1"),
        (["chat", "mqttv5", "mqtt"], True, 101, "mqttv5"),
        (["mqttv3.1.1"], True, 101, "mqttv3.1.1"),
        (["chat"], True, 400, None),
        ([], True, 400, None),
        (["chat"], False, 101, None),
        ([], False, 101, None),
    ],
)
async def test_subprotocols(
    autojump_clock: trio.testing.MockClock, offered: list[str], required: bool, status: int, answered: str | None
) -> None:
    async with serving() as world:
        peer = Web(world, with_options(require_subprotocol=required)).plug()
        assert await peer.open(subprotocols=offered) == status
        assert peer.wire.subprotocol == answered


@pytest.mark.parametrize(
    "allowed, origin, status",
    [
        ((), b"https://evil.example", 101),
        (("https://app.example",), b"https://app.example", 101),
        (("https://app.example/",), b"HTTPS://App.Example", 101),
        (("https://app.example",), None, 101),
        (("https://app.example",), b"https://evil.example", 403),
        (("https://app.example",), b"http://app.example", 403),
        (("https://app.example",), b"https://app.example.evil.example", 403),
        (("https://app.example",), b"null", 403),
    ],
)
async def test_origins(
    autojump_clock: trio.testing.MockClock, allowed: tuple[str, ...], origin: bytes | None, status: int
) -> None:
    async with serving() as world:
        peer = Web(world, with_options(origins=allowed)).plug()
        headers = [] if origin is None else [(b"Origin", origin)]
        assert await peer.open(headers=headers) == status


async def test_the_peer_that_the_server_sees(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        web = Web(world, with_options(trusted_proxies=("10.0.0.0/8",)))
        given = [(b"X-Forwarded-For", b"6.6.6.6, 192.0.2.7"), (b"X-Forwarded-For", b"10.1.1.1"), (b"Cookie", b"a=b")]
        for host, seen in (("10.0.0.1", "192.0.2.7"), ("198.51.100.1", "198.51.100.1")):
            peer = web.plug(address=Address(host, 4000, "name"))
            assert await peer.open(headers=given) == 101
            [connection] = world.server.connections
            address = connection.stream.peer
            assert (address.host, address.listener) == (seen, "name")
            assert address.headers["host"] == "broker.test" and address.headers["cookie"] == "a=b"
            assert not any(name.startswith("sec-") for name in address.headers)
            peer.socket.finish()
            await world.settle()


async def test_nothing_moves_while_clients_are_held(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        peer = await Web(world).connect()
        other = await world.connect("other")
        held = True
        world.reactor.hold = lambda: held
        await trio.sleep(1)
        peer.socket.feed(frame(PING) + frame(b"x", 0x89))
        await trio.sleep(1)
        assert peer.read() == b"" and not peer.wire.pongs
        held = False
        await trio.sleep(1)
        assert peer.read() == PONG and peer.wire.pongs == [b"x"]
        world.reactor.drop_clients()
        assert peer.closed() and other.closed()


async def test_a_slow_reader(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(bound=10_000) as world:
        peer = await Web(world).connect()
        await peer.subscribe("a", qos=1)
        await peer.expect(Suback)
        other = await world.connect("other")
        peer.socket.room = 0
        for number in range(100):
            await other.send(Publish("a", b"%04d" % number + bytes(1000), 0, False, False, 0, None))
        assert world.metrics.dropped["output_full"] > 80
        peer.socket.set_room(None)
        got = [payload[:4] for payload in await peer.payloads()]
        assert got == [b"%04d" % number for number in range(len(got))] and 10 <= len(got) < 20
        await other.send(Publish("a", b"now", 0, False, False, 0, None))
        assert await peer.payloads() == [b"now"]
        peer.socket.room = 0
        for _ in range(30):
            await other.send(Publish("a", bytes(1000), 0, False, False, 0, None))
        await trio.sleep(50)
        assert peer.closed() and world.metrics.disconnects["output_stalled"] == 1


async def test_a_paused_connection_leaves_the_rest_in_the_socket(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        peer = await Web(world).connect()
        [connection] = world.server.connections
        connection.hold(True)
        data = frame(200_000 * PING)
        peer.socket.feed(*(data[at : at + 65536] for at in range(0, len(data), 65536)))
        await world.settle()
        assert peer.socket.unread() >= len(data) - 3 * BACKLOG_BYTES
        assert peer.read() == b""
        connection.hold(False)
        await world.settle()
        assert peer.read() == 200_000 * PONG


async def test_pings_that_nobody_reads_the_answers_of(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(bound=10_000) as world:
        peer = await Web(world).connect()
        peer.socket.room = 0
        flood = 100 * frame(bytes(100), 0x89)
        peer.socket.feed(*([flood] * 100))
        await world.settle()
        [connection] = world.server.connections
        assert connection.stream.overrun and connection.stream.pending_bytes() < 200_000
        assert peer.socket.unread() > 50 * len(flood)
        await trio.sleep(50)
        assert peer.closed()


async def test_empty_fragments_take_no_memory_and_no_more_than_a_share(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    receive_some = _Wire.receive_some

    async def counting(wire: _Wire, max_bytes: int | None = None) -> bytes:
        steps.append(wire.frames)
        return await receive_some(wire, max_bytes)

    monkeypatch.setattr(_Wire, "receive_some", counting)
    async with serving() as world:
        peer = await Web(world).connect()
        peer.socket.feed(frame(PING[:1], 0x02), *([frame(b"", 0x00) * 10_000] * 5))
        await world.settle()
        [connection] = world.server.connections
        assert connection.stream.pending_bytes() == 0
        assert await peer.feed(frame(PING[1:], 0x80)) == PONG
    assert sum(steps) > 50_000 and sorted(steps)[-10] < 100


async def test_a_pause_of_the_process_is_not_the_clients_fault(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        peer = await Web(world).connect(keep_alive_s=2)
        held = True
        world.reactor.hold = lambda: held
        for _ in range(4):
            await trio.sleep(1.5)
            peer.socket.feed(frame(PING))
        held = False
        await trio.sleep(1)
        assert peer.read() == 4 * PONG and peer.wire.code == 0


async def test_abort_and_clients_in_the_handshake(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as world:
        web = Web(world)
        peer = await web.connect()
        half = web.plug()
        await half.feed(b"GET /mqtt")
        world.server.abandon("fenced")
        world.reactor.drop_clients()
        await world.settle()
        assert peer.closed() and half.closed() and peer.wire.code == 0
        assert world.tasks() == 0


async def test_nonsense(autojump_clock: trio.testing.MockClock, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever frames come, in whatever pieces: nothing fails, and nothing is left."""
    async with serving() as world:
        web = Web(world)
        for seed in range(300):
            chance = random.Random(seed)
            peer = web.plug() if chance.random() < 0.2 else await web.connect(f"w{seed}")
            data = b"" if peer.connack is None else b"x"
            for _ in range(chance.randrange(1, 12)):
                payload = chance.choice((PING, b"", chance.randbytes(chance.randrange(200)), 3 * PING, b"\x03\xe8"))
                first = chance.choice(
                    (0x82, 0x82, 0x82, 0x02, 0x00, 0x80, 0x89, 0x8A, 0x88, 0x81, chance.randrange(256))
                )
                size = chance.choice((None, None, None, None, chance.randrange(1 << 20)))
                data += chance.choice((frame(payload, first, size), frame(payload), chance.randbytes(5)))
            while data:
                at = chance.randrange(1, 300)
                piece, data = data[:at], data[at:]
                peer.socket.feed(piece)
                if chance.random() < 0.5:
                    await world.settle()
            if chance.random() < 0.5:
                peer.socket.reset()
            else:
                peer.socket.finish()
            await world.settle()
            await trio.sleep(20)
            assert peer.closed(), seed
        assert world.tasks() == 0 and not world.server.connections
        assert web.sockets.handshakes == 0
    told = capsys.readouterr().out
    assert "listener.refused" in told
    assert "reactor." not in told and "server." not in told  # where errors are told that nobody expected


def test_pingreq_is_what_it_is() -> None:
    assert bytes(encode(Pingreq(), 5)) == PING
