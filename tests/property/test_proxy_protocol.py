"""The header of the PROXY protocol: what proxies write is read, in any pieces; anything else is refused."""

from __future__ import annotations

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.peer import Peer
from broker.transport.proxy_protocol import BODY_LIMIT, LINE_LIMIT, SIGNATURE, Header, HeaderParser, ProxyError, crc32c

ports = st.integers(0, 65535)


def line(family: str, source: object, port: int) -> bytes:
    target = "192.0.2.1" if family == "TCP4" else "2001:db8::1"
    return f"PROXY {family} {source} {target} {port} 1883\r\n".encode()


def value(kind: int, content: bytes) -> bytes:
    return struct.pack("!BH", kind, len(content)) + content


def binary(family: int, addresses: bytes, values: bytes = b"", command: int = 0x21) -> bytes:
    body = addresses + values
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body


def four(source: str = "192.0.2.7", port: int = 4711) -> bytes:
    return ipaddress.IPv4Address(source).packed + bytes(4) + struct.pack("!HH", port, 1883)


def facts(client: int, verify: int, **of: bytes) -> bytes:
    kinds = {"version": 0x21, "cn": 0x22, "cipher": 0x23}
    content = b"".join(value(kinds[name], text) for name, text in of.items())
    return value(0x20, struct.pack("!BI", client, verify) + content)


def with_checksum(header: bytes) -> bytes:
    """`header` ends with a checksum of zeros."""
    return header[:-4] + crc32c(header).to_bytes(4, "big")


def read(data: bytes) -> Header:
    parser = HeaderParser()
    assert parser.feed(data) == len(data)
    assert parser.header is not None
    return parser.header


def refused(data: bytes) -> str:
    parser = HeaderParser()
    with pytest.raises(ProxyError) as caught:
        parser.feed(data)
    assert parser.header is None
    return str(caught.value)


def told(header: Header) -> object:
    certificate = header.certificate
    return header.source, header.tls_version, certificate and certificate.common_name, header.server_name


HEADERS = st.one_of(
    st.builds(line, st.just("TCP4"), st.ip_addresses(v=4), ports),
    st.builds(line, st.just("TCP6"), st.ip_addresses(v=6), ports),
    st.just(b"PROXY UNKNOWN\r\n"),
    st.just(b"PROXY UNKNOWN ffff:f...f:ffff 1 2 3\r\n"),
    st.builds(
        lambda source, port, cn, name: binary(
            0x11, four(str(source), port), value(2, name) + value(5, b"unique") + facts(3, 0, version=b"TLSv1.3", cn=cn)
        ),
        st.ip_addresses(v=4),
        ports,
        st.sampled_from([b"d1", "Tür".encode(), b"a b"]),
        st.sampled_from([b"example.org", b"MQTT.example.org"]),
    ),
    st.builds(
        lambda source, port: binary(0x21, source.packed + bytes(16) + struct.pack("!HH", port, 1)),
        st.ip_addresses(v=6),
        ports,
    ),
    st.just(binary(0x31, bytes(216))),
    st.just(binary(0, b"", value(4, bytes(20)), command=0x20)),
)


@given(HEADERS, st.binary(max_size=40), st.lists(st.integers(1, 60), max_size=30))
def test_any_pieces_give_the_same(header: bytes, rest: bytes, sizes: list[int]) -> None:
    expected = told(read(header))
    parser = HeaderParser()
    data = header + rest
    at = 0
    for size in [*sizes, len(data)]:
        piece = data[at : at + size]
        used = parser.feed(piece)
        at += used
        if parser.header is not None:
            break
        assert used == len(piece)
    # What follows the header is left to whoever comes next.
    assert at == len(header)
    assert parser.header is not None and told(parser.header) == expected


@given(st.one_of(st.binary(max_size=300), st.builds(lambda tail: SIGNATURE + tail, st.binary(max_size=300)),
                 st.builds(lambda tail: b"PROXY " + tail, st.binary(max_size=300))))  # fmt: skip
