"""One run: a scenario against a running broker, supervised by trio."""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import secrets
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

import trio

from loadtest.address import Address, Credentials, resolve
from loadtest.cleaning import Cleaning
from loadtest.client import Client, LoadError
from loadtest.engine import Engine
from loadtest.processes import gone, resident_kb, tree
from loadtest.result import Counts, Result, now
from loadtest.retained import Storing
from loadtest.sampling import Sampler, Usage
from loadtest.scenario import Scenario
from loadtest.targets import Running
from loadtest.traffic import Traffic

PATIENCE_S = 30.0  # while nobody gets connected
STEP_S = 0.02
LONGEST_DRAIN_S = 30.0  # or ten times `drain`, if that is more: a broker may dribble for ever
SPARE_FILES = 64
MANY = 1000  # clients: what one of fewer costs drowns in what the broker does besides
OVERSEEN = 2000  # publishers: to look at more each second would cost too much


class Watcher(Protocol):
    """Shows a run while it goes on."""

    def phase(self, name: str, seconds: float) -> None:
        """A phase begins, of so many seconds at most."""

    async def watch(self, run: Run) -> None:
        """Show it until cancelled."""


@dataclass(frozen=True)
class Target:
    """Where the clients of a run go, and as whom; `broker` is what reports call it."""

    broker: str
    publish_to: tuple[Address, ...]
    subscribe_to: tuple[Address, ...]
    pids: tuple[int, ...] = ()
    credentials: Credentials = field(default_factory=Credentials)

    @classmethod
    def of(cls, broker: str, running: Running) -> Target:
        """Return all nodes of one that this process started."""
        sides = (running.publish_to or running.addresses, running.subscribe_to or running.addresses)
        publish_to, subscribe_to = (tuple(resolve(f"mqtt://{host}:{port}") for host, port in side) for side in sides)
        return cls(broker, publish_to, subscribe_to, running.pids)


