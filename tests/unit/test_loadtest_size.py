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


def _figures(constant: str) -> tuple[list[float], list[float]]:
    """Return the numbers of a row of the page's constants: of the column of nodes, of that of Redis."""
    [line] = [line for line in PAGE.splitlines() if line.startswith(f"| {constant}")]
    node, redis = (
        [float(each.replace(",", "")) for each in re.findall(r"[\d,.]*\d", cell)] for cell in line.split("|")[2:4]
    )
    return node, redis


def test_the_constants_are_those_of_the_page() -> None:
    assert [round(each, -2) for each in _figures("idle connection")[0]] == list(size.CONNECTION_BYTES.values())
    assert list(size.CONNECTION_BYTES) == ["tcp", "tls", "ws", "wss"]
    assert round(max(_figures("route, on")[0]), -2) == size.ROUTE_BYTES
    assert _figures("connect without TLS") == ([size.CONNECT_US], [size.CONNECT_REDIS_US])
    assert _figures("TLS handshake")[0] == [size.CONNECT_TLS_US - size.CONNECT_US]
    assert _figures("SUBSCRIBE of one filter")[1] == [size.ROUTE_REDIS_US, size.ROUTE_READ_US]
    assert _figures("the same, stored session") == (
        [size.ROUTE_OWN_US, size.ROUTE_OTHER_US],
        [size.ROUTE_STORED_REDIS_US, size.ROUTE_READ_US],
    )
    for qos in ("0", "1"):
        node, redis = _figures(f"QoS {qos}, node to node, single")
        assert (*node, *redis) == size.MESSAGE_US[qos]
    out, into, store = size.MESSAGE_US["stored"]
    assert _figures("QoS 1 to a stored session, single") == ([out + into], [store])


def test_the_formulas_are_those_of_the_page() -> None:
    assert f"{size.NODE_BYTES // 10**6} MB + connections / nodes" in PAGE
    assert f"sessions x {size.SESSION_BYTES} + subscriptions x {size.SUBSCRIPTION_BYTES}\n" in PAGE
    assert f"queued messages x ({size.QUEUED_BYTES} + payload)" in PAGE
    assert f"retained messages x ({size.RETAINED_BYTES} + payload)" in PAGE
