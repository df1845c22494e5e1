"""Packets built byte by byte, for what the codec refuses to write."""

from __future__ import annotations

from broker.codec.packets import V5
from tests.kit.mqtt_client import frame

ILL_FORMED_TEXTS = (
    b"\xc3\x28",  # a lead byte without its continuation
    b"\xed\xa0\x80",  # U+D800, a surrogate
    b"\xed\xbf\xbf",  # U+DFFF
    b"\xc0\xaf",  # an overlong "/"
    b"\xff",
    b"\xf4\x90\x80\x80",  # above U+10FFFF
)
NUL_TEXT = b"a\x00b"
BAD_TEXTS = (*ILL_FORMED_TEXTS, NUL_TEXT)

NO_PROPERTIES = b"\x00"


def text(raw: bytes) -> bytes:
    """Return bytes with the two-byte length of a string or of binary data."""
    return len(raw).to_bytes(2, "big") + raw


def properties_of(version: int, properties: bytes = b"") -> bytes:
    """Return a property block (shorter than 128 bytes) for version 5, nothing for the others."""
    return bytes((len(properties),)) + properties if version == V5 else b""


def connect(
    version: int,
    payload: bytes,
    flags: int = 0x02,
    *,
    name: bytes = b"MQTT",
    level: int | None = None,
    first_byte: int = 0x10,
    properties: bytes = b"",
) -> bytes:
    """Return a CONNECT with keep alive 0 and this payload."""
    head = text(name) + bytes((version if level is None else level, flags)) + b"\x00\x00"
    return frame(first_byte, head + properties_of(version, properties) + payload)


def publish(
    version: int,
    topic_name: bytes,
    payload: bytes = b"",
    *,
    first_byte: int = 0x30,
    packet_id: int | None = None,
    properties: bytes = b"",
) -> bytes:
    """Return a PUBLISH; `packet_id` is left out where it is None."""
    identifier = b"" if packet_id is None else packet_id.to_bytes(2, "big")
    return frame(first_byte, text(topic_name) + identifier + properties_of(version, properties) + payload)


def subscribe(
    version: int,
    topic_filter: bytes,
    options: int = 0,
    *,
    packet_id: int = 1,
    first_byte: int = 0x82,
    properties: bytes = b"",
) -> bytes:
    """Return a SUBSCRIBE of one filter."""
    head = packet_id.to_bytes(2, "big") + properties_of(version, properties)
    return frame(first_byte, head + text(topic_filter) + bytes((options,)))


def unsubscribe(version: int, topic_filter: bytes, *, packet_id: int = 1, first_byte: int = 0xA2) -> bytes:
    """Return an UNSUBSCRIBE of one filter."""
    return frame(first_byte, packet_id.to_bytes(2, "big") + properties_of(version) + text(topic_filter))
