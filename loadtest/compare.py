"""`python -m loadtest compare`: scenarios against several brokers, in turns, and the medians as ratios to the first.

A scenario is a name or a file; `NAME@2` runs it against two nodes that share a store, publishers on one and
subscribers on the other, for the brokers that have that. A broker is started anew for each run, and between two runs
of one all others have theirs, so that what happens to the machine meanwhile happens to all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtest import report, summary, targets
from loadtest.arguments import at_least, output
from loadtest.client import LoadError
from loadtest.result import Report, Result, now
from loadtest.running import Target, run_once
from loadtest.scenario import Scenario, ScenarioError, load, names
from loadtest.summary import NOISE_PERCENT
from loadtest.targets import BROKERS, Broker, Running, TargetError

#: What is compared if nothing else is asked for.
SET = ("fanin", "p2p0", "p2p1", "p2p2", "fanout", "latency", "persistent", "shared", "connect", "p2p1@2", "p2p0@2")

Runner = Callable[[Scenario, str, Running], Result]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """A scenario and the number of nodes that it runs on."""

    scenario: Scenario
    nodes: int = 1

    @property
    def name(self) -> str:
        """As reports know it."""
        return self.scenario.name if self.nodes == 1 else f"{self.scenario.name}@{self.nodes}"

    @property
    def title(self) -> str:
        """As readers are told."""
        title = self.scenario.title or self.scenario.name
        return title if self.nodes == 1 else f"{title}, one of {self.nodes} nodes to another"


def cases(texts: Iterable[str], overrides: Mapping[str, object]) -> list[Case]:
    """Read scenarios of the command line; ScenarioError if one is none."""
    found = []
    for text in texts:
        name, marked, nodes = text.partition("@")
        if marked and not (nodes.isdigit() and int(nodes) >= 1):
            raise ScenarioError(f"{text!r}: the number of nodes follows the @")
        found.append(Case(load(name, overrides), int(nodes or 1)))
    return found


def why_not(case: Case, broker: Broker) -> str:
    """Return why a broker cannot run a case, empty if it can."""
    layouts = {stream.layout for stream in case.scenario.streams}
    if case.nodes > broker.most_nodes:
        return f"it has no {case.nodes} nodes"
    if lacking := sorted(layouts & broker.without):
        return f"it has no layout {', '.join(lacking)}"
    return ""


def measure(scenario: Scenario, broker: str, running: Running) -> Result:
    """One run of the engine."""
    return run_once(scenario, Target.of(broker, running))


def one(case: Case, broker: Broker, runner: Runner) -> Result:
    """Start a broker, run a case, and return what was found; a broker that does not start is a failure."""
    scenario = case.scenario
    if broker.version is not None:
        scenario = dataclasses.replace(scenario, version=broker.version)
    try:
        with broker.start(case.nodes) as running:
            result = runner(scenario, broker.name, running)
    except (LoadError, TargetError, OSError, ValueError) as error:
        settings = dataclasses.asdict(scenario)
        result = Result(case.name, case.title, broker.name, [], settings, now(), failure=str(error) or repr(error))
    result.name, result.title, result.broker = case.name, case.title, broker.name
    return result


def run(wanted: Sequence[Case], brokers: Sequence[Broker], repeat: int, runner: Runner, say: Say) -> list[Result]:
    """Run every case against every broker in turns; `say` gets a line about each run."""
    results = []
    for case in wanted:
        able = [broker for broker in brokers if not why_not(case, broker)]
        for broker in brokers:
            if reason := why_not(case, broker):
                say(f"{case.name} {broker.name}: left out, {reason}")
        for number in range(repeat):
            for broker in able:
                try:
                    result = one(case, broker, runner)
                except KeyboardInterrupt:  # while a broker starts or ends
                    result = interrupted(case.name, case.title, broker.name)
                results.append(result)
                say(f"{case.name} {broker.name} {number + 1}/{repeat}: {told(result)}")
                if result.interrupted:
                    return results
    return results


def interrupted(name: str, title: str, broker: str) -> Result:
    """Return what there is of a run that did not even begin."""
    return Result(name, title, broker, [], {}, now(), failure="interrupted", interrupted=True)


def told(result: Result) -> str:
    """Return a run in a line."""
    if result.failure:
        return report.plain(f"failed: {result.failure}")
    [row] = summary.rows([result])
    wanted = ((row.rate, "/s"), (row.cost, " us of CPU"), (summary.P99, " ms p99"), (summary.MEMORY, " KiB/connection"))
    parts = [
        report.cell(value, figure.digits) + unit for figure, unit in wanted if (value := figure.of(result)) is not None
    ]
    if (others := result.others_cpu_percent) is not None and others > NOISE_PERCENT:
        parts.append(f"disturbed: others used {others:.0f} % of a processor")
    parts += [f"{count:,} {name.replace('_', ' ')}" for name, count in result.faults.items()]
    return ", ".join(parts)


def present(chosen: Iterable[Broker], say: Say) -> list[Broker]:
    """Return the brokers that can be started; `say` gets why one is left out."""
    found = []
    for broker in chosen:
        if reason := broker.missing():
            say(f"{broker.name} is left out: {reason}")
        else:
            found.append(broker)
    return found


def versions(brokers: Iterable[Broker]) -> dict[str, str]:
    """Return what was measured."""
    return {name: version for broker in brokers for name, version in broker.versions().items()}


def allow_files() -> None:
    """Raise the limit of open files as far as it may be; brokers that are started inherit it."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def stderr(line: str) -> None:
    """Say it to whoever looks."""
    print(line, file=sys.stderr, flush=True)


