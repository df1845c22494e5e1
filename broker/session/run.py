"""Messages of one publisher that came as a run of packets, on their way through the node, and to others, as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.codec.runs import topic_bounds
from broker.message import Message


class Run:
    """`count` PUBLISH packets of QoS 1 or 2 as they came (see `broker.codec.runs`).

    `id_at` is where the packet id is in each. `family` is 5 for MQTT 5, and 4 for the versions before."""

    __slots__ = ("accepted_at_ms", "count", "data", "family", "id_at", "publisher", "qos", "topic")

    def __init__(self, family: int, data: bytes, count: int, accepted_at_ms: int, publisher: bytes) -> None:
        self.family = family
        self.data = data
        self.count = count
        self.accepted_at_ms = accepted_at_ms
        self.publisher = publisher
        start, self.id_at = topic_bounds(data)
        self.topic = data[start : self.id_at]
        self.qos = data[0] >> 1 & 3

    def pick(self, places: Sequence[int]) -> Run:
        """Some of its packets, at least one."""
        if len(places) == self.count:
            return self
        data = self.data
        size = len(data) // self.count
        chosen = b"".join([data[at * size : (at + 1) * size] for at in places])
        return Run(self.family, chosen, len(places), self.accepted_at_ms, self.publisher)

    def payloads(self) -> list[bytes]:
        """Those of the messages, in order."""
        data = self.data
        size = len(data) // self.count
        at = self.id_at + self.family - 2
        length = size - at
        return [data[start : start + length] for start in range(at, at + len(data), size)]

    def message(self, payload: bytes) -> Message:
        """A message of it by itself."""
        return Message(self.topic, payload, self.qos, False, b"", -1, self.accepted_at_ms, b"", self.publisher)

    def messages(self) -> Iterator[Message]:
        """Each by itself."""
        return map(self.message, self.payloads())
