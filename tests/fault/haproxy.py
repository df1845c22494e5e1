"""A load balancer before three nodes that are killed one after the other: what does a client notice?

`python -m tests.fault.haproxy --seconds 60` starts HAProxy and three nodes on one Redis. Publishers and a subscriber
with a persistent session know only HAProxy's address. Every few seconds the node that serves the subscriber is killed
and started again. The report says what was sent, acknowledged, lost and repeated, and the longest time without a
message.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.history import availability, checks
from tests.history.client import Profile, RecordedClient
from tests.history.link import Address
from tests.history.run import always, recorded
from tests.history.workload import ROOMY
from tests.kit.broker_process import BrokerProcess
from tests.kit.ports import free_port
from tests.kit.redis_server import redis_server
from tests.multinode.nodes import Nodes, cluster

NAMES = ("a", "b", "c")
PUBLISHERS = 10
#: Between two kills, and until a killed node comes back.
PERIOD_S = 5.0
AWAY_S = 1.5

_CONFIGURATION = """\
global
    stats socket {folder}/stats mode 600 level admin
defaults
    mode tcp
    retries 3
    option redispatch
    timeout connect 1s
    timeout client 1h
    timeout server 1h
listen mqtt
    bind 127.0.0.1:{port}
    balance leastconn
    default-server check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions
"""


def find_haproxy() -> str | None:
    """The binary; Debian has it where only root looks."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/sbin")


class HaProxy:
    """HAProxy as what clients connect to; `live` and `address` are what a run asks for."""

    def __init__(self, folder: Path, servers: dict[str, int]) -> None:
        self.port = free_port()
        self.live = ["haproxy"]
        self._stats = folder / "stats"
        text = _CONFIGURATION.format(folder=folder, port=self.port)
        text += "".join(f"    server {name} 127.0.0.1:{port}\n" for name, port in servers.items())
        (folder / "haproxy.cfg").write_text(text)
        binary = find_haproxy()
        if binary is None:
            raise RuntimeError("no haproxy: install the Debian package of that name")
        with (folder / "haproxy.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary, "-db", "-f", str(folder / "haproxy.cfg")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 10
        while not self._stats.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"haproxy did not start: {(folder / 'haproxy.log').read_text()[-1000:]}")
            time.sleep(0.01)

    def address(self, name: str) -> Address:
        """See `Targets`."""
        return Address(name, "127.0.0.1", self.port)

    def server_of(self, local_port: int) -> str:
        """The server that a client's connection was given to; "" if there is none."""
        with socket.socket(socket.AF_UNIX) as stats:
            stats.connect(str(self._stats))
            stats.sendall(b"show sess\n")
            answer = b"".join(iter(lambda: stats.recv(65_536), b"")).decode()
        for line in answer.splitlines():
            if f"src=127.0.0.1:{local_port} " in line and " srv=" in line:
                return line.partition(" srv=")[2].split()[0]
        return ""

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


@contextmanager
def haproxy(folder: Path, servers: dict[str, int]) -> Iterator[HaProxy]:
    """A running HAProxy before servers on the loopback interface, by name."""
    made = HaProxy(folder, servers)
    try:
        yield made
    finally:
        made.stop()


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a run."""

    seconds: float
    sent: int
    acked: int
    received: int
    lost: int
    #: QoS 2 messages that came twice, and QoS 1 messages that did (which they may).
    duplicated: int
    repeated: int
    kills: int
    moves: int
    longest_gap_s: float
    problems: list[str]

    def __str__(self) -> str:
        return (
            f"{self.seconds:.0f} s, {self.kills} nodes killed, the client was moved {self.moves} times\n"
            f"sent {self.sent} ({self.sent / self.seconds:.0f}/s), acked {self.acked}, received {self.received}\n"
            f"lost {self.lost} of the acked, duplicated {self.duplicated} (QoS 2), repeated {self.repeated} (QoS 1)\n"
            f"longest time without a message: {self.longest_gap_s:.2f} s"
        )


async def measure(folder: Path, seconds: float, rate: float, seed: int = 1) -> Report:
    """Run it for so many seconds at so many messages a second."""
    ports = {name: free_port() for name in NAMES}

    def prepare(nodes: Nodes) -> None:
        nodes.make = lambda name, url: BrokerProcess(
            folder / name,
            url,
            listen=(f"tcp://127.0.0.1:{ports[name]}",),
            arguments=("--node-name", name, *nodes.arguments),
        )

    with redis_server(aof=True) as store, haproxy(folder, ports) as proxy:
        async with (
            cluster(folder, NAMES, store=store, arguments=ROOMY, prepare=prepare) as nodes,
            recorded(proxy, folder, seed) as run,
        ):
            client = run.client("client", profile=Profile(expiry_s=3600, subscriptions=(("load/#", 2),)))
            publishers = [run.client(f"p{index}", profile=Profile(expiry_s=3600)) for index in range(PUBLISHERS)]
            await run.ready()
            kills = 0
            async with trio.open_nursery() as nursery:
                for index, publisher in enumerate(publishers):
                    nursery.start_soon(_publish, publisher, index, rate / PUBLISHERS)
                until = trio.current_time() + seconds
                while trio.current_time() + PERIOD_S < until:
                    await trio.sleep(PERIOD_S - AWAY_S)
                    name = _place(proxy, client) or run.random.choice(NAMES)
                    run.history.fault("kill -9", name)
                    nodes.kill(name)
                    kills += 1
                    await trio.sleep(AWAY_S)
                    await nodes.start(name)
                await trio.sleep(max(0.0, until - trio.current_time()))
                nursery.cancel_scope.cancel()
            timeline = await run.drain(60.0)
            problems = always(timeline)
            if problems:
                run.history.save(folder / "history.jsonl")
    publications = timeline.publications.values()
    mine = [each for each in timeline.sessions if each.client == "client"]
    payloads = [event.payload for each in mine for event in each.taken()]
    duplicated = len(checks.duplicates(timeline))
    return Report(
        seconds,
        len(publications),
        sum(1 for each in publications if each.acked),
        len(set(payloads)),
        len(checks.acked_loss(timeline)),
        duplicated,
        len(payloads) - len(set(payloads)) - duplicated,
        kills,
        len(timeline.connections_of("client")) - 1,
        availability.longest_gap(timeline, "client"),
        problems,
    )


def _place(proxy: HaProxy, client: RecordedClient) -> str:
    return "" if client.link is None else proxy.server_of(client.link.local_port)


async def _publish(client: RecordedClient, index: int, rate: float) -> None:
    qos = 1 + index % 2
    began = trio.current_time()
    sent = 0
    while True:
        due = int((trio.current_time() - began) * rate)
        while sent < due:
            sent += 1
            # What cannot be sent is not sent later: the rate is that of a device, not of a queue.
            if client.backlog < rate / 2:
                client.publish(f"load/{index}", qos)
        await trio.sleep(0.01)


def main() -> int:
    """Print a report; the exit status is 1 if anything was lost or duplicated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2000, help="messages a second of all publishers together")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rookery-haproxy-") as folder:
        report = trio.run(measure, Path(folder), options.seconds, options.rate)
    sys.stdout.write(f"{report}\n")
    sys.stdout.write("".join(f"{problem}\n" for problem in report.problems[:20]))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
