"""Bytes for each thing: measured with few of them, printed, and written as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.__main__ import main

NAMES = {
    "ws": ["idle connection, ws"],
    "wss": ["idle connection, wss"],
    "subscriptions": ["subscription, distinct", "subscription, shared with other sessions"],
    "waiting": ["message that waits for an ephemeral session, beside the payload"],
    "routes": [
        "route of ephemeral sessions, own node",
        "route of ephemeral sessions, another node",
        "route of persistent sessions, own node",
        "route of persistent sessions, another node",
    ],
    "stored": [
        "persistent session, without subscriptions",
        "its subscription, with the route",
        "queued message, beside the payload",
        "retained message, beside the payload",
    ],
}


@pytest.mark.parametrize("part", NAMES)
def test_a_part_tells_its_figures(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.json"
    assert main(["memory", part, "--connections", "100", "--things", "2000", "--json", str(file)]) == 0
    figures = json.loads(file.read_text("utf-8"))["figures"]
    assert [each["name"] for each in figures] == NAMES[part]
    assert all(each["count"] > 0 for each in figures)
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES[part])


def test_what_the_store_keeps_takes_what_it_takes(tmp_path: Path) -> None:
    """Of the store every byte is told, so few are enough; a node's memory comes in pages."""
    assert main(["memory", "stored", "--things", "2000", "--json", str(tmp_path / "m.json")]) == 0
    for each in json.loads((tmp_path / "m.json").read_text("utf-8"))["figures"]:
        assert 100 < each["bytes"] < 1500, each


def test_unknown_parts_and_too_few_are_refused() -> None:
    assert main(["memory", "nothing"]) == 1
    assert main(["memory", "tcp", "--connections", "0"]) == 1


def test_changes_of_routes_are_told_for_each_kind_of_session(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.json"
    assert main(["routes", "--nodes", "2", "--count", "600", "--json", str(file)]) == 0
    costs = json.loads(file.read_text("utf-8"))["costs"]
    assert [(each["sessions"], each["nodes"]) for each in costs] == [("ephemeral", 2), ("persistent", 2)]
    assert all(each["per_s"] > 0 and each["commands"] > 0 for each in costs)
    assert "SUBSCRIBE/s" in capsys.readouterr().out
    assert main(["routes", "--nodes", "0"]) == 1
