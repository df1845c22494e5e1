"""`python -m loadtest`: run scenarios against brokers, alternating between them, and print the medians."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from loadtest import former as report
from loadtest import targets
from loadtest.client import LoadError
from loadtest.former import Row
from loadtest.measure import Window, run
from loadtest.scenarios import SCENARIOS, Scenario
from loadtest.wire import MINIMUM_PAYLOAD

NOISE_PERCENT = 40.0  # of one processor, used by neither the broker nor the generator

Target = Callable[[], AbstractContextManager[targets.Running]]


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--scenarios", default=",".join(names), help=f"comma-separated, of: {' '.join(names)}")
    parser.add_argument("--brokers", default="rookery,mosquitto", help="comma-separated, of: rookery mosquitto")
    parser.add_argument("--target", type=targets.host_port, metavar="HOST:PORT", help="a broker that runs already")
    parser.add_argument("--pid", default="", help="processes of --target, comma-separated, for CPU and memory")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured window of a run [%(default)s]")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds of load before the window [%(default)s]")
    parser.add_argument("--repeat", type=int, default=3, help="runs per scenario and broker [%(default)s]")
    parser.add_argument("--connections", type=int, help="idle connections instead of a scenario's own number")
    parser.add_argument("--size", type=int, default=64, help="payload bytes, at least 16 [%(default)s]")
    parser.add_argument("--version", type=int, choices=(4, 5), default=5, help="MQTT 3.1.1 (4) or 5.0 [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    options = parser.parse_args(arguments)
    options.scenarios = options.scenarios.split(",")
    options.brokers = options.brokers.split(",")
    if unknown := {*options.scenarios} - {*names} | {*options.brokers} - {"rookery", "mosquitto"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.size < MINIMUM_PAYLOAD:
        parser.error(f"--size {options.size}: a payload carries {MINIMUM_PAYLOAD} bytes")
    return options


def _targets(options: argparse.Namespace) -> dict[str, Target]:
    if options.target is not None:
        running = targets.Running((options.target,), tuple(int(pid) for pid in options.pid.split(",") if pid))
        return {"target": lambda: nullcontext(running)}
    known: dict[str, Target] = {"rookery": targets.rookery, "mosquitto": targets.mosquitto}
    if targets.mosquitto_path() is None:
        print("mosquitto is not installed: no comparison", file=sys.stderr)
        del known["mosquitto"]
    return {name: known[name] for name in options.brokers if name in known}


def _measure(row: Row, scenario: Scenario, target: Target, window: Window) -> None:
    try:
        with target() as running:
            figures = run(scenario, running, window)
    except (LoadError, targets.TargetError, OSError) as error:
        row.failure = str(error)
        print(f"failed: {error}", file=sys.stderr)
        return
    row.runs.append(figures)
    told = (("messages_per_s", "/s", 0), ("cpu_us_per_message", " us", 1), ("p99_ms", " ms p99", 2))
    parts = [report.cell(value, digits) + unit for name, unit, digits in told if (value := figures[name]) is not None]
    if (size := figures["kb_per_connection"]) is not None:
        parts.append(f"{size:.1f} KB per connection")
    if (others := figures["others_cpu_percent"]) is not None and others > NOISE_PERCENT:
        parts.append(f"others used {others:.0f} % CPU")
    if (found := report.faults(row.faults)) != "none":
        parts.append(found)
    print(", ".join(parts), file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Measure, print the table and return the exit status of `report.status`."""
    options = _arguments(arguments)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # the brokers that are started inherit it
    window = Window(options.warmup, options.seconds, options.version, options.size)
    known = _targets(options)
    rows = []
    for scenario in SCENARIOS:
        if scenario.name not in options.scenarios:
            continue
        if scenario.idle and options.connections is not None:
            scenario = dataclasses.replace(scenario, idle=options.connections)
        these = [Row(scenario.title, name) for name in known]
        for number in range(options.repeat):
            for row in these:
                print(
                    f"{scenario.name} {row.broker} {number + 1}/{options.repeat}: ", end="", file=sys.stderr, flush=True
                )
                _measure(row, scenario, known[row.broker], window)
        rows += these
    machine = f"{os.cpu_count()} processors, Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{machine}; {options.size} B, MQTT {options.version}, medians of {options.repeat} x {options.seconds:g} s\n")
    print(report.table(rows, "mosquitto"))
    noisy = sum((one["others_cpu_percent"] or 0) > NOISE_PERCENT for row in rows for one in row.runs)
    if noisy:
        print(f"\nIn {noisy} of the runs other processes used over {NOISE_PERCENT:.0f} % of a processor.")
    if options.json is not None:
        content = {
            "machine": machine,
            "window": dataclasses.asdict(window),
            "results": [
                {
                    "scenario": row.title,
                    "broker": row.broker,
                    "failure": row.failure,
                    "medians": row.figures,
                    "faults": row.faults,
                    "runs": row.runs,
                }
                for row in rows
            ],
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return report.status(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
