"""The generator: one loop over a private epoll serves all connections of a run.

As in the broker's transport a turn reads every ready socket once, collects what is to be written, and writes once per
connection at its end.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
from collections.abc import Iterable
from time import monotonic, monotonic_ns

from loadtest.client import KEEP_ALIVE_S, Client, LoadError
from loadtest.publisher import Publisher
from loadtest.scenarios import Scenario, topic, topic_filter
from loadtest.subscriber import Subscriber
from loadtest.tally import Histogram, History, Tally
from loadtest.wire import Wire

HANDSHAKES = 64  # at a time: beyond a broker's listen backlog the kernel retries after a second
PATIENCE_S = 30.0
DRAIN_S = 2.0
WINDOW = 32  # unacknowledged messages of a publisher
LONGEST_NAP_S = 0.05


class Engine:
    """Connections to one broker. `touched` are the publishers that may be able to send more after this turn."""

    def __init__(self, address: tuple[str, int], version: int) -> None:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
        self.family, self.address = found[0], found[4]
        self.version = version
        # Made before the connections: its descriptor is small, as select() wants it.
        self._poller = select.epoll()
        self._by_descriptor: dict[int, Client] = {}
        self._slices = itertools.cycle(range(KEEP_ALIVE_S // 2))
        self._next_tick = monotonic()
        self.dirty: list[Client] = []
        self.touched: set[Publisher] = set()
        self.publishers: list[Publisher] = []
        self.subscribers: list[Subscriber] = []
        self.opened = 0
        self.delivered = 0
        self.latency = Histogram()
        self.sending = False
        self.cap = 0
        self.inflight = WINDOW
        self.interval_ns = 0
        self._start_ns = 0
        self._dued = 0

    def prepare(self, scenario: Scenario, payload_bytes: int) -> None:
        """Connect and subscribe the clients of a scenario."""
        self.populate(scenario, payload_bytes)
        self.open(self.subscribers)
        self.open(self.publishers)

    def populate(self, scenario: Scenario, payload_bytes: int) -> None:
        """Make the clients of a scenario and decide what is expected of whom."""
        root = f"load{os.getpid()}"
        self.cap = scenario.cap
        layout = scenario.layout
        wire = Wire(self.version, scenario.qos, payload_bytes, len(topic(root, layout, 0)))
        for i in range(scenario.publishers):
            name = topic(root, layout, i)
            self.publishers.append(Publisher(self, f"{root}-p{i}", i, name, wire, scenario.clean))
        for i in range(scenario.subscribers):
            wanted = topic_filter(root, layout, i)
            self.subscribers.append(Subscriber(self, f"{root}-s{i}", wanted, wire, scenario.clean))
        for publisher in self.publishers:
            audience = (
                self.subscribers[publisher.number : publisher.number + 1] if layout == "p2p" else self.subscribers
            )
            group = History()
            for subscriber in audience:
                history = group if layout == "shared" else History()
                subscriber.expect(publisher, history, layout == "shared")
                if history not in publisher.histories:
                    publisher.histories.append(history)
        if scenario.rate:
            self.interval_ns = 10**9 // scenario.rate

    def open(self, clients: Iterable[Client]) -> None:
        """Connect `clients`, a bounded number at a time, and wait until all are ready."""
        waiting = list(reversed(list(clients)))
        goal = self.opened + len(waiting)
        deadline = monotonic() + PATIENCE_S
        while self.opened < goal:
            before = self.opened
            while waiting and goal - len(waiting) - self.opened < HANDSHAKES:
                self._connect(waiting.pop())
            self.turn(LONGEST_NAP_S)
            if self.opened > before:
                deadline = monotonic() + PATIENCE_S
            elif monotonic() > deadline:
                raise LoadError(f"{goal - self.opened} of {goal} clients got no answer for {PATIENCE_S:.0f} s")

    def _connect(self, client: Client) -> None:
        client.socket.connect_ex(self.address)
        client.out.append(client.greeting())
        self._by_descriptor[client.socket.fileno()] = client
        self._poller.register(client.socket, select.EPOLLIN | select.EPOLLOUT)

    def watch(self, client: Client, writable: bool) -> None:
        """Ask to be told when `client` may be written to, or no more."""
        self._poller.modify(client.socket, select.EPOLLIN | (select.EPOLLOUT if writable else 0))

    def turn(self, nap_s: float) -> None:
        """Serve what is ready, or wait for it up to `nap_s`."""
        events = self._poller.poll(0, 256)
        if not events and nap_s > 0:
            # epoll counts in milliseconds: too coarse for a pace of thousands a second.
            select.select([self._poller], [], [], nap_s)
            events = self._poller.poll(0, 256)
        for descriptor, flags in events:
            client = self._by_descriptor[descriptor]
            if flags & ~select.EPOLLOUT:
                client.readable()
            if flags & select.EPOLLOUT:
                client.writable()
        if monotonic() >= self._next_tick:
            self._tick()
        if self.touched:
            for publisher in self.touched:
                publisher.fill()
            self.touched.clear()
        for client in self.dirty:
            client.flush()
        self.dirty.clear()

    def _tick(self) -> None:
        self._next_tick = monotonic() + 1
        for publisher in self.publishers if self.sending and not self.interval_ns else ():
            publisher.tick()
        first = next(self._slices)
        for client in list(self._by_descriptor.values())[first :: KEEP_ALIVE_S // 2]:
            if client.ready:
                client.ping()

    def start(self) -> None:
        """Let the publishers send."""
        self.sending = True
        self._start_ns = monotonic_ns()
        self.touched.update(self.publishers)

    def due_ns(self, number: int, sequence: int) -> int:
        """Return when a paced message of publisher `number` is due."""
        return self._start_ns + (sequence * len(self.publishers) + number) * self.interval_ns

    def run_for(self, seconds: float) -> None:
        """Serve for so long."""
        end = monotonic_ns() + int(seconds * 1e9)
        while (now := monotonic_ns()) < end:
            wake = end
            if self.interval_ns and self.sending:
                while (due := self._start_ns + self._dued * self.interval_ns) <= now:
                    publisher = self.publishers[self._dued % len(self.publishers)]
                    publisher.due += 1
                    self.touched.add(publisher)
                    self._dued += 1
                wake = min(end, due)
            self.turn(0 if self.touched else min((wake - monotonic_ns()) / 1e9, LONGEST_NAP_S))

    def drain(self) -> Tally:
        """Stop sending, wait until all has arrived or nothing does any more, and count."""
        self.sending = False
        tally = self.count()
        deadline = monotonic() + DRAIN_S
        while not tally.settled and monotonic() < deadline:
            before = (tally.received, tally.unacknowledged)
            self.run_for(LONGEST_NAP_S)
            tally = self.count()
            if (tally.received, tally.unacknowledged) != before:
                deadline = monotonic() + DRAIN_S
        self.run_for(LONGEST_NAP_S)  # a repetition would come now
        return self.count()

    def count(self) -> Tally:
        """Return the counts of the whole run."""
        tally = Tally()
        for publisher in self.publishers:
            tally.sent += publisher.sent
            tally.unacknowledged += publisher.unacknowledged
            for history in publisher.histories:
                tally.add(history, publisher.sent)
        for subscriber in self.subscribers:
            tally.reordered += sum(flow.reordered for flow in subscriber.flows.values())
        return tally

    def forget_sessions(self) -> None:
        """Disconnect the scenario's clients and remove the sessions that the broker keeps for them."""
        clients: list[Client] = [*self.publishers, *self.subscribers]
        kept = [client.client_id for client in clients if not client.clean]
        for client in clients:
            self._by_descriptor.pop(client.socket.fileno(), None)
            client.close()
        self.publishers, self.subscribers = [], []
        self.open([Client(self, client_id) for client_id in kept])

    def close(self) -> None:
        """Disconnect everyone; never raises."""
        for client in [*self.publishers, *self.subscribers, *self._by_descriptor.values()]:
            client.close()
        self._poller.close()
