"""Rules for Mosquitto's clients, and `rookery ctl rules`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import mosquitto
from tests.kit.broker_process import ROOT, BrokerProcess

RULES = """
[[rule]]
permission = "deny"
topics = ["plant/secret/#"]

[[rule]]
permission = "allow"
action = "publish"
topics = ["plant/${clientid}/up"]
qos = [0, 1]
retain = false

[[rule]]
permission = "allow"
action = "subscribe"
client_id_match = "panel-[0-9]+"
topics = ["plant/#"]
"""


def rookery(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as an operator would give it."""
    return subprocess.run(
        [sys.executable, "-m", "broker", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def configured(folder: Path, *sources: dict[str, object], **settings: object) -> Path:
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    for source in sources:
        lines.append("[[authorization]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in source.items()]
    path = folder / "rookery.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("rules")
    rules = folder / "rules.toml"
    rules.write_text(RULES)
    config = configured(folder, {"type": "rules_file", "path": str(rules)})
    process = BrokerProcess(folder / "node", "memory", http="127.0.0.1:0", arguments=("--config", str(config)))
    process.start()
    yield process
    process.stop()


@pytest.mark.parametrize("version", [3, 4, 5])
def test_publishing(node: BrokerProcess, version: int) -> None:
    with mosquitto.Subscriber(node, ["plant/#"], "-i", f"panel-{version}", version=version) as panel:
        for topic, flags in (
            ("plant/d1/up", ["-q", "2"]),
            ("plant/d1/up", ["-r", "-q", "1"]),
            ("plant/d2/up", ["-q", "1"]),
            ("plant/secret/x", ["-q", "1"]),
        ):
            done = mosquitto.run(
                "mosquitto_pub", node, "-i", "d1", "-t", topic, "-m", "no", *flags, "-d", version=version
            )
            said = done.stdout + done.stderr
            if version == 5:
                assert re.search(r"not authori[sz]ed", said, re.IGNORECASE), said
        mosquitto.publish(node, "plant/d1/up", "yes", "-i", "d1", qos=1, version=version)
        received = panel.take()
        assert (received.topic, received.payload) == ("plant/d1/up", "yes")


def test_subscribing(node: BrokerProcess) -> None:
    for client_id, topic_filter in (("panel-1", "#"), ("panel-x", "plant/#"), ("panel-1", "plant/secret/#")):
        done = mosquitto.run("mosquitto_sub", node, "-i", client_id, "-t", topic_filter, "-E", "-d")
        assert "denied" in done.stdout + done.stderr, done
    done = mosquitto.run("mosquitto_sub", node, "-i", "panel-2", "-t", "plant/+/up", "-E", "-d")
    assert done.returncode == 0
    assert "denied" not in done.stdout + done.stderr


def test_answers_are_counted(node: BrokerProcess) -> None:
    def denied() -> float:
        with urllib.request.urlopen(f"http://{node.http}/metrics", timeout=10) as response:
            found = re.search(
                r'mqtt_authorization_total\{action="publish",result="deny"\} (\S+)', response.read().decode()
            )
        return float(found[1]) if found else 0.0

    before = denied()
    mosquitto.run("mosquitto_pub", node, "-t", "elsewhere", "-m", "x", "-q", "1")
    assert denied() == before + 1


def test_no_match_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic read nothing\n")
    source: dict[str, object] = {"type": "acl_file", "path": str(tmp_path / "acl")}
    config = configured(tmp_path, source, no_match="allow")
    node = BrokerProcess(tmp_path / "node", "memory", arguments=("--config", str(config)))
    node.start()
    try:
        with mosquitto.Subscriber(node, ["t/#"], subscribed=True) as subscriber:
            mosquitto.publish(node, "t/x", "1", qos=1)
            assert subscriber.take().payload == "1"
            configured(tmp_path, source, no_match="deny")
            os.kill(node.pid, signal.SIGHUP)
            subscriber.wait_for("Received DISCONNECT (135)")
    finally:
        node.stop()


def test_rules_of_the_store(tmp_path: Path) -> None:
    config = configured(tmp_path, {"type": "store"}, data_dir=str(tmp_path / "data"))
    node = BrokerProcess(tmp_path / "node", "embedded", arguments=("--config", str(config)))
    store = ("--config", str(config))
    node.start()
    try:

        def rules(*arguments: str) -> subprocess.CompletedProcess[str]:
            return rookery("ctl", "rules", *arguments, *store, "--data-dir", str(node.directory / "data"))

        assert rules("list").stdout == ""
        made = rules("add", "20-up", "allow", "publish", "up/${username}", "--username", "ann", "--qos", "1")
        assert made.returncode == 0, made.stderr
        assert rules("add", "10-no", "deny", "all", "up/bob", "--comment", "not he").returncode == 0
        again = rules("add", "20-up", "allow", "all", "#")
        assert again.returncode == 1
        assert "already" in again.stderr
        assert rules("add", "20-up", "allow", "all", "a/#/b", "--replace").returncode == 2
        assert rules("list").stdout.splitlines() == [
            '10-no: deny all up/bob comment="not he"',
            '20-up: allow publish up/${username} username=["ann"] qos=[1]',
        ]
        assert json.loads(rules("show", "10-no").stdout)["permission"] == "deny"
        told = rules("test", "--username", "ann", "--qos", "1", "publish", "up/ann")
        assert (told.returncode, told.stdout) == (0, "allow: store: stored rule '20-up'\n")
        told = rules("test", "--username", "bob", "publish", "up/bob")
        assert (told.returncode, told.stdout) == (1, "deny: store: stored rule '10-no'\n")
        assert rules("remove", "20-up").returncode == 0
        assert rules("remove", "20-up").returncode == 1
        told = rules("test", "--username", "ann", "--qos", "1", "publish", "up/ann")
        assert told.stdout.startswith("deny: no rule applies, and no_match = deny\n")
    finally:
        node.stop()


def test_which_rule_of_a_file_decides(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    (tmp_path / "acl").write_text("topic read plant/news\npattern write from/%u\n")
    config = configured(
        tmp_path,
        {"type": "rules_file", "path": str(tmp_path / "rules.toml")},
        {"type": "acl_file", "path": str(tmp_path / "acl")},
    )

    def told(*arguments: str) -> list[str]:
        done = rookery("ctl", "rules", "test", "--config", str(config), *arguments)
        lines = done.stdout.splitlines()
        assert lines, done.stderr
        assert done.returncode == (0 if lines[0].startswith("allow") else 1)
        return lines

    assert told("publish", "plant/secret/x") == ["deny: rules_file: rules.toml rule 1"]
    assert told("--client-id", "d1", "publish", "plant/d1/up") == ["allow: rules_file: rules.toml rule 2"]
    assert told("--client-id", "d1", "--retain", "publish", "plant/d1/up")[0].startswith("deny: no rule applies")
    panel = told("--client-id", "panel-7", "subscribe", "$share/g/plant/#")
    assert panel[0] == "allow: rules_file: rules.toml rule 3"
    assert "message by message" in panel[1]
    assert told("read", "plant/news")[0] == "allow: acl_file: acl line 1: read plant/news"
    assert told("--username", "ann", "publish", "from/ann")[0] == "allow: acl_file: acl line 2: write from/%u"
    assert told("--superuser", "publish", "plant/secret/x") == ["allow: a superuser may do everything"]
    wrong = rookery("ctl", "rules", "test", "--config", str(config), "publish", "a/#")
    assert wrong.returncode == 2


def test_a_wrong_rule_is_told_before_a_node_starts(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rule]]\npermission = "allow"\ntopics = ["a"]\nqos = 7\n')
    config = configured(tmp_path, {"type": "rules_file", "path": str(tmp_path / "rules.toml")})
    done = rookery("check-config", "--config", str(config))
    assert done.returncode == 2
    assert f"{tmp_path / 'rules.toml'}" in done.stderr
    assert "rule 1: qos: must be 0, 1, 2 or a list of these, not 7" in done.stderr
