"""WebSocket listeners under attack: requests, frames, and peers that do not play along (G15, G19)."""

from __future__ import annotations

import json
import os

import pytest
import trio

from broker.codec.encode import encode
from broker.codec.packets import V311, Publish, Subscribe, SubscriptionRequest
from tests.abuse.conftest import Counted
from tests.abuse.siege import CONNACK_V3, MIB, Door, Raw, Siege, connect_packet, door, meanwhile, rejected, siege
from tests.abuse.world import AbusedNode, dropped, in_parallel, new_name
from tests.kit.websocket_client import frame

TIMEOUT_S = 1

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
PING, PONG = b"\xc0\0", b"\xd0\0"


def request(
    *lines: bytes,
    start: bytes = b"GET /mqtt HTTP/1.1",
    host: bytes = b"Host: broker.test\r\n",
    connection: bytes = b"Connection: Upgrade\r\n",
    upgrade: bytes = b"Upgrade: websocket\r\n",
    key: bytes = KEY,
    version: bytes = b"Sec-WebSocket-Version: 13\r\n",
    subprotocol: bytes = b"Sec-WebSocket-Protocol: mqtt\r\n",
) -> bytes:
    """An upgrade request; any part of it may be another, and `lines` are added without their ends."""
    more = b"".join(line + b"\r\n" for line in lines)
    return start + b"\r\n" + host + connection + upgrade + key + version + subprotocol + more + b"\r\n"


def server_frame(payload: bytes, first: int = 0x82) -> bytes:
    """A frame of up to 125 bytes as the node sends it."""
    return bytes((first, len(payload))) + payload


@pytest.fixture
def arguments() -> tuple[str, ...]:
    time = f"handshake_timeout={TIMEOUT_S}s"
    return (
        "--listen", f"ws://127.0.0.1:0/mqtt?{time}",
        "--listen", f"ws://127.0.0.1:0/mqtt?{time}&origins=https://app.example",
        "--listen", f"ws://127.0.0.1:0/mqtt?{time}&trusted_proxies=127.0.0.0/8,10.0.0.0/8",
        "--log-level", "debug", "--stall-timeout", "2s",
    )  # fmt: skip


@pytest.fixture
def entry(node: AbusedNode) -> Door:
    return door(node, "ws")


async def upgraded(attack: Siege, at: Door, *lines: bytes, small: bool = False) -> Raw:
    """A connection whose handshake is done."""
    attacker = await attack.dial(at, small)
    await attacker.send(request(*lines))
    while b"\r\n\r\n" not in attacker.received:
        assert await attacker.some(), attacker.received
    head, _, attacker.received = attacker.received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"extensions" not in head.lower()
    return attacker


async def connected(attack: Siege, at: Door, client_id: str = "", *lines: bytes, small: bool = False) -> Raw:
    """And CONNECT was accepted."""
    attacker = await upgraded(attack, at, *lines, small=small)
    await attacker.send(frame(connect_packet(client_id or new_name())))
    assert await attacker.exactly(6) == server_frame(CONNACK_V3)
    return attacker


def status(answer: bytes) -> int:
    """That of HTTP; 0: nothing was said."""
    return int(answer.split(b" ")[1]) if answer else 0


# -- requests


async def test_g15_slow_headers(node: AbusedNode, moved: Counted, entry: Door) -> None:
    async def slow(_number: int) -> None:
        attacker = await attack.dial(entry)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attacker.trickle, request(b"X-Slow: " + b"s" * 500))
            assert status(await attacker.until_closed()) == 0
            nursery.cancel_scope.cancel()

    async with siege(node) as attack:
        await in_parallel(20, slow)
        assert moved(rejected("websocket_timeout")) == 20


async def test_g15_half_a_request_and_silence(node: AbusedNode, moved: Counted, entry: Door) -> None:
    async def silent(number: int) -> None:
        attacker = await attack.dial(entry)
        await attacker.send(request()[: number * 2])
        assert await attacker.until_closed() == b""

    async with siege(node) as attack:
        await in_parallel(60, silent)
        assert moved(rejected("websocket_timeout")) == 60


