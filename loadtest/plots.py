"""Plots as SVG: lines, steps and bars on linear or logarithmic axes, drawn by a few functions without any library.

Colours are classes, so that a page or a file (`standalone`) says what they are in light and in dark. Series differ by
dashes as well as by colour. Whatever a plot shows also stands in a table: `as_table` is what a page puts behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SERIES = 6  # colours; further series begin again
WIDTH, HEIGHT = 390, 250
TINY = 1e-9  # what is smaller is nothing: no plot is about it
_LEFT, _RIGHT, _TOP, _LINE = 50, 22, 10, 16

#: Of the classes below; a page includes it once, `standalone` puts it into a file.
STYLE = """\
.plot{--ink:#1f2933;--soft:#52606d;--line:#d5dae0;--paper:#ffffff;
--c0:#0b62a4;--c1:#b8470a;--c2:#22763a;--c3:#7a3fa0;--c4:#a3195b;--c5:#5f6b76}
@media(prefers-color-scheme:dark){.plot{--ink:#e6edf3;--soft:#a8b3bd;--line:#343b44;--paper:#161b22;
--c0:#6cb6ff;--c1:#ff9e64;--c2:#7ee2a0;--c3:#d2a8ff;--c4:#ff8fc7;--c5:#a8b3bd}}
.plot text{font:12px system-ui,sans-serif;fill:var(--soft)}.plot .h{font-weight:600;fill:var(--ink)}
.plot .v{fill:var(--ink)}.plot .e{text-anchor:end}.plot .m{text-anchor:middle}
.plot .g{stroke:var(--line);fill:none}.plot .w{fill:var(--paper)}
.plot .l{fill:none;stroke-width:2;stroke-linejoin:round}
""" + "".join(
    f".plot .l{n}{{stroke:var(--c{n});stroke-dasharray:{dash}}}.plot .f{n}{{fill:var(--c{n})}}\n"
    for n, dash in enumerate(("none", "7 3", "2 3", "9 3 2 3", "4 2", "12 4"))
)


@dataclass(frozen=True)
class Series:
    """Points of one line, from left to right; a y of None is a gap."""

    label: str
    points: Sequence[tuple[float, float | None]]

    @property
    def known(self) -> list[tuple[float, float]]:
        """The points that are there."""
        return [(x, y) for x, y in self.points if y is not None]


@dataclass(frozen=True)
class Plot:
    """Lines over common axes; `filled` draws the first as an area of steps (a histogram)."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False
    filled: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars side by side: each with a label, a value and a remark (such as a ratio)."""

    title: str
    unit: str
    bars: Sequence[tuple[str, float | None, str]]


def number(value: float | None) -> str:
    """Return a value for reading, with three digits that count: `1.41 M`, `12.3`, `0.045`; `-` for none."""
    if value is None or not math.isfinite(value):
        return "-"
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit * 0.9995:
            scale = {" G": 1e9, " M": 1e6, " k": 1e3}[unit]
            return _three(value / scale) + unit
    return _three(value)


def _three(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    text = f"{value:,.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ticks(low: float, high: float, at_most: int = 6) -> list[float]:
    """Return round values from at or below `low` to at or above `high`, at steps of 1, 2 or 5."""
    span = next(span for span in (high - low, abs(high), 1.0) if span > TINY)
    step = 10.0 ** math.floor(math.log10(span / at_most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= at_most)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(step * n, 12) for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten around `low` and `high`; within two decades also their 2 and 5 fold."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last == first:
        last += 1
    every = max(1, math.ceil((last - first) / 6))
    if last - first > 2:
        return [10.0**power for power in range(first, last + every, every)]
    values = [10.0**power * factor for power in range(first, last + 1) for factor in (1, 2, 5)]
    inner = [value for value in values if low / 2.5 < value < high * 2.5]
    return inner if inner[0] <= low and inner[-1] >= high else [v for v in values if v <= 10.0**last]


class _Axis:
    """Maps values to pixels."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float, from_zero: bool) -> None:
        self.log = log
        self._start, self._end = start, end
        if log:
            values = [value for value in values if value > TINY] or [1.0]
            self.ticks = log_ticks(min(values), max(values))
        else:
            low = min(values, default=0.0)
            self.ticks = ticks(min(0.0, low) if from_zero else low, max(values, default=1.0))
        self._low, self._high = self._place(self.ticks[0]), self._place(self.ticks[-1])

    def _place(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        if self.log and value <= TINY:
            return self._start
        share = (self._place(value) - self._low) / ((self._high - self._low) or 1)
        return round(self._start + min(max(share, 0), 1) * (self._end - self._start), 1)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(text)}</text>'


def _framed(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">\n<title>{escape(title)}</title>\n' + "\n".join(parts) + "\n</svg>"
    )


def _legend(labels: Sequence[str], top: int) -> tuple[list[str], int]:
    """Return the lines of a legend and the y below it."""
    x, y, parts = _LEFT, top, []
    for index, label in enumerate(labels):
        width = 40 + 7 * len(label)
        if x > _LEFT and x + width > WIDTH:
            x, y = _LEFT, y + _LINE
        parts.append(f'<line class="l l{index % SERIES}" x1="{x}" x2="{x + 20}" y1="{y + 8}" y2="{y + 8}"/>')
        parts.append(_text(x + 25, y + 12, label))
        x += width
    return parts, y + _LINE + 4


def _path(series: Series, x: _Axis, y: _Axis, steps: bool) -> str:
    parts: list[str] = []
    gap = True
    for at, value in series.points:
        if value is None:
            gap = True
            continue
        if steps and not gap:
            parts.append(f"H{x(at):g}V{y(value):g}")
        else:
            parts.append(f"{'M' if gap else 'L'}{x(at):g} {y(value):g}")
        gap = False
    return "".join(parts)


def svg(plot: Plot) -> str:
    """Return a plot of lines."""
    parts, top = _legend([series.label for series in plot.series], _TOP) if len(plot.series) > 1 else ([], _TOP + 2)
    parts.append(_text(0, top + 7, plot.y))
    top += 22
    height = HEIGHT + top - _TOP
    bottom = height - 2 * _LINE - 8
    known = [point for series in plot.series for point in series.known]
    x = _Axis([point[0] for point in known], plot.log_x, _LEFT, WIDTH - _RIGHT, from_zero=False)
    y = _Axis([point[1] for point in known], plot.log_y, bottom, top, from_zero=True)
    for tick in y.ticks:
        parts.append(f'<path class="g" d="M{_LEFT} {y(tick):g}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, y(tick) + 4, number(tick), "e"))
    for tick in x.ticks:
        parts.append(f'<path class="g" d="M{x(tick):g} {bottom}v4"/>')
        parts.append(_text(x(tick), bottom + _LINE + 2, number(tick), "m"))
    parts.append(_text(WIDTH - _RIGHT, height - 4, plot.x, "e"))
    if not known:
        parts.append(_text(WIDTH / 2, (top + bottom) / 2, "nothing was recorded", "m"))
    for index, series in enumerate(plot.series):
        path, kind = _path(series, x, y, plot.filled), index % SERIES
        if plot.filled and index == 0 and path:
            ends = f"M{x(series.known[0][0]):g} {bottom}L{path[1:]}V{bottom}Z"
            parts.append(f'<path class="f{kind}" opacity="0.35" d="{ends}"/>')
        if path:
            parts.append(f'<path class="l l{kind}" d="{path}"/>')
        alone = plot.dots or len(series.known) == 1
        parts += [f'<circle class="f{kind}" cx="{x(a):g}" cy="{y(b):g}" r="3"/>' for a, b in series.known if alone]
    return _framed(plot.title, WIDTH, height, parts)


def bars_svg(plot: Bars) -> str:
    """Return horizontal bars, each under its label and before its value."""
    row, top = 40, _TOP
    height = top + row * len(plot.bars) + 4
    most = max((value for _, value, _ in plot.bars if value is not None), default=0.0) or 1.0
    room = WIDTH - 165
    parts = []
    for index, (label, value, remark) in enumerate(plot.bars):
        y = top + row * index
        width = max(1.0, round(room * (value or 0) / most, 1))
        told = f"{number(value)} {plot.unit}" if value is not None else "-"
        parts.append(_text(0, y + 10, label, "h"))
        parts.append(f'<rect class="f{index % SERIES}" x="0" y="{y + 15}" width="{width:g}" height="14" rx="2"/>')
        parts.append(_text(width + 6, y + 27, f"{told}{f' · {remark}' if remark else ''}", "v"))
    return _framed(plot.title, WIDTH, height, parts)


def standalone(drawing: str, title: str) -> str:
    """Return a drawing as a file of its own: with its style, a background and its title to be read."""
    head, _, body = drawing.partition("\n")
    box = head.partition('viewBox="')[2].partition('"')[0].split()
    width, height = int(box[2]) + 24, int(box[3]) + 40
    inner = body.rpartition("</svg>")[0]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {width} {height}" width="{width}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{STYLE}</style>\n'
        f'<rect class="w" width="{width}" height="{height}" rx="8"/>\n'
        f'{_text(12, 22, title, "h")}\n<g transform="translate(12 32)">\n{inner}</g>\n</svg>\n'
    )


def as_table(plot: Plot, at_most: int = 40) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of what a plot shows, thinned to so many rows."""
    places = sorted({x for series in plot.series for x, _ in series.points})
    if len(places) > at_most:
        every = (len(places) - 1) / (at_most - 1)
        places = [places[round(every * n)] for n in range(at_most)]
    found = [dict(series.points) for series in plot.series]
    head = [plot.x, *(series.label if len(plot.series) > 1 else plot.y for series in plot.series)]
    return head, [[number(place), *(number(values.get(place)) for values in found)] for place in places]
