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
    def bound(self) -> int:
        """Runs that the generator may have limited, not the broker."""
        return sum(run.generator_bound for run in self.good)

    @property
    def permitted(self) -> list[str]:
        """What was lost, repeated or else and may have been, with the reason."""
        counts = {name: sum(run.permitted.get(name, 0) for run in self.runs) for name in FAULTS}
        return [f"{worded(name, count)} ({self._reason(name)})" for name, count in counts.items() if count]

    def _reason(self, name: str) -> str:
        if name == "unacknowledged":
            return "interrupted"
        settings = self.typical.settings
        also = settings.get("also")
        streams = [settings, *(also if isinstance(also, list) else [])]
        if name == "lost" and any(isinstance(each, dict) and each.get("qos") == 0 for each in streams):
            return "QoS 0 permits it"
        return "permitted: connections were cut"

    @property
    def silent(self) -> str:
        """Says that nothing came though something was sent, or is empty."""
        sent, received = (sum(getattr(run.counts, name) for run in self.good) for name in ("sent", "received"))
        if sent and not received:
            return f"nothing arrived of {sent:,} sent"
        return "nothing arrived in the window" if sent and self.median(RECEIVED) == 0 else ""

    @property
    def missed(self) -> str:
        """Says that the generator did not keep the rate, or is empty."""
        run = next((run for run in self.good if run.rate_missed), None)
        return f"rate not kept: {run.sent_per_s or 0:,.0f}/s sent of {run.asked_per_s or 0:,.0f}/s" if run else ""

    @property
    def troubles(self) -> list[str]:
        """Faults and failed runs in words."""
        if self.failure:
            return [f"failed: {self.failure}"]
        told = [worded(name, count) for name, count in self.faults.items()]
        if failed := len(self.runs) - len(self.good):
            told.append(f"{failed} of {len(self.runs)} runs failed")
        return told + ([self.silent] if self.silent else [])

    @property
    def remarks(self) -> str:
        """Faults in words, `none` without any; after a semicolon what else is to be known of the runs."""
        notes = self.permitted
        for count, what in ((self.disturbed, "disturbed"), (self.bound, "generator-bound")):
            if count:
                notes.append(f"{count} of {len(self.runs)} runs {what}" if len(self.runs) > 1 else what)
        notes += [self.missed] if self.missed else []
        notes += ["interrupted"] if any(run.interrupted for run in self.runs) else []
        return "; ".join([", ".join(self.troubles) or "none", *notes])


def worded(name: str, count: int) -> str:
    """Return a count of faults in words."""
    return f"{count:,} {name.replace('_', ' ')}"


def notes(all_rows: Sequence[Row]) -> list[str]:
    """Return sentences about what keeps figures from being those of the brokers."""
    count, told = sum(len(row.runs) for row in all_rows), []
    if disturbed := sum(row.disturbed for row in all_rows):
        told.append(f"In {disturbed} of {count} runs other processes used over {NOISE_PERCENT:.0f} % of a processor.")
    if bound := sum(row.bound for row in all_rows):
        told.append(
            f"In {bound} of {count} runs the generator may have been the limit (generator-bound): "
            "the broker can do more than the rate says, and ratios to a slower one are understated."
        )
    return told


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
