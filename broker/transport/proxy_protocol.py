"""The header of the PROXY protocol, versions 1 and 2: who the client of a proxy is, told before anything else.

https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress
import struct

from broker.peer import Certificate, Peer

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_WORD = b"PROXY "

#: Version 1: a line with its CRLF. Version 2: what follows the first 16 bytes (the standard's own limit is 65535).
LINE_LIMIT = 107
BODY_LIMIT = 4096

_AUTHORITY, _CRC32C, _SSL = 0x02, 0x03, 0x20
_SSL_VERSION, _SSL_CN = 0x21, 0x22
_CLIENT_SSL, _CLIENT_CERT = 0x01, 0x02 | 0x04

_V1_FAMILIES = {"TCP4": 4, "TCP6": 6}


class ProxyError(ValueError):
    """This is no header, or not a right one."""


class Header:
    """What a header says. `source` is None where the proxy speaks for itself, or does not know: then the connection's
    own addresses count. `tls_version` is "" unless the client came to the proxy over TLS."""

    __slots__ = ("certificate", "server_name", "source", "tls_version")

    def __init__(self, source: tuple[str, int] | None = None) -> None:
        self.source = source
        self.tls_version = ""
        self.certificate: Certificate | None = None
        self.server_name: str | None = None

    def applied(self, peer: Peer) -> Peer:
        """The peer behind the proxy `peer`."""
        host, port = (peer.host, peer.port) if self.source is None else self.source
        secure = bool(self.tls_version)
        return Peer(host, port, peer.listener, secure, self.certificate, None, self.server_name)


class HeaderParser:
    """Takes bytes in pieces of any size; `header` is set once it is complete."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to the header; the rest is the client's. ProxyError if it is wrong."""
        at = 0
        while self.header is None and at < len(data):
            piece = data[at : at + self._wanted()]
            if self._is_line():
                piece = piece[: piece.find(b"\n") + 1 or len(piece)]
            self._buffer += piece
            at += len(piece)
            self._look()
        return at

    def _is_line(self) -> bool:
        return len(self._buffer) >= len(_WORD) and self._buffer.startswith(_WORD)

    def _wanted(self) -> int:
        """How many more bytes may be taken without knowing more."""
        buffer = self._buffer
        if self._is_line():
            return LINE_LIMIT - len(buffer)
        if len(buffer) < len(_WORD):
            return len(_WORD) - len(buffer)
        return 16 - len(buffer) if len(buffer) < 16 else 16 + int.from_bytes(buffer[14:16], "big") - len(buffer)

    def _look(self) -> None:
        buffer = self._buffer
        if self._is_line():
            if buffer.endswith(b"\r\n"):
                self.header = _read_line(bytes(buffer))
            elif buffer.endswith(b"\n") or len(buffer) >= LINE_LIMIT:
                raise ProxyError("the line of version 1 does not end as it must")
            return
        if not (_WORD.startswith(buffer[:6]) or SIGNATURE.startswith(buffer[:12])):
            raise ProxyError("no PROXY header")
        if len(buffer) >= 16:
            length = int.from_bytes(buffer[14:16], "big")
            if length > BODY_LIMIT:
                raise ProxyError(f"a header of {length} bytes, at most {BODY_LIMIT} are allowed")
            if len(buffer) == 16 + length:
                self.header = _read_binary(bytes(buffer))


def _read_line(line: bytes) -> Header:
    try:
        words = line[:-2].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProxyError("version 1 is ASCII") from None
    if words[1] == "UNKNOWN":
        return Header()
    family = _V1_FAMILIES.get(words[1])
    if family is None or len(words) != 6:
        raise ProxyError(f"version 1 has {words[1][:20]!r} with {len(words) - 2} words")
    try:
        source, _ = [ipaddress.ip_address(word) for word in words[2:4]]
    except ValueError:
        raise ProxyError("version 1 has something that is no address") from None
    port, _ = [_port(word) for word in words[4:6]]
    if source.version != family or "%" in words[2]:
        raise ProxyError(f"version 1 has an address of another kind than {words[1]}")
    return Header((str(getattr(source, "ipv4_mapped", None) or source), port))


def _port(text: str) -> int:
    if not (text.isdigit() and len(text) <= 5 and int(text) <= 65535) or (text[0] == "0" and text != "0"):
        raise ProxyError("version 1 has something that is no port")
    return int(text)


def _read_binary(data: bytes) -> Header:
    version_command, family_transport = data[12], data[13]
    if version_command >> 4 != 2 or version_command & 15 > 1:
        raise ProxyError(f"version and command {version_command:#04x}")
    if not version_command & 15:  # LOCAL: the proxy itself, such as a health check; the rest is to be ignored
        return Header()
    body = data[16:]
    family, transport = family_transport >> 4, family_transport & 15
    if family == 0 or transport == 0:
        # What the addresses are is unknown, so where they end is too.
        return Header()
    if transport != 1:
        raise ProxyError(f"transport {transport}: only streams come here")
    sizes = {1: 12, 2: 36, 3: 216}
    if family not in sizes or len(body) < sizes[family]:
        raise ProxyError(f"address family {family} in {len(body)} bytes")
    if family == 1:
        header = Header((str(ipaddress.IPv4Address(body[:4])), int.from_bytes(body[8:10], "big")))
    elif family == 2:
        address = ipaddress.IPv6Address(body[:16])
        header = Header((str(address.ipv4_mapped or address), int.from_bytes(body[32:34], "big")))
    else:
        header = Header(("", 0))
    at = 16 + sizes[family]
    for kind, start, value in _values(data, at):
        if kind == _CRC32C:
            if len(value) != 4 or crc32c(data[:start] + bytes(4) + data[start + 4 :]) != int.from_bytes(value, "big"):
                raise ProxyError("the checksum is wrong")
        elif kind == _AUTHORITY:
            header.server_name = _text(value).lower()
        elif kind == _SSL:
            _read_ssl(header, value)
    return header


def _values(data: bytes, at: int) -> list[tuple[int, int, bytes]]:
    """Type, place of the value and value of each."""
    found = []
    while at < len(data):
        if at + 3 > len(data):
            raise ProxyError("a value is cut off")
        kind, length = struct.unpack_from("!BH", data, at)
        at += 3
        if at + length > len(data):
            raise ProxyError("a value is cut off")
        found.append((kind, at, data[at : at + length]))
        at += length
    return found


def _read_ssl(header: Header, value: bytes) -> None:
    if len(value) < 5:
        raise ProxyError("the facts of TLS are cut off")
    client, verify = struct.unpack_from("!BI", value)
    if not client & _CLIENT_SSL:
        return
    facts = {kind: content for kind, _, content in _values(value, 5)}
    header.tls_version = _text(facts.get(_SSL_VERSION, b"TLS")) or "TLS"
    # A certificate that the proxy did not find good says nothing, whatever name it has.
    if client & _CLIENT_CERT and verify == 0 and _SSL_CN in facts:
        header.certificate = Certificate(_text(facts[_SSL_CN]))


def _text(value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise ProxyError("a name is not UTF-8") from None
    if not text.isprintable():
        raise ProxyError("a name has control characters")
    return text


def _crc_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's, as in RFC 4960."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 255] ^ value >> 8
    return value ^ 0xFFFFFFFF
