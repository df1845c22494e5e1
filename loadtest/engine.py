"""The generator: one trio task over a private epoll serves all connections of a run.

As in the broker's transport a turn reads every ready socket once, collects what is to be written, and writes once per
connection at its end: no task switch per message. Paces, keep-alives and reconnects are timers of the same loop.
"""

from __future__ import annotations

import heapq
import itertools
import select
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic_ns

import trio

from loadtest.address import Address, Credentials
from loadtest.client import Client
from loadtest.publisher import Publisher
from loadtest.result import Counts
from loadtest.scenario import Scenario
from loadtest.tally import Histogram
from loadtest.traffic import Traffic

EVENTS_PER_TURN = 256
WAKE_NS = 10_000_000  # turns may follow each other for so long before other tasks get their chance
NAP_NS = 2_000_000  # shorter waits are not worth a way through trio, whose clock is too coarse for a pace besides
LONGEST_NAP_NS = 100_000_000
LONGEST_HANDSHAKE_NS = 15 * 10**9
TOLD = 20  # troubles that are told in words


class Engine:
    """Connections to one broker. `touched` are the publishers that may be able to send more after this turn."""

    def __init__(
        self,
        scenario: Scenario,
        publish_to: tuple[Address, ...],
        subscribe_to: tuple[Address, ...],
        credentials: Credentials,
    ) -> None:
        self.publish_to = publish_to
        self.subscribe_to = subscribe_to
        self.credentials = credentials
        self.version = scenario.version
        self.keep_alive_s = scenario.keep_alive
        self.session_expiry_s = scenario.expiry
        self._handshakes = scenario.handshakes
        self._connect_every_ns = int(10**9 / scenario.connect_rate) if scenario.connect_rate else 0
        # Made before the connections: its descriptor is small, as select() wants it.
        self._poller = select.epoll()
        self._by_descriptor: dict[int, Client] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._ticks = itertools.count()
        self._line: deque[Client] = deque()  # those who wait for their turn to connect
        self._next_connect_ns = 0
        self._shaking: set[Client] = set()
        self.absent: set[Client] = set()  # those who are to be connected and are not ready
        self.traffics: list[Traffic] = []
        self.sources: list[Publisher] = []  # by the number in payloads
        self.dirty: list[Client] = []
        self.touched: set[Publisher] = set()
        self.sending = False
        self._paced: list[Traffic] = []
        self._next_due_ns = 0
        #: Since the start of the run.
        self.counts = Counts()
        self.troubles: list[str] = []
        self.sent = self.expected = self.delivered = 0
        self.connected = 0
        self.last_connected_ns = 0
        self.failure = ""
        #: Called with the reason when the run cannot go on.
        self.on_failure: Callable[[], None] = lambda: None
        #: Since whoever reads them put new ones here.
        self.latency = Histogram()
        self.ack = Histogram()
        self.pace_lag = Histogram()
        self.connecting = Histogram()

    # What clients tell.

    def trouble(self, kind: str, text: str) -> None:
        """Count one of `result.FAULTS`, and keep the first ones in words."""
        setattr(self.counts, kind, getattr(self.counts, kind) + 1)
        if len(self.troubles) < TOLD:
            self.troubles.append(text)

    def fail(self, why: str) -> None:
        """End the run; the first reason counts."""
        if not self.failure:
            self.failure = why
            self.on_failure()

    def register(self, client: Client) -> None:
        """Serve the client's socket, which connects."""
        assert client.socket is not None
        self._by_descriptor[client.socket.fileno()] = client
        self._poller.register(client.socket, select.EPOLLIN | select.EPOLLOUT)

    def unregister(self, client: Client) -> None:
        """Serve it no more."""
        assert client.socket is not None
        del self._by_descriptor[client.socket.fileno()]
        self._poller.unregister(client.socket)
        self._shaking.discard(client)
        self.connected -= client.connected

    def watch(self, client: Client, writable: bool) -> None:
        """Ask to be told when `client` may be written to, or no more."""
        assert client.socket is not None
        self._poller.modify(client.socket, select.EPOLLIN | (select.EPOLLOUT if writable else 0))

    def shaken(self, client: Client) -> None:
        """Note a CONNACK."""
        self._shaking.discard(client)
        self.connected += 1
        self.counts.connects += 1
        self.last_connected_ns = now = monotonic_ns()
        self.connecting.add(now - client.since_ns)

    def opened(self, client: Client) -> None:
        """Note that a client is ready."""
        self.absent.discard(client)

    def lost(self, client: Client, why: str, pause_s: float) -> None:
        """Let a client that lost its connection come back."""
        if why:
            text = f"{client.client_id} at {client.node}: {why}"
            if not self.counts.connects:
                self.fail(text)
            self.trouble("disconnects", text)
        self.absent.add(client)
        self.after(pause_s, lambda: self._line.append(client))

    # What the run asks for.

    def open(self, clients: Iterable[Client]) -> None:
        """Let clients connect, one after another as handshakes and rate permit."""
        for client in clients:
            self.absent.add(client)
            self._line.append(client)

    def abandon(self) -> None:
        """Let nobody connect any more who is not ready."""
        self._line.clear()
        self._timers = [timer for timer in self._timers if timer[2] == self._tick]
        absent, self.absent = self.absent, set()
        for client in absent:
            client.close()

    def cut(self, clients: Iterable[Client], politely: bool, away_s: float) -> None:
        """End connections, and let their clients come back after `away_s`."""
        gone = [client for client in clients if client.socket is not None]
        for client in gone:
            if politely:
                client.close()
            else:
                client.drop()
        self.absent.update(gone)
        self.after(away_s, lambda: self._line.extend(gone))

    def start(self) -> None:
        """Let the publishers send."""
        self.sending = True
        for traffic in self.traffics:
            traffic.start()
        self._paced = [traffic for traffic in self.traffics if traffic.interval_ns]
        self._next_due_ns = 0

    def stop(self) -> None:
        """Let them send no more."""
        self.sending = False
        self._paced = []

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back in one of the next turns."""
        heapq.heappush(self._timers, (monotonic_ns() + int(seconds * 1e9), next(self._timer_numbers), callback))

    def count(self) -> Counts:
        """Return the counts of the whole run."""
        counts = Counts(**vars(self.counts))
        for traffic in self.traffics:
            traffic.count(counts)
        return counts

    def close(self) -> None:
        """Disconnect everyone; never raises."""
        self._line.clear()
        self._timers.clear()
        for client in list(self._by_descriptor.values()):
            client.close()
        self._poller.close()

    # The loop.

    async def serve(self) -> None:
        """Serve until cancelled."""
        descriptor = self._poller.fileno()
        self._tick()
        while True:
            now = monotonic_ns()
            until = now + WAKE_NS
            nap = 0
            while now < until:
                busy = self.turn(now)
                now = monotonic_ns()
                if not busy:
                    nap = self._next_ns(now) - now
                    if nap > 0 and not select.select([descriptor], [], [], min(nap, NAP_NS) / 1e9)[0] and nap > NAP_NS:
                        break
                    now = monotonic_ns()
            else:
                nap = 0
            if nap > NAP_NS:
                with trio.move_on_after(min(nap - NAP_NS, LONGEST_NAP_NS) / 1e9):
                    await trio.lowlevel.wait_readable(descriptor)
            else:
                await trio.lowlevel.checkpoint()

    def turn(self, now: int) -> bool:
        """Serve what is ready; False if that was nothing."""
        events = self._poller.poll(0, EVENTS_PER_TURN)
        for descriptor, flags in events:
            client = self._by_descriptor.get(descriptor)
            if client is None:
                continue  # it was closed in this turn
            if flags & ~select.EPOLLOUT:
                client.readable()
            if flags & select.EPOLLOUT and client.socket is not None:
                client.writable()
        timers = self._timers
        while timers and timers[0][0] <= now:
            heapq.heappop(timers)[2]()
        if self._line:
            self._admit(now)
        if self._paced and now >= self._next_due_ns:
            self._next_due_ns = min([traffic.pace(now) for traffic in self._paced])
        busy = bool(events or self.touched or self.dirty)
        if self.touched:
            touched, self.touched = self.touched, set()
            for publisher in touched:
                publisher.fill()
        for client in self.dirty:
            client.flush()
        self.dirty.clear()
        return busy

    def _next_ns(self, now: int) -> int:
        """When there is something to do even if nobody sends anything."""
        found = self._timers[0][0] if self._timers else now + LONGEST_NAP_NS
        if self._paced:
            found = min(found, self._next_due_ns)
        if self._line and len(self._shaking) < self._handshakes:
            found = min(found, self._next_connect_ns)
        return found

    def _admit(self, now: int) -> None:
        while self._line and len(self._shaking) < self._handshakes and now >= self._next_connect_ns:
            client = self._line.popleft()
            if self._connect_every_ns:
                self._next_connect_ns = max(self._next_connect_ns, now - WAKE_NS) + self._connect_every_ns
            self._shaking.add(client)
            client.connect()

    def _tick(self) -> None:
        """Once a second."""
        self.after(1, self._tick)
        late = monotonic_ns() - LONGEST_HANDSHAKE_NS
        for client in [each for each in self._shaking if each.since_ns < late]:
            client.lost("no CONNACK")
        if self.sending:
            for traffic in self.traffics:
                if not traffic.interval_ns:
                    for publisher in traffic.publishers:
                        publisher.tick()
        if self.keep_alive_s:
            slices = max(self.keep_alive_s // 2, 1)
            first = next(self._ticks) % slices
            for descriptor, client in list(self._by_descriptor.items()):
                if descriptor % slices == first and client.ready:
                    client.ping()
