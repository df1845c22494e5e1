"""The data directory of the embedded store: one node at a time, and no server left over from a killed one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import trio

from broker.errors import ClusterError
from broker.log import get_logger

#: A Unix socket's path holds 107 bytes on Linux, 103 on macOS.
SOCKET_PATH_LIMIT = 103
LOG_LIMIT_BYTES = 4 * 1024 * 1024

_log = get_logger("store")


#: How long a killed server may take to be gone.
KILL_LIMIT_S = 30.0


class DataDir:
    """Locks the folder with `acquire`, so that two nodes never share it; `release` gives it back."""

    def __init__(self, path: Path, stop_limit_s: float) -> None:
        self.path = path.absolute()
        self.socket = ""
        self._stop_limit_s = stop_limit_s
        self._lock_fd = -1
        self._private = ""

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.path / "store.log"

    @property
    def _record(self) -> Path:
        return self.path / "store.pid"

    async def acquire(self) -> None:
        """Takes the lock and stops a server that a killed node left behind. Raises ClusterError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ClusterError(f"cannot use the data directory {str(self.path)!r}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._lock_fd, 20, 0).decode("ascii", "replace")
            self._unlock()
            raise ClusterError(
                f"the data directory {str(self.path)!r} is in use by another node (pid {owner or 'unknown'})"
            ) from None
        acquired = False
        try:
            os.ftruncate(self._lock_fd, 0)
            os.pwrite(self._lock_fd, str(os.getpid()).encode(), 0)
            await self._stop_orphan()
            self._choose_socket()
            acquired = True
        except OSError as error:
            raise ClusterError(f"cannot use the data directory {str(self.path)!r}: {error.strerror}") from error
        finally:
            if not acquired:
                self._unlock()

    def remember(self, pid: int) -> None:
        """Notes the running server for the next `acquire`, should this process be killed."""
        record = {"pid": pid, "started": _started(pid), "socket": self.socket, "private": self._private}
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps(record))
        temporary.replace(self._record)

    def open_log(self) -> int:
        """A descriptor to append the server's output to; an overlong log is set aside first."""
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_LIMIT_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
        return os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def last_log_line(self) -> str:
        """The last thing that the server said."""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
            said = [line.strip() for line in lines if line.strip()]
            # About a wrong option it says what is wrong in the line after the option.
            return " ".join(said[-2:] if said[-2:-1] and said[-2].startswith(">>>") else said[-1:])
        return ""

    def release(self) -> None:
        """The server is gone: forget it and unlock. A second call does nothing."""
        if self._lock_fd < 0:
            return
        with contextlib.suppress(OSError):
            self._record.unlink(missing_ok=True)
        if self._private:
            shutil.rmtree(self._private, ignore_errors=True)
            self._private = ""
        self._unlock()

    def _unlock(self) -> None:
        os.close(self._lock_fd)
        self._lock_fd = -1

    def _choose_socket(self) -> None:
        self.socket = str(self.path / "store.sock")
        if len(os.fsencode(self.socket)) > SOCKET_PATH_LIMIT:
            self._private = tempfile.mkdtemp(prefix="rookery-")
            self.socket = os.path.join(self._private, "store.sock")
        elif _accepts(self.socket):
            raise ClusterError(f"a server that no node started is using the data directory {str(self.path)!r}")

    async def _stop_orphan(self) -> None:
        try:
            record = json.loads(self._record.read_text())
            pid, started = int(record["pid"]), str(record["started"])
            path, private = str(record["socket"]), str(record["private"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            _log.warning("store.record_unreadable", path=str(self._record))
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not _is_orphan(pid, started, path):
                break
            _log.warning("store.orphan_stopping", pid=pid, signal=number.name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            # Nothing survives SIGKILL, but a busy system may take its time.
            with trio.move_on_after(self._stop_limit_s if number == signal.SIGTERM else KILL_LIMIT_S):
                while _is_orphan(pid, started, path):  # not our child: nothing to wait on
                    await trio.sleep(0.02)
        # The first thread of a killed process is gone before the last, which still holds the socket.
        with trio.move_on_after(1.0):
            while _accepts(path):
                await trio.sleep(0.02)
        if private:
            shutil.rmtree(private, ignore_errors=True)
        self._record.unlink(missing_ok=True)


def running_socket(path: Path) -> str:
    """The socket of the server that a node runs in this folder. Raises ClusterError if none does."""
    try:
        record = json.loads((path.absolute() / "store.pid").read_text())
        found = str(record["socket"])
    except OSError:
        found = ""
    except (ValueError, KeyError, TypeError):
        raise ClusterError(f"the data directory {str(path)!r} has an unreadable file store.pid") from None
    if not found or not _accepts(found):
        raise ClusterError(f"no node runs on the data directory {str(path)!r}; its store is embedded: start it first")
    return found


def _is_orphan(pid: int, started: str, path: str) -> bool:
    """The recorded server still runs, and the pid is not another process by now."""
    now = _started(pid)
    if now or started:
        return now == started
    try:  # no /proc here
        os.kill(pid, 0)
    except OSError:
        return False
    return _accepts(path)


def _started(pid: int) -> str:
    """When the process started, in clock ticks since boot; "" if it does not run or the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if state in (b"Z", b"X") else fields[18].decode()


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
