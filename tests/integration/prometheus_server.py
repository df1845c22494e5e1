"""A real Prometheus (Debian package `prometheus`) in a folder of its own, and what promtool says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit.broker_process import ROOT

DEPLOY = ROOT / "deploy" / "prometheus"
RULES = DEPLOY / "rookery.rules.yml"

#: Starting, on a busy machine.
_START_S = 30.0
_POLL_S = 0.05


def promtool(*arguments: str, given: bytes = b"") -> str:
    """What it prints; AssertionError if it finds fault."""
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True, check=False)
    told = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, told
    return told


class Prometheus:
    """Scrapes the targets every second, with the shipped rules."""

    def __init__(self, folder: Path, targets: Sequence[str]) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        self.authority = f"127.0.0.1:{port}"
        shown = ", ".join(f'"{target}"' for target in targets)
        # The shipped configuration, with other targets and a shorter interval.
        text = (DEPLOY / "prometheus.yml").read_text()
        head, separator, _ = text.partition("      - targets:\n")
        assert separator
        text = f"{head}      - targets: [{shown}]\n".replace("15s", "1s")
        (folder / "prometheus.yml").write_text(text)
        (folder / RULES.name).write_text(RULES.read_text())

    def start(self) -> None:
        """Until it is ready; its log is in the folder."""
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={self.authority}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_S
        while True:
            assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
            try:
                with urllib.request.urlopen(f"http://{self.authority}/-/ready", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline, "Prometheus is not ready"
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """By its process id."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGTERM)
            self._process.wait(_START_S)

    def _get(self, path: str, **arguments: str) -> Any:
        url = f"http://{self.authority}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                told = json.load(response)
        except urllib.error.HTTPError as error:
            told = json.load(error)
        assert told["status"] == "success", (arguments, told)
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now; AssertionError if it is wrong."""
        found = self._get("query", query=expression)["result"]
        assert isinstance(found, list)
        return found

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> dict[str, str]:
        """The health of each target, by its address."""
        return {each["labels"]["instance"]: each["health"] for each in self._get("targets")["activeTargets"]}


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """One that runs for a while."""
    folder.mkdir()
    server = Prometheus(folder, targets)
    try:
        server.start()
        yield server
    finally:
        server.stop()