def test_random_bytes_do_no_harm(data: bytes) -> None:
    parser = HeaderParser()
    try:
        used = parser.feed(data)
    except ProxyError:
        return
    assert used <= len(data) and (parser.header is not None or used == len(data))


@given(HEADERS, st.integers(0, 400), st.integers(1, 255))
def test_a_changed_byte_does_no_harm(header: bytes, at: int, change: int) -> None:
    data = bytearray(header)
    data[at % len(data)] ^= change
    with contextlib.suppress(ProxyError):
        HeaderParser().feed(bytes(data))


@given(st.ip_addresses(), ports)
def test_addresses_come_through(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    expected = (str(mapped or address), port)
    assert read(line(f"TCP{address.version}", address, port)).source == expected
    size = len(address.packed)
    body = address.packed + bytes(size) + struct.pack("!HH", port, 1)
    assert read(binary(0x11 if address.version == 4 else 0x21, body)).source == expected


@pytest.mark.parametrize(
    "data",
    [
        b"\x10\x0c\x00\x04MQTT\x05\x02\x00<\x00\x00",  # CONNECT
        b"GET / HTTP/1.1\r\n",
        b"PROXY\n",
        b"PROXX TCP4 ",
        b"proxy TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 65536\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 01 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 -1 2\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 3\r\n",
        b"PROXY TCP4  192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.007 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
        b"PROXY TCP6 192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 192.0.2.7\xff 192.0.2.1 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * LINE_LIMIT,
        SIGNATURE + b"\x11\x11\x00\x0c" + four(),
        SIGNATURE + b"\x22\x11\x00\x0c" + four(),
        binary(0x12, four()),  # datagrams
        binary(0x41, four()),
        binary(0x11, four()[:-1]),
        binary(0x21, four()),
        binary(0x11, four(), b"\x01"),
        binary(0x11, four(), b"\x01\x00\x05abcd"),
        binary(0x11, four(), value(0x03, b"1234")),
        binary(0x11, four(), value(0x03, b"")),
        binary(0x11, four(), value(0x20, b"\x01")),
        binary(0x11, four(), facts(3, 0, cn=b"a\nb")),
        binary(0x11, four(), facts(3, 0, cn=b"\xff")),
        binary(0x11, four(), value(0x02, b"a\x00b")),
        SIGNATURE + b"\x21\x11" + (BODY_LIMIT + 1).to_bytes(2, "big"),
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    refused(data)


def test_the_checksum_counts() -> None:
    header = with_checksum(binary(0x11, four(), facts(3, 0, cn=b"d1") + value(0x03, bytes(4))))
    assert told(read(header)) == (("192.0.2.7", 4711), "TLS", "d1", None)
    assert "checksum" in refused(header.replace(b"d1", b"d2"))
    assert crc32c(b"123456789") == 0xE3069283


def test_only_verified_certificates_are_taken_over() -> None:
    assert told(read(binary(0x11, four(), facts(3, 0, version=b"TLSv1.3", cn=b"d1"))))[1:3] == ("TLSv1.3", "d1")  # type: ignore[index]
    for client, verify in ((3, 1), (1, 0), (0, 0), (2, 0)):
        header = read(binary(0x11, four(), facts(client, verify, cn=b"d1")))
        assert header.certificate is None
    assert read(binary(0x11, four(), facts(5, 0, cn=b"resumed"))).certificate is not None


def test_the_peer_is_who_the_header_says() -> None:
    proxy = Peer("10.0.0.1", 5, "front")
    peer = read(binary(0x11, four(), facts(3, 0, cn=b"d1") + value(2, b"A.example"))).applied(proxy)
    assert (peer.host, peer.port, peer.listener, peer.secure) == ("192.0.2.7", 4711, "front", True)
    assert peer.certificate is not None and peer.certificate.common_name == "d1"
    assert peer.server_name == "a.example"
    for own in (b"PROXY UNKNOWN\r\n", binary(0x11, four(), command=0x20)):
        peer = read(own).applied(proxy)
        assert (peer.host, peer.port, peer.secure, peer.certificate) == ("10.0.0.1", 5, False, None)