class Run:
    """A scenario on its way; `result` grows."""

    def __init__(self, scenario: Scenario, target: Target, watcher: Watcher | None = None) -> None:
        self.scenario = scenario
        self.target = target
        self.engine = Engine(scenario, target.publish_to, target.subscribe_to, target.credentials)
        self.sampler = Sampler(self.engine)
        self._watcher = watcher
        urls = dict.fromkeys(str(node) for node in (*target.publish_to, *target.subscribe_to))
        self.result = Result(scenario.name, scenario.title, target.broker, [*urls], scenario.as_dict(), now())
        self._loaded = False  # whether publishers were told to begin
        self._ended = trio.CancelScope()  # of the phase that goes on: Ctrl-C, or a failure, ends it
        self.engine.on_failure = self._end_phase
        self._idle: list[Client] = []
        self._empty_kib = 0
        self._undrained = False  # whether the wait for the rest was interrupted
        self._waves: list[tuple[float, int]] = []  # of clients that come again: seconds until all had, how many

    def overtaken(self) -> Counts:
        """Return the counts so far: `lost` are messages that later ones have overtaken, nothing is unacknowledged."""
        counts = Counts(**vars(self.engine.counts))
        for traffic in self.engine.traffics if len(self.engine.sources) <= OVERSEEN else ():
            traffic.overtaken(counts)
        return counts

    @property
    def clients(self) -> int:
        """How many are to be connected."""
        return self.scenario.clients

    def populate(self) -> None:
        """Make the clients; LoadError if they are too many for this process."""
        if missing := gone(self.target.pids):
            raise LoadError(f"no process {missing[0]} is there to measure")
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if self.clients > limit - SPARE_FILES:
            raise LoadError(f"{self.clients} clients, but a process may open {limit} files: raise ulimit -n")
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        scenario, engine = self.scenario, self.engine
        run_id = f"{os.getpid()}{secrets.token_hex(3)}"
        for number, stream in enumerate(scenario.streams):
            kind = Storing if stream.layout == "retained" else Traffic
            traffic = kind(engine, stream, number, run_id, scenario.clean)
            traffic.populate()
            engine.traffics.append(traffic)
        nodes = self.target.subscribe_to
        self._idle = [
            Client(engine, f"{run_id}-i{i}", nodes[i % len(nodes)], scenario.clean) for i in range(scenario.idle)
        ]

    async def go(self) -> Result:
        """Run it. Interrupted, it ends early and tells what it found."""
        self.populate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._signals)
            nursery.start_soon(self.engine.serve)
            nursery.start_soon(self._sample)
            if self._watcher is not None:
                nursery.start_soon(self._watcher.watch, self)
            with self._ended:
                await self._measure()
            self.engine.stop()
            if not self._loaded:
                self._give_up()
            elif not self.engine.failure:
                self._phase("drain", self.scenario.drain)
                with self._next_phase():
                    await self._drain()
                self._undrained = self._ended.cancelled_caught and not self.engine.failure
            self._finish()
            self._phase("clean")
            with self._next_phase():
                await self._clean()
            nursery.cancel_scope.cancel()
        self.engine.close()
        return self.result

    def _next_phase(self) -> trio.CancelScope:
        self._ended = trio.CancelScope()
        return self._ended

    def _end_phase(self) -> None:
        self._ended.cancel()

    def _give_up(self) -> None:
        """Connect nobody any more."""
        ready = sum(client.ready for client in self._clients("all"))
        self.engine.abandon()
        if self.result.interrupted:
            there = f"{ready} of {self.clients} clients were ready"
            self.engine.troubles.append(f"interrupted before the first message, {there}: there are no figures")

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                self.result.interrupted = True
                self._end_phase()

    async def _sample(self) -> None:
        while True:
            await trio.sleep(1)
            self.sampler.take()

    def _phase(self, name: str, seconds: float = 0.0) -> None:
        if self._watcher is not None:
            self._watcher.phase(name, seconds)

    # The phases.

    async def _measure(self) -> None:
        storing = [traffic for traffic in self.engine.traffics if isinstance(traffic, Storing)]
        if storing:
            await self._measure_retained(storing[0])
        else:
            await self._measure_traffic()

    async def _measure_traffic(self) -> None:
        scenario = self.scenario
        self.sampler.began_s = monotonic()
        await self._connect([*self._clients("subscribers"), *self._clients("publishers"), *self._idle])
        self._phase("settle", scenario.settle)
        await trio.sleep(scenario.settle)
        self._weigh()
        self.sampler.take()
        shift = monotonic() - self.sampler.began_s
        self.sampler.points = [dataclasses.replace(point, t=round(point.t - shift, 3)) for point in self.sampler.points]
        self.sampler.began_s = monotonic()
        self._start()
        self._phase("warmup", scenario.warmup)
        await trio.sleep(scenario.warmup)
        with self._window():
            self._phase("window", scenario.seconds)
            async with trio.open_nursery() as nursery:
                if scenario.cut:
                    nursery.start_soon(self._cuts)
                await trio.sleep(scenario.seconds)
                nursery.cancel_scope.cancel()

    async def _measure_retained(self, storing: Storing) -> None:
        self.sampler.began_s = monotonic()
        await self._connect([*self._clients("publishers"), *self._idle])
        self._start()
        self._phase("store", self.scenario.seconds)
        await self._until(lambda: storing.stored, self.scenario.seconds)
        await trio.sleep(self.scenario.settle)
        with self._window():
            self._phase("window", self.scenario.seconds)
            storing.reading = True
            self.engine.open(storing.subscribers)
            await self._until(lambda: storing.complete, self.scenario.seconds)
        self._weigh()

    def _start(self) -> None:
        self._loaded = True
        self.engine.start()

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        with trio.move_on_after(seconds):
            while not done():
                await trio.sleep(STEP_S / 4)

    async def _connect(self, clients: list[Client]) -> None:
        engine = self.engine
        self._phase("connect")
        self._empty_kib = resident_kb(tree(self.target.pids))
        before = Usage.now(engine, self.target.pids)
        engine.open(clients)
        patience_s = PATIENCE_S + (1 / self.scenario.connect_rate if self.scenario.connect_rate else 0)
        left, deadline = len(clients), monotonic() + patience_s
        while engine.absent:
            await trio.sleep(STEP_S)
            if len(engine.absent) < left:
                left, deadline = len(engine.absent), monotonic() + patience_s
            elif monotonic() > deadline:
                told = f": {engine.troubles[-1]}" if engine.troubles else ""
                engine.fail(f"{left} of {len(clients)} clients got no answer for {patience_s:.0f} s{told}")
                await trio.sleep_forever()
        took = engine.last_connected_ns / 1e9 - before.at
        self.result.connects_per_s = len(clients) / took if took > 0 else None
        if self.target.pids and len(clients) >= MANY:
            cpu_s = Usage.now(engine, self.target.pids).broker_since(before)
            self.result.cpu_us_per_connect = None if cpu_s is None else cpu_s / len(clients) * 1e6

    def _clients(self, who: str) -> list[Client]:
        """Return the clients that `cut_who` means."""
        found: list[Client] = []
        for traffic in self.engine.traffics:
            found += traffic.subscribers if who in ("subscribers", "all") else ()
            found += traffic.publishers if who in ("publishers", "all") else ()
        return found + (self._idle if who in ("idle", "all") else [])

    def _weigh(self) -> None:
        if self.target.pids and not gone(self.target.pids):
            self.result.resident_kib = resident_kb(tree(self.target.pids))
            if self.clients >= MANY:
                self.result.kib_per_connection = (self.result.resident_kib - self._empty_kib) / self.clients

    async def _cuts(self) -> None:
        scenario, engine = self.scenario, self.engine
        concerned = self._clients(scenario.cut_who)
        rng = random.Random(0)
        await trio.sleep(scenario.cut_every or scenario.seconds / 4)
        while True:
            chosen = rng.sample(concerned, round(scenario.cut * len(concerned)))
            engine.cut(chosen, scenario.cut_how == "disconnect", scenario.away)
            await trio.sleep(scenario.away)
            began = monotonic()
            while engine.absent:
                await trio.sleep(STEP_S / 4)
            self._waves.append((max(engine.last_connected_ns / 1e9 - began, 1e-3), len(chosen)))
            if not scenario.cut_every:
                return
            await trio.sleep(scenario.cut_every)

    def _window(self) -> _Window:
        return _Window(self)

    async def _drain(self) -> None:
        """Wait until everything has arrived, or nothing does any more."""
        scenario = self.scenario
        patience = Patience(scenario.drain, max(10 * scenario.drain, LONGEST_DRAIN_S) + scenario.away, monotonic())
        while True:
            counts = self.engine.count()
            absent = len(self.engine.absent)
            if not (counts.lost or counts.unacknowledged or absent):
                break
            found = (counts.received, counts.unacknowledged, absent)
            if why := patience.ended(found, monotonic(), scenario.away if absent else 0.0):
                if why is Patience.LONG:
                    self.engine.troubles.append(
                        f"still not at rest after {patience.longest_s:.0f} s: no longer awaited"
                    )
                break
            await trio.sleep(STEP_S * 2)
        await trio.sleep(STEP_S * 2)  # a repetition would come now

    def _finish(self) -> None:
        result, engine = self.result, self.engine
        self.sampler.take()
        result.failure = engine.failure
        if engine.absent and not result.failure and not result.interrupted:
            engine.troubles.append(f"{len(engine.absent)} clients are not connected at the end")
        result.counts = engine.count()
        if unreleased := sum(each.unreleased for traffic in engine.traffics for each in traffic.subscribers):
            engine.troubles.append(f"{unreleased} messages of QoS 2 were received and never released (no PUBREL)")
        result.messages = list(engine.troubles)
        result.allowed = allowed(self.scenario, result)
        if self._undrained:
            result.allowed = sorted({*result.allowed, "lost", "unacknowledged"})
            result.messages.append("interrupted while messages were on their way: not all of them were awaited")
        sampler = self.sampler
        result.latency_ms, result.ack_ms = sampler.latency.percentiles(), sampler.ack.percentiles()
        result.connect_ms, result.pace_lag_ms = sampler.connecting.percentiles(), sampler.pace_lag.percentiles()
        result.histogram, result.series = sampler.latency.buckets(), sampler.points
        if self._waves:
            result.connects_per_s = sum(count for _, count in self._waves) / sum(took for took, _ in self._waves)

    async def _clean(self) -> None:
        """Leave nothing in the broker; say what is left if it does not let us."""
        self.engine.on_failure = lambda: None
        cleaning = Cleaning(self.engine, self._clients("all"), self.scenario.clean)
        try:
            await cleaning.clean()
        finally:
            self.result.messages += cleaning.left()


