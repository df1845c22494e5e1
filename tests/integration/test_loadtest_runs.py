"""The load tester against real brokers: every scenario that comes along, small; its command; its end by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from loadtest import scenario, targets
from loadtest.__main__ import main
from loadtest.result import Report
from loadtest.running import Target, run_once
from loadtest.targets import Running

SMALL: dict[str, Any] = {"seconds": 1.0, "warmup": 0.1, "settle": 0.1, "drain": 5.0}
#: What makes each of them small.
COUNTS: Mapping[str, Mapping[str, Any]] = {
    "away": {"publishers": 5, "subscribers": 5, "rate": 200.0, "away": 0.2},
    "connect": {"idle": 50},
    "fanin": {"publishers": 5},
    "fanout": {"subscribers": 20},
    "latency": {"publishers": 5, "subscribers": 5, "rate": 200.0},
    "mixed": {"idle": 20, "publishers": 10, "rate": 50.0, "keep_alive": 2},
    "p2p0": {"publishers": 5, "subscribers": 5},
    "p2p1": {"publishers": 5, "subscribers": 5},
    "p2p2": {"publishers": 5, "subscribers": 5},
    "persistent": {"publishers": 5, "subscribers": 5},
    "reconnect": {"publishers": 10, "subscribers": 10, "rate": 200.0},
    "retained": {"publishers": 2, "topics": 20, "subscribers": 3, "seconds": 10.0},
    "shared": {"publishers": 5, "subscribers": 3},
}


@pytest.fixture(scope="module")
def rookery() -> Iterator[Running]:
    with targets.rookery() as running:
        yield running


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", scenario.names())
def test_scenarios_run_without_faults(rookery: Running, name: str, version: int) -> None:
    wanted = scenario.load(name, {**SMALL, **COUNTS[name], "version": version})
    result = run_once(wanted, Target.of("rookery", rookery))
    assert (result.failure, result.faults, result.messages) == ("", {}, [])
    counts = result.counts
    again = wanted.clients if wanted.cut and wanted.cut_who == "all" else wanted.subscribers if wanted.cut else 0
    assert counts.connects == wanted.clients + again
    assert result.connect_ms.count == counts.connects
    if wanted.streams:
        assert counts.received == counts.expected >= counts.sent > 0
        assert result.latency_ms.count > 0
        assert sum(count for _, count in result.histogram) == result.latency_ms.count
        if wanted.layout != "retained":  # which may take less than a point does
            assert result.series[-1].connected == wanted.clients
    if wanted.qos:
        assert counts.acked >= counts.sent - 10  # mixed: its other stream, too
        assert result.ack_ms.count > 0 or wanted.layout == "retained"
    assert result.cpu_percent is not None


@pytest.mark.skipif(targets.mosquitto_path() is None, reason="mosquitto is not installed")
@pytest.mark.parametrize("name", ["p2p1", "reconnect", "retained"])
def test_scenarios_run_against_another_broker(name: str) -> None:
    with targets.mosquitto() as running:
        wanted = scenario.load(name, {**SMALL, **COUNTS[name]})
        result = run_once(wanted, Target.of("mosquitto", running))
    assert (result.failure, result.faults, result.messages) == ("", {}, [])
    assert result.counts.received > 0


def _command(rookery: Running, *arguments: str) -> list[str]:
    host, port = rookery.address
    command = [sys.executable, "-m", "loadtest", "run", *arguments, "--target", f"mqtt://{host}:{port}"]
    return [*command, "--set", "publishers=2", "--set", "subscribers=2", "--warmup", "0"]


def test_the_command_writes_reports(rookery: Running, tmp_path: Path) -> None:
    json_path, html_path = tmp_path / "report.json", tmp_path / "report.html"
    command = _command(rookery, "p2p1", "p2p0", "--json", str(json_path), "--html", str(html_path))
    command += ["--seconds", "0.5", "--repeat", "2", "--qos", "2", "--pid", str(rookery.pids[0]), "--broker", "it"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    results = Report.read(json_path).results
    assert [result.name for result in results] == ["p2p1", "p2p1", "p2p0", "p2p0"]
    assert {result.settings["qos"] for result in results} == {2}
    assert {result.broker for result in results} == {"it"}
    assert "<svg" in html_path.read_text("utf-8")
    assert "p2p1, run 1 of 4" in done.stderr
    assert json.loads(json_path.read_text("utf-8"))["schema"] == 1


def test_a_signal_ends_a_run_which_still_reports(rookery: Running, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    command = _command(rookery, "p2p1", "--seconds", "600", "--json", str(path), "--progress", "plain")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "sent/s" in line:
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    [result] = Report.read(path).results
    assert result.interrupted
    assert result.counts.received == result.counts.sent > 0
    assert "p2p QoS 1" in output


def test_passwords_come_from_files_and_the_environment(
    rookery: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden\n", "utf-8")
    monkeypatch.setitem(os.environ, "ROOKERY_LOADTEST_USERNAME", "me")
    command = _command(rookery, "p2p0", "--seconds", "0.2", "--password-file", str(secret), "--progress", "off")[3:]
    assert main(command) == 0
    assert "hidden" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "arguments, status, text",
    [
        ((), 1, "usage: rookery-loadtest"),
        (("--help",), 0, "run SCENARIO..."),
        (("--version",), 0, "rookery-loadtest "),
        (("fly",), 1, "no command 'fly'"),
        (("list",), 0, "p2p QoS 1, 100 pairs"),
        (("list", "--keys"), 0, "layout"),
        (("show", "mixed"), 0, "[[also]]"),
        (("show", "nothing"), 1, "no scenario 'nothing'"),
        (("run",), 1, "SCENARIO"),
        (("run", "--help"), 0, "--subscribe-to"),
        (("run", "nothing"), 1, "no scenario 'nothing'"),
        (("run", "p2p0", "--qos", "3"), 1, "--set: qos: 3 is none of 0, 1, 2"),
        (("run", "p2p0", "--set", "speed=3"), 1, "--set: speed: unknown key"),
        (("run", "p2p0", "--target", "ws://127.0.0.1"), 1, "does not speak WebSocket"),
        (("run", "p2p0", "--publish-to", "127.0.0.1"), 1, "both --publish-to and --subscribe-to"),
    ],
    ids=str,
)
def test_usage(arguments: tuple[str, ...], status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == status
    assert text in "".join(capsys.readouterr())
