"""`python -m loadtest growth`: how the cost of a message grows with connections, receivers, payloads, filters, nodes.

Each point is a run of some seconds against a broker that was started for it. CPU is that of all its processes, also
told for each of them; with nodes that share a Redis, what a message costs that is told too. `--svg` writes the plots.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from loadtest import compare, html, report
from loadtest.arguments import at_least, output, output_folder
from loadtest.caller import PATIENCE_S, Caller, Way
from loadtest.client import LoadError
from loadtest.plots import Plot, Series, number, standalone, svg
from loadtest.processes import cpu_s, tree
from loadtest.result import Report, Result, now
from loadtest.running import Run, Target, run_once
from loadtest.scenario import Scenario, load
from loadtest.summary import CONNECT_CPU, CPU, MEMORY, RECEIVED, Row, rows
from loadtest.targets import BROKERS, Address, Running, TargetError, rookery

IN_FLIGHT_BYTES = 8 << 20  # of all publishers, so that big payloads measure the broker and not memory


@dataclass(frozen=True)
class Point:
    """One run: where it stands on its axis, its scenario, its nodes, and the filters that others hold meanwhile."""

    series: str
    x: int
    scenario: Scenario
    nodes: int = 1
    filters: tuple[int, int, bool] = (0, 0, False)  # how many, over how many sessions, with wildcards
    workers: int = 0  # processes of one node on its embedded store, instead of nodes


@dataclass(frozen=True)
class Axis:
    """What grows, and whether connecting is what is looked at."""

    name: str
    title: str
    x: str
    points: Sequence[Point] = field(default_factory=tuple)


def axes(most: int) -> list[Axis]:
    """Return all axes, each up to `most`."""

    def up_to(*sizes: int) -> list[int]:
        return [size for size in sizes if size <= most]

    pairs = replace(load("p2p0", {}), settle=0.5)
    acked = replace(load("p2p1", {}), settle=0.5)
    connections = [
        Point(label, idle, replace(scenario, idle=idle))
        for label, scenario in (("QoS 0, 100 busy pairs", pairs), ("QoS 1, 100 busy pairs", acked))
        for idle in up_to(10, 100, 1000, 10_000)
    ]
    active = [
        Point(
            "QoS 0, every client sends 1/s", count, replace(pairs, publishers=half, subscribers=half, rate=float(half))
        )
        for count in up_to(10, 100, 1000, 10_000)
        for half in (count // 2,)
    ]
    receivers = [
        Point(f"QoS {qos}", count, replace(load("fanout", {}), qos=qos, publishers=1, subscribers=count, settle=0.5))
        for qos in (0, 1)
        for count in up_to(1, 10, 100, 1000, 5000)
    ]
    payloads = [
        Point(
            f"QoS {scenario.qos}", size, replace(scenario, publishers=10, subscribers=10, size=size, cap=_cap(size, 10))
        )
        for scenario in (pairs, acked)
        for size in up_to(16, 64, 1024, 16_384, 262_144)
    ]
    filters = [
        Point(label, count, pairs, filters=(count, sessions, wildcards))
        for label, sessions, wildcards in (
            ("exact, 1 session", 1, False),
            ("exact, 10 sessions", 10, False),
            ("wildcards, 1 session", 1, True),
        )
        for count in up_to(1, 100, 10_000, 100_000)
    ]
    nodes = [
        Point(f"QoS {scenario.qos}", count, replace(scenario, settle=1.0), nodes=count)
        for scenario in (pairs, acked)
        for count in up_to(1, 2, 3)
    ]
    workers = [
        Point(f"QoS {scenario.qos}", count, replace(scenario, settle=1.0), workers=count)
        for scenario in (pairs, acked)
        for count in up_to(1, 2)
    ]
    return [
        Axis("connections", "Idle connections beside 100 busy pairs", "idle connections", connections),
        Axis("active", "All connections active at a low rate", "connections", active),
        Axis("subscribers", "Subscribers of one topic", "subscribers", receivers),
        Axis("payload", "Size of payloads, 10 pairs", "bytes", payloads),
        Axis("filters", "Filters that others hold, 100 pairs, QoS 0", "filters", filters),
        Axis("nodes", "Nodes on one Redis, 100 pairs over all of them", "nodes", nodes),
        Axis("workers", "Workers on an embedded store, 100 pairs over all of them", "workers", workers),
    ]


def _cap(size: int, publishers: int) -> int:
    """Messages of a publisher on their way, so that all of them fit."""
    return max(2, min(100, IN_FLIGHT_BYTES // (size * publishers)))


def spread(nodes: Sequence[Address]) -> tuple[tuple[Address, ...], tuple[Address, ...]]:
    """Return sides on which every pair of nodes meets equally often: client i is on entry i modulo their number."""
    count = len(nodes)
    publish = tuple(nodes[i % count] for i in range(count * count))
    return publish, tuple(nodes[i // count] for i in range(count * count))


@contextmanager
def holding(address: Address, count: int, sessions: int, wildcards: bool) -> Iterator[None]:
    """Hold so many filters that nothing matches, in so many sessions, for the duration of the block."""
    with ExitStack() as stack:
        for session in range(sessions):
            mine = range(session, count, sessions)
            if not mine:
                continue
            client = stack.enter_context(Caller(Way(address)))
            client.connect(f"holder-{session}")
            client.subscribe([f"+/none/{number}/#" if wildcards else f"load/none/{number}" for number in mine])
        yield


class Parts:
    """Watches a run: what each process of the broker and its Redis did in the measured window."""

    def __init__(self, running: Running) -> None:
        self._pids = {name: tree([pid]) for name, pid in running.parts.items()}
        self._store = running.store
        self._before: dict[str, float] | None = None
        self.found: dict[str, float] = {}

    def phase(self, name: str, seconds: float) -> None:
        """Note where everything stands as the window begins and as it ends."""
        if name == "window":
            self._before = self._now()
        elif self._before is not None and not self.found:
            after = self._now()
            self.found = {key: after[key] - value for key, value in self._before.items()}

    async def watch(self, run: Run) -> None:
        """Show nothing."""
        await trio.sleep_forever()

    def _now(self) -> dict[str, float]:
        told = {f"CPU us, {name}": cpu_s(pids) * 1e6 for name, pids in self._pids.items()}
        return told | (redis_counts(self._store) if self._store is not None else {})


def redis_info(address: Address, section: str) -> dict[str, str]:
    """Return what INFO says."""
    with socket.create_connection(address, PATIENCE_S) as client, client.makefile("rb") as answer:
        client.sendall(f"INFO {section}\r\n".encode())
        content = answer.read(int(answer.readline()[1:])).decode()
    return dict(line.split(":", 1) for line in content.split("\r\n") if ":" in line)


def redis_counts(address: Address) -> dict[str, float]:
    """Return the counters of a Redis that tell of its load."""
    known = redis_info(address, "stats")
    return {
        "Redis commands": float(known["total_commands_processed"]),
        "Redis bytes": float(known["total_net_input_bytes"]) + float(known["total_net_output_bytes"]),
    }


def _started(point: Point) -> AbstractContextManager[Running]:
    if point.workers:
        return rookery(("--http", "off", "--workers", str(point.workers)))
    return BROKERS["rookery"].start(point.nodes)


def run(axis: Axis, point: Point) -> Result:
    """Measure a point: a result whose settings say how much of each part a message took."""
    name, title = f"{axis.name}/{point.series}/{point.x}", f"{axis.title}: {point.series}, {number(point.x)}"
    with _started(point) as running, holding(running.address, *point.filters):
        parts = Parts(running)
        if point.nodes > 1:
            publish_to, subscribe_to = spread(running.addresses)
            running = replace(running, publish_to=publish_to, subscribe_to=subscribe_to)
        result = run_once(point.scenario, Target.of("rookery", running), parts)
    messages = (result.received_per_s or 0.0) * result.seconds
    result.name, result.title = name, title
    each = {key: value / messages for key, value in parts.found.items()} if messages else {}
    result.settings |= {"axis": axis.name, "series": point.series, "x": point.x, "each": each}
    return result


def attempt(axis: Axis, point: Point) -> Result:
    """As `run`; what cannot be measured is a result that says why."""
    try:
        return run(axis, point)
    except (LoadError, TargetError, OSError) as error:
        return _untold(axis, point, str(error) or repr(error))


def _untold(axis: Axis, point: Point, failure: str) -> Result:
    """Return why there is nothing of a point."""
    settings = {"axis": axis.name, "series": point.series, "x": point.x, "each": {}}
    name = f"{axis.name}/{point.series}/{point.x}"
    return Result(name, axis.title, "rookery", [], settings, now(), failure=failure)


def _read(path: Path) -> Report:
    """Read recorded runs; ValueError if they are none of this command."""
    made = Report.read(path)
    for result in made.results:
        settings = result.settings
        each = settings.get("each")
        if not (isinstance(settings.get("series"), str) and isinstance(settings.get("x"), int)) or not (
            isinstance(each, dict) and all(isinstance(value, int | float) for value in each.values())
        ):
            raise ValueError(f"{result.name} is no run of `growth`")
    return made


def _each(row: Row) -> Mapping[str, float]:
    found: Mapping[str, float] = row.typical.settings.get("each", {})
    return found


def table(axis: Axis, of_axis: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of an axis: medians, and the share of each part in the run of median rate."""
    names = (
        list(dict.fromkeys(key for row in of_axis for key in _each(row))) if axis.name in ("nodes", "workers") else []
    )
    figures = [RECEIVED, CPU] + ([CONNECT_CPU, MEMORY] if axis.name in ("connections", "active") else [])
    head = ["load", axis.x, *(figure.label for figure in figures), *(f"{name}/message" for name in names), "faults"]
    lines = []
    for row in of_axis:
        settings = row.typical.settings
        line = [str(settings["series"]), f"{settings['x']:,}"]
        line += [report.cell(row.median(figure), max(figure.digits, 2 * (figure is CPU))) for figure in figures]
        line += [number(_each(row).get(name)) for name in names]
        lines.append([*line, row.remarks])
    return head, lines


