"""The measured messages on the wire: packed and unpacked many at a time, without the codec.

A payload begins with the publisher's number, the sequence number (4 bytes each) and the time of sending (8 bytes,
monotonic nanoseconds); the rest is padding. All publishers' packets have the same length, so what is read at once
is unpacked at once. A packet that looks different takes the way through the codec.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from broker.codec.encode import encode
from broker.codec.packets import V5, Properties, Publish
from broker.codec.properties import encode_properties

STAMP = struct.Struct("!IIQ")
MINIMUM_PAYLOAD = STAMP.size
_NONE = Properties()
_KEPT = ("payload_format_indicator", "content_type", "response_topic", "correlation_data")


class Wire:
    """The layout of PUBLISH for one version, QoS, payload size and set of properties."""

    __slots__ = (
        *("first_byte", "padding", "payload_bytes", "properties", "qos", "retain", "stride", "struct", "version"),
        "_wanted",
    )

    def __init__(
        self,
        version: int,
        qos: int,
        payload_bytes: int,
        topic_bytes: int,
        properties: Mapping[str, Any] | None = None,
        retain: bool = False,
    ) -> None:
        if payload_bytes < MINIMUM_PAYLOAD:
            raise ValueError(f"a payload of {payload_bytes} bytes is too small, it carries {MINIMUM_PAYLOAD}")
        self.version = version
        self.qos = qos
        self.retain = retain
        self.payload_bytes = payload_bytes
        self.padding = b"." * (payload_bytes - STAMP.size)
        self._wanted = _properties(properties or {})
        self.properties = encode_properties(self._wanted) if version == V5 else b""
        self.first_byte = 0x30 | qos << 1 | retain
        head_bytes = len(self.head("x" * topic_bytes))
        layout = f"!{head_bytes}s{2 if qos else 0}s{len(self.properties)}sIIQ{len(self.padding)}s"
        self.struct = struct.Struct(layout)
        self.stride = self.struct.size

    def head(self, topic: str) -> bytes:
        """Return everything up to the packet identifier."""
        packet = self._packet(topic)
        tail_bytes = (2 if self.qos else 0) + len(self.properties) + self.payload_bytes
        return packet[: len(packet) - tail_bytes]

    def changed(self, found: Properties | None) -> list[str]:
        """Return which properties of a message that came are not as they were sent; an expiry may have shrunk."""
        sent, found = self._wanted or _NONE, found or _NONE
        names = [name for name in _KEPT if getattr(found, name) != getattr(sent, name)]
        if tuple(found.user_properties) != tuple(sent.user_properties):
            names.append("user")
        if sent.message_expiry_interval is not None and (
            found.message_expiry_interval is None or found.message_expiry_interval > sent.message_expiry_interval
        ):
            names.append("message_expiry_interval")
        return names

    def _packet(self, topic: str) -> bytes:
        publish = Publish(topic, bytes(self.payload_bytes), self.qos, self.retain, packet_id=1 if self.qos else 0)
        publish.properties = self._wanted if self.version == V5 else None
        return encode(publish, self.version)


def _properties(wanted: Mapping[str, Any]) -> Properties | None:
    if not wanted:
        return None
    properties = Properties()
    for name, value in wanted.items():
        if name == "user":
            properties.user_properties = [(key, str(each)) for key, each in value.items()]
        else:
            setattr(properties, name, value)
    return properties
