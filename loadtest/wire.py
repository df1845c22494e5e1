"""The measured messages on the wire: packed and unpacked many at a time, without the codec.

A payload begins with the publisher's number, the sequence number (4 bytes each) and the time of sending (8 bytes,
monotonic nanoseconds); the rest is padding. All publishers' packets have the same length, so what is read at once
is unpacked at once. A packet that looks different takes the way through the codec.
"""

from __future__ import annotations

import struct

from broker.codec.packets import V5
from broker.codec.publish import encode_publish

STAMP = struct.Struct("!IIQ")
MINIMUM_PAYLOAD = STAMP.size


class Wire:
    """The layout of PUBLISH for one version, QoS and payload size."""

    __slots__ = ("first_byte", "padding", "payload_bytes", "properties", "qos", "stride", "struct", "version")

    def __init__(self, version: int, qos: int, payload_bytes: int, topic_bytes: int) -> None:
        if payload_bytes < MINIMUM_PAYLOAD:
            raise ValueError(f"a payload of {payload_bytes} bytes is too small, it carries {MINIMUM_PAYLOAD}")
        self.version = version
        self.qos = qos
        self.payload_bytes = payload_bytes
        self.padding = b"." * (payload_bytes - STAMP.size)
        self.properties = b"\x00" if version == V5 else b""
        self.first_byte = 0x30 | qos << 1
        head_bytes = len(self.head("x" * topic_bytes))
        layout = f"!{head_bytes}s{2 if qos else 0}s{len(self.properties)}sIIQ{len(self.padding)}s"
        self.struct = struct.Struct(layout)
        self.stride = self.struct.size

    def head(self, topic: str) -> bytes:
        """Return everything up to the packet identifier."""
        packet_id = 1 if self.qos else 0
        packet = encode_publish(topic.encode(), bytes(self.payload_bytes), self.qos << 1, packet_id, self.version)
        tail_bytes = (2 if self.qos else 0) + len(self.properties) + self.payload_bytes
        return packet[: len(packet) - tail_bytes]
