"""Connections that begin in the wrong way: closed, counted, and nobody else notices (G15)."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from broker.codec.packets import V5, V31, V311, Auth, Connack, Connect, Publish
from broker.errors import PeerError
from tests.abuse.conftest import Counted, Nodes, attended
from tests.abuse.world import AbusedNode, disconnects, in_parallel, new_name, packet_errors
from tests.conformance.wire import connect, text
from tests.kit.broker_process import ROOT
from tests.kit.mqtt_client import MqttClient, frame, properties

#: The shortest that is allowed.
TIMEOUT_S = 1

TLS_CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(192))
TLS_13_CLIENT_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(508)
SSL_2_HELLO = bytes.fromhex("802e010301001500000010")
HTTP_SHORT = b"GET / HTTP/1.0\r\n\r\n"
HTTP_LONG = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n"
HTTP_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
SSH = b"SSH-2.0-OpenSSH_9.2\r\n"
PROXY = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"
PROXY_2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12)
REDIS = b"*1\r\n$4\r\nPING\r\n"
ONE_BYTE = b"\x30"

FOREIGN = {
    "TLS": TLS_CLIENT_HELLO,
    "TLS 1.3": TLS_13_CLIENT_HELLO,
    "SSL 2": SSL_2_HELLO,
    "HTTP": HTTP_SHORT,
    "HTTP with headers": HTTP_LONG,
    "HTTP POST": HTTP_POST,
    "SSH": SSH,
    "PROXY": PROXY,
    "PROXY 2": PROXY_2,
    "Redis": REDIS,
    "one byte of a PUBLISH": ONE_BYTE,
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
}

FIRST = {
    "PUBLISH": frame(0x30, text(b"a") + b"x"),
    "PUBLISH at QoS 1": frame(0x32, text(b"a") + b"\x00\x01x"),
    "PUBACK": b"\x40\x02\x00\x01",
    "PUBREC": b"\x50\x02\x00\x01",
    "PUBREL": b"\x62\x02\x00\x01",
    "PUBCOMP": b"\x70\x02\x00\x01",
    "SUBSCRIBE": frame(0x82, b"\x00\x01" + text(b"a") + b"\x00"),
    "UNSUBSCRIBE": frame(0xA2, b"\x00\x01" + text(b"a")),
    "PINGREQ": b"\xc0\x00",
    "DISCONNECT": b"\xe0\x00",
    "AUTH": b"\xf0\x00",
    "CONNACK": b"\x20\x02\x00\x00",
    "type 0": b"\x00\x00",
}

BAD_CONNECTS = {
    "empty": b"\x10\x00",
    "name only": frame(0x10, text(b"MQTT")),
    "name longer than the packet": frame(0x10, b"\xff\xffMQTT\x05\x02\x00\x00"),
    "no flags": frame(0x10, text(b"MQTT") + b"\x05"),
    "no client id": connect(V311, b""),
    "client id cut off": connect(V5, b"\x00\x09abc"),
    "reserved flag": connect(V5, text(b"c"), 0x03),
    "will QoS 3": connect(V5, text(b"c") + b"\x00" + text(b"w") + text(b""), 0x1E),
    "will QoS without a will": connect(V311, text(b"c"), 0x0A),
    "will retain without a will": connect(V311, text(b"c"), 0x22),
    "password without a user name": connect(V311, text(b"c") + text(b"p"), 0x42),
    "bytes behind the payload": connect(V311, text(b"c") + b"?"),
    "flags in the first byte": connect(V311, text(b"c"), first_byte=0x11),
    "client id that is no UTF-8": connect(V311, text(b"\xff")),
    "client id with NUL": connect(V5, text(b"a\x00b")),
    "client id with a surrogate": connect(V5, text(b"\xed\xa0\x80")),
    "receive maximum 0": connect(V5, text(b"c"), properties=b"\x21\x00\x00"),
    "maximum packet size 0": connect(V5, text(b"c"), properties=b"\x27\x00\x00\x00\x00"),
    "authentication data without a method": connect(V5, text(b"c"), properties=b"\x16\x00\x01x"),
    "a property twice": connect(V5, text(b"c"), properties=b"\x21\x00\x09\x21\x00\x09"),
    "a property of PUBLISH": connect(V5, text(b"c"), properties=b"\x23\x00\x01"),
    "a flag property of 2": connect(V5, text(b"c"), properties=b"\x17\x02"),
    "129 user properties": frame(
        0x10, text(b"MQTT") + b"\x05\x02\x00\x00\x85\x05" + b"\x26\x00\x00\x00\x00" * 129 + text(b"c")
    ),
    "a will to a wildcard": connect(V5, text(b"c") + b"\x00" + text(b"a/#") + text(b""), 0x06),
    "a will to nowhere": connect(V311, text(b"c") + text(b"") + text(b""), 0x06),
}


@pytest.fixture
def arguments() -> tuple[str, ...]:
    return ("--connect-timeout", f"{TIMEOUT_S}s")


@pytest.mark.parametrize("arguments", [()])  # with the usual time for CONNECT: it must not be needed
@pytest.mark.parametrize("name", FOREIGN)
async def test_g15_another_protocol_is_turned_away_at_once(node: AbusedNode, moved: Counted, name: str) -> None:
    client = await node.open()
    await client.send_raw(FOREIGN[name])
    await client.expect_closed()
    assert moved(disconnects("connect_timeout")) == 0


@pytest.mark.parametrize("name", FIRST)
async def test_g15_a_first_packet_that_is_not_connect(node: AbusedNode, moved: Counted, name: str) -> None:
    client = await node.open()
    await client.send_raw(FIRST[name])
    await client.expect_closed()  # [MQTT-3.1.0-1]
    await node.until(
        lambda: moved(packet_errors("protocol_error")) + moved(packet_errors("malformed_packet")) == 1, "the count"
    )


@pytest.mark.parametrize("name", BAD_CONNECTS)
async def test_g15_a_bad_connect(node: AbusedNode, moved: Counted, name: str) -> None:
    client = await node.open()
    await client.send_raw(BAD_CONNECTS[name])
    await client.expect_closed()
    names = ("protocol_error", "malformed_packet", "quota_exceeded", "topic_name_invalid")
    await node.until(lambda: sum(moved(packet_errors(name)) for name in names) == 1, "the count")


@pytest.mark.parametrize(("name", "level"), [(b"MQTT", 6), (b"MQTT", 3), (b"MQIsdp", 5), (b"mqtt", 4), (b"", 4)])
async def test_g15_an_unknown_version(node: AbusedNode, moved: Counted, name: bytes, level: int) -> None:
    client = await node.open()
    await client.send_raw(connect(V311, text(b"c"), name=name, level=level))
    with contextlib.suppress(PeerError):  # which form its sender reads, nobody knows
        await client.receive()
    assert client.last_raw in (b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00")
    await client.expect_closed()
    await node.until(lambda: moved(packet_errors("unsupported_protocol_version")) == 1, "the count")


async def test_g15_a_connect_that_never_comes(node: AbusedNode, moved: Counted) -> None:
    async def silent(_number: int) -> None:
        client = await node.open()
        await client.expect_closed()

    await in_parallel(20, silent)
    assert moved(disconnects("connect_timeout")) == 20


@pytest.mark.parametrize("length", [1, 2, 7, 12, 17])
async def test_g15_half_a_connect(node: AbusedNode, moved: Counted, length: int) -> None:
    client = await node.open()
    await client.send_raw(connect(V311, text(b"client"))[:length])
    await client.expect_closed()
    assert moved(disconnects("connect_timeout")) == 1


async def test_g15_a_connect_byte_by_byte_does_not_extend_its_time(node: AbusedNode, moved: Counted) -> None:
    client = await node.open()
    packet = connect(V311, text(b"c" * 10_000))

    async def trickle() -> None:
        for byte in packet:
            await client.send_raw(bytes((byte,)))
            await trio.sleep(0.01)  # a slow peer is the point

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        await client.expect_closed()
        nursery.cancel_scope.cancel()
    assert moved(disconnects("connect_timeout")) == 1


@pytest.mark.parametrize("announced", [b"\xff\xff\xff\x7f", b"\x81\x80\x01", b"\xfd\x7f"], ids=bytes.hex)
async def test_g15_a_huge_connect_is_refused_by_its_length(node: AbusedNode, moved: Counted, announced: bytes) -> None:
    before = node.rss_bytes()
    client = await node.open()
    await client.send_raw(b"\x10" + announced)
    if announced == b"\xfd\x7f":  # 16,384 bytes in all: within the bound, so it may still come
        await client.expect_closed()
        assert moved(disconnects("connect_timeout")) == 1
        return
    await client.expect_closed()
    assert moved(packet_errors("packet_too_large")) == 1
    assert node.rss_bytes() - before < 8 << 20


async def test_g15_a_client_id_of_65535_bytes_does_not_fit_before_authentication(
    node: AbusedNode, moved: Counted
) -> None:
    client = await node.open()
    await client.send_raw(connect(V5, text(b"c" * 65_535)))
    await client.expect_closed()
    assert moved(packet_errors("packet_too_large")) == 1


@pytest.mark.parametrize("arguments", [("--max-packet-size-before-auth", "128KiB")])
async def test_g15_a_client_id_of_65535_bytes_where_it_is_allowed(node: AbusedNode) -> None:
    client = await node.client(V5, new_name().ljust(65_535, "x"))
    assert await client.publish(new_name(), b"x", 2) < 0x80
    await client.send_raw(b"\x00\x00")
    await client.expect_disconnect(0x81)
    assert max(map(len, node.whole_log().splitlines())) < 2000, "a client decides how long a log line is"


async def test_g15_1000_connects_dropped_at_any_stage_leak_nothing(node: AbusedNode) -> None:
    before = node.descriptors()
    connections = node.counter("mqtt_connections")
    packet = connect(V5, text(b"drop"), properties=b"\x11\x00\x00\x00\x00")

    async def drop(number: int) -> None:
        for turn in range(20):
            client = await MqttClient.open(node.host, node.port)
            stage = (number + turn) % 8
            if stage:
                await client.send_raw(packet[: (stage * len(packet)) // 6])
            if stage == 7:
                await client.send_raw(frame(0x82, b"\x00\x01\x00" + text(b"drop/#") + b"\x01")[:9])
            if turn % 2:
                await client.abort()
            else:
                await client.close()

    await in_parallel(50, drop)
    await node.until_gauge("mqtt_connections", connections)
    await node.until(lambda: node.descriptors() <= before, "the closing of all descriptors")


async def test_g15_a_storm_of_takeovers_ends_with_one_owner(node: AbusedNode) -> None:
    client_id = new_name()
    before = node.counter("mqtt_connections")
    accepted = 0

    async def connect_again(_number: int) -> None:
        nonlocal accepted
        for _ in range(6):
            client = await node.open()
            await client.send(Connect(V5, client_id, False, properties=properties(session_expiry_interval=60)))
            try:
                accepted += (await client.expect(Connack)).reason_code == 0
            except AssertionError:
                pass  # taken over before it was in
            finally:
                await client.close()

    await in_parallel(50, connect_again)
    assert accepted >= 1
    last = await node.client(V5, client_id)
    assert await last.publish(new_name(), b"x", 1) < 0x80
    await node.until_gauge("mqtt_connections", before + 1)


async def test_g15_takeover_tells_the_older_one(node: AbusedNode, moved: Counted) -> None:
    for version in (V5, V311, V31):
        client_id = new_name()
        older = await node.client(version, client_id)
        newer = await node.client(version, client_id)
        await older.expect_disconnect(0x8E)
        await newer.expect_nothing()
    assert moved(disconnects("session_taken_over")) == 3


async def test_g15_keep_alive_ends_a_peer_that_went_away(node: AbusedNode, moved: Counted) -> None:
    client = await node.open()
    connack = await client.connect(Connect(V5, new_name(), True, 1))
    assert connack.reason_code == 0
    await client.expect_disconnect(0x8D)
    older = await node.open(V311)
    await older.connect(Connect(V311, new_name(), True, 1))
    await older.expect_closed()
    assert moved(disconnects("keep_alive_timeout")) == 2


# Enhanced authentication


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one user."""
    path = tmp_path_factory.mktemp("users") / "users"
    command = [sys.executable, "-m", "broker", "passwd", str(path), "ann", "--stdin", "--scram", "--iterations", "4096"]
    subprocess.run(command, input=b"secret\n", cwd=ROOT, check=True, capture_output=True, timeout=30)
    return path


