"""Retained messages: some clients store many, then others subscribe and want each of them, once."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from broker.codec.encode import encode
from broker.codec.packets import Publish
from loadtest.address import Address
from loadtest.publisher import MOST_PER_TURN, Publisher
from loadtest.result import Counts
from loadtest.subscriber import Subscriber
from loadtest.traffic import Traffic
from loadtest.wire import STAMP

if TYPE_CHECKING:
    from loadtest.engine import Engine
    from loadtest.scenario import Stream


class Storing(Traffic):
    """Traffic of layout `retained`. Topic t belongs to publisher t modulo their number; payloads carry t and 0."""

    def __init__(self, engine: Engine, stream: Stream, number: int, run_id: str, clean: bool) -> None:
        super().__init__(engine, stream, number, run_id, clean)
        self.audience = stream.subscribers
        self.reading = False  # whether the subscribers come
        topics = [self.topic(i) for i in range(stream.publishers * stream.topics)]
        self.heads = [self.wire.head(topic) for topic in topics]
        self.numbers = {topic: i for i, topic in enumerate(topics)}

    def populate(self) -> None:
        for i, node in self._nodes(self.stream.publishers, self.engine.publish_to):
            self.publishers.append(Storer(self, f"{self._id}-p{i}", node, i, self.topic(i), self.clean))
        for i, node in self._nodes(self.stream.subscribers, self.engine.subscribe_to):
            reader = Reader(self.engine, f"{self._id}-s{i}", node, self._filters(i), self.wire, self.clean)
            reader.expect_all(self)
            self.subscribers.append(reader)

    @property
    def stored(self) -> bool:
        """Whether the broker has everything."""
        goal = self.stream.topics
        return all(each.sent == goal and not each.unacknowledged and not each.out for each in self.publishers)

    @property
    def complete(self) -> bool:
        """Whether everyone has everything."""
        return all(0 not in reader.seen for reader in self.subscribers if isinstance(reader, Reader))

    def clear(self) -> None:
        """Remove the messages again."""
        for publisher in self.publishers:
            if publisher.ready and isinstance(publisher, Storer):
                for i in publisher.topics:
                    publisher.write(encode(Publish(self.topic(i), b"", 0, True), self.engine.version))

    def count(self, counts: Counts) -> None:
        for publisher in self.publishers:
            counts.sent += publisher.sent
            counts.acked += publisher.acked
            counts.unacknowledged += publisher.unacknowledged
        stored = sum(publisher.sent - len(publisher.refused) for publisher in self.publishers)
        for reader in self.subscribers if self.reading else ():
            assert isinstance(reader, Reader)
            received = len(reader.seen) - reader.seen.count(0)
            counts.expected += stored
            counts.received += received
            counts.lost += max(stored - received, 0)
            counts.duplicated += reader.duplicated
            counts.unacknowledged += reader.unreleased

    def overtaken(self, counts: Counts) -> None:
        counts.duplicated += sum(reader.duplicated for reader in self.subscribers if isinstance(reader, Reader))


class Storer(Publisher):
    """Stores one message in each of its topics."""

    def __init__(self, traffic: Storing, client_id: str, node: Address, number: int, topic: str, clean: bool) -> None:
        super().__init__(traffic, client_id, node, number, topic, clean)
        self._heads = traffic.heads
        self.topics = range(number, len(traffic.heads), traffic.stream.publishers)

    def tick(self) -> None:
        pass  # there is no cap

    def fill(self) -> None:
        count = min(len(self.topics) - self.sent, MOST_PER_TURN)
        if self.wire.qos:
            count = min(count, min(self.traffic.window, self.receive_maximum) - self.unacknowledged)
        if count <= 0 or self.blocked or not self.ready or not self.engine.sending:
            return
        first, now = self.sent, monotonic_ns()
        ids = self._packet_ids(count, first, now) if self.wire.qos else [b""] * count
        self.sent += count
        self.engine.sent += count
        self.engine.expected += count * self.traffic.audience
        for i, packet_id in enumerate(ids, first):
            self.write(self._again(packet_id, i, now))
        if not self.wire.qos and self.sent < len(self.topics):
            self.engine.after(0, self._more)

    def _more(self) -> None:
        self.engine.touched.add(self)

    def _again(self, packet_id: bytes, sequence: int, sent_ns: int) -> bytes:
        wire, number = self.wire, self.topics[sequence]
        return wire.struct.pack(self._heads[number], packet_id, wire.properties, number, 0, sent_ns, wire.padding)


class Reader(Subscriber):
    """Subscribes to everything that is stored and counts what comes. Latency counts from when it began to connect."""

    def expect_all(self, traffic: Storing) -> None:
        """Be an audience of all storers."""
        self._heads = traffic.heads
        self._topics = traffic.numbers
        self.seen = bytearray(len(traffic.heads))
        self.duplicated = 0

    def _publishes(self, data: bytes, at: int, end: int) -> int:
        heads, seen, padding, properties = self._heads, self.seen, self.wire.padding, self.wire.properties
        packet_ids: list[bytes] = []
        count = repeated = 0
        for head, packet_id, props, number, sequence, _, rest in self.wire.struct.iter_unpack(memoryview(data)[at:end]):
            if sequence or number >= len(seen) or heads[number] != head or props != properties or rest != padding:
                break
            repeated += seen[number]
            seen[number] = 1
            count += 1
            packet_ids.append(packet_id)
        self._arrived(count, repeated)
        if packet_ids and self.qos:
            self._answer(packet_ids)
        return at + count * self.wire.stride

    def _arrived(self, count: int, repeated: int) -> None:
        if count:
            self.engine.latency.add(monotonic_ns() - self.since_ns, count)
            self.engine.delivered += count - repeated
            self.duplicated += repeated

    def _counted(self, packet: Publish) -> None:
        number = self._topics.get(packet.topic_name)
        payload = packet.payload
        if number is None or not packet.retain or packet.qos != self.qos or len(payload) != self.wire.payload_bytes:
            self.wrong(f"a message nobody stored, topic {packet.topic_name[:80]!r}")
        elif STAMP.unpack_from(payload)[:2] != (number, 0) or payload[STAMP.size :] != self.wire.padding:
            self.wrong(f"a changed payload, topic {packet.topic_name[:80]!r}")
        else:
            if packet.dup and not (packet.qos and self._resumed):
                self.wrong(f"DUP is set though nothing was sent again, topic {packet.topic_name[:80]!r}")
            self._check_properties(packet)
            self._arrived(1, self.seen[number])
            self.seen[number] = 1
