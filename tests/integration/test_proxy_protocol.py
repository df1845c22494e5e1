"""The PROXY protocol with HAProxy in front, and with those who only say that they are one."""

from __future__ import annotations

import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.codec.encode import encode
from broker.codec.packets import V311, Connect
from tests.fault.haproxy import find_haproxy
from tests.integration import mosquitto
from tests.integration.test_tls import port_of, start, tls_url
from tests.kit.broker_process import BrokerProcess
from tests.kit.certificates import Chain
from tests.kit.ports import free_port

__all__ = ["start"]  # the fixture

DEADLINE_S = 20.0

StartNode = Callable[..., BrokerProcess]
PROXY = "proxy_protocol=on&trusted_proxies=127.0.0.1"
#: Debug messages say who connected from where.
DEBUG = ("--log-level", "debug")


@contextmanager
def haproxy(folder: Path, target: int, bind: str = "", send: str = "", check: str = "") -> Iterator[int]:
    """HAProxy before a port of this machine; yields its own port."""
    binary = find_haproxy()
    assert binary is not None, "no haproxy: install the Debian package of that name"
    port = free_port()
    text = (
        "global\n    log stdout format raw local0\ndefaults\n    mode tcp\n    timeout connect 5s\n"
        "    timeout client 1h\n    timeout server 1h\n"
        f"listen mqtt\n    bind 127.0.0.1:{port} {bind}\n    {check}\n    server node 127.0.0.1:{target} {send}\n"
    )
    (folder / "haproxy.cfg").write_text(text)
    with (folder / "haproxy.log").open("ab") as log:
        process = subprocess.Popen(
            [binary, "-db", "-f", str(folder / "haproxy.cfg")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        until(lambda: reachable(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "haproxy.log").read_text()[-2000:]
        yield port
    finally:
        process.terminate()
        process.wait()


def reachable(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def connected_from(node: BrokerProcess, client_id: str) -> str:
    """The peer of a client, as the debug log names it."""
    found = [
        line for line in node.log().splitlines() if "client.connected" in line and f"client_id={client_id} " in line
    ]
    assert found, node.log()
    return next(word for word in found[-1].split() if word.startswith("peer=")).removeprefix("peer=")


def rejected(node: BrokerProcess) -> dict[str, float]:
    """How many were, by reason."""
    with urllib.request.urlopen(f"http://{node.http}/metrics", timeout=DEADLINE_S) as response:
        text = response.read().decode()
    found = re.findall(r'connections_rejected_total\{[^}]*reason="(\w+)"[^}]*\} ([0-9.]+)', text)
    return {reason: float(count) for reason, count in found}


def publishes(node: BrokerProcess, port: int, client_id: str, *arguments: str) -> str:
    """mosquitto_pub through a port; its own address."""
    done = mosquitto.run(
        "mosquitto_pub", node, "-h", "localhost", "-p", str(port), "-i", client_id, "-t", "t", "-m", "x", "-q", "1",
        *arguments,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c"])
def test_haproxy_tells_who_comes(start: StartNode, tmp_path: Path, send: str) -> None:
    node = start(f"tcp://127.0.0.1:0?{PROXY}&name=front", arguments=DEBUG)
    target = int(node.listeners[1].rpartition(":")[2])
    check = "unique-id-format %[uuid()]" if "unique-id" in send else ""
    with haproxy(tmp_path, target, send=send, check=check) as port, socket.socket() as client:
        client.bind(("127.0.0.9", 0))
        client.connect(("127.0.0.1", port))
        client.sendall(bytes(encode(Connect(V311, "c1", True, 0, None, None, None, None), V311)))
        assert client.recv(4) == b"\x20\x02\x00\x00"
        assert connected_from(node, "c1") == f"127.0.0.9:{client.getsockname()[1]}"
        assert publishes(node, port, "c2") == ""


def test_haproxy_before_tls(start: StartNode, tmp_path: Path) -> None:
    """The header comes before the handshake, which is between the client and the node."""
    chain = Chain(tmp_path / "chain")
    client = chain.client("d1")
    url = tls_url(
        chain.server(), ca_certs=chain.ca, client_certificates="required", proxy_protocol="on",
        trusted_proxies="127.0.0.1",
    )  # fmt: skip
    node = start(url, arguments=DEBUG)
    with haproxy(tmp_path, port_of(node, "tls"), send="send-proxy-v2") as port:
        options = ("--cafile", str(chain.ca), "--cert", str(client.certfile), "--key", str(client.keyfile))
        assert publishes(node, port, "c1", *options) == ""
        assert publishes(node, port, "c2", *options[:2]) != ""
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in node.log()


def test_haproxy_ends_tls_and_tells_of_the_certificate(start: StartNode, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    server, client = chain.server(), chain.client("d1", "/O=Example/CN=d1")
    both = tmp_path / "both.pem"
    both.write_text(server.certfile.read_text() + server.keyfile.read_text())
    # Whoever has no certificate is a client without credentials: denied. The common name is the user name.
    node = start(
        f"tcp://127.0.0.1:0?{PROXY}&anonymous=false",
        arguments=(*DEBUG, "--authentication", "certificate"),
    )
    target = int(node.listeners[1].rpartition(":")[2])
    bind = f"ssl crt {both} ca-file {chain.ca} verify optional"
    with haproxy(tmp_path, target, bind=bind, send="send-proxy-v2-ssl-cn") as port:
        options = ("--cafile", str(chain.ca), "--cert", str(client.certfile), "--key", str(client.keyfile))
        assert publishes(node, port, "c1", *options) == ""
        assert publishes(node, port, "c2", *options[:2]) != ""


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_health_checks_are_quiet(start: StartNode, tmp_path: Path, send: str) -> None:
    """HAProxy's checks come with LOCAL (version 2) or UNKNOWN, and close."""
    node = start(f"tcp://127.0.0.1:0?{PROXY}", arguments=DEBUG)
    target = int(node.listeners[1].rpartition(":")[2])
    checks = f"{send} check check-send-proxy inter 50ms rise 3"
    log = tmp_path / "haproxy.log"
    with haproxy(tmp_path, target, send=checks, check="option log-health-checks") as port:
        until(lambda: "succeeded" in log.read_text())
        assert publishes(node, port, "c1") == ""
        assert "is DOWN" not in log.read_text() and "failed" not in log.read_text()
    assert rejected(node) == {}
    assert "refused" not in node.log() and "error" not in node.log()


def test_checks_that_speak_mqtt(start: StartNode, tmp_path: Path) -> None:
    """As in docs/listeners.md: a check is HAProxy's own connection (LOCAL), and it is answered."""
    chain = Chain(tmp_path / "chain")
    server, client = chain.server(), chain.client("d1")
    both = tmp_path / "both.pem"
    both.write_text(server.certfile.read_text() + server.keyfile.read_text())
    node = start(f"tcp://127.0.0.1:0?{PROXY}", arguments=DEBUG)
    log = tmp_path / "haproxy.log"
    with haproxy(
        tmp_path,
        int(node.listeners[1].rpartition(":")[2]),
        bind=f"ssl crt {both} ca-file {chain.ca} verify optional",
        send="send-proxy-v2-ssl-cn check check-send-proxy inter 50ms rise 3",
        check="option log-health-checks\n    option tcp-check\n"
        "    tcp-check send-binary 100c00044d5154540402003c0000\n    tcp-check expect binary 20020000",
    ) as port:
        until(lambda: "succeeded" in log.read_text())
        options = ("--cafile", str(chain.ca), "--cert", str(client.certfile), "--key", str(client.keyfile))
        assert publishes(node, port, "c1", *options) == ""
        assert "is DOWN" not in log.read_text() and "failed" not in log.read_text()
    assert rejected(node) == {}
    assert "client.connected" in node.log()


def test_others_are_refused(start: StartNode) -> None:
    """Who may not speak for others, who speaks nonsense, who says nothing."""
    node = start(
        "tcp://127.0.0.1:0?proxy_protocol=on&trusted_proxies=10.0.0.0/8,::1",
        f"tcp://127.0.0.2:0?{PROXY},127.0.0.2&proxy_timeout=0.2s",
        arguments=DEBUG,
    )
    strict, open_to_us = [int(url.rpartition(":")[2]) for url in node.listeners[1:]]
    connect = bytes(encode(Connect(V311, "c1", True, 0, None, None, None, None), V311))
    for header in (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", b""):
        with socket.create_connection(("127.0.0.1", strict), DEADLINE_S) as client:
            assert ends(client, header + connect)
    assert rejected(node)["untrusted_proxy"] == 2
    for data in (connect, b"PROXY NONSENSE\r\n" + connect, b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000):
        with socket.create_connection(("127.0.0.2", open_to_us), DEADLINE_S) as client:
            assert ends(client, data)
    assert rejected(node)["proxy_header"] == 4
    for data in (b"", b"PROXY TCP4 192.0.2.1 "):
        with socket.create_connection(("127.0.0.2", open_to_us), DEADLINE_S) as client:
            assert ends(client, data)
    assert rejected(node)["proxy_timeout"] == 2


def ends(client: socket.socket, data: bytes) -> bool:
    """Whether the node closes without a word."""
    try:
        if data:
            client.sendall(data)
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


def test_a_header_in_pieces_and_with_what_follows(start: StartNode) -> None:
    node = start(f"tcp://127.0.0.1:0?{PROXY}", arguments=DEBUG)
    target = int(node.listeners[1].rpartition(":")[2])
    connect = bytes(encode(Connect(V311, "c1", True, 0, None, None, None, None), V311))
    data = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 1883\r\n" + connect
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))], [data[:20], data[20:50], data[50:]]):
        with socket.create_connection(("127.0.0.1", target), DEADLINE_S) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                client.sendall(piece)
            assert client.recv(4) == b"\x20\x02\x00\x00"
        assert connected_from(node, "c1") == "[2001:db8::7]:4711"
