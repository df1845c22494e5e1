"""What a run did, second by second, and what its processes used in the measured window."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from loadtest.engine import Engine
from loadtest.processes import busy_s, cpu_s, gone, tree
from loadtest.result import Point
from loadtest.tally import Histogram

SHORTEST_S = 0.25  # a point of less would be noise


class Sampler:
    """Takes what the engine counts and measures since the last time, and sorts it into the window or not."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.points: list[Point] = []
        self.latency, self.ack, self.pace_lag = Histogram(), Histogram(), Histogram()
        self.connecting = Histogram()
        self.began_s = 0.0
        self.recording = False
        self._at = monotonic()
        self._sent = self._delivered = 0
        self._recent = Histogram()

    def take(self) -> None:
        """Sort in what is new, and add a point if enough time has passed."""
        engine = self._engine
        latency, engine.latency = engine.latency, Histogram()
        ack, engine.ack = engine.ack, Histogram()
        lag, engine.pace_lag = engine.pace_lag, Histogram()
        connecting, engine.connecting = engine.connecting, Histogram()
        self.connecting.merge(connecting)
        self._recent.merge(latency)
        if self.recording:
            self.latency.merge(latency)
            self.ack.merge(ack)
            self.pace_lag.merge(lag)
        now = monotonic()
        took = now - self._at
        if took >= SHORTEST_S:
            recent, self._recent = self._recent, Histogram()
            sent, delivered = engine.sent - self._sent, engine.delivered - self._delivered
            point = Point(
                t=round(now - self.began_s, 3),
                sent_per_s=round(sent / took, 1),
                received_per_s=round(delivered / took, 1),
                connected=engine.connected,
                in_flight=max(engine.expected - engine.delivered, 0),
                p50_ms=recent.percentile_ms(50),
                p99_ms=recent.percentile_ms(99),
            )
            self.points.append(point)
            self._at, self._sent, self._delivered = now, engine.sent, engine.delivered


@dataclass(frozen=True)
class Usage:
    """CPU seconds of the broker, of the generator and of all, and the counts at a moment."""

    at: float
    broker_s: float | None  # None: some of its processes are gone
    own_s: float
    busy_s: float
    sent: int
    delivered: int

    @classmethod
    def now(cls, engine: Engine, pids: Sequence[int]) -> Usage:
        """Look; `pids` are the broker's processes without their children."""
        broker_s = cpu_s(tree(pids))
        used = (None if gone(pids) else broker_s, cpu_s([os.getpid()]), busy_s())
        return cls(monotonic(), *used, engine.sent, engine.delivered)

    def broker_since(self, before: Usage) -> float | None:
        """Return the CPU seconds of the broker since `before`, None if they are not known."""
        return None if self.broker_s is None or before.broker_s is None else self.broker_s - before.broker_s
