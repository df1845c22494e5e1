"""PROXY headers that lie, never end, or come from whoever likes to send one (G15, G19)."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from broker.transport.proxy_protocol import BODY_LIMIT, SIGNATURE, crc32c
from tests.abuse.conftest import Counted
from tests.abuse.siege import CONNACK_V3, Door, connect_packet, door, meanwhile, rejected, siege
from tests.abuse.world import AbusedNode, in_parallel, new_name

TIMEOUT_S = 1

LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNIX = 0x11, 0x21, 0x31

IPV4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.1") + struct.pack("!HH", 4000, 1883)
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack("!HH", 4000, 1883)
MAPPED = bytes(10) + b"\xff\xff\xc0\0\2\x09" + bytes(16) + struct.pack("!HH", 4000, 1883)
LOOPBACK = bytes((127, 0, 0, 1)) * 2 + struct.pack("!HH", 4000, 1883)

AUTHORITY, CRC, SSL, CN, NOOP = 0x02, 0x03, 0x20, 0x22, 0x04


def binary(body: bytes, family: int = TCP4, command: int = PROXY, length: int | None = None) -> bytes:
    """A header of version 2; `length` may lie."""
    size = len(body) if length is None else length
    return SIGNATURE + bytes((command, family)) + size.to_bytes(2, "big") + body


def value(kind: int, content: bytes, length: int | None = None) -> bytes:
    """One TLV."""
    return struct.pack("!BH", kind, len(content) if length is None else length) + content


def named(common_name: bytes, client: int = 0x07, verify: int = 0) -> bytes:
    """What a proxy says of a client's certificate."""
    return value(SSL, struct.pack("!BI", client, verify) + value(0x21, b"TLSv1.3") + value(CN, common_name))


def summed(body: bytes, wrong: int = 0) -> bytes:
    """A header with a checksum."""
    head = binary(body + value(CRC, bytes(4)))
    return head[:-4] + (crc32c(head) ^ wrong).to_bytes(4, "big")


LINE = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 1883\r\n"


@pytest.fixture
def arguments() -> tuple[str, ...]:
    believed = f"proxy_protocol=on&trusted_proxies=127.0.0.1&proxy_timeout={TIMEOUT_S}s"
    return (
        "--listen", f"tcp://127.0.0.1:0?{believed}",
        "--listen", "tcp://127.0.0.1:0?proxy_protocol=on&trusted_proxies=10.0.0.0/8,2001:db8::/32",
        "--listen", f"tcp://127.0.0.1:0?{believed}&anonymous=false",
        "--listen", f"ws://127.0.0.1:0/mqtt?handshake_timeout={TIMEOUT_S}s",
        "--authentication", "certificate", "--allow-anonymous", "--log-level", "debug",
    )  # fmt: skip


@pytest.fixture
def entry(node: AbusedNode) -> Door:
    """Believes this machine."""
    return door(node, "tcp", 1)


def seen_as(node: AbusedNode, client_id: str) -> str:
    """The address that the node has for a client, from its log."""
    [line] = [
        line for line in node.whole_log().splitlines() if f"client_id={client_id} " in line and "connected" in line
    ]
    return line.partition("peer=")[2].split()[0].strip('"')


@pytest.mark.parametrize(
    "header",
    [
        LINE, b"PROXY TCP4 127.0.0.1 127.0.0.1 4000 1883\r\n", b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 1883\r\n",
        b"PROXY TCP6 ::1 ::1 4000 1883\r\n", b"PROXY UNKNOWN\r\n", binary(LOOPBACK), binary(b"", 0, LOCAL), b"",
    ],
    ids=["any", "loopback", "a trusted one", "loopback 6", "UNKNOWN", "loopback in binary", "LOCAL", "none"],
)  # fmt: skip
async def test_g19_a_header_from_somebody_who_is_not_trusted(node: AbusedNode, moved: Counted, header: bytes) -> None:
    """What it says does not matter: nothing is read."""
    async with siege(node, rounds=1) as attack:
        for _ in range(5):
            attacker = await attack.dial(door(node, "tcp", 2))
            await attacker.send(header + connect_packet("liar"))
            assert await attacker.until_closed() == b""
        assert moved(rejected("untrusted_proxy")) == 5


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
@pytest.mark.parametrize("header", [LINE, binary(IPV4), binary(b"", 0, LOCAL), b"PROXY UNKNOWN\r\n"])
async def test_g19_a_header_where_none_is_expected(node: AbusedNode, scheme: str, header: bytes) -> None:
    """It is the first packet, and no CONNECT; or the request, and none of HTTP."""
    async with siege(node, rounds=1) as attack:
        attacker = await attack.dial(door(node, scheme))
        await attacker.send(header + connect_packet("liar"))
        assert CONNACK_V3 not in await attacker.until_closed()
    assert "192.0.2.7" not in node.whole_log().partition("client_id=liar")[2]


