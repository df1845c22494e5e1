"""The page of a report: one file without scripts that asks nobody for anything, plots with their tables behind them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape

from loadtest.plots import STYLE, Bars, Plot, Series, as_table, bars_svg, number, svg
from loadtest.result import FAULTS, Percentiles, Report, Result
from loadtest.summary import CONNECTS, MEMORY, P99, RECEIVED, Figure, Row, by_scenario, notes, ratio, rows, worded

PER_DECADE = 12  # columns of a histogram
MOST_POINTS = 240  # of a line

_PAGE_STYLE = """\
:root{color-scheme:light dark;--text:#1f2933;--soft:#52606d;--line:#d5dae0;--page:#f4f5f7;--paper:#fff;--bad:#a8071a}
@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--soft:#a8b3bd;--line:#343b44;--page:#0d1117;
--paper:#161b22;--bad:#ff9592}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:1.5rem;margin:.4em 0}h2{font-size:1.2rem;margin:2em 0 .5em}
p{margin:.4em 0}.soft,figcaption span{color:var(--soft)}.bad{color:var(--bad);font-weight:600}
.plots{display:grid;margin-bottom:12px;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr))}
figure{margin:0;padding:12px;background:var(--paper);border:1px solid var(--line);border-radius:8px;min-width:0}
figcaption{font-weight:600;margin-bottom:6px}figure svg{width:100%;height:auto;display:block}
.scroll{overflow-x:auto;background:var(--paper);border:1px solid var(--line);border-radius:8px}
.scroll:focus-visible,summary:focus-visible{outline:2px solid #1f6feb;outline-offset:2px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}
tr:last-child>*{border-bottom:0}th:first-child,.left{text-align:left}thead th{color:var(--soft);font-weight:600}
td.wrap{white-space:normal;overflow-wrap:anywhere;min-width:9em}tbody th{font-weight:500}
details{margin-top:8px}summary{cursor:pointer;color:var(--soft)}
details .scroll{max-height:320px;overflow:auto;margin-top:6px}
"""
#: Nothing is loaded from anywhere, whatever a title may contain.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def _grid(caption: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is too wide; a first cell heads its row."""
    parts = [f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>']
    named = "".join(f'<th scope="col"{_kind(name, "none")}>{escape(name)}</th>' for name in head)
    parts.append(f"<thead><tr>{named}</tr></thead><tbody>")
    for line in lines:
        rest = "".join(
            f"<td{_kind(name, text)}>{escape(text)}</td>" for name, text in zip(head[1:], line[1:], strict=True)
        )
        parts.append(f'<tr><th scope="row" class="left">{escape(line[0])}</th>{rest}</tr>')
    return "".join(parts) + "</tbody></table></div>"


def _kind(name: str, text: str) -> str:
    if name == "faults":
        return ' class="left wrap"' if text.startswith("none") else ' class="left wrap bad"'
    return ' class="left wrap"' if name in ("broker", "value") else ""


def _figure(title: str, drawing: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>\n{drawing}\n"
        f"<details><summary>As a table</summary>{_grid(title, head, lines)}</details></figure>"
    )


def _drawn(plot: Plot) -> str:
    head, lines = as_table(plot)
    return _figure(plot.title, svg(plot), head, lines)


def _barred(plot: Bars) -> str:
    lines = [[label, number(value), remark or "-"] for label, value, remark in plot.bars]
    return _figure(plot.title, bars_svg(plot), ["broker", plot.unit, "to the first"], lines)


def columns(histogram: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    """Return a histogram in columns that are equally wide on a logarithmic axis: (lower bound in ms, percent)."""
    total = sum(count for _, count in histogram if count > 0)
    found: dict[int, int] = {}
    for upper, count in histogram:
        if upper > 0 and count > 0:
            place = math.ceil(math.log10(upper) * PER_DECADE - 1e-9) - 1
            found[place] = found.get(place, 0) + count
    if not found:
        return []
    places = range(min(found), max(found) + 2)  # the last one closes the figure
    return [(10 ** (place / PER_DECADE), 100 * found.get(place, 0) / total) for place in places]


def cumulative(histogram: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    """Return how many percent took at most so many ms."""
    known = sorted((upper, count) for upper, count in histogram if count > 0)
    total, so_far, points = sum(count for _, count in known), 0, []
    for upper, count in known:
        so_far += count
        if upper > 0:
            points.append((upper, 100 * so_far / total))
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    return [point for index, point in enumerate(points) if index % every == 0 or index == len(points) - 1]


def _series(label: str, run: Result, name: str) -> Series:
    points = [(point.t, getattr(point, name)) for point in run.series if point.t > 0]
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    return Series(label, points[::every])


def _plots(of_scenario: Sequence[Row]) -> list[str]:
    """The plots over time and of latency: of one broker all lines, of several the telling ones beside each other."""
    runs = [(row.broker, row.typical) for row in of_scenario if row.good]
    parts = []
    if len(runs) == 1:
        [(_, run)] = runs
        rate = [_series("sent", run, "sent_per_s"), _series("received", run, "received_per_s")]
        latency = [_series("p50", run, "p50_ms"), _series("p99", run, "p99_ms")]
        connected = [_series("connections", run, "connected")]
    else:
        rate = [_series(broker, run, "received_per_s") for broker, run in runs]
        latency = [_series(broker, run, "p99_ms") for broker, run in runs]
        connected = [_series(broker, run, "connected") for broker, run in runs]
    said = "Latency over time" if len(runs) == 1 else "Latency (p99) over time"
    if any(series.known for series in rate):
        parts.append(_drawn(Plot("Messages over time", "s", "messages/s", rate)))
    if any(series.known for series in latency):
        parts.append(_drawn(Plot(said, "s", "ms", latency, log_y=True)))
    if any(len({y for _, y in series.known}) > 1 for series in connected):
        parts.append(_drawn(Plot("Connections over time", "s", "open", connected)))
    with_latency = [(broker, run) for broker, run in runs if any(upper > 0 and n > 0 for upper, n in run.histogram)]
    if len(with_latency) == 1:
        shape = Series("share", columns(with_latency[0][1].histogram))
        parts.append(_drawn(Plot("Latency: how often", "ms", "% of messages", [shape], log_x=True, filled=True)))
    if with_latency:
        lines = [Series(broker, cumulative(run.histogram)) for broker, run in with_latency]
        parts.append(_drawn(Plot("Latency: share within", "ms", "% of messages", lines, log_x=True)))
    return parts


def _bars(of_scenario: Sequence[Row]) -> list[str]:
    """Bars side by side with ratios to the first broker."""
    parts = []
    wanted: list[Figure] = [of_scenario[0].rate, of_scenario[0].cost, P99, MEMORY]
    names = {RECEIVED.name: "Messages delivered", CONNECTS.name: "Connections made", P99.name: "Latency, p99"}
    for figure in wanted:
        values = [(row.broker, row.median(figure)) for row in of_scenario]
        if sum(value is not None for _, value in values) < 2:
            continue
        base = values[0][1]
        bars = []
        for index, (broker, value) in enumerate(values):
            times = ratio(value, base)
            bars.append((broker, value, f"{number(times)} x" if index and times is not None else ""))
        title, _, unit = figure.label.rpartition(" ")
        parts.append(_barred(Bars(names.get(figure.name, title or "Memory"), unit, bars)))
    return parts


def _milliseconds(named: Iterable[tuple[str, Percentiles]]) -> str:
    fields = ("count", "mean", "p50", "p90", "p99", "p999", "max")
    lines = [[name, *(number(getattr(each, one)) for one in fields)] for name, each in named if each.count]
    return _grid("Durations in ms", ["ms", *fields], lines) if lines else ""


def _details(of_scenario: Sequence[Row]) -> list[str]:
    several = len(of_scenario) > 1
    named = []
    for row in of_scenario:
        run = row.typical
        for kind, each in (
            ("latency", run.latency_ms),
            ("ack", run.ack_ms),
            ("connect", run.connect_ms),
            ("pace lag", run.pace_lag_ms),
        ):
            named.append((f"{row.broker}: {kind}" if several else kind, each))
    parts = [_milliseconds(named)]
    counts = [asdict(row.typical.counts) for row in of_scenario]
    heads = ["messages and connections", *(row.broker if several else "count" for row in of_scenario)]
    lines = [[name.replace("_", " "), *(f"{each[name]:,}" for each in counts)] for name in counts[0]]
    parts.append(f"<details><summary>Counts</summary>{_grid('Counts', heads, lines)}</details>")
    first = of_scenario[0].typical
    settings = [(name, json.dumps(value, ensure_ascii=False)) for name, value in first.settings.items()]
    settings += [("targets", ", ".join(row.typical.targets)) for row in of_scenario]
    parts.append(f"<details><summary>Settings</summary>{_grid('Settings', ['setting', 'value'], settings)}</details>")
    troubles = list(dict.fromkeys(text for row in of_scenario for run in row.runs for text in run.messages))
    if troubles:
        parts.append("<ul>" + "".join(f'<li class="bad">{escape(text)}</li>' for text in troubles[:20]) + "</ul>")
    return parts


def _verdict(all_rows: Sequence[Row]) -> str:
    """What is wrong; what was lost, repeated or out of order although that is permitted; or that nothing was."""
    faults = {name: sum(row.faults.get(name, 0) for row in all_rows) for name in FAULTS}
    told = [worded(name, count) for name, count in faults.items() if count]
    for row in all_rows:
        failed = (
            [f"{len(row.runs) - len(row.good)} of {len(row.runs)} runs failed"] if len(row.good) < len(row.runs) else []
        )
        troubles = [row.failure] if row.failure else [*failed, *([row.silent] if row.silent else [])]
        told += [f"{row.title}, {row.broker}: {text}" for text in troubles]
    permitted = [f"{row.title}, {row.broker}: {text}" for row in all_rows for text in row.permitted]
    cut_short = [
        f"{row.title}, {row.broker}: interrupted" for row in all_rows if any(run.interrupted for run in row.runs)
    ]
    missed = [f"{row.title}, {row.broker}: {row.missed}" for row in all_rows if row.missed]
    parts = [f'<p class="bad">{escape("; ".join(told))}</p>'] if told else []
    if not told and not any(row.permitted for row in all_rows):
        received = sum(run.counts.received for row in all_rows for run in row.runs)
        parts.append(
            f"<p>{'Nothing was lost, repeated or out of order.' if received else 'No faults; no messages.'}</p>"
        )
    parts += [f"<p>{escape(text)}</p>" for text in (*permitted, *missed, *cut_short, *notes(all_rows))]
    return "".join(parts)


def page(report: Report, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return the page of a report, of which `head` and `lines` are the table."""
    all_rows = rows(report.results)
    scenarios = by_scenario(all_rows)
    titles = list(dict.fromkeys(row.title for row in all_rows))
    title = f"Load test: {titles[0]}" if len(titles) == 1 else f"Load test: {len(titles)} scenarios"
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(report.started)} · {escape(machine)}</p>']
    body += [_verdict(all_rows), _grid("Medians of all scenarios", head, lines)]
    for number_, of_scenario in enumerate(scenarios.values()):
        body.append(f'<section aria-labelledby="s{number_}"><h2 id="s{number_}">{escape(of_scenario[0].title)}</h2>')
        body.append(f'<p class="soft">{escape(_told(of_scenario))}</p>')
        body.append(f'<div class="plots">{"".join(_bars(of_scenario) + _plots(of_scenario))}</div>')
        body += [*_details(of_scenario), "</section>"]
    return _document(title, body)


def document(
    title: str, about: str, sections: Iterable[tuple[str, Sequence[Plot], tuple[list[str], list[list[str]]]]]
) -> str:
    """Return a page of sections, each with a title, plots and a table."""
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(about)}</p>']
    for heading, plots, (head, lines) in sections:
        body.append(f"<section><h2>{escape(heading)}</h2>")
        body.append(f'<div class="plots">{"".join(_drawn(plot) for plot in plots)}</div>{_grid(heading, head, lines)}')
        body.append("</section>")
    return _document(title, body)


def _document(title: str, body: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{_PAGE_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _told(of_scenario: Sequence[Row]) -> str:
    """How many runs there are, and which of them is drawn."""
    most = max(len(row.runs) for row in of_scenario)
    seconds = of_scenario[0].typical.seconds
    told = (
        f"{most} runs of {seconds:g} s; plots and counts are of the run with the median rate"
        if most > 1
        else f"{seconds:g} s"
    )
    disturbed = sum(row.disturbed for row in of_scenario)
    return f"{told}; other processes disturbed {disturbed}" if disturbed else told
