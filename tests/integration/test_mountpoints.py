"""Mosquitto's clients at listeners with a mountpoint, with some of the versions, and with limits on topics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import mosquitto
from tests.integration.guarded import users_file
from tests.kit.broker_process import BrokerProcess

ANY = "tcp://127.0.0.1:0"
HOMES = "tcp://127.0.0.1:0?mountpoint=home/${username}/"
ONLY_5 = "tcp://127.0.0.1:0?versions=5"
ONLY_3 = "tcp://127.0.0.1:0?versions=3.1,3.1.1"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    names = [f"{name}{version}" for name in ("anna", "bert") for version in (3, 4, 5)]
    users = users_file(tmp_path_factory.mktemp("users"), *names, "a/b", "a#")
    process = BrokerProcess(
        tmp_path_factory.mktemp("mounted"), "memory", listen=(ANY, HOMES, ONLY_5, ONLY_3),
        arguments=("--max-topic-levels", "4", "--max-topic-length", "40B", "--authentication", users,
                   "--allow-anonymous"),
    )  # fmt: skip
    process.start()
    yield process
    process.stop()
    assert "Traceback" not in process.log()


def _at(node: BrokerProcess, index: int, *arguments: str) -> tuple[str, ...]:
    """Options for the clients: the last port wins."""
    return ("-p", node.listeners[index].rpartition(":")[2], *arguments)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_home_for_everybody(node: BrokerProcess, version: int) -> None:
    name = f"anna{version}"
    anna, bert = _at(node, 1, "-u", name, "-P", "right"), _at(node, 1, "-u", f"bert{version}", "-P", "right")
    with (
        mosquitto.Subscriber(node, ["lamp/#", "$share/g/door"], *anna, version=version) as inside,
        mosquitto.Subscriber(node, ["lamp/#"], *bert, version=version) as neighbour,
        mosquitto.Subscriber(node, [f"home/{name}/#"]) as outside,
    ):
        for qos in (0, 1, 2):
            mosquitto.publish(node, "lamp/x", f"{qos}", *anna, qos=qos, version=version)
        mosquitto.publish(node, "door", "open", *anna, qos=1, version=version)
        mosquitto.publish(node, f"home/{name}/lamp/y", "from outside", qos=1)
        mosquitto.publish(node, "lamp/x", "his", *bert, qos=1, version=version)
        seen = [inside.take() for _ in range(5)]
        assert {(each.topic, each.payload) for each in seen} == {
            ("lamp/x", "0"), ("lamp/x", "1"), ("lamp/x", "2"), ("door", "open"), ("lamp/y", "from outside"),
        }  # fmt: skip
        assert {outside.take().topic for _ in range(5)} == {
            f"home/{name}/{topic}" for topic in ("lamp/x", "lamp/y", "door")
        }
        assert neighbour.payloads(1) == ["his"]


def test_a_name_that_leads_elsewhere(node: BrokerProcess) -> None:
    for arguments in (("-u", "a/b", "-P", "right"), ("-u", "a#", "-P", "right"), ()):
        done = mosquitto.run("mosquitto_pub", node, *_at(node, 1, *arguments), "-t", "x", "-m", "x")
        assert "Not authorized" in done.stdout + done.stderr
    assert "needs a usable value of username" in node.log()


@pytest.mark.parametrize("version", [3, 4, 5])
def test_versions(node: BrokerProcess, version: int) -> None:
    for index, ok in ((2, version == 5), (3, version != 5)):
        done = mosquitto.run("mosquitto_pub", node, *_at(node, index), "-t", "x", "-m", "x", version=version)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        assert ok or "protocol version" in (done.stdout + done.stderr).lower()


def test_topics_of_too_many_levels_or_bytes(node: BrokerProcess) -> None:
    for topic in ("a/b/c/d/e", "x" * 41):
        done = mosquitto.run("mosquitto_pub", node, "-t", topic, "-m", "x", "-q", "1", "-d")
        assert "RC:144" in done.stdout + done.stderr
    done = mosquitto.run("mosquitto_sub", node, "-t", "a/b/c/d/#", "-W", "5", "-d")
    assert "143" in done.stdout or "denied" in (done.stdout + done.stderr).lower()


def test_a_mountpoint_that_cannot_be_one(tmp_path: Path) -> None:
    for text, told in (("a/${nobody}/", "unknown placeholder"), ("a", "must end with /")):
        process = BrokerProcess(tmp_path / text[:1], "memory", listen=(f"{ANY}?mountpoint={text}",))
        with pytest.raises(Exception, match=told):
            process.start()
