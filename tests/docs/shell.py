"""A world in which the commands of a page run as they are written: a network, processes and a folder of its own.

The ports of the page are free in it, and all that was started ends with it.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType

from tests.docs.pages import ROOT

DEADLINE_S = 60.0

#: What a command that goes on running says once others can use it.
_READY = {
    "make run": "node.ready",
    "rookery serve --workers": "supervisor.ready",
    "rookery serve": "node.ready",
    "redis-server": "Ready to accept connections",
    "mosquitto_sub": "Subscribed (mid",
}

#: The subscriber tells that it has subscribed, and each message at once.
_MOSQUITTO_SUB = '#!/bin/sh\nexec stdbuf -oL {program} -d "$@"\n'


class Failed(AssertionError):
    """A command of the page did not do what the page says."""


class Terminal:
    """One shell; what runs in it prints to it."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self.output = ""
        self._commands = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.send("trap 'echo \"=failed= $?: $BASH_COMMAND\"' ERR\nset -mo pipefail")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("=ended=\n")

    def send(self, text: str) -> None:
        """Have the shell run this."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.rstrip("\n") + "\n")
        self._process.stdin.flush()

    def wait_for(self, *texts: str, since: int = 0) -> None:
        """Return once one of the texts was printed after this position of the output."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(text in self.output[since:] for text in texts):
            try:
                self.output += self._lines.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise Failed(f"it does not print {' or '.join(texts)}:\n{self.output[since:]}") from None
            if self.output.endswith(("=ended=\n",)) or "=failed=" in self.output[since:]:
                raise Failed(self.output[since:])

    def run(self, text: str) -> str:
        """Run commands to their end; what they printed. None of them may fail."""
        since = len(self.output)
        self._commands += 1
        end = f"=done {self._commands}="
        self.send(f"{text.rstrip()}\necho '{end}'")
        self.wait_for(end, since=since)
        return self.output[since:].replace(end, "")

    def close(self) -> None:
        """End the shell; what it started ends with the world."""
        self._process.kill()
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class World:
    """Use it as a context manager. `run` uses one shell for all blocks, as somebody does who follows the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._terminals: list[Terminal] = []
        self._expected: list[tuple[Terminal, str]] = []
        self._checkout()
        self._environment = self._make_environment()

    def _checkout(self) -> None:
        """The folder looks like a fresh checkout in which `make install` has run."""
        stamp = (ROOT / ".venv" / ".installed").stat().st_mtime
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
            os.utime(self.folder / name, (stamp - 1, stamp - 1))
        for name in (".venv", "deploy"):
            (self.folder / name).symlink_to(ROOT / name)

    def _make_environment(self) -> dict[str, str]:
        programs = self.folder / ".bin"
        programs.mkdir()
        real = shutil.which("mosquitto_sub")
        assert real, "mosquitto_sub is not installed: it is in the Debian package mosquitto-clients"
        (programs / "mosquitto_sub").write_text(_MOSQUITTO_SUB.format(program=real))
        (programs / "mosquitto_sub").chmod(0o755)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROOKERY_", "PYTHON"))}
        path = f"{programs}:{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin"
        return {**inherited, "PATH": path, "HOME": str(self.folder), "MAKEFLAGS": ""}

    def __enter__(self) -> World:
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += ["sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]
        self._root = subprocess.Popen(command, stdout=subprocess.PIPE, env=self._environment)
        assert self._root.stdout is not None
        if self._root.stdout.readline() != b"up\n":
            raise Failed("there is no namespace to run the commands in")
        children = Path(f"/proc/{self._root.pid}/task/{self._root.pid}/children").read_text().split()
        self._inside = children[0]
        self._first = self._terminal()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The first process of the namespace takes all others with it.
        self._root.send_signal(signal.SIGKILL)
        self._root.wait(DEADLINE_S)
        assert self._root.stdout is not None
        self._root.stdout.close()
        for terminal in self._terminals:
            terminal.close()

    def _terminal(self) -> Terminal:
        command = ["nsenter", "--target", self._inside, "--net", "--mount", "--pid"]
        if os.geteuid() != 0:
            command += ["--user", "--preserve-credentials"]
        made = Terminal([*command, f"--wd={self.folder}", "bash"], self.folder, self._environment)
        self._terminals.append(made)
        return made

    def run(self, text: str) -> str:
        """Run commands in the first shell."""
        return self._first.run(text)

    def begin(self, text: str) -> Terminal:
        """Run a command that goes on, in another shell; returns when it is ready."""
        command = text.strip()
        lines = command.splitlines()
        ready = next((_READY[name] for name in _READY if any(line.startswith(name) for line in lines)), None)
        assert ready is not None, f"nobody knows when this is ready: {command}"
        exports = self._first.run("export -p | grep ROOKERY_ || true").replace("declare -x", "export")
        terminal = self._terminal()
        terminal.run(exports)
        terminal.send(command)
        terminal.wait_for(ready)
        return terminal

    def expect(self, terminal: Terminal, text: str) -> None:
        """What is printed there until the end of the world."""
        self._expected.append((terminal, text))

    def settle(self) -> None:
        """Wait for all that was promised."""
        for terminal, text in self._expected:
            terminal.wait_for(text)
