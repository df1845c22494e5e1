"""What a cluster takes on paper: the bounds show where the formulas of docs/sizing.md say they do."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest import size
from loadtest.__main__ import main
from loadtest.size import Fleet, need

PAGE = (Path(__file__).parents[2] / "docs" / "sizing.md").read_text("utf-8")
SMALL = Fleet(1000)
BYTES = size.CONNECTION_BYTES["tls"]


def test_nothing_to_do_is_two_nodes() -> None:
    found = need(SMALL)
    assert found.nodes == 2
    assert found.redis == 1
    assert found.redis_bytes == 0


def test_connections_are_divided_and_routes_are_not() -> None:
    fleet = Fleet(1_000_000, "tls", memory=4 << 30)
    everywhere = size.NODE_BYTES + 1e6 * size.ROUTE_BYTES
    found = need(fleet)
    assert found.because == "memory"
    assert found.node_bytes == pytest.approx(BYTES * 1e6 / found.nodes + everywhere)
    assert (found.nodes - 1) * ((4 << 29) - everywhere) >= BYTES * 1e6 > (found.nodes - 2) * ((4 << 29) - everywhere)


def test_messages_need_nodes_by_cpu() -> None:
    fleet = replace(SMALL, messages=200_000)
    assert need(fleet).because == "CPU"
    assert need(replace(fleet, messages=400_000)).nodes == pytest.approx(2 * need(fleet).nodes, abs=2)


def test_what_every_node_holds_or_hears_no_number_of_nodes_bears() -> None:
    by_memory = need(replace(SMALL, connections=10_000_000))
    assert not by_memory.nodes
    assert "holds" in by_memory.because
    by_changes = need(replace(SMALL, churn=20_000))
    assert not by_changes.nodes
    assert "hears" in by_changes.because


def test_the_store_bears_sessions_and_what_waits() -> None:
    found = need(Fleet(100_000, subscriptions=3, stored=True, waiting=1_000_000, retained=100_000, payload=100))
    assert found.redis_bytes == 60e6 + 90e6 + 300e6 + 35e6


def test_the_page_has_an_example_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```console\n\$ rookery-loadtest (size .*)\n((?:.*\n)*?)```", PAGE)
    assert example
    assert main(example[1].split()) == 0
    assert capsys.readouterr().out == example[2]
