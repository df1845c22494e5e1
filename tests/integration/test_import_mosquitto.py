"""A Mosquitto and a node with its imported configuration: clients get the same answers from both."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.cli import main
from tests.integration.mosquitto import find
from tests.kit.broker_process import BrokerProcess
from tests.kit.certificates import Chain
from tests.kit.mosquitto_broker import MosquittoBroker

USERS = {"anna": "apple", "bert": "berry"}

ACL = """\
topic read public/#
user anna
topic readwrite house/#
topic deny house/safe
pattern readwrite home/%u/%c/#
"""

#: User (None: nobody), password, topic published to and subscribed to.
TRIES = [
    (None, None, "public/a"),
    ("anna", "apple", "house/door"),
    ("anna", "apple", "house/safe"),
    ("anna", "wrong", "house/door"),
    ("bert", "berry", "house/door"),
    ("bert", "berry", "home/bert/me/x"),
    ("bert", "berry", "home/anna/me/x"),
    ("carl", "cherry", "public/a"),
]


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """mosquitto.conf without its first listener."""
    passwords = tmp_path / "passwords"
    passwords.write_text("".join(f"{user}:{password}\n" for user, password in USERS.items()))
    subprocess.run([find("mosquitto_passwd"), "-U", str(passwords)], check=True)
    acl = tmp_path / "acl"
    acl.write_text(ACL)
    for path in (tmp_path, passwords, acl):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return [f"password_file {passwords}", f"acl_file {acl}", "allow_anonymous true", "max_inflight_messages 10"]


@pytest.fixture
def brokers(tmp_path: Path, lines: list[str]) -> Iterator[tuple[MosquittoBroker, BrokerProcess]]:
    with MosquittoBroker(tmp_path / "mosquitto", lines) as mosquitto:
        node = _imported(tmp_path)
        node.start()
        try:
            yield mosquitto, node
        finally:
            node.kill()


def _imported(tmp_path: Path) -> BrokerProcess:
    """A node with the configuration of the Mosquitto, but at free ports."""
    out = tmp_path / "rookery.toml"
    assert main(["import-mosquitto", str(tmp_path / "mosquitto" / "mosquitto.conf"), "-o", str(out), "--force"]) in (
        0,
        3,
    )
    urls = [table["url"] for table in tomllib.loads(out.read_text())["listen"]]
    text = out.read_text()
    for url in urls:
        text = text.replace(f'"{url}"', f'"{url.rpartition(":")[0]}:0{"/mqtt" if url.endswith("/mqtt") else ""}"')
    out.write_text(text)
    return BrokerProcess(tmp_path / "node", listen=(), arguments=("--config", str(out)))


def _answers(host: str, port: int, *more: str) -> list[tuple[bool, bool]]:
    """For each try: whether the client came in and published, and whether its own message came back."""
    found = []
    for user, password, topic in TRIES:
        login = [] if user is None else ["-u", user, "-P", str(password)]
        common = ["-h", host, "-p", str(port), "-i", "me", "-V", "311", *login, *more]
        published = subprocess.run(
            [find("mosquitto_pub"), *common, "-t", topic, "-q", "1", "-r", "-m", "x"], capture_output=True, check=False
        )
        got = subprocess.run(
            [find("mosquitto_sub"), *common, "-t", topic, "-q", "1", "-C", "1", "-W", "1"],
            capture_output=True, check=False,
        )  # fmt: skip
        found.append((published.returncode == 0, got.stdout == b"x\n"))
    return found


def test_users_and_rules(brokers: tuple[MosquittoBroker, BrokerProcess]) -> None:
    mosquitto, node = brokers
    theirs = _answers(mosquitto.host, mosquitto.port)
    assert _answers(node.host, node.port) == theirs
    assert (True, True) in theirs
    assert (False, False) in theirs
    assert (True, False) in theirs


def test_large_messages(brokers: tuple[MosquittoBroker, BrokerProcess], tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(1_500_000))
    for broker in brokers:
        common = ["-h", broker.host, "-p", str(broker.port), "-u", "anna", "-P", "apple", "-t", "house/large"]
        subprocess.run([find("mosquitto_pub"), *common, "-q", "1", "-r", "-f", str(large)], check=True)
        got = subprocess.run(
            [find("mosquitto_sub"), *common, "-q", "1", "-C", "1", "-N"], capture_output=True, check=True, timeout=30
        )
        assert got.stdout == large.read_bytes()


def test_certificates(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "chain")
    server, client = chain.server(), chain.client("anna")
    acl = tmp_path / "acl"
    acl.write_text("pattern readwrite devices/%u/#\n")
    lines = [
        f"acl_file {acl}", f"cafile {chain.ca}", f"certfile {server.certfile}", f"keyfile {server.keyfile}",
        "require_certificate true", "use_identity_as_username true", "tls_version tlsv1.2",
    ]  # fmt: skip
    with MosquittoBroker(tmp_path / "mosquitto", lines) as mosquitto:
        node = _imported(tmp_path)
        node.start()
        try:
            port = int(node.listeners[0].rpartition(":")[2])
            for number in (mosquitto.port, port):
                common = ["-h", "localhost", "-p", str(number), "--cafile", str(chain.ca), "-q", "1", "-V", "311"]
                with_it = [*common, "--cert", str(client.certfile), "--key", str(client.keyfile)]
                for name, arrives in (("anna", True), ("bert", False)):
                    topic = f"devices/{name}/x"
                    subprocess.run([find("mosquitto_pub"), *with_it, "-t", topic, "-r", "-m", "x"], check=True)
                    got = subprocess.run(
                        [find("mosquitto_sub"), *with_it, "-t", topic, "-C", "1", "-W", "1"],
                        capture_output=True, check=False,
                    )  # fmt: skip
                    assert (got.stdout == b"x\n") == arrives, (number, name)
                without = subprocess.run(
                    [find("mosquitto_pub"), *common, "-t", "devices/anna/x", "-m", "x"],
                    capture_output=True,
                    check=False,
                )
                assert without.returncode != 0
        finally:
            node.kill()
