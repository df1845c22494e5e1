"""A real `rookery serve` process for tests: started on free ports, stopped by its process id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

#: Of the key `admin`, where a test says nothing else: a node without one makes a key and prints its secret.
ADMIN_SECRET = "a secret for tests"

# Starting includes the embedded store on a busy machine.
START_S = 30.0
STOP_S = 20.0
_POLL_S = 0.02


class BrokerFailed(Exception):
    """The process ended, or was not ready in time; the message holds its log."""


class _Ready(NamedTuple):
    listeners: list[str]
    http: str | None


class BrokerProcess:
    """One node in `directory` (ready file, log and, for an embedded store, its data).

    `start` returns once the node accepts clients, `stop` once the process has gone. `kill` and `start` again
    is a crash and a restart over the same data. Ports are new at every start. `admin_secret` None: there is none.
    """

    def __init__(
        self,
        directory: Path,
        store: str = "memory",
        *,
        listen: tuple[str, ...] = ("tcp://127.0.0.1:0",),
        http: str = "off",
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        admin_secret: str | None = ADMIN_SECRET,
    ) -> None:
        self.directory = directory
        self.store = store
        self.listen = listen
        self.http_option = http
        self.arguments = arguments
        set_here = {} if admin_secret is None else {"ROOKERY_ADMIN_SECRET": admin_secret}
        self.environment = {**set_here, **(environment or {})}
        self.listeners: list[str] = []
        self.http: str | None = None
        self.log_path = directory / "broker.log"
        self._ready_path = directory / "ready.json"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running node."""
        if self._process is None:
            raise BrokerFailed("the node is not running")
        return self._process.pid

    @property
    def host(self) -> str:
        """The address of the first TCP listener."""
        return self._tcp()[0]

    @property
    def port(self) -> int:
        """The port of the first TCP listener."""
        return self._tcp()[1]

    def _tcp(self) -> tuple[str, int]:
        for url in self.listeners:
            scheme, _, address = url.partition("://")
            if scheme == "tcp":
                host, _, port = address.rpartition(":")
                return host.strip("[]"), int(port)
        raise BrokerFailed(f"no TCP listener in {self.listeners}")

    def command(self) -> list[str]:
        """Return the command line that `start` runs."""
        command = [sys.executable, "-m", "broker", "serve", "--store", self.store, "--http", self.http_option]
        for url in self.listen:
            command += ["--listen", url]
        command += ["--data-dir", str(self.directory / "data"), "--ready-file", str(self._ready_path)]
        return command + list(self.arguments)

    def start(self) -> None:
        """Start the node and wait until it accepts clients; BrokerFailed with the log if it does not."""
        if self._process is not None:
            raise BrokerFailed("the node is running already")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ready_path.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        with self.log_path.open("ab") as log:
            # In the node's own directory, so that no configuration file of the developer is picked up.
            self._process = subprocess.Popen(
                self.command(), cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._await_ready(self._process)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        for _ in range(int(START_S / _POLL_S)):
            ready = self._read_ready()
            if ready is not None:
                self.listeners = ready.listeners
                self.http = ready.http
                return
            try:
                status = process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            self._process = None
            raise BrokerFailed(f"the node ended with status {status}:\n{self.log()}")
        self.kill()
        raise BrokerFailed(f"the node was not ready in {START_S} s:\n{self.log()}")

    def _read_ready(self) -> _Ready | None:
        try:
            ready = json.loads(self._ready_path.read_text())
            return _Ready([str(url) for url in ready["listeners"]], ready.get("http"))
        except (FileNotFoundError, ValueError):
            return None

    def terminate(self) -> int:
        """Send SIGTERM, wait for the node to drain and end, and return its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for a node that was told to stop, and return its exit status."""
        process = self._process
        if process is None:
            raise BrokerFailed("the node is not running")
        try:
            status = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BrokerFailed(f"the node did not end within {STOP_S} s of SIGTERM:\n{self.log()}") from None
        self._process = None
        return status

    def kill(self) -> None:
        """Kill the node at once (SIGKILL) and wait until it has gone."""
        process = self._process
        if process is None:
            return
        process.kill()
        process.wait(STOP_S)
        self._process = None

    def stop(self) -> None:
        """End the node if it runs: drain first, kill if that fails."""
        if self._process is None:
            return
        if self._process.poll() is not None:
            self._process = None
            return
        self.terminate()

    def log(self) -> str:
        """Return the end of what the node wrote to standard output and standard error."""
        try:
            return self.log_path.read_text(errors="replace")[-20_000:]
        except FileNotFoundError:
            return ""
