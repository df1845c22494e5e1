"""What several runs say together: medians, spreads, ratios, and which runs were disturbed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from loadtest.result import FAULTS, Result

NOISE_PERCENT = 40.0  # of one processor, used by neither the broker nor the generator


@dataclass(frozen=True)
class Figure:
    """Something that is measured: how a table calls it, with how many decimals, and whether more of it is better."""

    name: str
    label: str
    digits: int
    of: Callable[[Result], float | None]
    more_is_better: bool = False


RECEIVED = Figure("received_per_s", "messages/s", 0, lambda run: run.received_per_s, True)
CONNECTS = Figure("connects_per_s", "connects/s", 0, lambda run: run.connects_per_s, True)
CPU = Figure("cpu_us_per_message", "CPU us/message", 1, lambda run: run.cpu_us_per_message)
CONNECT_CPU = Figure("cpu_us_per_connect", "CPU us/connect", 0, lambda run: run.cpu_us_per_connect)
P50 = Figure("p50_ms", "p50 ms", 2, lambda run: run.latency_ms.p50)
P99 = Figure("p99_ms", "p99 ms", 2, lambda run: run.latency_ms.p99)
ACK_P50 = Figure("ack_p50_ms", "ack p50 ms", 2, lambda run: run.ack_ms.p50)
CONNECT_P99 = Figure("connect_p99_ms", "connect p99 ms", 1, lambda run: run.connect_ms.p99)
MEMORY = Figure("kib_per_connection", "KiB/connection", 1, lambda run: run.kib_per_connection)
GENERATOR = Figure("generator_cpu_percent", "generator CPU %", 0, lambda run: run.generator_cpu_percent)

#: As tables show them; those that no run has are left out.
FIGURES = (RECEIVED, CONNECTS, CPU, CONNECT_CPU, P50, P99, ACK_P50, CONNECT_P99, MEMORY, GENERATOR)
#: What a table tells only of scenarios without messages; pages tell all.
OF_CONNECTING = (CONNECTS, CONNECT_CPU, CONNECT_P99, MEMORY)


@dataclass
class Row:
    """All runs of one scenario against one broker."""

    name: str
    title: str
    broker: str
    runs: list[Result] = field(default_factory=list)

    @property
    def good(self) -> list[Result]:
        """The runs that could be made."""
        return [run for run in self.runs if not run.failure]

    def values(self, figure: Figure) -> list[float]:
        """Return a figure of every good run that has it."""
        return [value for run in self.good if (value := figure.of(run)) is not None]

    def median(self, figure: Figure) -> float | None:
        """Return the median of a figure over the good runs, None without any."""
        return median(self.values(figure))

    def shown(self, figure: Figure) -> float | None:
        """Return the median of a figure if the scenario is about it: connecting only where there are no messages."""
        return None if figure in OF_CONNECTING and self.rate is not CONNECTS else self.median(figure)

    def spread(self, figure: Figure) -> float | None:
        """Return how far apart the runs are: (most - least) / median."""
        return spread(self.values(figure))

    @property
    def rate(self) -> Figure:
        """What counts here as speed: messages delivered, or connections made where there are no messages."""
        return CONNECTS if self.median(RECEIVED) is None and self.median(CONNECTS) is not None else RECEIVED

    @property
    def cost(self) -> Figure:
        """CPU for one of what `rate` counts."""
        return CONNECT_CPU if self.rate is CONNECTS else CPU

    @property
    def paced(self) -> bool:
        """Whether the generator set the rate, so that it says nothing about the broker."""
        return any(bool(run.settings.get("rate")) for run in self.runs)

    @property
    def faults(self) -> dict[str, int]:
        """What had to be zero and was not, over all runs."""
        counts = {name: sum(run.faults.get(name, 0) for run in self.runs) for name in FAULTS}
        return {name: count for name, count in counts.items() if count}

    @property
    def failure(self) -> str:
        """Why there is no run to tell of, or empty."""
        return "" if self.good else next((run.failure for run in self.runs), "not run")

    @property
    def disturbed(self) -> int:
        """Runs during which other processes used much of a processor."""
        return sum((run.others_cpu_percent or 0) > NOISE_PERCENT for run in self.runs)

    @property
    def typical(self) -> Result:
        """The run whose rate is the median (the lower one of two): the one to draw."""
        runs = self.good or self.runs
        ordered = sorted(runs, key=lambda run: self.rate.of(run) or 0.0)
        return ordered[(len(ordered) - 1) // 2]

    @property
    def remarks(self) -> str:
        """Faults, failed and disturbed runs in words, `none` if there are none."""
        if self.failure:
            return f"failed: {self.failure}"
        told = [f"{count:,} {name.replace('_', ' ')}" for name, count in self.faults.items()]
        if failed := len(self.runs) - len(self.good):
            told.append(f"{failed} of {len(self.runs)} runs failed")
        if self.disturbed:
            told.append(f"{self.disturbed} of {len(self.runs)} runs disturbed")
        if any(run.interrupted for run in self.runs):
            told.append("interrupted")
        return ", ".join(told) or "none"


def median(values: Sequence[float]) -> float | None:
    """Return the median, None of nothing."""
    return statistics.median(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Return (most - least) / median; None of less than two values or around 0."""
    middle = median(values)
    return (max(values) - min(values)) / middle if len(values) > 1 and middle else None


def ratio(value: float | None, base: float | None) -> float | None:
    """Return how many times `base` `value` is, None where one is missing or `base` is 0."""
    return None if value is None or not base else value / base


def rows(results: Iterable[Result]) -> list[Row]:
    """Return the results by scenario and broker, both in the order of their first run."""
    found: dict[str, dict[str, Row]] = {}
    for result in results:
        of_scenario = found.setdefault(result.name, {})
        row = of_scenario.setdefault(result.broker, Row(result.name, result.title, result.broker))
        row.runs.append(result)
    return [row for of_scenario in found.values() for row in of_scenario.values()]


def by_scenario(all_rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each scenario."""
    found: dict[str, list[Row]] = {}
    for row in all_rows:
        found.setdefault(row.name, []).append(row)
    return found


def brokers(all_rows: Iterable[Row]) -> list[str]:
    """Return the brokers, in the order of their first run."""
    return list(dict.fromkeys(row.broker for row in all_rows))
