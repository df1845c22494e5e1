"""What nodes say of themselves: sums, readiness, the text for Prometheus, and the way between processes."""

from __future__ import annotations

import json
import socket

import pytest
import trio

from broker.channel import Channel
from broker.http import scraping
from broker.http.exposition import exposition
from broker.http.report import (
    DRAINING,
    FENCED,
    JOINING,
    OVERLOADED,
    READY,
    RESTARTING,
    SILENT,
    STARTING,
    UNREACHABLE,
    Report,
    ready,
)
from broker.metrics import Metrics
from broker.metrics_catalogue import FAMILIES, NODE_STATES, Samples, growing, summed


def _report(node: str = "a", status: str = READY, **values: object) -> Report:
    return Report(node, status, **values)  # type: ignore[arg-type]


def _scrape(reports: list[Report], ended: Samples | None = None) -> dict[str, float]:
    lines = exposition(reports, ended or {})[0].decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_values_of_workers_become_one_by_what_they_mean() -> None:
    one: Samples = {
        "mqtt_connections": {"a,5": 1},
        "mqtt_cluster_members": {"": 3},
        "mqtt_store_available": {"": 1},
        "mqtt_turn_seconds": {"": [1, 2, 0.5]},
        "undeclared": {"": 1},
    }
    other: Samples = {
        "mqtt_connections": {"a,5": 2, "a,3.1.1": 1},
        "mqtt_cluster_members": {"": 2},
        "mqtt_store_available": {"": 0},
        "mqtt_turn_seconds": {"": [0, 1, 0.25]},
    }
    assert summed([one, {}, other]) == {
        "mqtt_connections": {"a,5": 3, "a,3.1.1": 1},
        "mqtt_cluster_members": {"": 3},
        "mqtt_store_available": {"": 0},
        "mqtt_turn_seconds": {"": [1, 3, 0.75]},
    }
    assert summed([]) == {}
    assert one["mqtt_turn_seconds"] == {"": [1, 2, 0.5]}
    assert growing(one) == {"mqtt_turn_seconds": {"": [1, 2, 0.5]}}


def test_ready_is_when_all_are_that_clients_may_come_to() -> None:
    assert ready([_report(), _report()]) == READY
    assert ready([_report(), _report(status=FENCED)]) == FENCED
    assert ready([_report(), _report(status=STARTING)]) == STARTING
    assert ready([_report(), _report(status=RESTARTING)]) == READY
    assert ready([_report(status=RESTARTING)]) == RESTARTING
    drained = _report(status=DRAINING, resting=True)
    assert ready([drained, _report()]) == READY
    assert ready([drained, _report(status=UNREACHABLE)]) == UNREACHABLE
    assert ready([drained, drained]) == ready([drained]) == DRAINING
    assert ready([drained, _report(status=RESTARTING)]) == DRAINING
    assert ready([_report(status=DRAINING), _report()]) == DRAINING  # it ends, and the others with it


def test_every_status_is_a_state() -> None:
    why = OVERLOADED + "the event loop is late, by up to 2.0 s"
    known = (READY, STARTING, JOINING, UNREACHABLE, FENCED, DRAINING, RESTARTING, SILENT, why)
    assert {_report(status=status).state for status in known} == set(NODE_STATES)
    assert ready([_report(), _report(status=why)]) == why
    assert _scrape([_report(status=why)])['mqtt_node_state{state="overloaded"}'] == 1


def test_one_scrape_of_several_nodes() -> None:
    metrics = Metrics()
    metrics.messages_received[1] = 3
    metrics.dropped["queue_full"] = 2
    one = _report(
        connections=2,
        available=True,
        members=["a:1", "b:2"],
        samples={**metrics.samples(), "mqtt_connections": {"tcp://h:1,5": 2}, "mqtt_cluster_subscriptions": {"": 7}},
    )
    other = _report(
        "b",
        connections=1,
        samples={"mqtt_connections": {"tcp://h:1,5": 1}, "mqtt_cluster_subscriptions": {"": 8}},
        available=True,
        members=["a:1", "b:2"],
    )
    found = _scrape([one, other], growing(metrics.samples()))
    assert found['mqtt_connections{listener="tcp://h:1",protocol_version="5"}'] == 3
    assert found["mqtt_cluster_subscriptions"] == 8
    assert found['mqtt_node_state{state="ready"}'] == 2
    assert found["mqtt_cluster_members"] == 2
    assert found["mqtt_store_available"] == 1
    assert found['mqtt_messages_received_total{qos="1"}'] == 6  # of one that runs and of one that ended
    assert found['mqtt_messages_dropped_total{reason="queue_full"}'] == 4


def test_a_store_that_one_node_cannot_reach_is_not_available() -> None:
    assert _scrape([_report(available=True), _report(available=False)])["mqtt_store_available"] == 0
    assert _scrape([])["mqtt_store_available"] == 0


def test_everything_that_is_counted_is_declared_and_told() -> None:
    samples = Metrics().samples()
    assert samples.keys() <= FAMILIES.keys()
    for name, values in samples.items():
        if not values:
            family = FAMILIES[name]
            key = ",".join(family.labels)
            samples[name] = {key: [0.0] * (len(family.bounds) + 2) if family.bounds else 1}
    names = {name.partition("{")[0] for name in _scrape([_report(samples=samples)])}
    assert {f"{name}_count" if FAMILIES[name].bounds else name for name in samples} <= names


def test_a_histogram_is_told_with_the_sums_of_its_buckets() -> None:
    metrics = Metrics()
    for value in (0.0004, 0.002, 20.0):
        metrics.turn_seconds.observe(value)
    found = _scrape([_report(samples=metrics.samples())])
    assert found['mqtt_turn_seconds_bucket{le="0.0005"}'] == 1
    assert found['mqtt_turn_seconds_bucket{le="0.0025"}'] == 2
    assert found['mqtt_turn_seconds_bucket{le="10.0"}'] == 2
    assert found['mqtt_turn_seconds_bucket{le="+Inf"}'] == found["mqtt_turn_seconds_count"] == 3
    assert found["mqtt_turn_seconds_sum"] == 20.0024


def test_the_format_is_what_the_scraper_knows() -> None:
    body, content_type = exposition([_report()], {}, "application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    for accept in ("", "text/html", "text/plain;version=x", "a;;=,,"):
        assert not exposition([_report()], {}, accept)[0].endswith(b"# EOF\n")


def test_a_report_passes_as_json() -> None:
    report = _report(members=["a:1"], samples=Metrics().samples(), durability="aof")
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


class _Source:
    """A node that counts how often it is asked."""

    name = "a"

    def __init__(self) -> None:
        self.asked = 0

    async def reports(self) -> list[Report]:
        self.asked += 1
        return [_report()]

    def ended(self) -> Samples:
        return {}


@pytest.mark.parametrize(("dear_s", "asked"), [(60.0, 4), (-1.0, 2)])
async def test_what_took_long_is_told_again_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, dear_s: float, asked: int
) -> None:
    monkeypatch.setattr(scraping, "_DEAR_S", dear_s)
    monkeypatch.setattr(scraping, "_KEPT_S", 60.0)
    monkeypatch.setattr(scraping, "_LONG_S", -1.0)  # in a thread
    source = _Source()
    scrapes = scraping.Scrapes(source)
    plain = await scrapes.answer()
    assert await scrapes.answer() == plain
    other = await scrapes.answer("application/openmetrics-text")
    assert other != plain
    assert await scrapes.answer("application/openmetrics-text") == other
    assert source.asked == asked
