"""The record of figures, and how a new run stands to it: what `make bench` prints.

Machines differ, so what is compared is this broker's figure divided by that of mosquitto in the same run; only where
one of the two runs had no mosquitto the figures themselves are, and that is said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from loadtest import reading
from loadtest.report import cell
from loadtest.result import Report
from loadtest.summary import CONNECT_CPU, CONNECTS, CPU, MEMORY, P99, RECEIVED, Figure, Row, ratio, rows

SCHEMA = 1
PATH = Path(__file__).parent / "figures.json"
LIMIT = 0.10  # what is worse by more is marked
MOST_NOISE = 1.0  # twice as bad is worse, however far the runs were apart
OURS, BASE = "rookery", "mosquitto"

_FIGURES = {figure.name: figure for figure in (RECEIVED, CONNECTS, CPU, CONNECT_CPU, P99, MEMORY)}


@dataclass(frozen=True)
class Median:
    """A figure over the runs of one broker, and how far apart they were: (most - least) / median."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Scenario:
    """The figures of a scenario: broker -> name of the figure -> median."""

    title: str
    brokers: Mapping[str, Mapping[str, Median]]
    recorded: str = ""  # if that was at another time than the rest of the record


@dataclass(frozen=True)
class Record:
    """Figures of one session on one machine, with the versions of what was measured."""

    recorded: str
    machine: Mapping[str, str | int]
    runs: int
    seconds: float
    scenarios: Mapping[str, Scenario] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it as JSON, small enough to be read in a diff."""
        path.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` wrote; ValueError if it is something else."""
        found: Record = reading.value(reading.content(path, SCHEMA, "record"), cls, "record")
        return found


def figures_of(row: Row) -> list[Figure]:
    """Return what tells of speed and cost in a scenario: no rate where it is given, latency only there."""
    if row.paced:
        return [row.cost, P99]
    return [row.rate, row.cost, *([MEMORY] if row.rate is CONNECTS else [])]


def record(report: Report) -> Record:
    """Return the medians of a report."""
    scenarios: dict[str, Scenario] = {}
    every = rows(report.results)
    for row in every:
        known = scenarios.setdefault(row.name, Scenario(row.title, {})).brokers
        figures = {
            figure.name: Median(_short(value), None if (apart := row.spread(figure)) is None else round(apart, 3))
            for figure in figures_of(row)
            if (value := row.median(figure)) is not None
        }
        if figures:
            scenarios[row.name] = Scenario(row.title, {**known, row.broker: figures})
    runs = min((len(row.good) for row in every), default=0)
    seconds = max((result.seconds for result in report.results), default=0.0)
    kept = {name: each for name, each in scenarios.items() if each.brokers}
    return Record(report.started, report.machine, runs, round(seconds, 1), kept)


def together(new: Record, old: Record | None) -> Record:
    """Return a record of what was measured now, and of the scenarios of an older record that were not."""
    if old is None:
        return new
    kept = {name: replace(each, recorded=each.recorded or old.recorded) for name, each in old.scenarios.items()}
    return replace(new, scenarios={**kept, **new.scenarios})


