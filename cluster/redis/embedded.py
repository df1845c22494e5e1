"""The embedded store: a private Redis or Valkey server as a child process, on a Unix socket, with its data on disk."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from broker.errors import ClusterError, StateError
from broker.log import get_logger
from cluster.redis.address import StoreAddress
from cluster.redis.binary import find_binary
from cluster.redis.datadir import DataDir

_OPTIONS = (
    *("--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--logfile", ""),
    *("--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", "--save", ""),
)
#: Sets PR_SET_PDEATHSIG (1) to SIGTERM, then becomes the server: without code between fork and exec, which threads
#: make unsafe. Where that is not possible, the next node finds the orphan and stops it.
_TRAMPOLINE = """
import os, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, 15)
    if os.getppid() != int(sys.argv[1]): sys.exit("the node is gone")
except (ImportError, OSError, AttributeError): pass
os.execv(sys.argv[2], sys.argv[2:])
"""
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 10.0
_SETTLED_S = 30.0
_PROGRESS_S = 2.0

_log = get_logger("store")


class EmbeddedServer:
    """`start` and `stop`, or `serve`, which also restarts it when it dies. `address` is valid from start to stop.

    Data survives `kill -9` of the node and of the server (up to the last second: AOF everysec).
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: str = "",
        options: Sequence[str] = (),
        answer_limit_s: float = 30.0,
        stop_limit_s: float = 20.0,
    ) -> None:
        """`options` are further command line options of the server (`--maxmemory`, `100mb`). `answer_limit_s`: how
        long the server may say nothing at its start; loading its data may take longer."""
        self._folder = DataDir(data_dir, stop_limit_s)
        self._binary = binary
        self._options = tuple(options)
        self._answer_limit_s = answer_limit_s
        self._stop_limit_s = stop_limit_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> StoreAddress:
        """Where the server listens."""
        return StoreAddress(path=self._folder.socket)

    @property
    def pid(self) -> int:
        """Of the server as it runs now."""
        return self._running().pid

    async def start(self) -> None:
        """Locks the data directory, stops an orphan there, and starts the server; returns when it answers.

        Raises ClusterError with one clear line; nothing is left running then."""
        await self._folder.acquire()
        started = False
        try:
            if not self._binary:
                self._binary = await find_binary()
            await self._launch()
            started = True
        finally:
            if not started:
                await self.stop()

    async def stop(self) -> None:
        """SIGTERM (the server writes what it has), SIGKILL if that takes too long; not cancellable. Idempotent."""
        with trio.CancelScope(shield=True):
            process = self._process
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with trio.move_on_after(self._stop_limit_s):
                    await _exited(process)
                if process.poll() is None:
                    _log.warning("store.killed", pid=process.pid, reason=f"no end within {self._stop_limit_s:g} s")
                    process.kill()
                    await _exited(process)
                _log.info("store.stopped", pid=process.pid)
            self._process = None
            self._folder.release()

    async def wait_died(self) -> str:
        """Returns, with the reason, when the server has ended; after `stop` too."""
        process = self._running()
        await _exited(process)
        return self._ending(process)

    async def serve(self, task_status: trio.TaskStatus[StoreAddress] = trio.TASK_STATUS_IGNORED) -> None:
        """Starts the server, reports its address, restarts it with backoff when it dies, stops it on cancellation.

        Raises ClusterError if the first start fails; later ones are tried again for ever, on the same address."""
        await self.start()
        try:
            task_status.started(self.address)
            failures = 0
            while True:
                since = trio.current_time()
                if self._process is not None:
                    _log.error("store.died", reason=await self.wait_died())
                if trio.current_time() - since > _SETTLED_S:
                    failures = 0
                await trio.sleep(min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** min(failures, 10)))
                failures += 1
                await self._relaunch(failures)
        finally:
            await self.stop()

    async def _relaunch(self, failures: int) -> None:
        try:
            await self._launch()
        except ClusterError as error:
            _log.error("store.restart_failed", reason=str(error), failures=failures)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise StateError("the embedded store was not started")
        return self._process

    async def _launch(self) -> None:
        """Starts the process and waits until it serves; on failure it is gone, and the lock is still held."""
        folder = self._folder
        command = [self._binary, "--dir", str(folder.path), "--unixsocket", folder.socket, *_OPTIONS, *self._options]
        if sys.platform == "linux" and sys.executable:
            command = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *command]
        try:
            log_fd = folder.open_log()
            try:
                # Not in a worker thread: PDEATHSIG fires at the end of the thread that started the child.
                process = subprocess.Popen(  # noqa: S603
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    process_group=0,  # Ctrl-C is for the node, which then stops the server last
                    env={**os.environ, "LC_ALL": "C"},
                )
            finally:
                os.close(log_fd)
            self._process = process
            folder.remember(process.pid)
        except OSError as error:
            raise ClusterError(f"cannot start the embedded store {self._binary!r}: {error.strerror}") from error
        served = False
        try:
            await self._wait_served(process)
            served = True
        finally:
            if not served:
                process.kill()
                with trio.CancelScope(shield=True):
                    await _exited(process)
                self._process = None
        _log.info("store.started", pid=process.pid, binary=self._binary, data_dir=str(folder.path))

    async def _wait_served(self, process: subprocess.Popen[bytes]) -> None:
        """Until PING is answered. While data is loading there is no limit, only a line now and then."""
        pause_s, heard = 0.002, trio.current_time()
        logged = heard
        while True:
            answer = await _ask(self._folder.socket, b"PING")
            if process.poll() is not None:
                raise ClusterError(self._ending(process))
            if answer.startswith(b"+PONG"):
                return
            now = trio.current_time()
            if answer:
                heard = now
                if now - logged > _PROGRESS_S:
                    logged = now
                    _log.info("store.loading", percent=_loaded(await _ask(self._folder.socket, b"INFO persistence")))
            elif now - heard > self._answer_limit_s:
                line = self._folder.last_log_line()
                raise ClusterError(f"the embedded store does not answer after {self._answer_limit_s:g} s: {line}")
            await trio.sleep(pause_s)
            pause_s = min(0.1, pause_s * 1.5)

    def _ending(self, process: subprocess.Popen[bytes]) -> str:
        code = process.returncode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        return f"the embedded store ended {how}: {self._folder.last_log_line() or 'it printed nothing'}"


async def _exited(process: subprocess.Popen[bytes]) -> None:
    """Returns when the child has ended, and reaps it."""
    if process.poll() is not None:
        return
    try:
        fd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
    process.wait()


async def _ask(path: str, command: bytes) -> bytes:
    """The beginning of the answer to one inline command; b"" if there is none within a second."""
    with trio.move_on_after(1.0), contextlib.suppress(OSError, trio.BrokenResourceError):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(command + b"\r\n")
            return bytes(await stream.receive_some(65536))
    return b""


def _loaded(info: bytes) -> str:
    for line in info.split(b"\r\n"):
        if line.startswith(b"loading_loaded_perc:"):
            return line.partition(b":")[2].decode("ascii", "replace")
    return "unknown"
