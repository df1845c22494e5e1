"""The brokers that are measured: this one, mosquitto, aedes with Redis, or any that runs already.

What is started here listens on free ports of 127.0.0.1, keeps its files in a folder that goes with it, and has the
settings that a comparison wants: no limits of its own on queues, no delay of small packets.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import urlsplit

Address = tuple[str, int]

LISTEN = "tcp://127.0.0.1:0"
START_S = 30.0
INSTALL_S = 300.0
PEERS = Path(__file__).parent / "peers"
MOSQUITTO_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
set_tcp_nodelay true
max_queued_messages 0
max_inflight_messages 100
log_type error
"""


class TargetError(Exception):
    """A broker that cannot be started or is not there."""


@dataclass(frozen=True)
class Running:
    """A broker that accepts clients, at an address for each node; `pids` are its processes without their children.

    `parts` names those processes, `http` is where it answers operators, `store` its Redis; each only where it is known.
    Publishers and subscribers may be on different nodes.
    """

    addresses: tuple[Address, ...]
    pids: tuple[int, ...] = ()
    http: Address | None = None
    publish_to: tuple[Address, ...] = ()
    subscribe_to: tuple[Address, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    store: Address | None = None

    @property
    def address(self) -> Address:
        """Where the first node accepts clients."""
        return self.addresses[0]


@dataclass(frozen=True)
class Broker:
    """A broker that a comparison knows: `start` gets the number of nodes; `missing` says why it cannot be started."""

    name: str
    start: Callable[[int], AbstractContextManager[Running]]
    missing: Callable[[], str] = lambda: ""
    versions: Callable[[], dict[str, str]] = dict
    most_nodes: int = 1
    version: int | None = None  # of MQTT, where not the scenario's
    without: frozenset[str] = frozenset()  # layouts that it does not have


def mosquitto_path() -> str | None:
    """Return where mosquitto is installed, also where an ordinary user's PATH does not lead."""
    return _found("mosquitto")


def _found(*names: str) -> str | None:
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _answering(port: int) -> Callable[[], Address | None]:
    def address() -> Address | None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return None
        return "127.0.0.1", port

    return address


def environment() -> dict[str, str]:
    """Return what a broker gets of the environment: nothing that would configure a node."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ROOKERY_")}


@contextmanager
def _process(
    command: list[str], folder: Path, label: str, address: Callable[[], Address | None]
) -> Iterator[tuple[Address, int]]:
    """Start a process, wait until it has an address, and end it with the block."""
    log_path = folder / f"{label}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.PIPE,
            env=environment(),
            start_new_session=True,  # Ctrl-C in a terminal is for the load tester, which then ends it
        )
    try:
        deadline = monotonic() + START_S
        while (found := address()) is None:
            if process.poll() is not None or monotonic() > deadline:
                lines = log_path.read_text("utf-8", "replace").splitlines()
                raise TargetError(f"{label} did not start: {lines[-1] if lines else 'it said nothing'}")
            sleep(0.02)
        yield found, process.pid
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _redis(folder: Path, *, durable: bool, options: Sequence[str] = ()) -> Iterator[tuple[Address, int]]:
    """Start a store of several nodes; durable: with AOF, fsync every second."""
    port = _free_port()
    command = [_found("redis-server", "valkey-server") or "redis-server", "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--save", "", "--dir", str(folder), "--maxmemory-policy", "noeviction"]
    command += ["--appendonly", "yes" if durable else "no", "--appendfsync", "everysec", *options]
    with _process(command, folder, "redis", _answering(port)) as running:
        yield running


def _across(running: Running) -> Running:
    """Return it with publishers on the first of several nodes and subscribers on the others."""
    first, others = running.addresses[:1], running.addresses[1:]
    return replace(running, publish_to=first, subscribe_to=others) if others else running


@contextmanager
def rookery(arguments: Sequence[str] = ("--http", "off"), listen: str = LISTEN) -> Iterator[Running]:
    """Start one node of this broker on its embedded store."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        store = ["--store", "embedded", "--data-dir", str(folder / "data")]
        with _node(folder, "rookery", [*store, *arguments], listen) as (address, pid, http):
            yield Running((address,), (pid,), http, parts={"node": pid})


@contextmanager
def _node(
    folder: Path, name: str, arguments: Sequence[str], listen: str = LISTEN
) -> Iterator[tuple[Address, int, Address | None]]:
    ready = folder / f"{name}.ready"
    command = [sys.executable, "-m", "broker", "serve", "--listen", listen, "--ready-file", str(ready)]

    def told() -> Address | None:
        if not ready.exists():
            return None
        return host_port(urlsplit(json.loads(ready.read_text("utf-8"))["listeners"][0]).netloc)

    with _process([*command, *arguments], folder, name, told) as (address, pid):
        http = json.loads(ready.read_text("utf-8"))["http"]
        yield address, pid, host_port(http) if http else None


@contextmanager
def rookery_nodes(
    nodes: int, arguments: Sequence[str] = ("--http", "off"), store_options: Sequence[str] = ()
) -> Iterator[Running]:
    """Start several nodes of this broker on one Redis with AOF, fsync every second."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name, ExitStack() as stack:
        folder = Path(name)
        store, redis = stack.enter_context(_redis(folder, durable=True, options=store_options))
        parts, addresses = {"redis": redis}, []
        for number in range(1, nodes + 1):
            options = ["--node-name", f"load{number}", "--store", f"redis://127.0.0.1:{store[1]}/0", *arguments]
            address, pid, _ = stack.enter_context(_node(folder, f"node{number}", options))
            addresses.append(address)
            parts[f"node{number}"] = pid
        yield _across(Running(tuple(addresses), tuple(parts.values()), parts=parts, store=store))


@contextmanager
def mosquitto() -> Iterator[Running]:
    """Start mosquitto, in memory and without limits of its own."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        port, config = _free_port(), Path(name) / "mosquitto.conf"
        config.write_text(MOSQUITTO_CONFIG.format(port=port), "utf-8")
        command = [mosquitto_path() or "mosquitto", "-c", str(config)]
        with _process(command, Path(name), "mosquitto", _answering(port)) as (address, pid):
            yield Running((address,), (pid,), parts={"mosquitto": pid})


@contextmanager
def aedes(nodes: int) -> Iterator[Running]:
    """Start nodes of aedes on one Redis without AOF."""
    script = installed_aedes()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name, ExitStack() as stack:
        folder = Path(name)
        store, redis = stack.enter_context(_redis(folder, durable=False))
        parts, addresses = {"redis": redis}, []
        for number in range(1, nodes + 1):
            label = f"aedes{number}"
            told = _told_port(folder / f"{label}.log")
            command = [_found("node") or "node", str(script), str(store[1])]
            address, pid = stack.enter_context(_process(command, folder, label, told))
            addresses.append(address)
            parts[label] = pid
        yield _across(Running(tuple(addresses), tuple(parts.values()), parts=parts, store=store))


def _told_port(log: Path) -> Callable[[], Address | None]:
    def address() -> Address | None:
        found = re.search(r"^(\d+)\n", log.read_text("utf-8", "replace"), re.M)
        return ("127.0.0.1", int(found[1])) if found else None

    return address


def cache_folder() -> Path:
    """Return where installed peers are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rookery-loadtest"


def installed_aedes() -> Path:
    """Install aedes by npm as the lock file says, unless it is there; return the script. TargetError if it fails."""
    lock = (PEERS / "package-lock.json").read_bytes() + (PEERS / "aedes.mjs").read_bytes()
    folder = cache_folder() / f"aedes-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Made beside its place and moved there: what is there is complete.
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            made = Path(name) / "made"
            shutil.copytree(PEERS, made)
            command = [_found("npm") or "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
            command += ["--legacy-peer-deps"]  # aedes names an older aedes-persistence-redis than the one that fits it
            try:
                done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=INSTALL_S)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise TargetError(f"npm: {error}") from None
            if done.returncode:
                raise TargetError(f"npm could not install aedes: {done.stderr.strip()[-300:]}")
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():  # or somebody else was quicker
                    raise
    return folder / "aedes.mjs"


def host_port(text: str) -> Address:
    """Read HOST:PORT; ValueError if it is something else."""
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def process_ids(text: str) -> tuple[int, ...]:
    """Read a list of process ids with commas between; ValueError if one is none."""
    for pid in (texts := [each.strip() for each in text.split(",") if each.strip()]):
        if not (pid.isascii() and pid.isdigit() and int(pid)):
            raise ValueError(f"{pid!r} is not a process id")
    return tuple(int(pid) for pid in texts)


def external(text: str) -> Broker:
    """Read NAME=URL[,URL...][;PID,...] of a broker that runs already, one URL for each node; ValueError if it is none.

    Of several nodes publishers are on the first, subscribers on the others. With its processes CPU is told as well.
    """
    name, _, rest = text.partition("=")
    urls, _, processes = rest.partition(";")
    addresses = tuple(_address(url) for url in urls.split(",") if url)
    if not name or not addresses:
        raise ValueError(f"{text!r} is not NAME=URL")
    running = _across(Running(addresses, process_ids(processes)))
    one = Running(addresses[:1], running.pids)
    return Broker(name, lambda nodes: nullcontext(running if nodes > 1 else one), most_nodes=len(addresses))


def _address(url: str) -> Address:
    """Read mqtt://HOST:PORT, tcp://HOST:PORT or HOST[:PORT]."""
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    if parts.scheme not in ("mqtt", "tcp") or not parts.hostname or parts.netloc.endswith(":") or parts.port == 0:
        raise ValueError(f"{url!r} is not mqtt://HOST:PORT")
    return parts.hostname, parts.port or 1883


def _lacking(**programs: tuple[str, ...]) -> Callable[[], str]:
    def missing() -> str:
        return ", ".join(f"{name} is not installed" for name, paths in programs.items() if _found(*paths) is None)

    return missing


def _said(command: Sequence[str], pattern: str) -> str:
    """Return what a program says of its version, `unknown` if it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, env=environment())
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"


def _redis_version() -> dict[str, str]:
    return {"redis": _said([_found("redis-server", "valkey-server") or "redis-server", "--version"], r"v=(\S+)")}


def _mosquitto_version() -> dict[str, str]:
    return {"mosquitto": _said([mosquitto_path() or "mosquitto", "-h"], r"version (\S+)")}


def _rookery_version() -> dict[str, str]:
    version = _said([sys.executable, "-m", "broker", "version"], r"(\d+\.\d+\S*)")
    commit = _said(["git", "-C", str(PEERS), "rev-parse", "--short", "HEAD"], r"^([0-9a-f]+)\n")
    return {"rookery": version, "commit": commit, **_redis_version()}


def _aedes_version() -> dict[str, str]:
    packages = json.loads((PEERS / "package.json").read_text("utf-8"))["dependencies"]
    return {
        "aedes": packages["aedes"],
        "node": _said([_found("node") or "node", "--version"], r"v(\S+)"),
        **_redis_version(),
    }


@contextmanager
def _rookery(nodes: int) -> Iterator[Running]:
    with rookery() if nodes == 1 else rookery_nodes(nodes) as running:
        yield running


_REDIS = ("redis-server", "valkey-server")
#: By the names of the command line, as a comparison prints them.
BROKERS = {
    broker.name: broker
    for broker in (
        Broker(
            "mosquitto", lambda nodes: mosquitto(), _lacking(mosquitto=("mosquitto",)), _mosquitto_version, version=4
        ),
        Broker(
            "aedes",
            aedes,
            _lacking(node=("node",), npm=("npm",), redis=_REDIS),
            _aedes_version,
            most_nodes=2,
            version=4,
            without=frozenset({"shared"}),
        ),
        Broker("rookery", _rookery, _lacking(), _rookery_version, most_nodes=16),
    )
}
