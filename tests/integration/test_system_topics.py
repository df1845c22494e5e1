"""`$SYS/` seen by mosquitto_sub, compared with what a real Mosquitto tells; and presence for real clients."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration import mosquitto
from tests.integration.conftest import StartNode
from tests.kit.mosquitto_broker import MosquittoBroker

OPEN = ("--node-name", "n", "--sys-access", "all", "--sys-interval", "1s")

#: Bytes of payloads: this broker does not count them.
NOT_TOLD = {"$SYS/broker/publish/bytes/received", "$SYS/broker/publish/bytes/sent"}

FORMS = (r"\d+", r"\d+\.\d\d", r"\d+ seconds", r"[a-z]+ version [\w.]+")


def _values(host: str, port: int, topic_filter: str, seconds: int) -> dict[str, str]:
    """What mosquitto_sub prints in so many seconds."""
    command = [mosquitto.find("mosquitto_sub"), "-h", host, "-p", str(port), "-t", topic_filter, "-W", str(seconds)]
    done = subprocess.run([*command, "-F", "%t\t%p"], capture_output=True, text=True, timeout=60, check=False)
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


def _form(value: str) -> str:
    [form] = [each for each in FORMS if re.fullmatch(each, value)]
    return form


def test_the_tree_of_mosquitto(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node(*OPEN)
    with MosquittoBroker(tmp_path / "mosquitto", ["allow_anonymous true", "sys_interval 1"]) as peer:
        theirs = _values(peer.host, peer.port, "$SYS/#", 3)
    ours = _values(node.host, node.port, "$SYS/broker/#", 3)
    assert len(theirs) > 40
    missing = set(theirs) - set(ours)
    assert missing == NOT_TOLD
    assert {name: _form(ours[name]) for name in set(theirs) & set(ours)} == {
        name: _form(value) for name, value in theirs.items() if name not in NOT_TOLD
    }


def test_the_tree_of_emqx(start_node: StartNode) -> None:
    node = start_node(*OPEN)
    values = _values(node.host, node.port, "$SYS/brokers/#", 2)
    assert values["$SYS/brokers"] == "n"
    below = {name.removeprefix("$SYS/brokers/n/"): value for name, value in values.items() if name != "$SYS/brokers"}
    assert {"version", "uptime", "datetime", "sysdescr", "durability"} <= set(below)
    numbers = [name for name in below if name.startswith(("stats/", "metrics/"))]
    assert len(numbers) > 50 and all(below[name].isdecimal() for name in numbers)
    assert below["stats/connections/count"] == "1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", below["datetime"])


def test_values_come_again_and_again(start_node: StartNode) -> None:
    node = start_node(*OPEN)
    with mosquitto.Subscriber(node, ["$SYS/broker/uptime"]) as subscriber:
        messages = [subscriber.take() for _ in range(4)]
    assert [message.retain for message in messages] == [True, False, False, False]
    seconds = [int(message.payload.split()[0]) for message in messages]
    assert seconds == sorted(seconds) and seconds[-1] > seconds[0]


@pytest.mark.parametrize("topic_filter", ["$SYS/#", "$SYS/broker/uptime", "$SYS/brokers/+/clients/#"])
def test_nobody_reads_without_a_rule(start_node: StartNode, topic_filter: str) -> None:
    node = start_node("--node-name", "n")
    with mosquitto.Subscriber(node, [topic_filter], subscribed=False) as subscriber:
        subscriber.wait_for("All subscription requests were denied")


@pytest.mark.parametrize("no_match", ["deny", "allow"])
def test_rules_say_who_reads(start_node: StartNode, tmp_path: Path, no_match: str) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite plain/#\npattern read $SYS/brokers/+/clients/%c/+\ntopic read $SYS/broker/#\n")
    node = start_node("--node-name", "n", "--no-match", no_match, "--authorization", f"acl_file?path={rules}")
    # As Mosquitto does, an ACL file lets clients subscribe to anything, and looks at what is delivered.
    values = _values(node.host, node.port, "$SYS/#", 2)
    assert values and all(name.startswith("$SYS/broker/") for name in values)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_presence_of_real_clients(start_node: StartNode, version: int) -> None:
    node = start_node(*OPEN)
    with mosquitto.Subscriber(node, ["$SYS/brokers/n/clients/pub/+"], qos=1) as subscriber:
        done = mosquitto.run(
            "mosquitto_pub", node, "-i", "pub", "-t", "x", "-m", "y", "-q", "1", "-k", "77", version=version
        )
        assert done.returncode == 0, done.stderr
        came, gone = subscriber.take(), subscriber.take()
    assert (came.topic, gone.topic) == (
        "$SYS/brokers/n/clients/pub/connected",
        "$SYS/brokers/n/clients/pub/disconnected",
    )
    assert came.qos == gone.qos == 1
    told, left = json.loads(came.payload), json.loads(gone.payload)
    assert (told["clientid"], told["ipaddress"], told["proto_ver"], told["keepalive"]) == (
        "pub",
        "127.0.0.1",
        version,
        77,
    )
    assert told["protocol"] == "mqtt" and told["epoch"] == left["epoch"]
    assert left["reason"] == "normal" and left["disconnected_at"] >= left["connected_at"] == told["connected_at"]
