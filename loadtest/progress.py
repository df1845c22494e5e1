"""A run as it goes on: a live display on a terminal, else a line every few seconds, both on standard error."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

import trio

from loadtest.report import plain
from loadtest.result import FAULTS
from loadtest.running import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_S = 5.0
REFRESH_S = 0.5
MODES = ("auto", "live", "plain", "off")


class Plain:
    """A line every `LINE_S` seconds."""

    def __init__(self) -> None:
        self._phase, self._began, self._seconds = "connect", monotonic(), 0.0

    def phase(self, name: str, seconds: float) -> None:
        """A phase begins, of so many seconds at most."""
        self._phase, self._began, self._seconds = name, monotonic(), seconds

    @property
    def where(self) -> str:
        """The phase, and how long it may still take."""
        left = self._began + self._seconds - monotonic()
        return f"{self._phase} {left:.0f} s left" if self._seconds and left > 0 else self._phase

    async def watch(self, run: Run) -> None:
        """Print until cancelled."""
        while True:
            await trio.sleep(LINE_S)
            cells = [f"{name} {value}" for name, value in figures(run)]
            print(plain(f"{run.scenario.name}: {self.where}, {', '.join(cells)}"), file=sys.stderr, flush=True)


def figures(run: Run) -> list[tuple[str, str]]:
    """Return what is shown of a run, by name."""
    engine, points = run.engine, run.sampler.points
    found = [("connected", f"{engine.connected:,}/{run.clients:,}")]
    if points and engine.sent:
        point = points[-1]
        found += [
            ("sent/s", f"{point.sent_per_s:,.0f}"),
            ("received/s", f"{point.received_per_s:,.0f}"),
            ("on their way", f"{max(engine.expected - engine.delivered, 0):,}"),
        ]
        latency = run.sampler.latency
        p50, p99 = latency.percentile_ms(50), latency.percentile_ms(99)
        if p50 is None or p99 is None:
            p50, p99 = point.p50_ms, point.p99_ms
        if p50 is not None and p99 is not None:
            found.append(("latency p50/p99", f"{p50:.2f}/{p99:.2f} ms"))
    counts = run.overtaken()
    troubles = [f"{n:,} {name}" for name in FAULTS if (n := getattr(counts, name))]
    found.append(("faults", ", ".join(troubles) or "none"))
    return found


class Live(Plain):
    """A display that is drawn anew; needs rich."""

    async def watch(self, run: Run) -> None:
        from rich.console import Console
        from rich.live import Live as Display

        with Display(console=Console(stderr=True), auto_refresh=False, transient=True) as display:
            while True:
                display.update(self._drawn(run), refresh=True)
                await trio.sleep(REFRESH_S)

    def _drawn(self, run: Run) -> RenderableType:
        from rich.markup import escape
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for name, value in figures(run):
            style = "red" if name == "faults" and value != "none" else "bold"
            table.add_row(name, f"[{style}]{value}[/]")
        done = (monotonic() - self._began) / self._seconds if self._seconds else 0.0
        table.add_row(self.where, ProgressBar(total=1.0, completed=min(done, 1.0), width=40))
        return Panel(
            table, title=escape(plain(f"{run.scenario.name}: {run.scenario.title}")), title_align="left", expand=False
        )


def watcher(mode: str) -> Plain | None:
    """Return what shows runs: `auto` is live on a terminal with rich, else plain."""
    if mode == "off":
        return None
    if mode == "live" or (mode == "auto" and sys.stderr.isatty() and _rich() is not None):
        if _rich() is None:
            raise ValueError("--progress live needs rich: pip install 'rookery[loadtest]'")
        return Live()
    return Plain()


def _rich() -> Any:
    try:
        import rich
    except ImportError:
        return None
    return rich
