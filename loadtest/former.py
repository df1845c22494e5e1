"""The table of a load test."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FIGURES = (
    *("messages_per_s", "cpu_us_per_message", "cpu_percent", "p50_ms", "p99_ms", "kb_per_connection"),
    *("generator_cpu_percent", "others_cpu_percent"),
)
FAULTS = ("lost", "duplicated", "reordered", "unacknowledged")
HEADER = (
    *("scenario", "broker", "messages/s", "CPU us/message", "CPU %", "p50 ms", "p99 ms", "KB/connection"),
    *("rate ratio", "CPU ratio", "generator CPU %", "faults"),
)


@dataclass
class Row:
    """All runs of one scenario against one broker; `failure` is why a run could not be made, or empty."""

    title: str
    broker: str
    runs: list[dict[str, float | int | None]] = field(default_factory=list)
    failure: str = ""

    @property
    def figures(self) -> dict[str, float | None]:
        """The median of each figure over the runs that have it."""
        found: dict[str, float | None] = {}
        for name in FIGURES:
            values = [value for run in self.runs if (value := run[name]) is not None]
            found[name] = statistics.median(values) if values else None
        return found

    @property
    def faults(self) -> dict[str, int]:
        """What should be zero, over all runs."""
        return {name: sum(int(run[name] or 0) for run in self.runs) for name in FAULTS}


def cell(value: float | None, digits: int) -> str:
    """Return a number for reading, `-` for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(value: float | None, base: float | None) -> str:
    """Return how many times `base` `value` is."""
    return "-" if value is None or not base else f"{value / base:.2f}"


def faults(counts: Mapping[str, int]) -> str:
    """Return the counts that should be zero and are not, `none` if all are."""
    return ", ".join(f"{counts[name]:,} {name}" for name in FAULTS if counts[name]) or "none"


def status(rows: Sequence[Row]) -> int:
    """Return the exit status: 1 after any loss, repetition or reordering, 2 if a run could not be made, else 0."""
    if any(any(row.faults.values()) for row in rows):
        return 1
    return 2 if any(row.failure for row in rows) else 0


def table(rows: Sequence[Row], baseline: str) -> str:
    """Return a Markdown table; the ratios are to `baseline` in the same scenario."""
    base = {row.title: row.figures for row in rows if row.broker == baseline and not row.failure}
    lines = [HEADER, *(_cells(row, base.get(row.title, {})) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    texts = []
    for line in lines:
        padded = [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append(f"| {' | '.join(padded)} |")
    rule = [("-" * (width + 2)) if i < 2 else "-" * (width + 1) + ":" for i, width in enumerate(widths)]
    texts.insert(1, f"|{'|'.join(rule)}|")
    return "\n".join(texts)


def _cells(row: Row, base: Mapping[str, float | None]) -> tuple[str, ...]:
    if row.failure:
        return (row.title, row.broker, *["-"] * (len(HEADER) - 3), row.failure)
    figures = row.figures
    return (
        row.title,
        row.broker,
        cell(figures["messages_per_s"], 0),
        cell(figures["cpu_us_per_message"], 1),
        cell(figures["cpu_percent"], 0),
        cell(figures["p50_ms"], 2),
        cell(figures["p99_ms"], 2),
        cell(figures["kb_per_connection"], 1),
        ratio(figures["messages_per_s"], base.get("messages_per_s")),
        ratio(figures["cpu_us_per_message"], base.get("cpu_us_per_message")),
        cell(figures["generator_cpu_percent"], 0),
        faults(row.faults),
    )
