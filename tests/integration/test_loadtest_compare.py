"""`loadtest compare`, `bench` and `report` as users run them, with windows that are too short to say anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = ("--seconds", "0.3", "--warmup", "0.1", "--repeat", "1")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=110)


@pytest.mark.timeout(120)
def test_brokers_are_compared_and_the_report_is_read_again(tmp_path: Path) -> None:
    kept, page = tmp_path / "r.json", tmp_path / "r.html"
    done = _run("compare", "p2p1", "p2p1@2", *TINY, "--markdown", "--json", str(kept), "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert "p2p1@2 mosquitto: left out" in done.stderr
    content = json.loads(kept.read_text("utf-8"))
    assert [(each["name"], each["broker"], each["failure"]) for each in content["results"]] == [
        ("p2p1", "mosquitto", ""),
        ("p2p1", "aedes", ""),
        ("p2p1", "rookery", ""),
        ("p2p1@2", "aedes", ""),
        ("p2p1@2", "rookery", ""),
    ]
    # Of the whole runs: on a busy machine so short a window may be empty.
    assert all(each["counts"]["received"] > 0 for each in content["results"])
    assert {"mosquitto", "aedes", "rookery", "redis"} <= content["machine"].keys()
    assert "rate ratio" in done.stdout
    again = _run("report", str(kept), "--markdown")
    assert again.stdout == done.stdout
    assert "p2p QoS 1" in page.read_text("utf-8")


@pytest.mark.timeout(120)
def test_a_bench_is_recorded_and_compared_with_its_record(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = _run("bench", "fanin", "latency", *TINY, "--figures", str(figures), "--record")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(figures.read_text("utf-8"))["scenarios"]) == ["fanin", "latency"]
    before = figures.read_bytes()
    done = _run("bench", "fanin", *TINY, "--figures", str(figures), "--markdown")
    assert done.returncode == 0, done.stderr
    assert "| now / mosquitto |" in done.stdout
    assert "Recorded, but not measured now: p2p QoS 1 at 2,000/s" in done.stdout
    assert figures.read_bytes() == before


@pytest.mark.timeout(120)
def test_growth_is_measured_and_drawn(tmp_path: Path) -> None:
    kept = tmp_path / "g.json"
    tiny = ("--most", "2", *TINY)
    done = _run("growth", "filters", "nodes", *tiny, "--json", str(kept), "--svg", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = {each["name"]: each for each in json.loads(kept.read_text("utf-8"))["results"]}
    assert {"filters/exact, 1 session/1", "nodes/QoS 1/1", "nodes/QoS 1/2"} <= found.keys()
    assert found["nodes/QoS 1/2"]["settings"]["each"].keys() >= {"CPU us, redis", "CPU us, node2", "Redis commands"}
    assert "| CPU us, redis/message |" in done.stdout
    assert (tmp_path / "growth-nodes-cpu.svg").is_file()