def _short(value: float) -> float:
    """Four digits that count: more would be noise in every diff."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Change:
    """One figure now and then: as ratios to mosquitto (`relative`), or as they are."""

    title: str
    figure: Figure
    now: float | None
    then: float | None
    relative: bool
    value: float | None  # this broker's, now
    noise: float  # spread of the runs, the largest of what takes part, `MOST_NOISE` at most

    @property
    def gain(self) -> float | None:
        """How much better it is: 0.1 is a tenth, below 0 it is worse."""
        times = ratio(self.now, self.then)
        if times is None:
            return None
        if self.figure.more_is_better:
            return times - 1
        return 1 / times - 1 if times else None

    @property
    def worse(self) -> bool:
        """Whether it fell by more than is let pass."""
        return self.gain is not None and self.gain < -LIMIT

    @property
    def verdict(self) -> str:
        """In words."""
        if self.gain is None:
            return "not recorded" if self.now is not None else "not measured"
        if self.worse:
            # How much more it costs, or would have to be to be as fast: what a spread is measured in, too.
            more = 1 / (1 + self.gain) - 1 if self.gain > -1 else math.inf
            return "WORSE" if more > self.noise else "worse, within the noise"
        if self.gain > LIMIT:
            return "better" if self.gain > self.noise else "better, within the noise"
        return "same"


def _median(known: Record, name: str, broker: str, figure: Figure) -> Median | None:
    scenario = known.scenarios.get(name)
    return scenario.brokers.get(broker, {}).get(figure.name) if scenario is not None else None


def changes(now: Record, then: Record | None) -> list[Change]:
    """Return how each figure of `now` stands to `then`."""
    found = []
    for name, scenario in now.scenarios.items():
        for figure_name, ours in scenario.brokers.get(OURS, {}).items():
            figure = _FIGURES[figure_name]
            ours_then = _median(then, name, OURS, figure) if then is not None else None
            base_now = _median(now, name, BASE, figure)
            base_then = _median(then, name, BASE, figure) if then is not None else None
            medians = [ours, ours_then]
            relative = base_now is not None and (base_then is not None or ours_then is None)
            if relative:
                medians += [base_now, base_then]
            apart = max((each.spread or 0.0 for each in medians if each is not None), default=0.0)
            noise = min(apart, MOST_NOISE)
            found.append(
                Change(
                    scenario.title,
                    figure,
                    _value(ours, base_now if relative else None),
                    _value(ours_then, base_then if relative else None),
                    relative,
                    ours.value,
                    noise,
                )
            )
    return found


def _value(ours: Median | None, base: Median | None) -> float | None:
    if ours is None:
        return None
    return ours.value if base is None else ratio(ours.value, base.value)


def table(found: Sequence[Change]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the comparison with the record."""
    head = ["scenario", "figure", "now", f"now / {BASE}", "recorded", "change", "noise", "verdict"]
    lines = []
    for change in found:
        digits = 2 if change.relative else change.figure.digits
        gain = change.gain
        lines.append(
            [
                change.title,
                change.figure.label,
                cell(change.value, change.figure.digits),
                cell(change.now, 2) if change.relative else "-",
                cell(change.then, digits),
                "-" if gain is None else f"{100 * gain:+.0f} %",
                f"{100 * change.noise:.0f} %",
                change.verdict,
            ]
        )
    return head, lines


def remarks(found: Iterable[Change], now: Record, then: Record | None, *, whole: bool = True) -> list[str]:
    """Return what a reader has to know about the comparison; not `whole` if it was interrupted."""
    changed = list(found)
    told = [] if whole else ["Interrupted: this is not all that was to be measured."]
    if then is None:
        return [*told, "There is no record yet: `make bench-record` makes one."]
    told.append(f"Recorded {then.recorded} ({_named(then.machine)}; medians of {then.runs} x {then.seconds:g} s).")
    told += [f"Recorded {each.recorded}: {each.title}." for each in then.scenarios.values() if each.recorded]
    if any(not change.relative and change.then is not None for change in changed):
        told.append(
            f"Without {BASE} in both runs figures are compared as they are: on another machine, or beside other work, "
            "that says nothing about the build."
        )
    worse = [change for change in changed if change.verdict == "WORSE"]
    for change in worse:
        told.append(f"WORSE by more than {100 * LIMIT:.0f} %: {change.title}, {change.figure.label}.")
    if not worse and whole and changed:
        told.append(f"Nothing fell by more than {100 * LIMIT:.0f} % and the noise.")
    missing = [each.title for name, each in then.scenarios.items() if name not in now.scenarios]
    if missing:
        told.append(f"Recorded, but not measured now: {', '.join(missing)}.")
    return told


def _named(machine: Mapping[str, str | int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())
