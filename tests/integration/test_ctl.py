"""`rookery ctl` and a real node: what commands print is what the API answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.cli import main
from broker.cli.manifest import LIST, PAGE, VALUE, described
from tests.integration.conftest import StartNode
from tests.integration.paho_client import Paho
from tests.kit.broker_process import ROOT, BrokerProcess

SECRET = "a secret of the tests"
ROOKERY = [sys.executable, "-m", "broker", "ctl"]

Run = Callable[..., str]


@pytest.fixture
def api_node(start_node: StartNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BrokerProcess:
    node = start_node("--admin-secret", SECRET, store="memory", http="127.0.0.1:0")
    for name in list(os.environ):
        if name.startswith("ROOKERY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROOKERY_API_URL", f"http://{node.http}")
    monkeypatch.setenv("ROOKERY_API_KEY", f"admin:{SECRET}")
    return node


@pytest.fixture
def run(api_node: BrokerProcess, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, and returns what it prints."""

    def run(*arguments: str, status: int = 0) -> str:
        capsys.readouterr()
        found = main(["ctl", *arguments])
        captured = capsys.readouterr()
        assert found == status, captured.err
        return captured.out

    return run


@pytest.fixture
def subscriber(api_node: BrokerProcess) -> Iterator[Paho]:
    """A client with a persistent session: `sub/1 ü`, a/# at QoS 1."""
    with Paho(api_node, 4, "sub/1 ü", clean=False) as client:
        client.connect()
        client.subscribe("a/#", 1)
        yield client


