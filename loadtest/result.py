"""What a run found: the interface between those who measure and those who print, compare and keep.

A report file is `Report.as_dict()` as JSON. Rates, latencies and costs are of the measured window; counts are of the
whole run, after draining. What is not known is None, never 0.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest import reading

SCHEMA = 1
KEPT = 0.98  # of the rate that was asked for: less is told
GENERATOR_FULL_PERCENT, GENERATOR_LARGE_PERCENT, ALL_BUSY_PERCENT = 80, 35, 90

#: Counts that have to be zero, but for those that a result allows.
FAULTS = (
    *("lost", "duplicated", "reordered", "unacknowledged", "refused", "disconnects", "session_mismatches"),
    "protocol_errors",
)


@dataclass(frozen=True)
class Percentiles:
    """Of durations in milliseconds; `count` durations, the others None if there was none."""

    count: int = 0
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p999: float | None = None
    max: float | None = None


@dataclass
class Counts:
    """Of the whole run, exact. `received` leaves duplicates out, `lost` is `expected` - `received`."""

    sent: int = 0
    acked: int = 0
    expected: int = 0
    received: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    unacknowledged: int = 0  # QoS 1 and 2: whose PUBACK, PUBREC, PUBREL or PUBCOMP is missing
    refused: int = 0  # CONNECT, SUBSCRIBE or PUBLISH, by reason code
    disconnects: int = 0  # connections that the broker ended and nobody asked it to
    session_mismatches: int = 0  # CONNACK's session present was not as it had to be
    protocol_errors: int = 0  # malformed or changed packets, wrong acknowledgements, messages nobody sent
    connects: int = 0  # connections made, again ones included
    retransmitted: int = 0  # sent again by a publisher with DUP after its connection was cut


@dataclass(frozen=True)
class Point:
    """One second (about) of the series; `t` is the end of it, in seconds since the first message was sent.

    Before that `t` is negative: clients connect. Latency is of the messages that came in this second.
    """

    t: float
    sent_per_s: float
    received_per_s: float
    connected: int
    in_flight: int
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass
class Result:
    """One run of one scenario against one broker. Runs of a `--repeat` are results of the same name and broker."""

    name: str
    title: str
    broker: str
    targets: list[str]
    settings: dict[str, Any]  # the scenario as it was run, every key
    started: str  # ISO 8601, UTC
    seconds: float = 0.0  # the measured window as it was
    failure: str = ""  # why the run could not be made, or ended early
    interrupted: bool = False
    counts: Counts = field(default_factory=Counts)
    allowed: list[str] = field(default_factory=list)  # of FAULTS: what this scenario and QoS do not forbid
    messages: list[str] = field(default_factory=list)  # the first troubles in words
    sent_per_s: float | None = None
    received_per_s: float | None = None
    connects_per_s: float | None = None
    latency_ms: Percentiles = field(default_factory=Percentiles)
    ack_ms: Percentiles = field(default_factory=Percentiles)
    connect_ms: Percentiles = field(default_factory=Percentiles)
    pace_lag_ms: Percentiles = field(default_factory=Percentiles)  # how late the generator was, at a fixed rate
    cpu_us_per_message: float | None = None  # of all processes of the broker, for one delivered message
    cpu_us_per_connect: float | None = None  # while they connected as fast as they could
    cpu_percent: float | None = None
    kib_per_connection: float | None = None
    resident_kib: int | None = None
    generator_cpu_percent: float | None = None
    others_cpu_percent: float | None = None
    busy_percent: float | None = None  # of all processors together, whoever used them: 100 is no time left
    asked_per_s: float | None = None  # the rate of all streams together, where each of them has one
    series: list[Point] = field(default_factory=list)
    histogram: list[tuple[float, int]] = field(default_factory=list)  # of latency: (upper bound in ms, how many)

    @property
    def faults(self) -> dict[str, int]:
        """The counts that had to be zero and are not."""
        return {name: n for name in FAULTS if name not in self.allowed and (n := int(getattr(self.counts, name)))}

    @property
    def permitted(self) -> dict[str, int]:
        """What was lost, repeated or else, and may have been: the counts that are allowed and not zero."""
        return {name: n for name in FAULTS if name in self.allowed and (n := int(getattr(self.counts, name)))}

    @property
    def rate_missed(self) -> bool:
        """Whether less was sent in the window than `asked_per_s`; a message or two at its edges do not matter."""
        if self.asked_per_s is None or self.sent_per_s is None:
            return False
        missing = (self.asked_per_s - self.sent_per_s) * self.seconds
        return missing > max((1 - KEPT) * self.asked_per_s * self.seconds, 2)

    @property
    def generator_bound(self) -> bool:
        """Whether the generator was, or may have been, what limited this run: the broker can do more."""
        own = self.generator_cpu_percent or 0.0
        contended = (self.busy_percent or 0.0) > ALL_BUSY_PERCENT and own > GENERATOR_LARGE_PERCENT
        return own > GENERATOR_FULL_PERCENT or contended

    @property
    def status(self) -> int:
        """The exit status: 3 for loss, duplicates or reordering, 2 for other trouble, 0 if all is fine."""
        if any(name in self.faults for name in ("lost", "duplicated", "reordered")):
            return 3
        return 2 if self.failure or self.faults else 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as what JSON knows."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Result:
        """Return what `as_dict` gave; keys of a later version are left out. ValueError if it is something else."""
        found: Result = reading.value(content, cls, "result")
        return found


def now() -> str:
    """Return the time as reports tell it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict[str, str | int]:
    """Return on what it runs."""
    return {
        "processors": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


@dataclass
class Report:
    """Some results: what `--json` writes."""

    results: Sequence[Result]
    machine: dict[str, str | int] = field(default_factory=machine)
    started: str = field(default_factory=now)

    def as_dict(self) -> dict[str, Any]:
        """Return it as what JSON knows."""
        results = [result.as_dict() for result in self.results]
        return {"schema": SCHEMA, "machine": self.machine, "started": self.started, "results": results}

    def write(self, path: Path) -> None:
        """Write the report file."""
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report file; ValueError if it is none."""
        report: Report = reading.value(reading.content(path, SCHEMA, "report"), cls, "report")
        return report
