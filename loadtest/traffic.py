"""One stream of a scenario as it runs: its clients, who expects what of whom, its pace and its counts."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic_ns
from typing import TYPE_CHECKING

from loadtest.address import Address
from loadtest.publisher import Publisher
from loadtest.result import Counts
from loadtest.scenario import Stream
from loadtest.subscriber import Subscriber
from loadtest.tally import History
from loadtest.wire import Wire

if TYPE_CHECKING:
    from loadtest.engine import Engine

PACED_PER_TURN = 5000  # messages: a turn ends, however far behind its rate a stream is


class Traffic:
    """The clients of `stream`; `number` tells streams of a run apart. Client i is at node i modulo their number."""

    def __init__(self, engine: Engine, stream: Stream, number: int, run_id: str, clean: bool) -> None:
        self.engine = engine
        self.stream = stream
        self.cap = stream.cap
        self.window = stream.window
        self.interval_ns = 10**9 / stream.rate if stream.rate else 0.0
        self.publishers: list[Publisher] = []
        self.subscribers: list[Subscriber] = []
        self.root = f"{stream.prefix}/{run_id}/{number}"
        self.audience = stream.subscribers if stream.layout in ("fanin", "fanout") else 1
        topic_bytes, retain = len(self.topic(0)), stream.layout == "retained"
        self.wire = Wire(engine.version, stream.qos, stream.size, topic_bytes, stream.properties, retain)
        self.clean = clean
        self._id = f"{run_id}-{number}"
        self._first = len(engine.sources)
        self._start_ns = 0
        self._dued = 0

    def topic(self, number: int) -> str:
        """Return a topic name; all of a run are equally long."""
        return f"{self.root}/all" if self.stream.layout == "fanout" else f"{self.root}/{number:07d}"

    def _filters(self, number: int) -> list[str]:
        layout = self.stream.layout
        if layout in ("p2p", "fanout"):
            wanted = self.topic(number)
        else:
            wanted = f"$share/{self._id}/{self.root}/#" if layout == "shared" else f"{self.root}/#"
        return [wanted, *(f"{self.root}/none/{number}/{i}" for i in range(self.stream.extra_filters))]

    def _nodes(self, count: int, nodes: tuple[Address, ...]) -> Iterator[tuple[int, Address]]:
        return ((i, nodes[i % len(nodes)]) for i in range(count))

    def populate(self) -> None:
        """Make the clients."""
        engine, stream = self.engine, self.stream
        for i, node in self._nodes(stream.publishers, engine.publish_to):
            self.publishers.append(self._publisher(i, node))
        for i, node in self._nodes(stream.subscribers, engine.subscribe_to):
            self.subscribers.append(self._subscriber(i, node))
        engine.sources += self.publishers
        for i, publisher in enumerate(self.publishers):
            audience = self.subscribers[i : i + 1] if stream.layout == "p2p" else self.subscribers
            group = History()
            publisher.histories = [group] if stream.layout == "shared" else []
            for subscriber in audience:
                history = group if stream.layout == "shared" else History()
                subscriber.expect(publisher.topic, publisher.number, history, stream.layout == "shared")
                if history is not group:
                    publisher.histories.append(history)

    def _publisher(self, i: int, node: Address) -> Publisher:
        return Publisher(self, f"{self._id}-p{i}", node, self._first + i, self.topic(i), self.clean)

    def _subscriber(self, i: int, node: Address) -> Subscriber:
        return Subscriber(self.engine, f"{self._id}-s{i}", node, self._filters(i), self.wire, self.clean)

    def start(self) -> None:
        """Let the publishers send."""
        self._start_ns = monotonic_ns()
        self.engine.touched.update(self.publishers)

    def due_ns(self, number: int, sequence: int) -> int:
        """Return when a paced message of publisher `number` is due."""
        nth = sequence * len(self.publishers) + number - self._first
        return self._start_ns + int(nth * self.interval_ns)

    def pace(self, now: int) -> int:
        """Tell the publishers what is due by `now`, but no more than a turn can bear; return when the next one is."""
        enough = self._dued + PACED_PER_TURN
        while (due := self._start_ns + int(self._dued * self.interval_ns)) <= now and self._dued < enough:
            publisher = self.publishers[self._dued % len(self.publishers)]
            publisher.due += 1
            self.engine.touched.add(publisher)
            self.engine.pace_lag.add(now - due)
            self._dued += 1
        return due

    def count(self, counts: Counts) -> None:
        """Add this stream's messages."""
        for publisher in self.publishers:
            counts.sent += publisher.sent
            counts.acked += publisher.acked
            counts.unacknowledged += publisher.unacknowledged
            expected = publisher.sent - len(publisher.refused)
            for history in publisher.histories:
                counts.expected += expected
                counts.received += history.received
                counts.lost += max(expected - history.received, 0)
                counts.duplicated += history.duplicated
        for subscriber in self.subscribers:
            counts.reordered += sum(flow.reordered for flow in subscriber.flows.values())
            counts.unacknowledged += subscriber.unreleased

    def overtaken(self, counts: Counts) -> None:
        """Add what is known to be wrong while messages are on their way."""
        for publisher in self.publishers:
            counts.lost += sum([len(history.missing) for history in publisher.histories])
            counts.duplicated += sum([history.duplicated for history in publisher.histories])
        for subscriber in self.subscribers:
            counts.reordered += sum([flow.reordered for flow in subscriber.flows.values()])