def plots(axis: Axis, of_axis: Sequence[Row]) -> dict[str, Plot]:
    """Return the plots of an axis by the names of their files."""
    labels = list(dict.fromkeys(str(row.typical.settings["series"]) for row in of_axis))

    def lines(value: str) -> list[Series]:
        figure = {"cpu": CPU, "rate": RECEIVED}[value]
        return [
            Series(
                label,
                [
                    (float(row.typical.settings["x"]), row.median(figure))
                    for row in of_axis
                    if row.typical.settings["series"] == label
                ],
            )
            for label in labels
        ]

    wide = axis.name not in ("nodes", "workers")
    cpu = Plot(f"{axis.title}: CPU", axis.x, "us of CPU for a message", lines("cpu"), wide, False, dots=True)
    rate = Plot(f"{axis.title}: rate", axis.x, "messages/s", lines("rate"), wide, wide, dots=True)
    return {f"growth-{axis.name}-cpu.svg": cpu} | (
        {} if axis.name == "active" else {f"growth-{axis.name}-rate.svg": rate}
    )


def _of(axis: Axis, every: Sequence[Row]) -> list[Row]:
    return [row for row in every if row.typical.settings.get("axis") == axis.name]


def show(chosen: Sequence[Axis], results: Sequence[Result]) -> None:
    """Print a Markdown table for each axis."""
    every = rows(results)
    for axis in chosen:
        if of_axis := _of(axis, every):
            print(f"\n**{axis.title}**\n\n{report.aligned(*table(axis, of_axis), 'markdown')}")