def _get(node: BrokerProcess, path: str) -> Any:
    import base64

    token = base64.b64encode(f"admin:{SECRET}".encode()).decode()
    request = urllib.request.Request(f"http://{node.http}/api/v1{path}", headers={"Authorization": f"Basic {token}"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
        return json.load(response)


#: What changes from call to call.
_MOVING = {
    *("store_round_trip_ms", "last_activity_at_ms", "uptime_s", "at_ms", "oldest_ms", "lag_ms", "connections"),
    *("output_bytes", "expires_in_s"),
}


def _still(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _still(each) for key, each in value.items() if key not in _MOVING}
    return [_still(each) for each in value] if isinstance(value, list) else value


LISTS = [
    operation
    for operation in described().values()
    if operation.method == "GET" and operation.answer in (PAGE, LIST)
    if not any(argument.required for argument in operation.arguments)
]


def test_lists_are_those_of_the_api(run: Run, api_node: BrokerProcess, subscriber: Paho) -> None:
    run("publish", "a/b", "x", "--retain")
    subscriber.take()
    for operation in LISTS:
        command = ["api", operation.subject.replace("_", "-"), operation.verb]
        if operation.name != "logs.list":  # each call may add a line
            told = _still(_get(api_node, operation.path)["items"])
            assert _still(json.loads(run(*command, "--json"))) == told, operation.name
            assert _still([json.loads(line) for line in run(*command, "--jsonl").splitlines()]) == told, operation.name
        run(*command)


def test_what_takes_no_arguments_is_that_of_the_api(run: Run, api_node: BrokerProcess) -> None:
    for operation in described().values():
        if (
            operation.method == "GET"
            and operation.answer == VALUE
            and not any(argument.required for argument in operation.arguments)
        ):
            told = _get(api_node, operation.path)
            said = json.loads(run("api", operation.subject.replace("_", "-"), operation.verb, "--json"))
            assert said.keys() == told.keys(), operation.name
            run("api", operation.subject.replace("_", "-"), operation.verb)


def test_a_client_is_found_shown_and_kicked(run: Run, api_node: BrokerProcess, subscriber: Paho) -> None:
    heads, row = run("clients").splitlines()
    assert heads.startswith("CLIENT")
    assert row.startswith("sub/1 ü  127.0.0.1")
    told = _get(api_node, "/clients/sub%2F1%20%C3%BC")
    assert _still(json.loads(run("clients", "show", "sub/1 ü", "--json"))) == _still(told)
    assert "client id" in run("clients", "show", "sub/1 ü")
    assert "a/#" in run("subscriptions", "of-client", "sub/1 ü")
    run("clients", "kick", "sub/1 ü")
    run("clients", "show", "nobody", status=4)
    subscriber.close()
    run("publish", "a/b", "kept", "--qos", "1")
    assert "kept" in run("sessions", "messages", "sub/1 ü")
    run("sessions", "delete", "sub/1 ü")
    run("sessions", "show", "sub/1 ü", status=4)


def test_messages_are_published_and_retained(
    run: Run, api_node: BrokerProcess, subscriber: Paho, tmp_path: Path
) -> None:
    assert json.loads(run("publish", "a/1", "plain", "--qos", "1", "--retain", "--json"))["matched"] == 1
    (tmp_path / "bytes").write_bytes(b"\xff\x00")
    run("publish", "a//2", "-f", "bytes", "--retain", "--user-property", "k=v", "--content-type", "image/png")
    found = json.loads(run("retained", "show", "a//2", "--json"))
    assert (found["payload"], found["payload_encoding"]) == ("/wA=", "base64")
    assert found["properties"] == {"content_type": "image/png", "user_properties": [["k", "v"]]}
    run("publish", "/lead", "x", "--retain")
    assert json.loads(run("retained", "show", "/lead", "--json"))["payload"] == "x"
    assert run("retained", "delete-matching", "--topic-filter", "#") == "3\n"
    assert json.loads(run("retained", "list", "--json")) == []
    run("publish", "a/#", "x", status=1)


def test_a_trace_is_followed(run: Run, api_node: BrokerProcess) -> None:
    """Ctrl-C ends it, and nothing of it stays behind."""
    command = [*ROOKERY, "trace", "watched", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    while not json.loads(run("trace", "list", "--json")):
        assert process.poll() is None
    subprocess.run(
        ["mosquitto_pub", "-h", api_node.host, "-p", str(api_node.port), "-i", "watched", "-t", "a", "-m", "x"],
        check=True,
    )
    seen: list[str] = []
    while not any("PUBLISH" in text for text in seen):
        seen.append(json.loads(process.stdout.readline())["text"])
    assert any("CONNECT" in text for text in seen)
    process.send_signal(signal.SIGINT)
    process.stdout.read()  # a line may be on its way: to write it to nobody would be a failure
    assert process.wait() == 0
    process.stdout.close()
    [trace] = json.loads(run("trace", "list", "--json"))
    assert not trace["running"]


def test_nodes_are_drained(run: Run, api_node: BrokerProcess, subscriber: Paho) -> None:
    [node] = json.loads(run("nodes", "list", "--json"))
    run("nodes", "drain", node["node"], "--wait", "--wait-for", "60s")
    assert json.loads(run("nodes", "show", node["node"], "--json"))["connections"] == 0
    run("nodes", "undrain", node["node"])
    run("nodes", "drain", "nowhere", status=4)


def test_numbers_settings_and_levels(run: Run, api_node: BrokerProcess, subscriber: Paho) -> None:
    heads, connections, *_ = run("stats").splitlines()
    assert heads.split()[:2] == ["NUMBER", "ALL"]
    assert connections.split()[0] == "connections"
    assert "admin_secret  ***" in run("config", "--changed")
    assert SECRET not in run("config", "--json")
    assert " info " in run("log-level")
    run("log-level", "debug")
    assert " debug " in run("log-level")
    run("log-level", "loud", status=2)


def test_who_comes_and_goes_is_followed(run: Run, api_node: BrokerProcess) -> None:
    """A client that comes again and again until the command, which begins at some time, has seen it."""
    command = [*ROOKERY, "events", "clients", "--client-id", "comes", "--count", "2", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while process.poll() is None:
        with Paho(api_node, 5, "comes") as client:
            client.connect()
    assert process.stdout is not None
    seen = [json.loads(line) for line in process.stdout]
    process.stdout.close()
    assert process.wait() == 0
    assert {event["event"] for event in seen} == {"connected", "disconnected"}
    assert {event["clientid"] for event in seen} == {"comes"}


def test_keys_decide(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = json.loads(run("api", "keys", "create", "--name", "looker", "--scope", "viewer", "--json"))["token"]
    (tmp_path / "key").write_text(token + "\n")
    monkeypatch.delenv("ROOKERY_API_KEY")
    run("nodes", status=3)
    run("nodes", "--key-file", "key")
    run("publish", "a", "x", "--key-file", "key", status=3)


def test_names_are_completed(api_node: BrokerProcess, subscriber: Paho, run: Run) -> None:
    """By bash itself, as if somebody pressed the tabulator key."""
    [node] = json.loads(run("nodes", "list", "--json"))
    script = """
        PATH="$1:$PATH"; source <(rookery ctl completion bash)
        COMP_WORDS=(rookery ctl nodes drain "$2"); COMP_CWORD=4; _rookery_completion rookery; echo "${COMPREPLY[*]}"
    """
    folder = str(Path(sys.executable).parent)
    told = subprocess.run(
        ["bash", "-c", script, "bash", folder, node["node"][:1]], check=True, capture_output=True, text=True
    )
    assert told.stdout.split() == [node["node"]]
