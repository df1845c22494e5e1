"""Real Redis and Valkey servers for tests: on a free port or a Unix socket, killed, paused and restarted by pid."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.redis.address import StoreAddress

START_LIMIT_S = 20.0


def find_server() -> str:
    """The server binary on PATH; the tests need one."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise RuntimeError("no redis-server or valkey-server on PATH")


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def plain_client(path: Path | str) -> redis.Redis:
    """The plain driver on a Unix socket, without its retries and their pauses."""
    return redis.Redis(unix_socket_path=str(path), retry=Retry(NoBackoff(), 0))


class RedisServer:
    """One server in `folder`. `restart` keeps port, data and options."""

    def __init__(
        self,
        folder: Path,
        *,
        unix: bool = False,
        aof: bool = False,
        binary: str = "",
        options: Sequence[str] = (),
        tls: StoreAddress | None = None,
    ) -> None:
        self.folder = folder
        self.binary = binary or find_server()
        self.log = folder / "server.log"
        port = 0 if unix else free_port()
        self.address = StoreAddress(path=str(folder / "s")) if unix else StoreAddress(port=port)
        self.command = [self.binary, "--dir", str(folder), "--save", "", "--bind", "127.0.0.1", "--daemonize", "no"]
        self.command += ["--unixsocket", str(folder / "s"), "--logfile", str(self.log)]
        if tls is not None:
            self.address = StoreAddress(host="localhost", port=port, tls=True, ca_file=tls.ca_file)
            self.command += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
            self.command += ["--tls-cert-file", tls.cert_file, "--tls-key-file", tls.key_file]
        else:
            self.command += ["--port", str(port)]
        if aof:
            self.command += ["--appendonly", "yes", "--appendfsync", "everysec"]
        self.command += options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when the server answers."""
        self._process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.AuthenticationError:
                return
            except redis.RedisError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.binary} did not start: {self.log.read_text()[-500:]}") from None
                time.sleep(0.005)

    def client(self) -> redis.Redis:
        """A client with the plain driver, over the Unix socket."""
        return plain_client(self.folder / "s")

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def pause(self) -> None:
        """Alive, but silent; the kernel still accepts connections for it."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def restart(self) -> None:
        """kill -9, and start again on the same port with the same data."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """Whatever state it is in, it is gone afterwards."""
        if self._process is not None and self._process.poll() is None:
            self.kill()


@contextlib.contextmanager
def redis_server(
    *,
    unix: bool = False,
    aof: bool = False,
    binary: str = "",
    options: Sequence[str] = (),
    tls: StoreAddress | None = None,
) -> Iterator[RedisServer]:
    """A running server in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="rookery-") as folder:
        server = RedisServer(Path(folder), unix=unix, aof=aof, binary=binary, options=options, tls=tls)
        try:
            server.start()
            yield server
        finally:
            server.stop()