WRONG = {
    "no header": connect_packet("x"),
    "an empty line": b"PROXY \r\n",
    "two words": b"PROXY TCP4\r\n",
    "a name": b"PROXY TCP4 localhost localhost 1 2\r\n",
    "an address that is none": b"PROXY TCP4 192.0.2.256 192.0.2.1 1 2\r\n",
    "an address in octal": b"PROXY TCP4 0300.0.2.1 192.0.2.1 1 2\r\n",
    "IPv6 for TCP4": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "a scope": b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    "a port too large": b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 2\r\n",
    "a port below zero": b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 2\r\n",
    "a port in other digits": "PROXY TCP4 192.0.2.7 192.0.2.1 ١ 2\r\n".encode(),
    "lower case": LINE.lower(),
    "two blanks": b"PROXY  TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
    "seven words": b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 3\r\n",
    "a bare line feed": b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n",
    "a line without end": b"PROXY TCP4 " + b"1" * 5000,
    "an unknown line without end": b"PROXY UNKNOWN " + b"x" * 5000,
    "NUL in a line": b"PROXY TCP4 192.0.2.7\0 192.0.2.1 1 2\r\n",
    "version 1 of the binary one": binary(IPV4, command=0x11),
    "version 15": binary(IPV4, command=0xF1),
    "command 2": binary(IPV4, command=0x22),
    "UDP": binary(IPV4, 0x12),
    "an unknown family": binary(IPV4, 0x41),
    "family 15": binary(IPV4, 0xF1),
    "too short for its family": binary(IPV4[:11]),
    "IPv4 for IPv6": binary(IPV4, TCP6),
    "too short for UNIX": binary(bytes(215), UNIX),
    "65535 bytes": binary(IPV4, length=0xFFFF) + bytes(70_000),
    "more than allowed": binary(IPV4, length=BODY_LIMIT + 1) + bytes(5000),
    "a value that is cut off": binary(IPV4 + value(NOOP, b"", length=1)),
    "a value of 65535": binary(IPV4 + value(NOOP, bytes(100), length=0xFFFF)),
    "half a value": binary(IPV4 + b"\4\0"),
    "a wrong checksum": summed(IPV4, wrong=1),
    "a short checksum": binary(IPV4 + value(CRC, b"\0")),
    "an authority with a line": binary(IPV4 + value(AUTHORITY, b"a\n2026-01-01T00:00:00Z error all.is_lost")),
    "an authority that is no UTF-8": binary(IPV4 + value(AUTHORITY, b"\xff")),
    "facts of TLS that are cut off": binary(IPV4 + value(SSL, b"\7\0\0")),
    "a value in them that is cut off": binary(IPV4 + value(SSL, b"\7\0\0\0\0" + value(CN, b"x", length=900))),
    "a name with NUL": binary(IPV4 + named(b"a\0b")),
    "a signature that goes wrong": SIGNATURE[:-1] + b"?" + bytes(20),
}


@pytest.mark.parametrize("name", WRONG)
async def test_g15_a_wrong_header(node: AbusedNode, moved: Counted, entry: Door, name: str) -> None:
    """Closed without a word, before the time for it is over."""
    async with siege(node, rounds=1) as attack:
        attacker = await attack.dial(entry)
        await attacker.send(WRONG[name] + connect_packet("liar"))
        assert await attacker.until_closed() == b""
        assert moved(rejected("proxy_header")) == 1


@pytest.mark.parametrize("part", [b"", b"P", LINE[:20], LINE[:-1], SIGNATURE[:5], binary(IPV4)[:15], binary(IPV4)[:-1]])
async def test_g15_a_header_that_stops(node: AbusedNode, moved: Counted, entry: Door, part: bytes) -> None:
    async def stop(_number: int) -> None:
        attacker = await attack.dial(entry)
        await attacker.send(part)
        assert await attacker.until_closed() == b""

    async with siege(node) as attack:
        await in_parallel(50, stop)
        assert moved(rejected("proxy_timeout")) == 50


async def test_g15_a_header_byte_by_byte_gets_no_more_time(node: AbusedNode, moved: Counted, entry: Door) -> None:
    async def slow(_number: int) -> None:
        attacker = await attack.dial(entry)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attacker.trickle, binary(IPV4 + value(NOOP, bytes(2000))))
            assert await attacker.until_closed() == b""
            nursery.cancel_scope.cancel()

    async with siege(node) as attack:
        await in_parallel(20, slow)
        assert moved(rejected("proxy_timeout")) == 20