@pytest.fixture
async def scram_node(nodes: Nodes, users: Path) -> AsyncIterator[AbusedNode]:
    """A node with that user, and little time to log in."""
    authentication = ("--authentication", f"password_file?path={users}", "--allow-anonymous")
    arguments = (*authentication, "--connect-timeout", f"{TIMEOUT_S}s")
    async with attended(nodes.get(*arguments)) as node:
        yield node


METHOD = "SCRAM-SHA-256"
FIRST_MESSAGE = b"n,,n=ann,r=abcdefghijklmnop"


async def _in_exchange(node: AbusedNode) -> MqttClient:
    client = await node.open()
    wanted = properties(authentication_method=METHOD, authentication_data=FIRST_MESSAGE)
    await client.send(Connect(V5, new_name(), True, properties=wanted))
    assert (await client.expect(Auth)).reason_code == 0x18
    return client


def _auth(reason_code: int, method: str, data: bytes) -> Auth:
    return Auth(reason_code, properties(authentication_method=method, authentication_data=data))


OUT_OF_TURN = {
    "PUBLISH": (frame(0x30, text(b"a") + b"\x00"), 0x82),
    "SUBSCRIBE": (frame(0x82, b"\x00\x01\x00" + text(b"a") + b"\x00"), 0x82),
    "PINGREQ": (b"\xc0\x00", 0x82),
    "PUBACK": (b"\x40\x02\x00\x01", 0x82),
    "CONNECT": (connect(V5, text(b"c")), 0x82),
    "garbage": (b"\x00\x00", 0x81),
    "AUTH with another method": (frame(0xF0, b"\x18\x04\x15" + text(b"X")), 0x82),
    "AUTH that begins again": (frame(0xF0, b"\x19\x10\x15" + text(METHOD.encode())), 0x82),
    "AUTH of success": (frame(0xF0, b"\x00\x10\x15" + text(METHOD.encode())), 0x82),
    "AUTH with nonsense": (frame(0xF0, b"\x18\x14\x15" + text(METHOD.encode()) + b"\x16" + text(b"x")), 0x87),
    "AUTH without data": (frame(0xF0, b"\x18\x10\x15" + text(METHOD.encode())), 0x87),
    "a packet of 20,000 bytes": (frame(0xF0, bytes(20_000)), 0x95),
}


