"""`python -m loadtest routes`: what changes of routes cost a cluster of several nodes, and how many of them it takes.

Clients of all nodes subscribe, one filter in a packet, some packets under way for each. Every node has
to hear of every change; CPU is told for each change, of all nodes together and of Redis.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from time import monotonic

from broker.codec.packets import Subscribe, SubscriptionRequest
from loadtest import compare, report
from loadtest.arguments import at_least, output
from loadtest.caller import SUBACK, Caller, Way
from loadtest.client import LoadError
from loadtest.growth import redis_counts
from loadtest.memory import DAY_S, QUIET
from loadtest.processes import cpu_s, settled
from loadtest.result import Report, now
from loadtest.targets import BROKERS, TargetError, rookery_nodes

CLIENTS = 60
UNDER_WAY = 10  # SUBSCRIBE packets of a client


@dataclass(frozen=True)
class Cost:
    """Of one SUBSCRIBE with one filter of its own, in microseconds of CPU."""

    sessions: str
    nodes: int
    per_s: float
    nodes_us: float  # of all of them together
    redis_us: float
    commands: float
    bytes: float


def measure(sessions: str, nodes: int, count: int) -> Cost:
    """Subscribe so often, over all nodes."""
    expiry_s = DAY_S if sessions == "persistent" else 0
    with ExitStack() as stack:
        running = stack.enter_context(rookery_nodes(nodes, QUIET))
        callers = []
        for number in range(CLIENTS):
            callers.append(stack.enter_context(Caller(Way(running.addresses[number % nodes]))))
            callers[-1].connect(f"changer-{number}", expiry_s)
        redis = [running.parts["redis"]]
        pids = [pid for name, pid in running.parts.items() if name != "redis"]
        store = running.store
        assert store is not None
        settled(pids)
        before = cpu_s(pids), cpu_s(redis), redis_counts(store)
        began = monotonic()
        rounds = max(1, count // (CLIENTS * UNDER_WAY))
        for turn in range(rounds):
            for number, caller in enumerate(callers):
                names = [f"site/{number:02}/device/{turn:06}/{index}" for index in range(UNDER_WAY)]
                caller.send([Subscribe(at, [SubscriptionRequest(name, 1)]) for at, name in enumerate(names, 1)])
            for caller in callers:
                caller.take(SUBACK, UNDER_WAY)
        took_s = monotonic() - began
        settled(pids)  # the others hear of it
        after = cpu_s(pids), cpu_s(redis), redis_counts(store)
        done = rounds * CLIENTS * UNDER_WAY
        counts = {name: (value - before[2][name]) / done for name, value in after[2].items()}
        return Cost(
            sessions,
            nodes,
            done / took_s,
            (after[0] - before[0]) / done * 1e6,
            (after[1] - before[1]) / done * 1e6,
            counts["Redis commands"],
            counts["Redis bytes"],
        )


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest routes", description=__doc__)
    parser.add_argument("--nodes", type=at_least(1), nargs="+", default=[1, 3], help="nodes on one Redis [1 3]")
    parser.add_argument("--count", type=at_least(1), default=20_000, help="SUBSCRIBE packets of each run [%(default)s]")
    parser.add_argument("--json", type=output, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    if min(options.nodes) < 1 or max(options.nodes) > CLIENTS or options.count < 1:
        parser.error(f"1 to {CLIENTS} nodes, and at least one SUBSCRIBE")
    found: list[Cost] = []
    status = 0
    try:
        for sessions in ("ephemeral", "persistent"):
            for nodes in options.nodes:
                found.append(measure(sessions, nodes, options.count))
                print(found[-1], file=sys.stderr, flush=True)
    except (LoadError, TargetError, OSError) as error:
        print(f"routes: {str(error) or repr(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    if not found:
        return status
    made = Report([], started=now())
    made.machine.update(compare.versions([BROKERS["rookery"]]))
    print(report.about(made))
    head = ["sessions", "nodes", "SUBSCRIBE/s", "us, all nodes", "us, Redis", "Redis commands", "Redis bytes"]
    lines = []
    for each in found:
        rates = [f"{each.per_s:,.0f}", f"{each.nodes_us:.1f}", f"{each.redis_us:.1f}"]
        lines.append([each.sessions, str(each.nodes), *rates, f"{each.commands:.2f}", f"{each.bytes:.0f}"])
    print(report.aligned(head, lines, "markdown"))
    if options.json is not None:
        content = {"machine": made.machine, "started": made.started, "costs": [asdict(each) for each in found]}
        if not report.write(options.json, lambda path: path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")):
            return status or 2
    return status
