"""Server-sent events of a real node."""

from __future__ import annotations

import json

from tests.kit.api import admin_of
from tests.kit.broker_process import BrokerProcess


def read_event(lines: object) -> tuple[str, object]:
    """Name and data of the next event; comments are passed over."""
    name = ""
    for line in lines:  # type: ignore[attr-defined]
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            return name, json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended")


def test_statistics_are_told(http_node: BrokerProcess) -> None:
    with admin_of(http_node) as admin, admin.stream("GET", "/stats/live") as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        lines = answer.iter_lines()
        assert next(lines) == ": hello"
        for _ in range(2):
            name, data = read_event(lines)
            assert name == "stats" and isinstance(data, dict) and "cluster" in data


def test_what_cannot_be_followed_is_a_problem(http_node: BrokerProcess) -> None:
    with admin_of(http_node) as admin:
        answer = admin.get("/traces/nothing/follow")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert admin.get("/stats/live?x=1").status_code == 400
        head = admin.head("/stats/live")
        assert (head.status_code, head.content) == (200, b"")
