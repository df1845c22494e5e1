"""The commands of docs/migration-mosquitto.md, with a real Mosquitto to come from."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

from tests.docs.pages import DOCS, ROOT, blocks
from tests.integration.mosquitto import Subscriber
from tests.kit.broker_process import BrokerProcess
from tests.kit.mosquitto_broker import MosquittoBroker

COMMANDS = [
    block.text for block in blocks((DOCS / "migration-mosquitto.md").read_text("utf-8")) if block.language == "sh"
]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As a user would, with the programs of the environment."""
    path = f"{ROOT / '.venv' / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env={"PATH": path}, capture_output=True, text=True, check=False
    )


def test_the_configuration_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.conf").write_text("listener 1883 127.0.0.1\nallow_anonymous true\nmax_queued_messages 500\n")
    done = run(COMMANDS[0].replace("/etc/mosquitto/", ""), tmp_path)
    assert done.returncode == 0, done.stderr
    assert tomllib.loads((tmp_path / "rookery.toml").read_text())["max_queued_messages"] == 500
    assert run("rookery check-config --config rookery.toml", tmp_path).returncode == 0


def test_retained_messages_are_taken_along(tmp_path: Path) -> None:
    node = BrokerProcess(tmp_path / "node")
    node.start()
    try:
        with MosquittoBroker(tmp_path / "mosquitto", ["allow_anonymous true"]) as old:
            for topic, payload in (("house/door", "closed"), ("house/hall/note", "back at  six")):
                publish = f"mosquitto_pub -h {old.host} -p {old.port} -q 1 -r -t {topic} -m '{payload}'"
                assert run(publish, tmp_path).returncode == 0
            command = COMMANDS[1].replace("-h OLD", f"-h {old.host} -p {old.port}").replace("-W 10", "-W 2")
            command = command.replace("-h NEW", f"-h {node.host} -p {node.port}")
            assert "OLD" not in command and "NEW" not in command
            done = run(command, tmp_path)
            assert done.returncode == 0, done.stderr
        with Subscriber(node, ["#"], qos=1) as reader:
            found = {message.topic: message.payload for message in (reader.take(), reader.take())}
            assert found == {"house/door": "closed", "house/hall/note": "back at  six"}
    finally:
        node.stop()
