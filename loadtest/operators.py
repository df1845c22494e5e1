"""`python -m loadtest.operators`: what a node's load and its operators cost each other.

Runs a load as fast as it goes, alternately alone and beside what a scraper, a dashboard and scripts ask
(`loadtest.asking`), and prints what was delivered, what a message cost the node, and how long the answers took. The
load is made by `loadtest` itself, or by mqttbench: `--generator PATH`.
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from loadtest import targets
from loadtest.processes import cpu_s, tree
from loadtest.running import Target, run_once
from loadtest.scenario import load
from loadtest.targets import Running

#: Options of mqttbench for the scenarios that make sense here.
_OPTIONS = {
    "fanin": "--layout fanin --pubs 50 --subs 1 --qos 0 --cap 200",
    "p2p0": "--layout p2p --pubs 100 --subs 100 --qos 0 --cap 100",
    "p2p1": "--layout p2p --pubs 100 --subs 100 --qos 1 --cap 100",
}


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.operators", description=__doc__)
    parser.add_argument("--scenario", choices=sorted(_OPTIONS), default="p2p1", help="the load [%(default)s]")
    parser.add_argument("--seconds", type=int, default=5, help="measured window of a run [%(default)s]")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind [%(default)s]")
    parser.add_argument("--idle", type=int, default=0, help="connections that only stay open [%(default)s]")
    parser.add_argument("--generator", metavar="PATH", help="mqttbench, instead of the generator of this package")
    return parser.parse_args(arguments)


def _load(options: argparse.Namespace, running: Running) -> tuple[float, float]:
    """One run: messages delivered a second, and microseconds of the node's processors for each."""
    if options.generator is None:
        result = run_once(load(options.scenario, {"seconds": options.seconds}), Target.of("rookery", running))
        return result.received_per_s or 0.0, result.cpu_us_per_message or 0.0
    command = [options.generator, "pub", "--port", str(running.address[1]), "--json", "--warmup", "1"]
    command += ["--seconds", str(options.seconds), *_OPTIONS[options.scenario].split()]
    pids = tree(running.pids)
    command += ["--pid", ",".join(str(pid) for pid in pids)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return float(told["deliver_rate"]), float(told["broker_cpu_us_per_msg"])


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main(arguments: Sequence[str]) -> int:
    """Measure and print; returns the exit status."""
    options = _arguments(arguments)
    secret = secrets.token_urlsafe(24)
    alone: list[tuple[float, float]] = []
    beside: list[tuple[float, float]] = []
    took_ms: dict[str, list[float]] = {}
    events = 0
    with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
        secret_file = Path(folder) / "secret"
        secret_file.write_text(secret + "\n", "utf-8")
        with targets.rookery(("--http", "127.0.0.1:0", "--admin-secret-file", str(secret_file))) as running:
            assert running.http is not None
            at = f"{running.http[0]}:{running.http[1]}"
            for number in range(options.repeat):
                alone.append(_load(options, running))
                asking = [sys.executable, "-m", "loadtest.asking", at, secret, str(options.seconds + 1.5)]
                with subprocess.Popen(asking, stdout=subprocess.PIPE, text=True) as process:
                    assert process.stdout is not None
                    process.stdout.readline()
                    before = cpu_s([process.pid])
                    beside.append(_load(options, running))
                    own = cpu_s([process.pid]) - before
                    told = json.loads(process.stdout.readline())
                for name, values in told["took_ms"].items():
                    took_ms.setdefault(name, []).extend(values)
                events += told["events"]
                print(
                    f"{number + 1}/{options.repeat}: alone {alone[-1][0]:,.0f}/s {alone[-1][1]:.2f} us, "
                    f"beside operators {beside[-1][0]:,.0f}/s {beside[-1][1]:.2f} us "
                    f"(they used {own:.2f} s of a processor)",
                    file=sys.stderr,
                )
    rates = median(rate for rate, _ in alone), median(rate for rate, _ in beside)
    costs = median(cost for _, cost in alone), median(cost for _, cost in beside)
    print(f"{options.scenario}: medians of {options.repeat} x {options.seconds:g} s\n")
    print("| | messages/s | us per message |\n|---|---|---|")
    print(f"| alone | {rates[0]:,.0f} | {costs[0]:.2f} |")
    print(f"| beside operators | {rates[1]:,.0f} | {costs[1]:.2f} |")
    print(f"| difference | {rates[1] / rates[0] - 1:+.1%} | {costs[1] / costs[0] - 1:+.1%} |\n")
    print("| asked | answers | p50 ms | p99 ms | most ms |\n|---|---|---|---|---|")
    took_ms["all"] = [each for values in took_ms.values() for each in values]
    for name, values in took_ms.items():
        print(
            f"| {name} | {len(values)} | {median(values):.1f} | {_percentile(values, 0.99):.1f} | {max(values):.1f} |"
        )
    print(f"\n{events} events of live figures")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
