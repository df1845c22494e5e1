"""Messages of chosen topic filters are counted, on every way that a message takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from broker.admin.api import AdminError, Caller
from broker.admin.office import NodeControl, Office
from broker.codec.packets import Disconnect, Puback, Publish
from broker.config import Settings
from broker.measuring.life import Measuring
from broker.session.quotas import Quotas
from broker.session.run import Run
from tests.node.kit import World, serving


@asynccontextmanager
async def _office(**options: Any) -> AsyncIterator[tuple[World, Office]]:
    async with serving(node_name="n", **options) as world:
        world.cluster.single = True
        node = cast(NodeControl, SimpleNamespace(name="n", settings=Settings()))
        yield world, Office(node, world.server, world.metrics, Measuring(world.server))


async def _count(office: Office, *filters: str) -> None:
    for each in filters:
        await office.call("topic_metrics.add", {"topic_filter": each}, Caller())


async def _counts(office: Office) -> dict[str, tuple[list[int], list[int], int]]:
    result = await office.call("topic_metrics.list", {}, Caller())
    return {
        each["topic_filter"]: (list(each["received"].values()), list(each["sent"].values()), each["dropped"])
        for each in result["items"]
    }


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_all_ways_of_delivery(autojump_clock: trio.abc.Clock, version: int, expiry_s: int) -> None:
    async with _office() as (world, office):
        subscribers = [await world.subscriber(f"s{n}", "a/#", version=version, expiry_s=expiry_s) for n in range(3)]
        sender = await world.connect("sender", version)
        await sender.send(Publish("a/b", b"", 0))  # a route that takes the direct way
        await _count(office, "a/+", "other/#")
        for number, qos in enumerate((0, 0, 1, 1, 2)):
            await sender.send(Publish("a/b", b"x", qos, False, False, number + 1 if qos else 0))
        await sender.send(Publish("b", b"", 0))
        for each in subscribers:
            assert len(await each.consume()) == 6
        assert await _counts(office) == {"a/+": ([2, 2, 1], [6, 6, 3], 0), "other/#": ([0] * 3, [0] * 3, 0)}


async def test_all_filters_that_match_count(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        sender = await world.connect("sender")
        await _count(office, "#", "a", "+", "b")
        await sender.send(Publish("a", b"", 0))
        assert {name: found[0][0] for name, found in (await _counts(office)).items()} == {
            "#": 1,
            "a": 1,
            "+": 1,
            "b": 0,
        }


async def test_a_queue_counts_when_it_is_sent(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        await _count(office, "a")
        away = await world.subscriber("away", "a", qos=1, expiry_s=100)
        await away.send(Disconnect(0))
        slow = await world.subscriber("slow", "a", qos=1, receive_maximum=1)
        sender = await world.connect("sender")
        for number in range(3):
            await sender.send(Publish("a", b"", 1, False, False, number + 1))
        assert await _counts(office) == {"a": ([0, 3, 0], [0, 1, 0], 0)}
        assert len(await slow.consume()) == 3
        assert (await _counts(office))["a"][1] == [0, 3, 0]
        away = await world.connect("away", clean_start=False, expiry_s=100)
        assert len(await away.consume()) == 3
        assert (await _counts(office))["a"][1] == [0, 6, 0]


async def test_what_is_dropped(autojump_clock: trio.abc.Clock) -> None:
    async with _office(quotas=Quotas(max_queued_messages=1), bound=1000) as (world, office):
        await _count(office, "a")
        full = await world.subscriber("full", "a", qos=1, receive_maximum=1)
        stuck = await world.subscriber("stuck", "a", qos=0)
        small = await world.subscriber("small", "a", qos=0, maximum_packet_size=100)
        sender = await world.connect("sender")
        stuck.socket.set_room(0)
        for number in range(4):
            await sender.send(Publish("a", b"x" * 1500, 1, False, False, number + 1))
        received, _, dropped = (await _counts(office))["a"]
        assert received == [0, 4, 0]
        # Two do not fit the queue, four the small packets, all but those in the buffer the one that is stuck.
        assert dropped == 2 + 4 + world.metrics.dropped["output_full"] and world.metrics.dropped["output_full"] > 0
        del full, small


async def test_messages_of_other_nodes(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        subscriber = await world.subscriber("s", "a", qos=0)
        await _count(office, "a")
        world.cluster.events.deliver_frame(5, b"\x30\x05\x00\x01a\x00x")
        world.cluster.events.deliver_frame(4, b"\x30\x04\x00\x01ax")
        await world.settle()
        world.cluster.events.deliver_frame(5, b"\x30\x05\x00\x01a\x00x\x30\x05\x00\x01a\x00x", 2)
        run = b"\x32\x06\x00\x01a\x00\x01x\x32\x06\x00\x01a\x00\x02x"
        world.cluster.events.deliver_packets(Run(4, run, 2, 0, b""))
        await world.settle()
        assert [each.payload for each in await subscriber.publishes()] == [b"x"] * 6
        assert await _counts(office) == {"a": ([0, 0, 0], [6, 0, 0], 0)}


async def test_the_direct_way_is_left_only_by_topics_that_are_counted(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        await world.subscriber("s", "#", qos=0)
        await _count(office, "a/#")
        assert world.server.dispatch.route(b"a/b").live0 is None
        assert world.server.dispatch.route(b"b").live0 is not None
        await office.call("topic_metrics.remove", {"topic_filter": "a/#"}, Caller())
        assert world.server.dispatch.route(b"a/b").live0 is not None
        assert await _counts(office) == {}
        assert world.server.topic_counts.samples() == {"mqtt_topic_messages_total": {}}


async def test_rates_and_samples(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        await _count(office, "a,b/#")
        world.server.start(world.server.topic_counts.serve)
        sender = await world.connect("sender")
        for _ in range(12):
            for _ in range(10):
                await sender.send(Publish("a,b/c", b"", 0))
            await trio.sleep(1)
        [item] = (await office.call("topic_metrics.list", {}, Caller()))["items"]
        assert 9 <= item["received_per_s"] <= 11
        assert item["sent_per_s"] == 0
        samples = world.server.topic_counts.samples()["mqtt_topic_messages_total"]
        assert samples == {"a,b/#,received": 120, "a,b/#,sent": 0, "a,b/#,dropped": 0}


async def test_bounds(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (_, office):
        for name in ("", "a/#/b", "a+", "$share/g/a", "x" * 1025, "\0", "\ud800"):
            with pytest.raises(AdminError) as caught:
                await _count(office, name)
            assert caught.value.status == 400
        await _count(office, *[f"t/{number}" for number in range(50)], "t/1")
        with pytest.raises(AdminError) as caught:
            await _count(office, "one more")
        assert caught.value.status == 409
        with pytest.raises(AdminError) as caught:
            await office.call("topic_metrics.remove", {"topic_filter": "none"}, Caller())
        assert caught.value.status == 404


async def test_other_nodes_follow(autojump_clock: trio.abc.Clock) -> None:
    async with _office() as (world, office):
        world.server.start(world.server.topic_counts.serve)
        await world.cluster.registry.change("topic_metrics", {"a": b"{}"})
        await trio.sleep(2)
        assert list(await _counts(office)) == ["a"]
        sender = await world.connect("sender")
        await sender.send(Publish("a", b"", 1, False, False, 1))
        await sender.expect(Puback)
        assert (await _counts(office))["a"][0] == [0, 1, 0]
