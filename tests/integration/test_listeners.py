"""Unix sockets, IPv6, and how many may come in how fast at each listener."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from broker.codec.encode import encode
from broker.codec.packets import V311, Connect
from tests.integration import mosquitto
from tests.integration.test_proxy_protocol import DEBUG, StartNode, connected_from, ends, haproxy, rejected, until
from tests.integration.test_tls import port_of, secured, shown_by, start, tls_url
from tests.kit.broker_process import BrokerFailed, BrokerProcess
from tests.kit.certificates import Chain
from tests.kit.ports import free_port

__all__ = ["start"]  # the fixture

CONNACK = b"\x20\x02\x00\x00"


def connect_to(address: tuple[str, int] | str, client_id: str) -> socket.socket:
    """A socket on which CONNECT was sent."""
    if isinstance(address, str):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(address)
    else:
        client = socket.create_connection(address, 20)
    client.sendall(bytes(encode(Connect(V311, client_id, True, 0, None, None, None, None), V311)))
    return client


# -- Unix sockets


def test_a_unix_socket(start: StartNode, tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    node = start(f"unix://{path}?mode=0600", arguments=DEBUG)
    assert node.listeners[1] == f"unix://{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    done = mosquitto.run("mosquitto_pub", node, "--unix", str(path), "-i", "c1", "-t", "t", "-m", "x", "-q", "1")
    assert done.returncode == 0, done.stderr
    assert connected_from(node, "c1") == f"local:unix://{path}"
    node.stop()
    assert not path.exists()


def test_the_file_of_a_dead_node_is_replaced_and_that_of_a_live_one_is_not(start: StartNode, tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    first = start(f"unix://{path}")
    with pytest.raises(BrokerFailed, match="another process listens there"):
        start(f"unix://{path}")
    with connect_to(str(path), "c1") as client:
        assert client.recv(4) == CONNACK
    first.kill()
    assert path.exists()
    start(f"unix://{path}")
    with connect_to(str(path), "c1") as client:
        assert client.recv(4) == CONNACK


def test_something_else_is_left_alone(start: StartNode, tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    path.write_text("mine")
    with pytest.raises(BrokerFailed, match="something else has this name"):
        start(f"unix://{path}")
    assert path.read_text() == "mine"
    with pytest.raises(BrokerFailed, match="No such file"):
        start(f"unix://{tmp_path}/missing/mqtt.sock")


def test_a_file_that_somebody_took_over_stays(start: StartNode, tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    node = start(f"unix://{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        node.stop()
        assert path.exists()


def test_workers_cannot_share_a_unix_socket(start: StartNode, tmp_path: Path) -> None:
    with pytest.raises(BrokerFailed, match=r"status 2(.|\n)*workers cannot share a Unix socket"):
        start(f"unix://{tmp_path}/s", arguments=("--workers", "2"), store="embedded")


# -- IPv6


def test_ipv6_beside_ipv4_on_the_same_port(start: StartNode, tmp_path: Path) -> None:
    node = start("tcp://[::1]:0", arguments=DEBUG)
    assert node.listeners[1].startswith("tcp://[::1]:")
    port = int(node.listeners[1].rpartition(":")[2])
    with connect_to(("::1", port), "c6") as client:
        assert client.recv(4) == CONNACK
        assert connected_from(node, "c6") == f"[::1]:{client.getsockname()[1]}"
    ready = json.loads((node.directory / "ready.json").read_text())
    assert ready["listeners"] == node.listeners
    # An IPv6 address takes IPv6 only: the other one is free.
    both = BrokerProcess(tmp_path / "both", "memory", listen=(f"tcp://127.0.0.1:{port}", f"tcp://[::1]:{port}"))
    node.stop()
    both.start()
    try:
        for host in ("127.0.0.1", "::1"):
            with connect_to((host, port), "c") as again:
                assert again.recv(4) == CONNACK
    finally:
        both.stop()


def test_http_on_ipv6_is_not_on_ipv4(tmp_path: Path) -> None:
    """Nor are listeners; but of these there can be two."""
    node = BrokerProcess(tmp_path / "node", "memory", http="[::]:0")
    node.start()
    try:
        assert node.http is not None and node.http.startswith("[::]:")
        port = int(node.http.rpartition(":")[2])
        with socket.create_connection(("::1", port)):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    finally:
        node.stop()


def test_ipv6_with_tls_and_behind_haproxy(start: StartNode, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    behind = "tcp://127.0.0.1:0?proxy_protocol=on&trusted_proxies=127.0.0.1"
    node = start(tls_url(chain.server()).replace("127.0.0.1", "[::1]"), behind, arguments=DEBUG)
    told = ["-h", "::1", "-i", "c1", "-t", "t", "-m", "x", "-q", "1"]
    done = mosquitto.run("mosquitto_pub", node, *secured(node, chain), *told)
    assert done.returncode == 0, done.stderr
    assert connected_from(node, "c1").startswith("[::1]:")
    target = int(node.listeners[2].rpartition(":")[2])
    port = free_port()
    with (
        haproxy(tmp_path, target, bind=f"\n    bind [::1]:{port}", send="send-proxy-v2"),
        connect_to(("::1", port), "c2") as client,
    ):
        assert client.recv(4) == CONNACK
        assert connected_from(node, "c2") == f"[::1]:{client.getsockname()[1]}"


# -- how many, how fast


def test_a_listener_takes_as_many_as_it_may(start: StartNode) -> None:
    node = start("tcp://127.0.0.1:0?max_connections=2")
    port = int(node.listeners[1].rpartition(":")[2])
    inside = [connect_to(("127.0.0.1", port), f"c{number}") for number in range(2)]
    for client in inside:
        assert client.recv(4) == CONNACK
    with connect_to(("127.0.0.1", port), "c3") as late:
        assert ends(late, b"")
    assert rejected(node) == {"listener_max_connections": 1}
    with connect_to(("127.0.0.1", node.port), "c4") as elsewhere:
        assert elsewhere.recv(4) == CONNACK
    inside[0].close()

    def enters() -> bool:
        with connect_to(("127.0.0.1", port), "c5") as again:
            try:
                return again.recv(4) == CONNACK
            except ConnectionResetError:
                return False

    until(enters)
    inside[1].close()


@pytest.mark.parametrize("of_all", [False, True])
def test_more_than_the_rate_wait(start: StartNode, of_all: bool) -> None:
    """Five at once, then five a second: ten take a second, and nobody is refused."""
    options = "" if of_all else "?connection_rate=5"
    arguments = ("--connection-rate", "5") if of_all else ()
    node = start(f"tcp://127.0.0.1:0{options}", arguments=arguments)
    port = int(node.listeners[1].rpartition(":")[2])
    begin = time.monotonic()
    clients = [connect_to(("127.0.0.1", port), f"c{number}") for number in range(12)]
    for client in clients:
        assert client.recv(4) == CONNACK
        client.close()
    assert time.monotonic() - begin > 1.0  # as slow as it has to be; no word about how fast
    assert rejected(node) == {}


async def test_handshakes_count_as_connections(start: StartNode, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    node = start(tls_url(chain.server()), arguments=("--max-connections", "3"))
    port = port_of(node, "tls")
    quiet = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(3)]
    until(lambda: "no peer certificate available" in shown_by(port))
    assert rejected(node)["max_connections"] >= 1
    for each in quiet:
        each.close()
    until(lambda: "subject=CN = localhost" in shown_by(port))


# -- several processes


def test_workers_with_tls(start: StartNode, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    server = chain.server()
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", str(server.keyfile), "-out", str(locked)]
    command += ["-aes256", "-passout", "pass:secret word"]
    subprocess.run(command, check=True, capture_output=True)
    node = start(
        tls_url(server._replace(keyfile=locked), keyfile_password="secret word"),
        arguments=("--workers", "2"),
        store="embedded",
    )
    for _ in range(8):
        done = mosquitto.run("mosquitto_pub", node, *secured(node, chain), "-t", "t", "-m", "x", "-q", "1")
        assert done.returncode == 0, done.stderr
    other = chain.server("other", "DNS:localhost")
    server.certfile.write_bytes(other.certfile.read_bytes())
    locked.write_bytes(other.keyfile.read_bytes())
    until(lambda: node.log().count("certificates.reloaded") == 2)
    for _ in range(8):
        assert "subject=CN = other" in shown_by(port_of(node, "tls"))
    assert "secret" not in node.log()
    command = ["config" if word == "serve" else word for word in node.command()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert "keyfile_password=***" in shown.stdout and "secret word" not in shown.stdout
