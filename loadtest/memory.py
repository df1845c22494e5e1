"""`python -m loadtest memory`: bytes that connections, subscriptions, routes and messages take.

In a node it is the growth of its resident memory (/proc, the store apart) by the first wave on a node that was just
started; in the store that of `used_memory`. Everything is an average over many, so that tables which double are in it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from broker.codec.packets import Disconnect, Publish
from loadtest import compare, report
from loadtest.arguments import at_least, output
from loadtest.caller import CONNACK, PUBACK, Caller, Way
from loadtest.client import LoadError
from loadtest.growth import redis_info
from loadtest.processes import resident_kb, settled
from loadtest.result import Report, now
from loadtest.targets import BROKERS, LISTEN, Running, TargetError, rookery, rookery_nodes

DAY_S = 86_400
FILTERS = 500  # of each session where subscriptions are measured: the session itself weighs nothing then
WAVE = 50  # connections under way
PAYLOAD = 64
HELD = 900  # messages that wait for one session: fewer than max_queued_messages
WINDOW = 100  # PUBLISH packets under way
TRANSPORTS = ("tcp", "tls", "ws", "wss")
MOST_TLS = 2000  # a handshake takes the processor for a millisecond and more
QUIET = ("--http", "off", "--log-level", "warning", "--max-connections-per-ip", "0")


@dataclass(frozen=True)
class Figure:
    """So many bytes for each of `count` things."""

    name: str
    where: str  # node or store
    bytes: float
    count: int


@contextmanager
def certificate() -> Iterator[Path]:
    """Make a certificate with its key in one file, for `localhost`."""
    if shutil.which("openssl") is None:
        raise TargetError("openssl is not installed: no certificate for TLS")
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        file = Path(name) / "both.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-keyout", str(file), "-out", str(file) + ".crt"]
        subprocess.run(command, check=True, capture_output=True)
        file.write_bytes(file.read_bytes() + Path(str(file) + ".crt").read_bytes())
        yield file


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _resident(pid: int) -> int:
    """Return the resident bytes of one process, once it has nothing to do."""
    settled([pid])
    return resident_kb([pid]) * 1024


def _pid(running: Running, name: str = "node") -> int:
    return running.parts[name]


def connections(transport: str, options: argparse.Namespace) -> Iterator[Figure]:
    """Connect so many clients to a fresh node."""
    count = options.connections
    secure = transport in ("tls", "wss")
    count = min(count, MOST_TLS) if secure else count
    with ExitStack() as stack:
        listen = LISTEN.replace("tcp", transport)
        if secure:
            file = stack.enter_context(certificate())
            listen += f"?certfile={file}&keyfile={file}"
        running = stack.enter_context(rookery(QUIET, listen))
        way = Way(running.address, _tls() if secure else None, transport in ("ws", "wss"))
        before = _resident(_pid(running))
        for number in range(count):
            stack.enter_context(Caller(way)).connect(f"idle-{number:06}")
        yield Figure(f"idle connection, {transport}", "node", (_resident(_pid(running)) - before) / count, count)


def _topic(number: int) -> str:
    """About 25 bytes, each of its own."""
    return f"site/{number % 97:02}/device/{number:08}/v"


def _subscribed(callers: Sequence[Caller], topics: Callable[[int], Iterable[str]]) -> None:
    for number, caller in enumerate(callers):
        caller.subscribe(list(topics(number)), 1)


def _own(number: int) -> Iterable[str]:
    return (_topic(number * FILTERS + index) for index in range(FILTERS))


def _same(number: int) -> Iterable[str]:
    return (_topic(10**7 + index) for index in range(FILTERS))


def subscriptions(count: int) -> Iterator[Figure]:
    """Subscribe connected ephemeral sessions of one node."""
    with ExitStack() as stack:
        running = stack.enter_context(rookery(QUIET))
        callers = _callers(stack, running, 0, count // FILTERS, 0)
        pid, taken = _pid(running), len(callers) * FILTERS
        for name, topics in (("distinct", _own), ("shared with other sessions", _same)):
            before = _resident(pid)
            _subscribed(callers, topics)
            yield Figure(f"subscription, {name}", "node", (_resident(pid) - before) / taken, taken)


def _callers(stack: ExitStack, running: Running, node: int, count: int, expiry_s: int) -> list[Caller]:
    callers = []
    for number in range(count):
        callers.append(stack.enter_context(Caller(Way(running.addresses[node]))))
        callers[-1].connect(f"holder-{expiry_s}-{number:05}", expiry_s)
    return callers


def routes(count: int) -> Iterator[Figure]:
    """Subscribe at one of two nodes, and see what the other one knows then."""
    for name, expiry_s in (("ephemeral", 0), ("persistent", DAY_S)):
        with ExitStack() as stack:
            running = stack.enter_context(rookery_nodes(2, QUIET))
            callers = _callers(stack, running, 0, count // FILTERS, expiry_s)
            taken = len(callers) * FILTERS
            parts = {"own": _pid(running, "node1"), "another": _pid(running, "node2")}
            before = {node: _resident(pid) for node, pid in parts.items()}
            _subscribed(callers, _own)
            for node, pid in parts.items():
                size = (_resident(pid) - before[node]) / taken
                yield Figure(f"route of {name} sessions, {node} node", "node", size, taken)


def waiting(count: int) -> Iterator[Figure]:
    """Publish to ephemeral sessions that acknowledge nothing."""
    with ExitStack() as stack:
        running = stack.enter_context(rookery(QUIET))
        way = Way(running.address)
        sessions = max(1, count // HELD)
        for number in range(sessions):
            caller = stack.enter_context(Caller(way))
            caller.connect(f"full-{number}", 0, receive_maximum=1)
            caller.subscribe([f"full/{number}"], 1)
        before = _resident(_pid(running))
        _published(way, [f"full/{number}" for number in range(sessions) for _ in range(HELD)], False)
        size = (_resident(_pid(running)) - before) / (sessions * HELD) - PAYLOAD
        yield Figure("message that waits for an ephemeral session, beside the payload", "node", size, sessions * HELD)


def _published(way: Way, topics: Sequence[str], retain: bool) -> None:
    """Publish to each topic with QoS 1."""
    with Caller(way) as caller:
        caller.connect("publisher")
        for at in range(0, len(topics), WINDOW):
            part = topics[at : at + WINDOW]
            body = [b"x" * PAYLOAD] * len(part)
            packets = [Publish(topic, body[0], 1, retain, False, number) for number, topic in enumerate(part, 1)]
            caller.send(packets)
            caller.take(PUBACK, len(part))


def stored(count: int) -> Iterator[Figure]:
    """Make sessions, subscriptions, queued and retained messages in a store of their own."""
    filters = 4
    with rookery_nodes(1, QUIET, ("--zset-max-listpack-entries", "1")) as running:
        way, store = Way(running.address), running.store
        assert store is not None

        def used() -> int:
            return int(redis_info(store, "memory")["used_memory"])

        def sessions(kind: str, count: int, filters: int) -> None:
            for at in range(0, count, WAVE):
                with ExitStack() as stack:
                    wave = [(number, stack.enter_context(Caller(way))) for number in range(at, min(at + WAVE, count))]
                    for number, caller in wave:
                        caller.greet(f"device-{kind}-{number:06}", DAY_S)
                    for _, caller in wave:
                        caller.take(CONNACK)
                    for number, caller in wave if filters else ():
                        caller.subscribe([_topic(number * filters + index) for index in range(filters)], 1)
                    for _, caller in wave:
                        caller.send([Disconnect()])
                        caller.ended()

        def figure(name: str, bytes_: float, count: int) -> Figure:
            return Figure(name, "store", bytes_, count)

        before = used()
        sessions("a", count, 0)
        session = (used() - before) / count
        yield figure("persistent session, without subscriptions", session, count)
        before = used()
        sessions("b", count, filters)
        subscription = ((used() - before) / count - session) / filters
        yield figure("its subscription, with the route", subscription, count * filters)
        queued = [_topic(number) for number in range(count * filters)]
        before = used()
        _published(way, queued, False)
        yield figure("queued message, beside the payload", (used() - before) / len(queued) - PAYLOAD, len(queued))
        before = used()
        _published(way, [f"state/{number:08}/temperature" for number in range(count)], True)
        yield figure("retained message, beside the payload", (used() - before) / count - PAYLOAD, count)


#: What is measured, by name.
PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Figure]]] = {
    **{name: partial(connections, name) for name in TRANSPORTS},
    "subscriptions": lambda options: subscriptions(options.things),
    "routes": lambda options: routes(options.things),
    "waiting": lambda options: waiting(options.things // 2),
    "stored": lambda options: stored(options.things // 5),
}


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest memory", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {' '.join(PARTS)}; all if none is named")
    parser.add_argument(
        "--connections", type=at_least(1), default=5000, help=f"idle ones, {MOST_TLS} over TLS [%(default)s]"
    )
    parser.add_argument("--things", type=at_least(1), default=50_000, help="subscriptions, routes [%(default)s]")
    parser.add_argument("--json", type=output, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if options.connections < 1 or options.things < HELD * 2:
        parser.error(f"at least 1 connection and {HELD * 2} things")
    compare.allow_files()
    found, failed, stopped = [], False, False
    for name in options.parts or PARTS:
        try:
            for figure in PARTS[name](options):
                found.append(figure)
                print(f"{figure.name}: {figure.bytes:,.0f} bytes", file=sys.stderr, flush=True)
        except (LoadError, TargetError, OSError) as error:
            failed = True
            print(f"{name}: {str(error) or repr(error)}", file=sys.stderr)
        except KeyboardInterrupt:
            stopped = True
            break
    made = Report([], started=now())
    made.machine.update(compare.versions([BROKERS["rookery"]]))
    print(report.about(made))
    lines = [[each.name, each.where, f"{each.bytes:,.0f}", f"{each.count:,}"] for each in found]
    print(report.aligned(["bytes for each", "in", "bytes", "measured with"], lines, "markdown"))
    if options.json is not None:
        content = {"machine": made.machine, "started": made.started, "figures": [asdict(each) for each in found]}
        written = report.write(
            options.json, lambda path: path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        )
        failed |= not written
    return 130 if stopped else 2 if failed else 0
