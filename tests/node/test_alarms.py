"""Alarms and slow subscribers of one node, and how operators see them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from broker.admin.api import AdminError, Caller
from broker.admin.office import NodeControl, Office
from broker.codec.packets import Disconnect, Puback, Publish, Pubrec
from broker.config import Settings
from broker.extensions.alarms import HISTORY_MAX, HISTORY_MS, NAMES, Alarms
from broker.measuring.life import Measuring
from cluster.api import StoreHealth
from cluster.inspection import StoreMemory
from tests.node.kit import World, serving

OPEN: Any = {"node_name": "n", "system_open": True}


@asynccontextmanager
async def _office(**options: Any) -> AsyncIterator[tuple[World, Office]]:
    async with serving(**{**OPEN, **options}) as world:
        node = cast(NodeControl, SimpleNamespace(name="n", settings=Settings(), started_at_s=0.0))
        yield world, Office(node, world.server, world.metrics, Measuring(world.server))


def _memory(share: float) -> StoreMemory:
    return StoreMemory("127.0.0.1:6379", int(1000 * share), 1000, 0, 1, "7", "master", 0, True)


async def _items(office: Office, operation: str, **arguments: Any) -> list[dict[str, Any]]:
    result = await office.call(operation, {"node": "n", **arguments}, Caller())
    assert result["missing_nodes"] == []
    return cast("list[dict[str, Any]]", result["items"])


async def _names(office: Office) -> list[str]:
    return sorted(each["name"] for each in await _items(office, "alarms.list"))


async def test_memory_of_the_store_with_distance(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        alarms = world.server.alarms
        shares = iter((0.5, 0.79, 0.8, 0.76, 0.96, 0.85, 0.74, 0.79))
        alarms.memory = lambda: [_memory(next(shares))]
        seen = []
        for _ in range(8):
            alarms.look()
            seen.append([(each["severity"], each["subject"]) for each in await _items(office, "alarms.list")])
        on, worse = [("warning", "127.0.0.1:6379")], [("critical", "127.0.0.1:6379")]
        assert seen == [[], [], on, on, worse, on, [], []]
        [over] = await _items(office, "alarms.history")
        assert over["name"] == "store_memory" and over["deactivated_at_ms"] >= over["activated_at_ms"]
        await office.call("alarms.dismiss", {"node": "n"}, Caller())
        assert await _items(office, "alarms.history") == []


async def test_what_is_gone_raises_no_alarm(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        alarms = world.server.alarms
        alarms.memory = lambda: [_memory(0.9)]
        alarms.look()
        assert await _names(office) == ["store_memory"]
        alarms.memory = list
        alarms.look()
        assert await _names(office) == []


@pytest.mark.parametrize("days, severity", [(-1.0, "critical"), (2.5, "critical"), (13.5, "warning"), (15.5, None)])
async def test_certificates(autojump_clock: trio.abc.Clock, days: float, severity: str | None) -> None:
    async with _office() as (world, office):
        world.server.alarms.certificates = lambda: {"tls://0.0.0.0:8883": time.time() + days * 86400}
        world.server.alarms.look()
        items = await _items(office, "alarms.list", name="certificate_expiry")
        assert [each["severity"] for each in items] == ([severity] if severity else [])


async def test_the_store_is_away(autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _office() as (world, office):
        with monkeypatch.context() as patch:
            patch.setattr(world.cluster, "health", lambda: StoreHealth("memory", "", "memory", False, 0.0))
            world.server.alarms.look()
            assert await _names(office) == ["store_unavailable"]
        world.server.alarms.look()
        assert await _names(office) == []


async def test_many_connections(autojump_clock: trio.abc.Clock) -> None:
    async with _office(max_connections=10) as (world, office):
        clients = [await world.connect(f"c{number}") for number in range(9)]
        world.server.alarms.look()
        [alarm] = await _items(office, "alarms.list")
        assert (alarm["name"], alarm["message"]) == ("connections_near_limit", "9 of at most 10 connections")
        await clients[0].send(Disconnect(0))
        world.server.alarms.look()
        assert await _names(office) == []


async def test_full_queues(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        alarms = world.server.alarms
        alarms.look()
        assert await _names(office) == []
        world.metrics.dropped["queue_full"] += 5
        for _ in range(29):
            alarms.look()
            assert await _names(office) == ["queue_overflow"]
            await trio.sleep(2)
        await trio.sleep(3)
        alarms.look()
        assert await _names(office) == []


async def test_what_a_life_before_dropped_is_no_alarm(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        world.metrics.dropped["queue_full"] += 5
        alarms = world.server.alarms = Alarms(world.server, "n")
        alarms.look()
        assert await _names(office) == []
        world.metrics.dropped["queue_full"] += 1
        alarms.look()
        [alarm] = await _items(office, "alarms.list")
        assert (alarm["name"], alarm["message"][-3:]) == ("queue_overflow", ": 1")


async def test_events_and_metric(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        spy = await world.subscriber("spy", "$SYS/brokers/+/alarms/#")
        async with office.stream("events.alarms", {}, Caller()) as stream:
            assert set(world.metrics.alarms) == set(NAMES) and not any(world.metrics.alarms.values())
            world.server.alarms.overload = lambda: "too much waits"
            world.server.alarms.look()
            world.server.alarms.look()
            assert world.metrics.alarms["overloaded"] == 1
            world.server.alarms.overload = str
            world.server.alarms.look()
            told = await spy.consume()
            assert [each.topic_name for each in told] == [
                "$SYS/brokers/n/alarms/activate",
                "$SYS/brokers/n/alarms/deactivate",
            ]
            payloads = [json.loads(each.payload) for each in told]
            assert payloads[0]["message"] == "too much waits" and payloads[0]["deactivated_at_ms"] is None
            assert payloads[1]["deactivated_at_ms"]
            iterator = aiter(stream)
            assert [(await anext(iterator))["event"] for _ in range(2)] == ["activate", "deactivate"]
            assert world.metrics.alarms["overloaded"] == 0


async def test_history_is_bounded(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        alarms = world.server.alarms
        for _ in range(HISTORY_MAX + 5):
            alarms.overload = lambda: "x"
            alarms.look()
            alarms.overload = str
            alarms.look()
        assert len(await _items(office, "alarms.history")) == HISTORY_MAX
        for each in alarms.history()[:10]:
            each.deactivated_at_ms -= HISTORY_MS + 1000
        assert len(await _items(office, "alarms.history")) == HISTORY_MAX - 10


# -- slow subscribers


async def _look(world: World, times: int, pause_s: float = 0.2) -> None:
    for _ in range(times):
        await world.server.slow.look()
        await trio.sleep(pause_s)


@pytest.mark.parametrize("qos, expiry_s", [(1, 0), (2, 0), (1, 100), (2, 100)])
async def test_a_client_that_does_not_acknowledge(autojump_clock: trio.abc.Clock, qos: int, expiry_s: int) -> None:
    async with _office() as (world, office):
        slow = await world.subscriber("slow", "a", qos=qos, expiry_s=expiry_s)
        quick = await world.subscriber("quick", "a", qos=qos)
        sender = await world.connect("sender")
        await sender.send(Publish("a", b"", 2, False, False, 1))
        await quick.consume()
        await _look(world, 7)
        [entry] = await _items(office, "slow.list")
        assert (entry["client_id"], entry["reason"], entry["node"]) == ("slow", "acknowledgement", "n")
        assert 1000 <= entry["latency_ms"] <= 1400
        [message] = await slow.publishes()
        await slow.send(Puback(message.packet_id) if qos == 1 else Pubrec(message.packet_id))
        await slow.received()
        await office.call("slow.clear", {"node": "n"}, Caller())
        await _look(world, 2)
        assert await _items(office, "slow.list") == []
        await _look(world, 5)
        again = await _items(office, "slow.list")
        assert [each["client_id"] for each in again] == (["slow"] if qos == 2 else []), "PUBCOMP is still owed"


async def test_a_client_that_is_busy_is_not_slow(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        busy = await world.subscriber("busy", "a", qos=1)
        sender = await world.connect("sender")
        await sender.send(Publish("a", b"", 1, False, False, 1))
        owed: list[int] = []
        for number in range(20):  # always one or two in flight, none for long
            await sender.send(Publish("a", b"", 1, False, False, number + 2))
            owed += [each.packet_id for each in await busy.received() if isinstance(each, Publish)]
            await busy.send(Puback(owed.pop(0)))
            await _look(world, 1)
        assert owed
        assert await _items(office, "slow.list") == []


async def test_a_client_that_takes_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        client = await world.subscriber("c", "a", qos=0)
        client.socket.set_room(0)
        sender = await world.connect("sender")
        await sender.send(Publish("a", b"x" * 1000, 0))
        await _look(world, 2)
        assert await _items(office, "slow.list") == []
        await _look(world, 4)
        [entry] = await _items(office, "slow.list")
        assert (entry["client_id"], entry["reason"]) == ("c", "output")


async def test_entries_expire(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        client = await world.subscriber("c", "a", qos=1)
        sender = await world.connect("sender")
        await sender.send(Publish("a", b"", 1, False, False, 1))
        await _look(world, 5)
        await client.consume()
        assert len(await _items(office, "slow.list")) == 1
        await trio.sleep(world.server.slow.expiry_s + 1)
        assert await _items(office, "slow.list") == []


async def test_presence_as_a_stream(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office), office.stream("events.clients", {"client_id": "a/b"}, Caller()) as stream:
        iterator = aiter(stream)
        await world.connect("other")
        client = await world.connect("a/b", username="anna")
        await client.send(Disconnect(0))
        came, gone = [await anext(iterator) for _ in range(2)]
        assert (came["event"], gone["event"]) == ("connected", "disconnected")
        assert came["clientid"] == gone["clientid"] == "a/b" and came["epoch"] == gone["epoch"]
        assert "disconnected_at" not in came and gone["reason"] == "normal"


@pytest.mark.parametrize("operation", ["events.clients", "events.alarms", "stats.live"])
async def test_streams_end_with_the_life_of_the_node(autojump_clock: trio.abc.Clock, operation: str) -> None:
    async with _office() as (world, office):
        told: list[str] = []

        async def follow(task_status: trio.TaskStatus[None]) -> None:
            with pytest.raises(AdminError) as caught:
                async with office.stream(operation, {}, Caller()) as stream:
                    task_status.started()
                    async for _ in stream:
                        pass
            told.append(f"{caught.value.status} {caught.value.title}")

        async with trio.open_nursery() as nursery:
            await nursery.start(follow)
            await trio.sleep(0.1)
            world.server.abandon("fenced")
            office.end()
        assert told == ["503 cut off from the cluster"]


async def test_what_was_asked_of_a_life_ends_with_it(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _office() as (_, office):

        async def forever(*_: object) -> Any:
            await trio.sleep_forever()

        monkeypatch.setattr(office.inspection, "session", forever)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(AdminError) as caught:
                    await office.call("sessions.show", {"client_id": "c"}, Caller())
                assert caught.value.status == 503

            nursery.start_soon(ask)
            await trio.sleep(100)
            office.end()