@pytest.mark.parametrize("name", OUT_OF_TURN)
async def test_g15_out_of_turn_in_an_authentication(scram_node: AbusedNode, name: str) -> None:
    node = scram_node
    data, reason_code = OUT_OF_TURN[name]
    client = await _in_exchange(node)
    await client.send_raw(data)
    assert (await client.expect(Connack)).reason_code == reason_code
    await client.expect_closed()


async def test_g15_an_authentication_that_stops_half_way(scram_node: AbusedNode) -> None:
    node = scram_node
    client = await _in_exchange(node)
    await client.expect_closed()
    assert node.counter(disconnects("connect_timeout")) == 1


async def test_g15_auth_at_the_wrong_time(scram_node: AbusedNode) -> None:
    node = scram_node
    client = await node.client()
    await client.send(_auth(0x19, METHOD, FIRST_MESSAGE))
    await client.expect_disconnect(0x82)
    unknown = await node.open()
    await unknown.send(Connect(V5, new_name(), True, properties=properties(authentication_method="UNKNOWN")))
    assert (await unknown.expect(Connack)).reason_code == 0x8C
    await unknown.expect_closed()
    for name in ("ann", "bob", ""):
        wrong = await node.open()
        await wrong.send(Connect(V5, new_name(), True, username=name, password=b"wrong"))
        assert (await wrong.expect(Connack)).reason_code == 0x86
        await wrong.expect_closed()
        await wrong.close()
    await client.close()
    await unknown.close()


async def test_g15_publish_right_behind_connect_waits_for_connack(node: AbusedNode) -> None:
    """Allowed by the standard: what is sent before CONNACK is handled after it."""
    client = await node.open()
    topic = new_name()
    await client.send(Connect(V5, new_name(), True), Publish(topic, b"early", 1, False, False, 1))
    await client.expect(Connack)
    await client.drain()