class Patience:
    """How long what is on its way is awaited: `pause_s` while nothing of it comes, `longest_s` in all."""

    STILL, LONG = "nothing comes", "it takes too long"

    def __init__(self, pause_s: float, longest_s: float, now: float) -> None:
        self.pause_s, self.longest_s = pause_s, longest_s
        self._last = now + longest_s
        self._found: tuple[int, ...] = ()
        self._deadline = now + pause_s

    def ended(self, found: tuple[int, ...], now: float, longer_s: float = 0.0) -> str:
        """Look at what is there by now; return why it is enough, or nothing. A pause may be longer by `longer_s`."""
        if now > self._last:
            return self.LONG
        if found != self._found:
            self._found, self._deadline = found, now + self.pause_s + longer_s
        return self.STILL if now > self._deadline else ""


class _Window:
    """The measured part of a run, also if it ends early."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        run = self._run
        run.sampler.take()
        run.sampler.recording = True
        self._before = Usage.now(run.engine, run.target.pids)

    def __exit__(self, *_: object) -> None:
        run, before = self._run, self._before
        after = Usage.now(run.engine, run.target.pids)
        run.sampler.take()
        run.sampler.recording = False
        result = run.result
        took = max(after.at - before.at, 1e-6)
        result.seconds = took
        delivered, broker_s = after.delivered - before.delivered, after.broker_since(before)
        own_s = after.own_s - before.own_s
        if run.engine.traffics:
            result.sent_per_s, result.received_per_s = (after.sent - before.sent) / took, delivered / took
            rates = [traffic.stream.rate for traffic in run.engine.traffics]
            result.asked_per_s = sum(rates) if all(rates) and not isinstance(run.engine.traffics[0], Storing) else None
        result.generator_cpu_percent = own_s / took * 100
        result.busy_percent = (after.busy_s - before.busy_s) / took / (os.cpu_count() or 1) * 100
        if run.target.pids and broker_s is not None:
            result.cpu_percent = broker_s / took * 100
            result.cpu_us_per_message = broker_s / delivered * 1e6 if delivered else None
            result.others_cpu_percent = max(after.busy_s - before.busy_s - own_s - broker_s, 0) / took * 100


def allowed(scenario: Scenario, result: Result) -> list[str]:
    """Return which faults this run may have: what its QoS, its sessions and what happened do not forbid."""
    if scenario.strict:
        return []
    cut = bool(scenario.cut or result.counts.disconnects)
    found = set()
    for stream in scenario.streams:
        if stream.qos == 0 or (cut and scenario.clean):
            found.add("lost")
        if cut and (stream.qos == 1 or scenario.clean):
            found.add("duplicated")
        if cut and stream.layout == "shared":
            found.add("reordered")
    if result.interrupted:
        found |= {"unacknowledged"}
    return sorted(found)


def run_once(scenario: Scenario, target: Target, watcher: Watcher | None = None) -> Result:
    """Run a scenario; LoadError if it cannot even begin."""
    go: Callable[[], Awaitable[Result]] = Run(scenario, target, watcher).go
    return trio.run(go)