async def test_g15_a_header_of_1300_values(node: AbusedNode, entry: Door) -> None:
    """As many as there is room for: they cost their bytes."""
    room = BODY_LIMIT - len(IPV4)
    bombs = [
        value(NOOP, b"") * (room // 3),
        value(0xEE, b"") * (room // 3),
        value(AUTHORITY, b"x") * (room // 4),
        named(b"n" * 20) * (room // len(named(b"n" * 20))),
        value(SSL, b"\7\0\0\0\0" + value(CN, b"x") * 1000),
    ]

    async def bomb(number: int) -> None:
        attacker = await attack.dial(entry)
        await attacker.send(binary(IPV4 + bombs[number % len(bombs)]) + connect_packet(new_name()))
        assert await attacker.exactly(4) == CONNACK_V3

    async def flood() -> None:
        await in_parallel(100, bomb)

    async with siege(node) as attack:
        await meanwhile(node, flood)


async def test_g15_a_flood_of_checksums(node: AbusedNode, moved: Counted, entry: Door) -> None:
    """The largest header, and all of it is in its checksum."""
    header = summed(IPV4 + value(NOOP, bytes(BODY_LIMIT - len(IPV4) - 10)), wrong=1)

    async def wrong(_number: int) -> None:
        attacker = await attack.dial(entry)
        await attacker.send(header)
        assert await attacker.until_closed() == b""

    async def flood() -> None:
        await in_parallel(200, wrong)

    async with siege(node) as attack:
        await meanwhile(node, flood)
        assert moved(rejected("proxy_header")) >= 200


async def test_g15_a_flood_of_local_headers(node: AbusedNode, entry: Door) -> None:
    """The checks of a proxy: quiet and cheap, also if there are hundreds."""
    lines = len(node.whole_log().splitlines())

    async def check(number: int) -> None:
        attacker = await attack.dial(entry)
        await attacker.send(binary(bytes(number), 0, LOCAL))
        await attacker.stream.send_eof()
        assert await attacker.until_closed() == b""

    async def flood() -> None:
        await in_parallel(300, check)

    async with siege(node) as attack:
        await meanwhile(node, flood)
    assert len(node.whole_log().splitlines()) - lines < 20


@pytest.mark.parametrize("second", [LINE, binary(LOOPBACK), b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"])
@pytest.mark.parametrize("first", [LINE, binary(IPV4)])
async def test_g19_a_header_behind_the_header(
    node: AbusedNode, moved: Counted, entry: Door, first: bytes, second: bytes
) -> None:
    """What a client sends through a proxy that puts its own header before it: no CONNECT."""
    async with siege(node, rounds=1) as attack:
        attacker = await attack.dial(entry)
        await attacker.send(first + second + connect_packet("liar"))
        assert await attacker.until_closed() == b""
        assert moved(rejected("proxy_header")) == 0


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (b"PROXY TCP6 ::ffff:192.0.2.9 ::1 4000 1883\r\n", "192.0.2.9:4000"),
        (binary(MAPPED, TCP6), "192.0.2.9:4000"),
        (binary(IPV6, TCP6), "[2001:db8::7]:4000"),
        (summed(IPV4), "192.0.2.7:4000"),
        (binary(IPV4, 0x11, LOCAL), "127.0.0.1"),
        (binary(IPV4, 0x01), "127.0.0.1"),
        (b"PROXY UNKNOWN 192.0.2.7 192.0.2.1 1 2\r\n", "127.0.0.1"),
        (binary(bytes(216), UNIX), "local:"),
    ],
    ids=["mapped", "mapped in binary", "IPv6", "checksum", "LOCAL", "no family", "UNKNOWN", "UNIX"],
)  # fmt: skip
async def test_g19_what_a_header_makes_of_a_client(node: AbusedNode, entry: Door, header: bytes, address: str) -> None:
    """One name for each address, and no name of a client where the proxy speaks for itself."""
    name = new_name()
    async with siege(node, rounds=1) as attack:
        attacker = await attack.dial(entry)
        await attacker.send(header + connect_packet(name))
        assert await attacker.exactly(4) == CONNACK_V3
        assert seen_as(node, name).startswith(address)


@pytest.mark.parametrize(
    "header",
    [
        binary(IPV4 + named(b"admin", verify=1)),
        binary(IPV4 + named(b"admin", client=0x00)),
        binary(IPV4 + named(b"admin", client=0x01)),
        binary(IPV4 + value(SSL, b"\7\0\0\0\0") + value(CN, b"admin")),
        binary(IPV4 + value(AUTHORITY, b"admin")),
        binary(named(b"admin"), 0, LOCAL),
        binary(IPV4 + named(b"")),
        LINE + binary(IPV4 + named(b"admin")),
        LINE,
    ],
    ids=[
        "not verified",
        "without TLS",
        "no certificate",
        "a name outside",
        "authority",
        "LOCAL",
        "no name",
        "twice",
        "v1",
    ],
)
async def test_g19_a_certificate_that_no_proxy_has_seen(node: AbusedNode, header: bytes) -> None:
    """On a listener where the name in a certificate is needed."""
    async with siege(node, rounds=1) as attack:
        attacker = await attack.dial(door(node, "tcp", 3))
        await attacker.send(header + connect_packet("thief"))
        assert CONNACK_V3 not in await attacker.until_closed()
        attacker = await attack.dial(door(node, "tcp", 3))
        await attacker.send(binary(IPV4 + named(b"d1")) + connect_packet(new_name()))
        assert await attacker.exactly(4) == CONNACK_V3