def window(options: argparse.Namespace) -> dict[str, object]:
    """Return the keys of scenarios that the command line changes."""
    chosen = {"seconds": options.seconds, "warmup": options.warmup}
    return {name: value for name, value in chosen.items() if value is not None}


def common(parser: argparse.ArgumentParser, seconds: float | None, warmup: float | None, repeat: int) -> None:
    """Add the options that every comparison has."""
    parser.add_argument("--repeat", type=at_least(1), default=repeat, help="runs of each [%(default)s]")
    parser.add_argument("--seconds", type=float, default=seconds, help="measured window of a run")
    parser.add_argument("--warmup", type=float, default=warmup, help="seconds of load before the window")
    parser.add_argument("--json", type=output, metavar="FILE", help="write every run there")
    parser.add_argument("--html", type=output, metavar="FILE", help="write a page with plots there")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest compare", description=__doc__)
    parser.add_argument(
        "scenarios",
        nargs="*",
        default=SET,
        metavar="SCENARIO",
        help=f"of: {' '.join(names())}, or files; @2: two nodes",
    )
    parser.add_argument("--brokers", default="mosquitto,aedes,rookery", help="comma-separated [%(default)s]")
    parser.add_argument(
        *("--target", "-t"),
        action="append",
        default=[],
        metavar="NAME=URL[,URL][;PID,PID]",
        help="a broker that runs already, with an URL for each node; its processes tell its CPU",
    )
    common(parser, None, None, 3)
    options = parser.parse_args(arguments)
    chosen = list(dict.fromkeys(name for name in options.brokers.split(",") if name))
    if unknown := [name for name in chosen if name not in BROKERS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(BROKERS)}")
    try:
        options.brokers = [BROKERS[name] for name in chosen] + [_resolved(text) for text in options.target]
        if len({broker.name for broker in options.brokers}) < max(1, len(options.brokers)):
            raise ValueError("give --brokers or --target, each name once")
        options.cases = cases(options.scenarios, window(options))
    except ValueError as error:
        parser.error(str(error))
    return options


def _resolved(text: str) -> Broker:
    """Return a broker that runs already, whose hosts are known; ValueError if one is not."""
    broker = targets.external(text)
    with broker.start(broker.most_nodes) as running:
        Target.of(broker.name, running)
    return broker


def main(arguments: Sequence[str]) -> int:
    """Compare, print and return the exit status of all runs."""
    options = _arguments(arguments)
    brokers = present(options.brokers, stderr)
    allow_files()
    started = now()
    results = run(options.cases, brokers, options.repeat, measure, stderr)
    if not results:
        stderr("loadtest: nothing was measured: every broker or scenario was left out")
        return 2
    made = Report(results, started=started)
    made.machine.update(versions(brokers))
    return report.show(made, markdown=options.markdown, html_path=options.html, json_path=options.json)
