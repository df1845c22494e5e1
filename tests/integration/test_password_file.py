"""Password files between mosquitto_passwd, Mosquitto and the broker, and what a change of one does to clients."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from broker.auth.checking import CHECK_THREADS, MAX_WAITING
from broker.codec.packets import Disconnect
from tests.integration.conftest import StartNode
from tests.integration.logins import UNAVAILABLE, WELCOME, WRONG, connect, login
from tests.integration.mosquitto import find
from tests.kit.broker_process import ROOT, BrokerProcess
from tests.kit.mosquitto_broker import MosquittoBroker
from tests.kit.mqtt_client import DEADLINE_S


def rookery(*arguments: str, text: str = "") -> str:
    """A command of ours, which has to succeed; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "broker", *arguments],
        input=text,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def mosquitto_passwd(*arguments: str) -> None:
    """Mosquitto's tool."""
    program = shutil.which("mosquitto_passwd")
    assert program is not None, "mosquitto_passwd is not installed: it is in the Debian package mosquitto"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def accepted(host: str, port: int, username: str, password: str) -> bool:
    """Whether mosquitto_pub gets in."""
    command = [find("mosquitto_pub"), "-h", host, "-p", str(port), "-u", username, "-P", password, "-t", "t", "-m", "x"]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users"


def node_of(start_node: StartNode, path: Path) -> BrokerProcess:
    return start_node("--authentication", f"password_file?path={path}", store="memory")


@pytest.mark.parametrize("scram", [False, True])
def test_mosquitto_takes_our_files(path: Path, tmp_path: Path, scram: bool) -> None:
    more = ["--scram"] if scram else []
    rookery("passwd", "-b", *more, str(path), "ann", "open, sesame")
    rookery("passwd", *more, "--stdin", str(path), "b\u00e9a", text="\u00fcber\n")
    rookery("passwd", "-b", *more, str(path), "gone", "x")
    rookery("passwd", "-D", str(path), "gone")
    with MosquittoBroker(tmp_path / "mosquitto", [f"password_file {path}", "allow_anonymous false"]) as broker:
        where = (broker.host, broker.port)
        assert accepted(*where, "ann", "open, sesame"), broker.log()
        assert accepted(*where, "b\u00e9a", "\u00fcber"), broker.log()
        assert not accepted(*where, "ann", "wrong")
        assert not accepted(*where, "gone", "x")


async def test_we_take_files_of_mosquitto(path: Path, start_node: StartNode) -> None:
    mosquitto_passwd("-c", "-b", str(path), "ann", "open, sesame")
    mosquitto_passwd("-b", str(path), "b\u00e9a", "\u00fcber")
    mosquitto_passwd("-H", "sha512", "-b", str(path), "old", "six")
    assert sorted(line.split(":")[1][:3] for line in path.read_text().splitlines()) == ["$6$", "$7$", "$7$"]
    rookery("passwd", "-b", "-H", "argon2id", str(path), "new", "argon")
    rookery("passwd", "-b", "-H", "scram-sha-512", str(path), "scram", "only")
    node = node_of(start_node, path)
    for username, password in (
        ("ann", "open, sesame"),
        ("b\u00e9a", "\u00fcber"),
        ("old", "six"),
        ("new", "argon"),
        ("scram", "only"),
    ):
        assert await login(node, username, password) == WELCOME, username
        for wrong in (password + "x", password[:-1], "", password + "\0"):
            assert await login(node, username, wrong) == WRONG, username
        assert await login(node, username, None) == WRONG
    assert await login(node, "zoe", "open, sesame") == WRONG
    for nasty in ("a" * 16_000, "ann\u2028", "*", "ann:$7$"):
        assert await login(node, nasty, "open, sesame") == WRONG


def test_a_plain_file_is_upgraded_as_mosquitto_does_it(path: Path, tmp_path: Path) -> None:
    path.write_text("ann:one\nbob:two\n")
    theirs = tmp_path / "theirs"
    theirs.write_text(path.read_text())
    rookery("passwd", "-U", str(path))
    mosquitto_passwd("-U", str(theirs))
    for file in (path, theirs):
        lines = [f"password_file {file}", "allow_anonymous false"]
        with MosquittoBroker(tmp_path / f"mosquitto-{file.name}", lines) as broker:
            assert accepted(broker.host, broker.port, "ann", "one")
            assert accepted(broker.host, broker.port, "bob", "two")


async def test_a_changed_file_counts_at_once_and_ends_connections(path: Path, start_node: StartNode) -> None:
    """Without a signal: the file is watched."""
    for name in ("ann", "bob", "carl"):
        mosquitto_passwd(*([] if path.exists() else ["-c"]), "-b", str(path), name, "one")
    node = node_of(start_node, path)
    clients = {name: (await connect(node, name, "one", name))[0] for name in ("ann", "bob", "carl")}
    broken = path.read_text() + "broken\n"
    path.write_text(broken)
    assert await login(node, "ann", "one") == WELCOME
    rookery("passwd", "-b", "-c", "--iterations", "100", str(path.with_name("next")), "bob", "two")
    kept = [line for line in broken.splitlines() if line.startswith("carl:")]
    path.with_name("next").write_text(path.with_name("next").read_text() + kept[0] + "\n")
    path.with_name("next").replace(path)
    with trio.fail_after(DEADLINE_S):
        for name in ("ann", "bob"):
            assert (await clients[name].expect(Disconnect)).reason_code == 0x87
    await clients["carl"].expect_nothing()
    for client in clients.values():
        await client.close()
    assert await login(node, "ann", "one") == WRONG
    assert await login(node, "bob", "one") == WRONG
    assert await login(node, "bob", "two") == WELCOME


async def test_a_flood_of_passwords_stalls_nobody(path: Path, start_node: StartNode) -> None:
    """While far more checks are asked for than can be made, a client that is there is served before they end."""
    rookery("passwd", "-b", str(path), "ann", "one", "--iterations", "20000")
    rookery("passwd", "-b", str(path), "bob", "two", "--iterations", "1")
    node = node_of(start_node, path)
    client, connack = await connect(node, "bob", "two", "bob")
    assert connack.reason_code == WELCOME
    codes: list[int] = []

    async def attempt(number: int) -> None:
        codes.append(await login(node, "ann", "wrong", f"c{number}"))

    served = 0
    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(attempt, number)
        while len(codes) < 200:
            assert await client.publish("t", b"x", qos=1) < 0x80
            served += len(codes) < 200
    assert served > 5
    assert set(codes) == {WRONG, UNAVAILABLE}
    # Those beyond the bound were not kept waiting.
    assert UNAVAILABLE not in codes[-CHECK_THREADS:]
    assert codes.count(WRONG) >= MAX_WAITING
    assert await login(node, "ann", "one") == WELCOME
    await client.close()
