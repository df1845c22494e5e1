"""An application message as the broker moves it: topic, payload and what must reach the receiver."""

from __future__ import annotations


class Message:
    """One accepted application message.

    `topic` is the topic name in UTF-8. `properties` holds the MQTT 5 properties that travel unchanged,
    already encoded without their length (payload format, content type, response topic, correlation data,
    user properties in order); topic alias, subscription identifiers and message expiry are not among them.
    `expiry_s` is the message expiry interval in seconds at acceptance, or -1 for none.
    `accepted_at_ms` is store time (epoch). `message_id` is the 16-byte id that all retries share, or b"".
    `publisher` is the 16-byte session id of the publisher (No Local), or b"".
    """

    __slots__ = (
        "accepted_at_ms",
        "expiry_s",
        "message_id",
        "payload",
        "properties",
        "publisher",
        "qos",
        "retain",
        "topic",
    )

    def __init__(
        self,
        topic: bytes,
        payload: bytes,
        qos: int,
        retain: bool,
        properties: bytes = b"",
        expiry_s: int = -1,
        accepted_at_ms: int = 0,
        message_id: bytes = b"",
        publisher: bytes = b"",
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.expiry_s = expiry_s
        self.accepted_at_ms = accepted_at_ms
        self.message_id = message_id
        self.publisher = publisher

    def remaining_s(self, now_ms: int) -> int:
        """Seconds left of the message expiry interval: -1 if it never expires, 0 if it has expired."""
        if self.expiry_s < 0:
            return -1
        left_ms = self.accepted_at_ms + self.expiry_s * 1000 - now_ms
        return -(-left_ms // 1000) if left_ms > 0 else 0

    def size(self) -> int:
        """Bytes that count against a queue's bound."""
        return len(self.topic) + len(self.payload) + len(self.properties)