REFUSED = {
    "a huge header": (request(b"Cookie: " + b"x" * 1_000_000), 431),
    "thousands of headers": (request(*[b"X-%d: y" % n for n in range(5000)]), 431),
    "65 headers": (request(*[b"X-%d: y" % n for n in range(65)]), 431),
    "a header without end": (b"GET /mqtt HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
    "a long path": (request(start=b"GET /" + b"m" * 100_000 + b" HTTP/1.1"), 431),
    "line feeds": (b"GET /mqtt HTTP/1.1\r\n" + b"\n" * 5000, 431),
    "POST": (request(start=b"POST /mqtt HTTP/1.1"), 400),
    "CONNECT": (request(start=b"CONNECT /mqtt HTTP/1.1"), 400),
    "an invented method": (request(start=b"BREW /mqtt HTTP/1.1"), 400),
    "HTTP 1.0": (request(start=b"GET /mqtt HTTP/1.0"), 505),
    "HTTP 9": (request(start=b"GET /mqtt HTTP/9.9"), 505),
    "no version": (request(start=b"GET /mqtt"), 400),
    "no host": (request(host=b""), 400),
    "two hosts": (request(host=b"Host: a\r\nHost: b\r\n"), 400),
    "no key": (request(key=b""), 400),
    "a short key": (request(key=b"Sec-WebSocket-Key: YQ==\r\n"), 101),
    "no connection": (request(connection=b""), 400),
    "keep-alive": (request(connection=b"Connection: keep-alive\r\n"), 400),
    "no upgrade": (request(upgrade=b""), 400),
    "another upgrade": (request(upgrade=b"Upgrade: h2c\r\n"), 400),
    "version 8": (request(version=b"Sec-WebSocket-Version: 8\r\n"), 426),
    "no version of WebSocket": (request(version=b""), 400),
    "another path": (request(start=b"GET / HTTP/1.1"), 404),
    "path traversal": (request(start=b"GET /mqtt/../../etc/passwd HTTP/1.1"), 404),
    "encoded traversal": (request(start=b"GET /%2e%2e/%2e%2e/mqtt HTTP/1.1"), 404),
    "a path behind": (request(start=b"GET /mqtt/ HTTP/1.1"), 404),
    "a doubled slash": (request(start=b"GET //mqtt HTTP/1.1"), 404),
    "a whole URL": (request(start=b"GET http://evil.example/mqtt HTTP/1.1"), 404),
    "an encoded path": (request(start=b"GET /%6dqtt HTTP/1.1"), 404),
    "another subprotocol": (request(subprotocol=b"Sec-WebSocket-Protocol: chat\r\n"), 400),
    "no subprotocol": (request(subprotocol=b""), 400),
    "MQTT in capitals": (request(subprotocol=b"Sec-WebSocket-Protocol: MQTT\r\n"), 400),
    "a header that is none": (request(b"no colon"), 400),
    "a blank before the colon": (request(b"X : y"), 400),
    "a folded header": (request(b"X: a", b" Host: evil"), 101),
    "NUL in a header": (request(b"X: a\0b"), 400),
    "a bare carriage return": (request(b"X: a\rb"), 400),
    "a body": (request(b"Content-Length: 12") + connect_packet("x"), 400),
    "a body in chunks": (request(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", 400),
    "both": (request(b"Content-Length: 6", b"Transfer-Encoding: chunked") + b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n", 400),
    "two lengths": (request(b"Content-Length: 6", b"Content-Length: 7") + b"GET /x", 400),
    "a length below zero": (request(b"Content-Length: -1"), 400),
    "HTTP 2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 505),
    "h2c": (request(b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", upgrade=b"Upgrade: h2c\r\n"), 400),
    "TLS": (bytes.fromhex("1603010200010001fc0303") + bytes(508), 0),
    "MQTT": (connect_packet("plain"), 0),
    "zeros": (bytes(1000), 0),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_g15_a_request_that_is_none(node: AbusedNode, moved: Counted, entry: Door, name: str) -> None:
    """Answered with a status, or closed, at once; 101 is followed by what MQTT makes of it."""
    data, expected = REFUSED[name]
    async with siege(node, rounds=1) as attack:
        attacker = await attack.dial(entry)
        await attacker.send(data)
        if expected == 101:
            await attacker.some()
            assert status(attacker.received) in (101, 400)
            return
        answer = await attacker.until_closed()
        assert status(answer) in ((expected, 0) if expected == 431 else (expected,)), answer[:300]
        assert CONNACK_V3 not in answer
        assert moved(rejected("websocket_timeout")) == 0


async def test_g15_a_flood_of_requests(node: AbusedNode, entry: Door) -> None:
    async def ask(number: int) -> None:
        attacker = await attack.dial(entry)
        await attacker.send(request(start=b"GET /%d HTTP/1.1" % number))
        assert status(await attacker.until_closed()) == 404

    async def flood() -> None:
        await in_parallel(150, ask)

    async with siege(node) as attack:
        await meanwhile(node, flood)


async def test_g15_1500_requests_dropped_at_any_stage_leak_nothing(node: AbusedNode, entry: Door) -> None:
    whole = request()

    async def drop(number: int) -> None:
        for stage in range(10):
            attacker = await attack.dial(entry)
            await attacker.send((whole + frame(connect_packet(f"d{number}")))[: (0, 50, 400, 1000)[stage % 4]])
            if stage % 4 == 3:
                await attacker.some()
            attacker.reset()

    async with siege(node, 12 * MIB) as attack:
        await in_parallel(150, drop)


ORIGINS = {
    "another": (b"Origin: https://evil.example",),
    "http": (b"Origin: http://app.example",),
    "a port": (b"Origin: https://app.example:8443",),
    "a suffix": (b"Origin: https://app.example.evil.example",),
    "a prefix": (b"Origin: https://evilapp.example",),
    "a user": (b"Origin: https://app.example@evil.example",),
    "a path": (b"Origin: https://app.example/x",),
    "null": (b"Origin: null",),
    "empty": (b"Origin: ",),
    "two": (b"Origin: https://app.example", b"Origin: https://evil.example"),
    "two the other way": (b"Origin: https://evil.example", b"Origin: https://app.example"),
    "the same twice": (b"Origin: https://app.example", b"Origin: https://app.example"),
    "a list": (b"Origin: https://app.example, https://evil.example",),
    "a list in one": (b"Origin: https://app.example https://evil.example",),
}


@pytest.mark.parametrize("name", ORIGINS)
async def test_g19_an_origin_that_is_not_allowed(node: AbusedNode, name: str) -> None:
    async with siege(node, rounds=1) as attack:
        attacker = await attack.dial(door(node, "ws", 1))
        await attacker.send(request(*ORIGINS[name]))
        assert status(await attacker.until_closed()) in (400, 403)


async def test_g19_a_missing_origin_is_no_browser(node: AbusedNode) -> None:
    """Nor does a header that only looks like it count."""
    async with siege(node, rounds=1) as attack:
        await connected(attack, door(node, "ws", 1))
        await connected(attack, door(node, "ws", 1), "", b"X-Origin: https://evil.example")
        await connected(attack, door(node, "ws", 1), "", b"Origin: HTTPS://APP.example/")


def seen_as(node: AbusedNode, client_id: str) -> str:
    """The address that the node has for a client, from its log."""
    lines = node.whole_log().splitlines()
    [line] = [line for line in lines if f"client.connected client_id={client_id} " in line]
    return json.loads(told) if (told := line.partition("peer=")[2].split()[0]).startswith('"') else told


@pytest.mark.parametrize(
    ("number", "lines", "address"),
    [
        (0, [b"X-Forwarded-For: 192.0.2.7"], "127.0.0.1:"),
        (0, [b"X-Forwarded-For: 10.0.0.1, 192.0.2.7"], "127.0.0.1:"),
        (0, [b"Forwarded: for=192.0.2.7", b"X-Real-IP: 192.0.2.7"], "127.0.0.1:"),
        (2, [b"X-Forwarded-For: 6.6.6.6, 192.0.2.7"], "192.0.2.7:"),
        (2, [b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-For: 192.0.2.7"], "192.0.2.7:"),
        (2, [b"X-Forwarded-For: 6.6.6.6, 192.0.2.7, 10.0.0.3, 127.0.0.9"], "192.0.2.7:"),
        (2, [b"X-Forwarded-For: 127.0.0.1, 6.6.6.6, 127.0.0.1, 192.0.2.7"], "192.0.2.7:"),
        (2, [b"X-Forwarded-For: 6.6.6.6, nonsense, 10.0.0.3"], "10.0.0.3:"),
        (2, [b"X-Forwarded-For: 6.6.6.6, "], "127.0.0.1:"),
        (2, [b"X-Forwarded-For: ::ffff:192.0.2.7"], "192.0.2.7:"),
        (2, [b"X-Forwarded-For: fe80::1%eth0"], "127.0.0.1:"),
        (2, [b"X-Forwarded-For: " + b"6.6.6.6, " * 700 + b"192.0.2.7"], "192.0.2.7:"),
        (2, [b"X-Forwarded-For: " + b"10.0.0.1, " * 700 + b"192.0.2.7, 10.0.0.2"], "192.0.2.7:"),
        (2, [b"Forwarded: for=6.6.6.6", b"X-Real-IP: 6.6.6.6"], "127.0.0.1:"),
        (2, [b"X_Forwarded_For: 6.6.6.6"], "127.0.0.1:"),
    ],
)
async def test_g19_addresses_that_clients_made_up(
    node: AbusedNode, number: int, lines: list[bytes], address: str
) -> None:
    """What is left of the first hop that no proxy vouches for, and from somebody who is no proxy, does not count."""
    name = new_name()
    async with siege(node, rounds=1) as attack:
        await connected(attack, door(node, "ws", number), name, *lines)
        assert seen_as(node, name).startswith(address)


async def test_g15_compression_is_not_spoken(node: AbusedNode, entry: Door) -> None:
    """So there are no bombs of it: a compressed frame is a wrong one."""
    offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=15; server_no_context_takeover"
    async with siege(node, rounds=1) as attack:
        attacker = await connected(attack, entry, "", offer, b"Sec-WebSocket-Extensions: x-webkit-deflate-frame")
        await attacker.send(frame(b"\x4a\x4c\x04\x00" * 100, 0xC2))
        assert await attacker.until_closed() == server_frame(b"\x03\xea", 0x88)


# -- frames


FRAMES = {
    "no mask": (b"\x82\x02" + PING, 1002),
    "reserved bit 1": (frame(PING, 0xC2), 1002),
    "reserved bit 2": (frame(PING, 0xA2), 1002),
    "reserved bit 3": (frame(PING, 0x92), 1002),
    "opcode 3": (frame(PING, 0x83), 1002),
    "opcode 7": (frame(PING, 0x87), 1002),
    "opcode 11": (frame(PING, 0x8B), 1002),
    "opcode 15": (frame(PING, 0x8F), 1002),
    "text": (frame(b"text", 0x81), 1003),
    "text that is no UTF-8": (frame(b"\xff\xfe", 0x81), 1007),
    "text in parts": (frame(b"te", 0x01) + frame(b"xt", 0x80), 1003),
    "a ping in parts": (frame(b"p", 0x09), 1002),
    "a close in parts": (frame(b"\x03\xe8", 0x08), 1002),
    "a long ping": (frame(b"p" * 126, 0x89), 1002),
    "a long close": (frame(b"\x03\xe8" + b"c" * 200, 0x88), 1002),
    "a close of one byte": (frame(b"\x03", 0x88), 1002),
    "a close with a code that is none": (frame(b"\x03\xee", 0x88), 1002),
    "a close that is no UTF-8": (frame(b"\x03\xe8\xff", 0x88), 1007),
    "a part of nothing": (frame(PING, 0x80), 1002),
    "a message in a message": (frame(PING[:1], 0x02) + frame(PING, 0x82), 1002),
    "a length with its first bit": (b"\x82\xff" + b"\xff" * 8 + bytes(4), 1002),
    "a length that is too long": (b"\x82\xfe\0\x02" + bytes(4) + PING, 1002),
    "a length that is much too long": (b"\x82\xff" + bytes(7) + b"\x02" + bytes(4) + PING, 1002),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_g15_a_wrong_frame(node: AbusedNode, entry: Door, name: str) -> None:
    data, code = FRAMES[name]
    async with siege(node, rounds=1) as attack:
        attacker = await connected(attack, entry)
        await attacker.send(data)
        # It need not wait for ours.
        assert await attacker.exactly(4) == server_frame(code.to_bytes(2, "big"), 0x88)


async def test_g15_a_gigabyte_announced(node: AbusedNode, entry: Door) -> None:
    """A frame is not collected: what it announces costs nothing, and what is in it is MQTT."""

    async def announce(number: int) -> None:
        attacker = await connected(attack, entry)
        await attacker.send(frame(PING * 10, size=(1 << 30, 1 << 40, (1 << 63) - 1)[number % 3]))
        assert await attacker.exactly(22) == server_frame(PONG * 10)

    async with siege(node, 12 * MIB) as attack:
        await in_parallel(50, announce)


async def test_g15_an_endless_frame_of_one_packet(node: AbusedNode, moved: Counted, entry: Door) -> None:
    async with siege(node) as attack:
        attacker = await connected(attack, entry)
        await attacker.send(frame(b"\x30\xff\xff\xff\x7f", size=1 << 30))
        assert await attacker.exactly(4) == server_frame(b"\x03\xf1", 0x88), "1009: too big"
        assert moved('mqtt_packet_errors_total{reason="packet_too_large"}') == 1


async def test_g15_a_packet_over_1000_frames_and_1000_in_one(node: AbusedNode, entry: Door) -> None:
    topic = new_name()
    watcher = await node.client()
    await watcher.subscribe(topic, qos=0)
    payload = os.urandom(990)
    packet = bytes(encode(Publish(topic, payload), V311))
    async with siege(node) as attack:
        attacker = await connected(attack, entry)
        await attacker.send(b"".join(frame(bytes((byte,))) for byte in packet))
        assert (await watcher.expect(Publish)).payload == payload
        first, middle = frame(packet[:1], 0x02), packet[1:-1]
        parts = b"".join(frame(bytes((byte,)), 0x00) + frame(b"", 0x00) for byte in middle)
        await attacker.send(first + parts + frame(packet[-1:], 0x80))
        assert (await watcher.expect(Publish)).payload == payload
        await attacker.send(frame(1000 * PING))
        answer = b""
        while answer.count(PONG) < 1000:
            answer += await attacker.exactly(1)
        await watcher.expect_nothing()


async def test_g15_a_flood_of_pings(node: AbusedNode, entry: Door) -> None:
    """Each is answered; who does not read the answers is not read from."""
    block = frame(b"p" * 125, 0x89) * 500

    async def flood() -> None:
        await attacker.send(block)
        for _ in range(500):
            assert await attacker.exactly(127) == server_frame(b"p" * 125, 0x8A)

    async with siege(node) as attack:
        attacker = await connected(attack, entry)
        await meanwhile(node, flood)
        deaf = [await connected(attack, entry, small=True) for _ in range(5)]

        async def push(number: int) -> None:
            with trio.move_on_after(1):
                while await deaf[number].send(block):
                    pass

        before = node.rss_bytes()
        await in_parallel(5, push)
        assert node.rss_bytes() - before < 5 * 2 * MIB + 16 * MIB


async def test_g15_a_flood_of_empty_fragments(node: AbusedNode, entry: Door) -> None:
    """A message of thousands of parts with nothing in them: they cost processor time, and only their own."""
    block = frame(b"", 0x00) * 5000

    async def flood() -> None:
        await attacker.send(block)

    async with siege(node) as attack:
        attacker = await connected(attack, entry)
        await attacker.send(frame(b"", 0x02))
        await meanwhile(node, flood, 5)
        await attacker.send(frame(PING, 0x80))
        assert await attacker.exactly(4) == server_frame(PONG)


async def test_g15_a_flood_of_tiny_frames(node: AbusedNode, entry: Door) -> None:
    packet = bytes(encode(Publish("nobody/" + new_name(), b""), V311))
    block = b"".join(frame(bytes((byte,))) for byte in packet) * 60

    async def flood() -> None:
        await in_parallel(len(attackers), lambda number: _sent(attackers[number], block))

    async with siege(node) as attack:
        attackers = [await connected(attack, entry) for _ in range(5)]
        await meanwhile(node, flood)
        await node.goes_on(3)  # while there is a backlog
        for attacker in attackers:
            attacker.reset()


async def _sent(attacker: Raw, data: bytes) -> None:
    assert await attacker.send(data)


@pytest.mark.parametrize("data", [b"", frame(b"", 0x88), b"\x88", frame(PING)[:3]], ids=["", "close", "half", "cut"])
async def test_g15_an_end_without_a_goodbye(node: AbusedNode, entry: Door, data: bytes) -> None:
    async with siege(node) as attack:
        for number in range(20):
            attacker = await connected(attack, entry)
            await attacker.send(data)
            if number % 2:
                attacker.reset()
            else:
                await attacker.stream.send_eof()
                await attacker.until_closed()


async def test_g15_nothing_behind_the_handshake(node: AbusedNode, moved: Counted) -> None:
    """The time for CONNECT runs as anywhere."""
    at = door(node, "ws")
    async with siege(node) as attack:
        waiting = [await upgraded(attack, at) for _ in range(20)]
        for attacker in waiting:
            await attacker.send(frame(b"\x10"))
        await node.goes_on(3)
        assert moved("mqtt_disconnects_total") == 0


async def test_g15_a_subscriber_over_websocket_that_never_reads(node: AbusedNode, moved: Counted, entry: Door) -> None:
    topic = new_name()
    publisher = await node.client()
    subscribe = bytes(encode(Subscribe(1, [SubscriptionRequest(topic, 0)]), V311))
    async with siege(node, 40 * MIB) as attack:
        for _ in range(5):
            attacker = await connected(attack, entry, small=True)
            await attacker.send(frame(subscribe))
            await attacker.exactly(7)
        before = node.rss_bytes()
        for _ in range(1000):
            await publisher.send(Publish(topic, bytes(10_000)))
        await publisher.expect_nothing()
        assert node.rss_bytes() - before < 5 * 2 * MIB + 24 * MIB
        assert moved(dropped("output_full")) > 1000