def draw(chosen: Sequence[Axis], results: Sequence[Result], folder: Path) -> None:
    """Write the plots of each axis."""
    every = rows(results)
    for axis in chosen:
        if of_axis := _of(axis, every):
            for name, plot in plots(axis, of_axis).items():
                (folder / name).write_text(standalone(svg(plot), plot.title), "utf-8")


def page(chosen: Sequence[Axis], made: Report) -> str:
    """Return all plots and tables as a page."""
    sections = []
    every = rows(made.results)
    for axis in chosen:
        if of_axis := _of(axis, every):
            sections.append((axis.title, list(plots(axis, of_axis).values()), table(axis, of_axis)))
    return html.document("How the cost of a message grows", report.about(made), sections)


def measure(chosen: Sequence[Axis], options: argparse.Namespace) -> list[Result]:
    """Measure all points of these axes, until somebody interrupts."""
    results: list[Result] = []
    for axis in chosen:
        for point in axis.points:
            scenario = replace(point.scenario, seconds=options.seconds, warmup=options.warmup)
            for _ in range(options.repeat):
                try:
                    result = attempt(axis, replace(point, scenario=scenario))
                except KeyboardInterrupt:  # while a broker starts or ends
                    result = _untold(axis, point, "interrupted")
                    result.interrupted = True
                results.append(result)
                print(f"{result.name}: {compare.told(result)}", file=sys.stderr, flush=True)
                if result.interrupted:
                    return results
    return results


def main(arguments: Sequence[str]) -> int:
    """Measure all axes, print, and return the exit status of all runs."""
    known = [axis.name for axis in axes(1)]
    parser = argparse.ArgumentParser(prog="python -m loadtest growth", description=__doc__)
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"of: {' '.join(known)}; all if none is named")
    parser.add_argument("--repeat", type=at_least(1), default=1, help="runs of each point [%(default)s]")
    parser.add_argument("--seconds", type=at_least(0.1), default=3.0, help="measured window of a run [%(default)s]")
    parser.add_argument(
        "--warmup", type=at_least(0.0), default=1.0, help="seconds of load before the window [%(default)s]"
    )
    parser.add_argument("--most", type=at_least(1), default=1_000_000, help="leave out what is larger [%(default)s]")
    parser.add_argument("--svg", type=output_folder, metavar="FOLDER", help="write the plots there")
    parser.add_argument("--html", type=output, metavar="FILE", help="write a page with plots there")
    parser.add_argument("--json", type=output, metavar="FILE", help="write every run there")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="show these runs instead of measuring")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.axes if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = [axis for axis in axes(options.most) if not options.axes or axis.name in options.axes]
    if options.source is not None:
        try:
            made = _read(options.source)
        except (OSError, ValueError) as error:
            print(f"loadtest: {options.source}: {error}", file=sys.stderr)
            return 1
    else:
        compare.allow_files()
        started = now()
        results = measure(chosen, options)
        made = Report(results, started=started)
        made.machine.update(compare.versions([BROKERS["rookery"]]))
    print(report.about(made))
    show(chosen, made.results)
    written = report.write(options.svg, lambda folder: draw(chosen, made.results, folder))
    written &= report.write(options.json, made.write)
    written &= report.write(options.html, lambda path: path.write_text(page(chosen, made), "utf-8", errors="replace"))
    return report.status(made.results) if written else max(2, report.status(made.results))
