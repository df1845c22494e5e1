"""What nodes say of themselves: sums, readiness, the text for Prometheus, and the way between processes."""

from __future__ import annotations

import json
import socket

import trio

from broker.channel import Channel
from broker.http.exposition import exposition
from broker.http.report import (
    FENCED,
    READY,
    RESTARTING,
    STARTING,
    Counters,
    Report,
    ready,
    total,
)
from broker.metrics import Metrics


def _report(node: str = "a", status: str = READY, **values: object) -> Report:
    return Report(node, status, **values)  # type: ignore[arg-type]


def _scrape(reports: list[Report], ended: Counters | None = None) -> dict[str, float]:
    lines = exposition(reports, ended or {}).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_counters_are_summed_by_what_they_count() -> None:
    one: Counters = {"n": 1, "by_qos": [1, 2, 3], "by_reason": {"x": 1}}
    other: Counters = {"n": 2, "by_qos": [0, 1, 0], "by_reason": {"x": 1, "y": 5}}
    assert total([one, {}, other]) == {"n": 3, "by_qos": [1, 3, 3], "by_reason": {"x": 2, "y": 5}}
    assert total([]) == {}
    assert one == {"n": 1, "by_qos": [1, 2, 3], "by_reason": {"x": 1}}


def test_ready_is_when_all_are_that_clients_may_come_to() -> None:
    assert ready([_report(), _report()]) == READY
    assert ready([_report(), _report(status=FENCED)]) == FENCED
    assert ready([_report(), _report(status=STARTING)]) == STARTING
    assert ready([_report(), _report(status=RESTARTING)]) == READY
    assert ready([_report(status=RESTARTING)]) == RESTARTING


def test_one_scrape_of_several_nodes() -> None:
    metrics = Metrics()
    metrics.messages_received[1] = 3
    metrics.dropped["queue_full"] = 2
    groups = {"aa": [5, 2, 1500], "bb": [1, 0, 0]}
    one = _report(
        connections=2,
        subscriptions=7,
        available=True,
        members=["a:1", "b:2"],
        groups=groups,
        counters=metrics.counters(),
    )
    other = _report(
        "b", connections=1, subscriptions=8, available=True, members=["a:1", "b:2"], groups={"aa": [4, 2, 900]}
    )
    found = _scrape([one, other], metrics.counters())
    assert found["mqtt_connections"] == 3
    assert found["mqtt_subscriptions"] == 8
    assert found["mqtt_cluster_members"] == 2
    assert found["mqtt_store_available"] == 1
    assert found["mqtt_shared_groups"] == 2
    assert found["mqtt_shared_group_lag"] == 6
    assert found["mqtt_shared_group_lag_max"] == 5
    assert found["mqtt_shared_group_pending"] == 2
    assert found["mqtt_shared_group_oldest_seconds"] == 1.5
    assert found['mqtt_messages_received_total{qos="1"}'] == 6  # of one that runs and of one that ended
    assert found['mqtt_messages_dropped_total{reason="queue_full"}'] == 4
    assert not any("aa" in name or "bb" in name for name in found)


def test_a_store_that_one_node_cannot_reach_is_not_available() -> None:
    assert _scrape([_report(available=True), _report(available=False)])["mqtt_store_available"] == 0
    assert _scrape([])["mqtt_store_available"] == 0


def test_every_counter_is_exposed() -> None:
    counters = {name: 1 if isinstance(value, int) else value for name, value in Metrics().counters().items()}
    names = {name.partition("{")[0] for name in _scrape([_report(counters=counters)])}
    plain = {f"{name}_total" for name, value in counters.items() if not isinstance(value, dict)}
    assert plain <= names


def test_a_report_passes_as_json() -> None:
    report = _report(members=["a:1"], groups={"aa": [1, 2, 3]}, counters=Metrics().counters(), durability="aof")
    again = Report(**json.loads(json.dumps(report.packed())))
    assert again.shown() == report.shown()
    assert _scrape([again]) == _scrape([report])


async def test_a_channel_carries_lines_both_ways_until_the_other_end_is_gone() -> None:
    left, right = socket.socketpair()
    one, other = Channel(left), Channel(right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(other.run)
        large = {"text": "x" * 1_000_000}
        one.send({"n": 1})
        one.send(large)
        other.send({"n": 2})
        with trio.fail_after(5):
            assert await one.receive() == {"n": 2}
            assert await other.receive() == {"n": 1}
            assert await other.receive() == large
        nursery.cancel_scope.cancel()
    one.close()
    with trio.fail_after(5):
        assert await other.receive() is None
    other.close()
