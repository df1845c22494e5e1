"""One application message encoded once for all its receivers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.codec.packets import V5
from broker.codec.publish import encode_publish, publish_head, publish_tail
from broker.message import Message

if TYPE_CHECKING:
    from broker.session.counted import TopicCount


class Encoding:
    """The wire forms of one message, made when first needed and shared by all receivers.

    Receivers of versions 3.1 and 3.1.1 share one form. What differs per receiver (packet id, subscription
    identifiers, topic alias) is spliced in. `remaining_s` is the message expiry interval to announce, or -1.
    """

    __slots__ = ("_below", "_q0_v3", "_q0_v5", "_tail_v3", "_tail_v5", "message", "remaining_s")

    #: The message as clients with a mountpoint see it, by prefix; only there once somebody wanted it.
    _below: dict[bytes, Encoding]

    #: Who counts the copies; see `broker.session.counted`.
    counts: Sequence[TopicCount] = ()

    def __init__(self, message: Message, remaining_s: int = -1) -> None:
        self.message = message
        self.remaining_s = remaining_s
        self._q0_v5: bytes | None = None
        self._q0_v3: bytes | None = None
        self._tail_v5: bytes | None = None
        self._tail_v3: bytes | None = None

    def qos0(self, version: int, retain: bool) -> bytes:
        """The whole packet at QoS 0."""
        if version == V5:
            if retain:
                return self._build_qos0(version, 1)
            if self._q0_v5 is None:
                self._q0_v5 = self._build_qos0(version, 0)
            return self._q0_v5
        if retain:
            return self._build_qos0(version, 1)
        if self._q0_v3 is None:
            self._q0_v3 = self._build_qos0(version, 0)
        return self._q0_v3

    def _build_qos0(self, version: int, flags: int) -> bytes:
        tail = self.tail(version)
        return publish_head(self.message.topic, flags, len(tail)) + tail

    def tail(self, version: int) -> bytes:
        """Properties and payload: what follows the packet id."""
        message = self.message
        if version == V5:
            if self._tail_v5 is None:
                self._tail_v5 = publish_tail(V5, message.properties, message.payload, self.remaining_s, ())
            return self._tail_v5
        if self._tail_v3 is None:
            self._tail_v3 = publish_tail(version, b"", message.payload, -1, ())
        return self._tail_v3

    def head(self, version: int, flags: int) -> bytes:
        """Fixed header and topic of a packet with a packet id and without per-receiver properties."""
        return publish_head(self.message.topic, flags, 2 + len(self.tail(version)))

    def below(self, prefix: bytes) -> Encoding:
        """The same message, its topic without `prefix` (which it begins with)."""
        try:
            views = self._below
        except AttributeError:
            views = self._below = {}
        view = views.get(prefix)
        if view is None:
            view = views[prefix] = self._cut(len(prefix))
        return view

    def _cut(self, length: int) -> Encoding:
        return Below(self, length)

    def special(
        self, version: int, flags: int, packet_id: int, subscription_ids: Sequence[int], topic: bytes, topic_alias: int
    ) -> bytes:
        """A packet with subscription identifiers or a topic alias (`topic` is empty once the alias is known)."""
        message = self.message
        return encode_publish(
            topic,
            message.payload,
            flags,
            packet_id,
            version,
            message.properties,
            self.remaining_s,
            subscription_ids,
            topic_alias,
        )


class Below(Encoding):
    """A message under a shorter topic."""

    __slots__ = ("_whole",)

    def __init__(self, whole: Encoding, cut: int) -> None:
        known = whole.message
        super().__init__(
            Message(known.topic[cut:], known.payload, known.qos, known.retain, known.properties), whole.remaining_s
        )
        self._whole = whole

    def tail(self, version: int) -> bytes:
        return self._whole.tail(version)
