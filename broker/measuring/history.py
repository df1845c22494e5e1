"""What a node did of late: a point each second for a quarter of an hour, and one each minute for a day.

A point is a list of numbers in the order of FIELDS; it costs about 300 bytes, so all of them less than a megabyte.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from broker.histogram import SECONDS

if TYPE_CHECKING:
    from broker.measuring.census import Census
    from broker.server import Server

#: Numbers of now, then rates in the second (or minute), then times in milliseconds.
FIELDS: Final = (
    "connections",
    "sessions",
    "subscriptions",
    "queued",
    "messages_in_per_s",
    "messages_out_per_s",
    "dropped_per_s",
    "bytes_in_per_s",
    "bytes_out_per_s",
    "latency_p50_ms",
    "latency_p99_ms",
    "store_round_trip_ms",
)
_FIRST_RATE: Final = FIELDS.index("messages_in_per_s")
_FIRST_TIME: Final = FIELDS.index("latency_p50_ms")

SECOND_S: Final = 1
MINUTE_S: Final = 60
SECONDS_KEPT: Final = 15 * 60
MINUTES_KEPT: Final = 24 * 60

#: Latencies are those of so many seconds: one alone may have few.
_LATENCY_S: Final = 10
#: All connections are looked at so often.
_CENSUS_S: Final = 10

Point = tuple[int, list[float]]


class History:
    """Of one life. Points are `(time in ms since the epoch, numbers)`, oldest first."""

    def __init__(self, server: Server, census: Census) -> None:
        self._server = server
        self._census = census
        self.seconds: deque[Point] = deque(maxlen=SECONDS_KEPT)
        self.minutes: deque[Point] = deque(maxlen=MINUTES_KEPT)
        self._counts: list[float] = []
        self._latencies: deque[list[int]] = deque(maxlen=_LATENCY_S + 1)
        self._at_s = 0.0
        self._this_minute: list[list[float]] = []

    async def serve(self) -> None:
        """Takes points until cancelled."""
        for number in count():
            if number % _CENSUS_S == 0:
                await self._census.take()
            self.note(time.time())
            now = time.time()
            await trio.sleep(SECOND_S - now % SECOND_S)

    def note(self, now_s: float) -> None:
        """A point of now."""
        counts = self._counted()
        elapsed_s = now_s - self._at_s
        before, self._counts, self._at_s = self._counts, counts, now_s
        if not before or elapsed_s <= 0:
            return
        rates = [max(0.0, (new - old) / elapsed_s) for new, old in zip(counts, before, strict=True)]
        server = self._server
        census = self._census
        numbers = [
            float(server.metrics.connections),
            float(sum(census.sessions.values())),
            float(server.dispatch.counts[False] - server.inside.subscription_count()),
            float(census.queued),
            *(round(rate, 1) for rate in rates),
            *self._latency(),
            round(server.cluster.health().round_trip_ms, 3),
        ]
        self.seconds.append((round(1000 * now_s), numbers))
        self._this_minute.append(numbers)
        if len(self._this_minute) >= MINUTE_S // SECOND_S:
            self.minutes.append((round(1000 * now_s), averaged(self._this_minute)))
            self._this_minute = []

    def _counted(self) -> list[float]:
        server = self._server
        metrics = server.metrics
        direct = sum(connection.sent_qos0 for connection in server.connections)
        return [
            sum(metrics.messages_received) + sum(metrics.api_messages),
            sum(metrics.messages_sent) + direct,
            sum(metrics.dropped.values()),
            metrics.bytes_received + server.reactor.received_bytes,
            metrics.bytes_sent + server.reactor.sent_bytes,
        ]

    def _latency(self) -> tuple[float, float]:
        """Median and 99th percentile, in ms."""
        metrics = self._server.metrics
        pairs = zip(metrics.delivered_local.counts, metrics.delivered_remote.counts, strict=True)
        self._latencies.append([local + remote for local, remote in pairs])
        pairs = zip(self._latencies[-1], self._latencies[0], strict=True)
        counts = [new - old for new, old in pairs]
        return round(1000 * quantile(SECONDS, counts, 0.5), 2), round(1000 * quantile(SECONDS, counts, 0.99), 2)

    @property
    def now(self) -> list[float]:
        """The last point of a second; zeros before there is one."""
        return self.seconds[-1][1] if self.seconds else [0.0] * len(FIELDS)

    def recent(self, seconds: int) -> list[float]:
        """The average of the last `seconds`, of numbers of now the last."""
        points = [numbers for _, numbers in list(self.seconds)[-seconds:]]
        return averaged(points) if points else self.now


def averaged(points: Sequence[Sequence[float]]) -> list[float]:
    """One point of several: numbers of now as in the last one, the average of rates, the worst of times."""
    columns = list(zip(*points, strict=True))
    return [
        column[-1] if at < _FIRST_RATE else round(sum(column) / len(column), 1) if at < _FIRST_TIME else max(column)
        for at, column in enumerate(columns)
    ]


def summed(points: Sequence[Sequence[float]]) -> list[float]:
    """What several nodes do together: sums, and the worst of times."""
    columns = list(zip(*points, strict=True))
    return [round(sum(column), 1) if at < _FIRST_TIME else max(column) for at, column in enumerate(columns)]


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float:
    """About the value that this share of them does not exceed; 0.0 without any."""
    wanted = share * sum(counts)
    if not wanted:
        return 0.0
    below, floor = 0, 0.0
    for bound, number in zip(bounds, counts, strict=False):
        if below + number >= wanted:
            return floor + (bound - floor) * (wanted - below) / number
        below += number
        floor = bound
    return floor
