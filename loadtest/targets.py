"""The brokers that are measured: this one, mosquitto, or one that runs already."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep

from loadtest.client import LoadError

START_S = 30.0
MOSQUITTO_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
set_tcp_nodelay true
max_queued_messages 0
max_inflight_messages 100
log_type error
"""


@dataclass(frozen=True)
class Running:
    """A broker that accepts clients; `pids` are its processes without their children, none if unknown. `http` is where
    it answers operators, if it does."""

    address: tuple[str, int]
    pids: tuple[int, ...]
    http: tuple[str, int] | None = None


def mosquitto_path() -> str | None:
    """Return where mosquitto is installed, also where an ordinary user's PATH does not lead."""
    return shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))


@contextmanager
def _process(command: list[str], folder: Path, address: Callable[[], tuple[str, int] | None]) -> Iterator[Running]:
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = monotonic() + START_S
        while (found := address()) is None:
            if process.poll() is not None or monotonic() > deadline:
                lines = log_path.read_text("utf-8", "replace").splitlines()
                raise LoadError(f"{command[0]} did not start: {lines[-1] if lines else 'it said nothing'}")
            sleep(0.02)
        yield Running(found, (process.pid,))
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def rookery(arguments: Sequence[str] = ("--http", "off")) -> Iterator[Running]:
    """Start this broker on its embedded store."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name:
        folder = Path(name)
        ready = folder / "ready"
        command = [sys.executable, "-m", "broker", "serve", "--store", "embedded", "--data-dir", str(folder / "data")]
        command += ["--listen", "tcp://127.0.0.1:0", "--ready-file", str(ready), *arguments]

        def address() -> tuple[str, int] | None:
            if not ready.exists():
                return None
            return host_port(json.loads(ready.read_text("utf-8"))["listeners"][0].removeprefix("tcp://"))

        with _process(command, folder, address) as running:
            http = json.loads(ready.read_text("utf-8"))["http"]
            yield replace(running, http=host_port(http) if http else None)


@contextmanager
def mosquitto() -> Iterator[Running]:
    """Start mosquitto, in memory and without limits of its own."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        config = Path(name) / "mosquitto.conf"
        config.write_text(MOSQUITTO_CONFIG.format(port=port), "utf-8")

        def address() -> tuple[str, int] | None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return None
            return "127.0.0.1", port

        with _process([mosquitto_path() or "mosquitto", "-c", str(config)], Path(name), address) as running:
            yield running


def host_port(text: str) -> tuple[str, int]:
    """Read HOST:PORT; ValueError if it is something else."""
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
