"""`python -m loadtest size`: what a cluster for so many clients takes, computed from the constants of docs/sizing.md.

Nothing is measured: constants of one machine are multiplied. Real loads differ; measure yours before you buy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from loadtest import report
from loadtest.arguments import at_least

#: Of the table of docs/sizing.md, which has more of them: microseconds of CPU, and bytes. Messages are single ones.
CONNECT_US, CONNECT_TLS_US = 110.0, 740.0
ROUTE_OWN_US, ROUTE_OTHER_US = 68.0, 34.0
ROUTE_REDIS_US, ROUTE_STORED_REDIS_US, ROUTE_READ_US = 10.0, 26.0, 5.0  # the last for each other node
CONNECT_REDIS_US = 30.0
CONNECTION_BYTES = {"tcp": 2_900, "tls": 19_300, "ws": 10_500, "wss": 26_700}
NODE_BYTES, ROUTE_BYTES = 60_000_000, 400
SESSION_BYTES, SUBSCRIPTION_BYTES, QUEUED_BYTES, RETAINED_BYTES = 600, 300, 200, 250
#: Of a message: at its publisher's node, at its receiver's, in Redis.
MESSAGE_US = {"0": (2.2, 0.8, 0.4), "1": (7.0, 5.5, 0.7), "stored": (7.0, 7.0, 3.0)}

FREE = 0.5  # of a core, and of memory, that stays free


@dataclass(frozen=True)
class Fleet:
    """What is to be carried. Rates are of the whole cluster, a second."""

    connections: int
    transport: str = "tcp"
    subscriptions: float = 1.0  # of each client
    stored: bool = False  # sessions outlive connections
    messages: float = 0.0
    qos: str = "1"
    payload: int = 100
    retained: int = 0
    waiting: int = 0  # messages in queues
    churn: float = 0.0  # connects with their subscriptions
    memory: int = 4 << 30  # of a node


@dataclass(frozen=True)
class Need:
    """What that takes: nodes and why so many, and what each of them and Redis has to bear."""

    nodes: int
    because: str
    node_cpu: float  # of a core, with all nodes running
    node_bytes: float
    redis_cpu: float
    redis_bytes: float

    @property
    def redis(self) -> int:
        """Primaries, each half busy."""
        return max(1, ceil(self.redis_cpu / FREE))


def need(fleet: Fleet) -> Need:
    """Return the smallest cluster that bears it while one of its nodes is away."""
    out, into, store = MESSAGE_US["stored" if fleet.stored and fleet.qos != "0" else fleet.qos]
    routes = fleet.connections * fleet.subscriptions
    changes = fleet.churn * fleet.subscriptions
    connect = CONNECT_TLS_US if fleet.transport in ("tls", "wss") else CONNECT_US
    shared = (fleet.messages * (out + into) + fleet.churn * connect + changes * ROUTE_OWN_US) / 1e6
    everywhere = changes * ROUTE_OTHER_US / 1e6  # each node hears of all of them
    table = NODE_BYTES + routes * ROUTE_BYTES
    clients = fleet.connections * CONNECTION_BYTES[fleet.transport]
    kept = fleet.connections * SESSION_BYTES + routes * SUBSCRIPTION_BYTES if fleet.stored else 0
    kept += fleet.waiting * (QUEUED_BYTES + fleet.payload) + fleet.retained * (RETAINED_BYTES + fleet.payload)
    written = ROUTE_STORED_REDIS_US if fleet.stored else ROUTE_REDIS_US
    redis = (fleet.messages * store + changes * written + fleet.churn * CONNECT_REDIS_US) / 1e6
    by_cpu = shared / (FREE - everywhere) if everywhere < FREE else float("inf")
    room = fleet.memory * FREE - table
    by_memory = clients / room if room > 0 else float("inf")
    working = max(by_cpu, by_memory)
    if working == float("inf"):
        why = (
            "changes of routes, which every node hears"
            if by_cpu == working
            else "routes, all of which every node holds"
        )
        return Need(0, f"no number of nodes does: {why}", everywhere, table, redis, kept)
    nodes = max(2, ceil(working) + 1)
    redis += changes * ROUTE_READ_US * (nodes - 1) / 1e6
    because = "memory" if by_memory > by_cpu else "CPU"
    return Need(nodes, because, shared / nodes + everywhere, clients / nodes + table, redis, kept)


def main(arguments: Sequence[str]) -> int:
    """Compute, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest size", description=__doc__)
    parser.add_argument("--connections", type=at_least(0), required=True)
    parser.add_argument("--transport", choices=CONNECTION_BYTES, default="tcp")
    parser.add_argument("--subscriptions", type=at_least(0.0), default=1.0, help="of each client [%(default)s]")
    parser.add_argument("--stored", action="store_true", help="sessions outlive connections")
    parser.add_argument("--messages", type=at_least(0.0), default=0.0, help="delivered a second, by all [%(default)s]")
    parser.add_argument("--qos", choices=("0", "1"), default="1")
    parser.add_argument("--payload", type=at_least(0), default=100, help="bytes [%(default)s]")
    parser.add_argument("--retained", type=at_least(0), default=0, help="messages")
    parser.add_argument("--waiting", type=at_least(0), default=0, help="messages that wait in queues")
    parser.add_argument("--churn", type=at_least(0.0), default=0.0, help="clients that connect and subscribe, a second")
    parser.add_argument("--memory", type=at_least(1), default=4 << 30, help="bytes of a node [4 GiB]")
    found = need(Fleet(**vars(parser.parse_args(arguments))))
    print("Computed from constants that were measured on one machine (docs/sizing.md); nodes use a core each.")
    lines = [
        ["nodes, one of them to spare", f"{found.nodes or '-'} ({found.because})"],
        ["of a core, each node", f"{found.node_cpu:.2f}"],
        ["memory, each node", f"{found.node_bytes / 2**30:.2f} GiB"],
        ["of a core, Redis", f"{found.redis_cpu:.2f} ({found.redis} primaries)"],
        ["memory, Redis", f"{found.redis_bytes / 2**30:.2f} GiB"],
    ]
    print(report.aligned(["", ""], lines))
    return 0
