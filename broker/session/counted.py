"""Messages of topics that are counted: whoever sends a copy counts it, and nothing is done for any other message."""

from __future__ import annotations

from collections.abc import Sequence

from broker.message import Message
from broker.session.encoding import Below, Encoding


class TopicCount:
    """What happened to messages of one topic filter here; lists are by QoS. `sent` are copies, to any receiver."""

    __slots__ = ("dropped", "received", "sent")

    def __init__(self) -> None:
        self.received = [0, 0, 0]
        self.sent = [0, 0, 0]
        self.dropped = 0


class CountedEncoding(Encoding):
    """Each receiver asks for one of its packets, and for one only."""

    __slots__ = ("counts",)

    def __init__(self, message: Message, remaining_s: int, counts: Sequence[TopicCount]) -> None:
        super().__init__(message, remaining_s)
        self.counts = counts

    def qos0(self, version: int, retain: bool) -> bytes:
        _sent(self.counts, 0)
        return super().qos0(version, retain)

    def head(self, version: int, flags: int) -> bytes:
        _sent(self.counts, flags)
        return super().head(version, flags)

    def special(
        self, version: int, flags: int, packet_id: int, subscription_ids: Sequence[int], topic: bytes, topic_alias: int
    ) -> bytes:
        _sent(self.counts, flags)
        return super().special(version, flags, packet_id, subscription_ids, topic, topic_alias)

    def _cut(self, length: int) -> Encoding:
        return _CountedBelow(self, length, self.counts)


class _CountedBelow(Below):
    """The same for whoever sees the topic without a prefix."""

    __slots__ = ("counts",)

    def __init__(self, whole: Encoding, cut: int, counts: Sequence[TopicCount]) -> None:
        super().__init__(whole, cut)
        self.counts = counts

    def qos0(self, version: int, retain: bool) -> bytes:
        _sent(self.counts, 0)
        return super().qos0(version, retain)

    def head(self, version: int, flags: int) -> bytes:
        _sent(self.counts, flags)
        return super().head(version, flags)

    def special(
        self, version: int, flags: int, packet_id: int, subscription_ids: Sequence[int], topic: bytes, topic_alias: int
    ) -> bytes:
        _sent(self.counts, flags)
        return super().special(version, flags, packet_id, subscription_ids, topic, topic_alias)


def encoding_of(message: Message, remaining_s: int, counts: Sequence[TopicCount]) -> Encoding:
    """An encoding that is counted if there are counts."""
    return CountedEncoding(message, remaining_s, counts) if counts else Encoding(message, remaining_s)


def _sent(counts: Sequence[TopicCount], flags: int) -> None:
    for count in counts:
        count.sent[flags >> 1 & 3] += 1
