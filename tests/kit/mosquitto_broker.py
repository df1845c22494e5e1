"""A real Mosquitto for tests that compare with it: in its own folder, on a free port, stopped by its process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

START_S = 20.0
_POLL_S = 0.01


def find_mosquitto() -> str:
    """The path of the broker; the tests cannot do without it."""
    found = shutil.which(
        "mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    )
    if found is None:
        raise RuntimeError("mosquitto is not installed: it is in the Debian package mosquitto")
    return found


class MosquittoBroker:
    """Runs with the given lines of configuration as long as the `with` block does."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, lines: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = 0
        self._folder = folder
        self._lines = lines
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MosquittoBroker:
        until = time.monotonic() + START_S
        while not self._started(until):
            # Somebody else may have taken the port meanwhile.
            if time.monotonic() > until:
                raise RuntimeError(f"mosquitto did not start:\n{self.log()}")
        return self

    def _started(self, until: float) -> bool:
        with socket.socket() as taken:
            taken.bind((self.host, 0))
            self.port = taken.getsockname()[1]
        path = self._folder / "mosquitto.conf"
        path.write_text("\n".join([f"listener {self.port} {self.host}", "user root", *self._lines]) + "\n")
        with (self._folder / "mosquitto.log").open("wb") as log:
            process = subprocess.Popen(
                [find_mosquitto(), "-c", str(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._process = process
        while process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection((self.host, self.port), 1).close()
                return True
            except OSError:
                time.sleep(_POLL_S)
        self.stop()
        return False

    def log(self) -> str:
        """What it wrote."""
        return (self._folder / "mosquitto.log").read_text("utf-8", "replace")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
