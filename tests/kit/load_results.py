"""Results of load tests that nobody measured."""

from __future__ import annotations

import math

from loadtest.result import Counts, Percentiles, Point, Report, Result


def result(
    name: str = "p2p1",
    broker: str = "rookery",
    rate: float | None = 1000.0,
    cpu: float | None = 5.0,
    *,
    title: str = "",
    failure: str = "",
    others: float | None = 1.0,
    settings: dict[str, object] | None = None,
    **counts: int,
) -> Result:
    """One run."""
    return Result(
        name,
        title or f"title of {name}",
        broker,
        ["127.0.0.1:1883"],
        {"layout": "p2p", "rate": 0, **(settings or {})},
        "2026-01-01T00:00:00+00:00",
        seconds=5.0,
        failure=failure,
        counts=Counts(**counts),
        received_per_s=rate,
        cpu_us_per_message=cpu,
        latency_ms=Percentiles(100, 1.5, 1.0, 2.0, 4.0, 6.0, 8.0) if rate else Percentiles(),
        others_cpu_percent=others,
    )


def drawn(name: str, broker: str, rate: float, slow: float = 1.0, title: str = "") -> Result:
    """One run with all that is drawn."""
    run = result(name, broker, rate, 1e6 / rate, title=title, sent=int(rate) * 20, expected=int(rate) * 20)
    run.counts.received = run.counts.acked = int(rate) * 20
    run.series = [
        Point(
            float(second),
            rate * (1 + 0.05 * math.sin(second)),
            rate * (1 + 0.06 * math.sin(second + 0.3)),
            200,
            40,
            0.8 * slow * (1 + 0.1 * math.sin(second)),
            3.0 * slow * (1 + 0.3 * math.sin(2 * second)),
        )
        for second in range(1, 21)
    ]
    run.histogram = [
        (0.05 * 2 ** (n / 8), int(10_000 * math.exp(-(((n - 40 - 8 * math.log2(slow)) / 12) ** 2)))) for n in range(90)
    ]
    return run


def report(*results: Result) -> Report:
    """A report of these, made by a machine that does not exist."""
    return Report(list(results), {"processors": 2, "system": "Linux 1", "python": "3.11"}, "2026-01-01T00:00:00+00:00")
