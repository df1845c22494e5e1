"""What nodes say of themselves: sums, readiness, the text for Prometheus, and the way between processes."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
import trio.testing

from broker.admin.relay import Relay
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
from broker.workers import ANSWER_S, SILENT_S, WorkerProcess


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
        member="a:1",
        members=["a:1", "b:2"],
        samples={**metrics.samples(), "mqtt_connections": {"tcp://h:1,5": 2}, "mqtt_cluster_subscriptions": {"": 7}},
    )
    other = _report(
        "b",
        connections=1,
        samples={"mqtt_connections": {"tcp://h:1,5": 1}, "mqtt_cluster_subscriptions": {"": 8}},
        available=True,
        member="a:1",
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
    one, other = _report(member="a:1", available=True), _report(member="b:1", available=False)
    assert _scrape([one, other])["mqtt_store_available"] == 0
    assert _scrape([])["mqtt_store_available"] == 0


def test_a_worker_that_has_not_joined_says_nothing_of_the_store() -> None:
    one, starting = _report(member="a:1", available=True), _report("b", RESTARTING)
    assert _scrape([one, starting])["mqtt_store_available"] == 1
    assert _scrape([starting])["mqtt_store_available"] == 0


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
    """A node that counts how often it is asked, and takes its time on a clock of its own."""

    name = "a"

    def __init__(self, takes_s: float = 0.0) -> None:
        self.asked = 0
        self.now = 1000.0
        self._takes_s = takes_s

    async def reports(self) -> list[Report]:
        self.asked += 1
        self.now += self._takes_s
        return [_report(connections=self.asked)]

    async def statuses(self) -> list[Report]:
        raise AssertionError("not for scrapes")

    def ended(self) -> Samples:
        return {}

    def clock(self) -> float:
        return self.now


async def test_scrapes_without_end_take_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scraping, "_LONG_S", -1.0)  # in a thread
    source = _Source(0.02)
    scrapes = scraping.Scrapes(source, source.clock)
    for _ in range(2000):  # 1 ms each
        await scrapes.answer()
        await scrapes.answer("application/openmetrics-text")
        source.now += 0.001
    assert (source.now - 1000.0) * 0.1 / 0.02 <= source.asked <= (source.now - 1000.0) * 0.1 / 0.02 + 8
    asked = source.asked
    source.now += 60.0
    for _ in range(5):
        await scrapes.answer()
    assert source.asked == asked + 5  # after a pause there is time for some


async def test_what_takes_longer_than_it_may_is_no_older_than_a_second() -> None:
    source = _Source(5.0)
    scrapes = scraping.Scrapes(source, source.clock)
    plain = await scrapes.answer()
    assert await scrapes.answer("text/plain") == plain
    other = await scrapes.answer("application/openmetrics-text")
    assert other[1] != plain[1]
    assert await scrapes.answer("x, application/openmetrics-text;q=0.5") == other
    assert source.asked == 2
    source.now += 1.0
    await scrapes.answer()
    assert source.asked == 3


async def test_one_scrape_is_made_at_a_time() -> None:
    source = _Source(5.0)
    scrapes = scraping.Scrapes(source, source.clock)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(scrapes.answer)
    assert source.asked == 1


class _End:
    """The other end of a worker's channel."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self._say, self._said = trio.open_memory_channel[dict[str, Any]](10)

    def send(self, content: dict[str, Any]) -> None:
        self.sent.append(content)

    async def receive(self) -> dict[str, Any] | None:
        return await self._said.receive()

    def say(self, content: dict[str, Any]) -> None:
        self._say.send_nowait(content)

    def answer(self, report: Report) -> None:
        self.say({**self.sent[-1], "report": report.packed()})


@asynccontextmanager
async def worker_process() -> AsyncIterator[tuple[WorkerProcess, _End]]:
    worker, end = WorkerProcess("n-1"), _End()
    channel = cast(Channel, end)
    worker._channel, worker.relay = channel, Relay(end.send)
    worker.last = _report("n-1", samples=Metrics().samples())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker._listen, channel, worker.relay)
        yield worker, end
        nursery.cancel_scope.cancel()


async def test_a_worker_that_does_not_answer_is_not_waited_for_again(autojump_clock: trio.abc.Clock) -> None:
    metrics = Metrics()
    metrics.messages_received[0] = 7
    last = _report("n-1", member="n-1:1", members=["n-1:1", "n-2:1"], connections=3, available=True)
    last.samples = {**metrics.samples(), "mqtt_subscriptions": {"": 5}}
    async with worker_process() as (worker, end):
        worker.last = last
        for wait_s in (ANSWER_S, SILENT_S, SILENT_S):
            began = trio.current_time()
            report = await worker.report()
            assert trio.current_time() - began == pytest.approx(wait_s)
            shown = report.shown()
            assert (shown["status"], shown["members"], shown["connections"]) == (SILENT, [], 0)
        assert len(end.sent) == 1  # nothing piles up
        relay = worker.relay
        assert relay is not None
        heard = [not relay.silent]
        found = _scrape([report, _report("n-2", member="n-2:1", members=["n-2:1"], available=True)])
        assert found["mqtt_cluster_members"] == 1
        assert found["mqtt_store_available"] == 1
        assert found['mqtt_messages_received_total{qos="0"}'] == 7
        assert "mqtt_subscriptions" not in found
        end.answer(last)
        await trio.testing.wait_all_tasks_blocked()
        assert [*heard, not relay.silent] == [False, True]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.report)
            await trio.testing.wait_all_tasks_blocked()
            assert len(end.sent) == 2
            end.answer(last)


async def test_a_worker_that_stands_still_is_ended(autojump_clock: trio.abc.Clock) -> None:
    async with worker_process() as (worker, end):

        async def watched_s() -> float:
            began = trio.current_time()
            await worker.watch(cast(Channel, end), 30.0)
            return trio.current_time() - began

        async def talk() -> None:
            for _ in range(10):
                end.say({"alive": True})
                await trio.sleep(24.0)

        assert await watched_s() == pytest.approx(300.0)  # while it starts
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            assert await watched_s() == pytest.approx(9 * 24.0 + 30.0, abs=5.0)
        assert worker.missed
        assert {"alive": True} in end.sent


async def test_what_a_worker_counted_is_kept_when_only_its_state_is_asked_for(autojump_clock: trio.abc.Clock) -> None:
    async with worker_process() as (worker, end):
        assert worker.last is not None
        samples = worker.last.samples
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.report, False)
            await trio.testing.wait_all_tasks_blocked()
            assert end.sent == [{"asked": 1, "counted": False}]
            end.answer(_report("n-1", DRAINING))
        assert (worker.last.status, worker.last.samples) == (DRAINING, samples)
