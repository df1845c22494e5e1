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
from loadtest.client import Client, LoadError
from loadtest.engine import Engine
from loadtest.processes import resident_kb, tree
from loadtest.result import Counts, Result, now
from loadtest.retained import Storing
from loadtest.sampling import Sampler, Usage
from loadtest.scenario import Scenario
from loadtest.targets import Running
from loadtest.traffic import Traffic

PATIENCE_S = 30.0  # while nobody gets connected
STEP_S = 0.02
CLEANING_S = 10.0
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
        self._measuring = trio.CancelScope()
        self.engine.on_failure = self._measuring.cancel
        self._idle: list[Client] = []
        self._empty_kib = 0
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
            nursery.start_soon(self._signals, nursery.cancel_scope)
            nursery.start_soon(self.engine.serve)
            nursery.start_soon(self._sample)
            if self._watcher is not None:
                nursery.start_soon(self._watcher.watch, self)
            with self._measuring:
                await self._measure()
            self.engine.stop()
            if not self.engine.failure:
                self._phase("drain", self.scenario.drain)
                await self._drain()
            self._finish()
            with trio.move_on_after(CLEANING_S):
                await self._clean()
            nursery.cancel_scope.cancel()
        self.engine.close()
        return self.result

    async def _signals(self, everything: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                if self.result.interrupted:
                    self._finish()
                    everything.cancel()
                self.result.interrupted = True
                self._measuring.cancel()

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
        scenario, engine = self.scenario, self.engine
        self.sampler.began_s = monotonic()
        await self._connect([*self._clients("subscribers"), *self._clients("publishers"), *self._idle])
        self._phase("settle", scenario.settle)
        await trio.sleep(scenario.settle)
        self._weigh()
        self.sampler.take()
        shift = monotonic() - self.sampler.began_s
        self.sampler.points = [dataclasses.replace(point, t=round(point.t - shift, 3)) for point in self.sampler.points]
        self.sampler.began_s = monotonic()
        engine.start()
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
        self.engine.start()
        self._phase("store", self.scenario.seconds)
        await self._until(lambda: storing.stored, self.scenario.seconds)
        await trio.sleep(self.scenario.settle)
        with self._window():
            self._phase("window", self.scenario.seconds)
            self.engine.open(storing.subscribers)
            await self._until(lambda: storing.complete, self.scenario.seconds)
        self._weigh()

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        with trio.move_on_after(seconds):
            while not done():
                await trio.sleep(STEP_S / 4)

    async def _connect(self, clients: list[Client]) -> None:
        engine = self.engine
        self._phase("connect")
        self._empty_kib = resident_kb(tree(self.target.pids))
        before = Usage.now(engine, tree(self.target.pids))
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
            cpu = Usage.now(engine, tree(self.target.pids)).broker_s - before.broker_s
            self.result.cpu_us_per_connect = cpu / len(clients) * 1e6

    def _clients(self, who: str) -> list[Client]:
        """Return the clients that `cut_who` means."""
        found: list[Client] = []
        for traffic in self.engine.traffics:
            found += traffic.subscribers if who in ("subscribers", "all") else ()
            found += traffic.publishers if who in ("publishers", "all") else ()
        return found + (self._idle if who in ("idle", "all") else [])

    def _weigh(self) -> None:
        if self.target.pids:
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
        progress: tuple[int, ...] = ()
        deadline = 0.0
        while True:
            counts = self.engine.count()
            absent = len(self.engine.absent)
            if not (counts.lost or counts.unacknowledged or absent):
                break
            found = (counts.received, counts.unacknowledged, absent)
            if found != progress:
                progress, deadline = found, monotonic() + scenario.drain + (scenario.away if absent else 0)
            elif monotonic() > deadline:
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
        result.messages = list(engine.troubles)
        result.allowed = allowed(self.scenario, result)
        sampler = self.sampler
        result.latency_ms, result.ack_ms = sampler.latency.percentiles(), sampler.ack.percentiles()
        result.connect_ms, result.pace_lag_ms = sampler.connecting.percentiles(), sampler.pace_lag.percentiles()
        result.histogram, result.series = sampler.latency.buckets(), sampler.points
        if self._waves:
            result.connects_per_s = sum(count for _, count in self._waves) / sum(took for took, _ in self._waves)

    async def _clean(self) -> None:
        """Leave nothing in the broker: neither retained messages nor sessions."""
        engine = self.engine
        for traffic in engine.traffics:
            for subscriber in traffic.subscribers:
                subscriber.close()
            if isinstance(traffic, Storing) and traffic.publishers:
                traffic.clear()
                while any(each.out or each.blocked for each in traffic.publishers if each.socket is not None):
                    await trio.sleep(STEP_S)
        clients = self._clients("all")
        for client in clients:
            client.close()
        if self.scenario.clean or engine.failure:
            return
        engine.absent.clear()
        engine.open(Client(engine, each.client_id, each.node) for each in clients if each.session is not False)
        while engine.absent:
            await trio.sleep(STEP_S)


class _Window:
    """The measured part of a run, also if it ends early."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        run = self._run
        self._pids = tree(run.target.pids)
        run.sampler.take()
        run.sampler.recording = True
        self._before = Usage.now(run.engine, self._pids)

    def __exit__(self, *_: object) -> None:
        run, before = self._run, self._before
        after = Usage.now(run.engine, self._pids)
        run.sampler.take()
        run.sampler.recording = False
        result = run.result
        took = max(after.at - before.at, 1e-6)
        result.seconds = took
        delivered, broker_s = after.delivered - before.delivered, after.broker_s - before.broker_s
        own_s = after.own_s - before.own_s
        if run.engine.traffics:
            result.sent_per_s, result.received_per_s = (after.sent - before.sent) / took, delivered / took
        result.generator_cpu_percent = own_s / took * 100
        if run.target.pids:
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
