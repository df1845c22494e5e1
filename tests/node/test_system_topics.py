"""`$SYS/`: what a node says of itself, to whom."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from broker.codec.packets import Disconnect, Puback, Publish, Suback, SubscriptionRequest
from broker.message import Message
from cluster.api import StoredSubscription
from tests.node.access_kit import FakeAccess, Rules, ruled
from tests.node.kit import Peer, World, serving

OPEN: Any = {"node_name": "n", "system_open": True}
CLOSED: Any = {"node_name": "n", "system_open": False}


async def _values(peer: Peer) -> dict[str, str]:
    return {each.topic_name: each.payload.decode() for each in await peer.publishes()}


async def test_values_at_subscribe_and_then_in_time(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        client = await world.connect("c")
        await client.subscribe("$SYS/#")
        packets = await client.received()
        assert isinstance(packets[0], Suback)
        first = {each.topic_name: each for each in packets[1:] if isinstance(each, Publish)}
        assert all(each.retain and each.qos == 0 for each in first.values())
        assert first["$SYS/broker/clients/connected"].payload == b"1"
        assert b"n" in first["$SYS/brokers"].payload.split(b",")
        assert first["$SYS/brokers/n/durability"].payload == b"memory"
        await trio.sleep(1)
        await client.send(Publish("x", b"", 1, False, False, 3))
        await client.expect(Puback)
        world.server.system_topics.tick()
        live = await client.publishes()
        assert {each.topic_name for each in live} == set(first)
        assert not any(each.retain or each.qos for each in live)
        found = {each.topic_name: each.payload for each in live}
        assert found["$SYS/broker/publish/messages/received"] == b"1"
        assert found["$SYS/brokers/n/metrics/messages/qos1/received"] == b"1"
        assert found["$SYS/brokers/n/metrics/packets/publish/received"] == b"1"
        assert found["$SYS/brokers/n/stats/subscriptions/count"] == b"1"


async def test_the_most_there_was_is_remembered(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", "$SYS/broker/clients/#")
        await spy.received()
        others = [await world.connect(f"c{number}") for number in range(4)]
        world.server.system_topics.tick()
        assert (await _values(spy))["$SYS/broker/clients/maximum"] == "5"
        for each in others:
            await each.send(Disconnect(0))
        await trio.sleep(2)
        world.server.system_topics.tick()
        values = await _values(spy)
        assert values["$SYS/broker/clients/connected"] == "1"
        assert values["$SYS/broker/clients/maximum"] == "5"


async def test_loads_are_averages_of_a_minute(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", "$SYS/broker/load/publish/received/+")
        await spy.received()
        world.server.system_topics.tick()
        await spy.received()
        for _ in range(60):
            await spy.send(*[Publish("x", b"", 0) for _ in range(10)])
            await trio.sleep(10)
            world.server.system_topics.tick()
        values = {name.rpartition("/")[2]: float(value) for name, value in (await _values(spy)).items()}
        assert 59 < values["1min"] <= 60.0, "ten messages in ten seconds"
        assert values["15min"] < values["5min"] < values["1min"]


async def test_an_interval_of_0(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        world.server.system_topics.interval_s = 0
        spy = await world.subscriber("spy", "$SYS/#")
        assert await _values(spy) == {"$SYS/brokers/n/durability": "memory"}


async def test_who_may_read_without_any_rules(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**CLOSED) as world:
        client = await world.connect("c")
        await client.subscribe("$SYS/#", "$SYS", "$SYS/broker/uptime", "$share/g/$SYS/#", "#", "+/x")
        suback = await client.expect(Suback)
        assert list(suback.reason_codes) == [0x87, 0x87, 0x87, 0x87, 2, 2]
        await client.nothing()


@pytest.mark.parametrize("superuser", [False, True])
async def test_a_superuser_reads(autojump_clock: trio.abc.Clock, superuser: bool) -> None:
    async with serving(**CLOSED) as world:
        client = await world.connect("c")
        [connection] = world.server.connections
        assert connection.principal is not None
        connection.principal.superuser = superuser
        await client.subscribe("$SYS/brokers/n/durability")
        suback = await client.expect(Suback)
        assert list(suback.reason_codes) == [2 if superuser else 0x87]


async def test_a_subscription_of_before_is_gone(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        client = await world.subscriber("c", "$SYS/broker/#", "a", expiry_s=100)
        await client.received()
        await client.send(Disconnect(0))
        world.server.system_open = False
        client = await world.connect("c", clean_start=False, expiry_s=100)
        assert client.connack is not None and client.connack.session_present
        await world.connect("other")
        await client.nothing()
        assert len(world.server.dispatch.system) == 0


async def test_rules_decide_where_there_are_rules(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules(subscribe=lambda name: name == "$SYS/broker/#", read=lambda topic: topic == b"$SYS/broker/uptime")
    async with ruled(FakeAccess(c=rules), **CLOSED) as world:
        client = await world.connect("c")
        await client.subscribe("$SYS/#", "$SYS/broker/#")
        suback = await client.expect(Suback)
        assert list(suback.reason_codes) == [0x87, 2]
        assert list(await _values(client)) == ["$SYS/broker/uptime"]


async def test_subscription_options_of_live_values(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        client = await world.connect("c")
        request = SubscriptionRequest("$SYS/broker/uptime", 2, False, True, 2)
        await client.subscribe(request)
        await client.expect(Suback)
        await client.nothing()  # Retain Handling 2
        world.server.system_topics.tick()
        [value] = await client.publishes()
        assert value.retain  # Retain As Published


PRIVATE_AND_SYSTEM = ("$rookery/#", "$share/g/$rookery/#", "$SYS/brokers/#", "a")


async def _left_behind(world: World, *filters: str) -> None:
    """A session of `c` with these subscriptions, and a message for each."""
    client = await world.connect("c", expiry_s=100, clean_start=False)
    await client.send(Disconnect(0))
    await world.settle()
    stored = [StoredSubscription(each, 1) for each in filters]
    assert await world.cluster.inspection.change_subscriptions("c", stored, [])
    await world.settle()
    for number, topic in enumerate(("a", "$rookery/ask", "$SYS/brokers/n/clients/x/connected", "a", "$SYS/x", "a")):
        name = topic.encode()
        message = Message(name, b"%d" % number, 1, False, accepted_at_ms=world.server.now_ms)
        world.server.dispatch.publish(message, world.server.dispatch.route(name), None)
    world.server.reactor.wake()
    await world.settle()
    assert len(await world.cluster.inspection.queue("c", 0, 100)) >= 4


@pytest.mark.parametrize("removed", [False, True], ids=["in-force", "removed-before"])
async def test_nothing_private_leaves_a_queue(autojump_clock: trio.abc.Clock, removed: bool) -> None:
    async with serving(**CLOSED) as world:
        await _left_behind(world, *PRIVATE_AND_SYSTEM)
        if removed:  # but what was queued stays
            gone = [each for each in PRIVATE_AND_SYSTEM if each != "a"]
            assert await world.cluster.inspection.change_subscriptions("c", [], gone)
        client = await world.connect("c", clean_start=False, expiry_s=100)
        assert client.connack is not None and client.connack.session_present
        assert [each.topic_name for each in await client.consume()] == ["a", "a", "a"]
        assert await world.cluster.inspection.queue("c", 0, 100) == []
        kept = await world.cluster.inspection.subscriptions("c")
        assert [each.topic_filter for each in kept or ()] == ["a"]
        await client.subscribe("b")
        await client.expect(Suback)
        await client.send(Publish("b", b"", 0))
        assert [each.topic_name for each in await client.publishes()] == ["b"], "all else goes on"


async def test_who_may_see_the_values_gets_what_waits(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        await _left_behind(world, *PRIVATE_AND_SYSTEM)
        client = await world.connect("c", clean_start=False, expiry_s=100)
        told = [each.topic_name for each in await client.consume() if not each.topic_name.endswith("c/connected")]
        assert told == ["a", "$SYS/brokers/n/clients/x/connected", "a", "a"]


async def test_rules_do_not_give_what_is_of_the_nodes(autojump_clock: trio.abc.Clock) -> None:
    async with ruled(FakeAccess(c=Rules()), **CLOSED) as world:
        await _left_behind(world, *PRIVATE_AND_SYSTEM)
        client = await world.connect("c", clean_start=False, expiry_s=100)
        told = [each.topic_name for each in await client.consume() if not each.topic_name.endswith("c/connected")]
        assert told == ["a", "$SYS/brokers/n/clients/x/connected", "a", "a"]
        kept = await world.cluster.inspection.subscriptions("c")
        assert sorted(each.topic_filter for each in kept or ()) == ["$SYS/brokers/#", "a"]


async def test_what_the_node_has_for_itself_counts_nowhere(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        counted = ("clients/total", "clients/disconnected", "subscriptions/count")
        spy = await world.subscriber(
            "spy", *(f"$SYS/broker/{each}" for each in counted), "$SYS/brokers/n/stats/+/count"
        )
        before = await _values(spy)
        assert [before[f"$SYS/broker/{each}"] for each in counted] == ["1", "0", "4"]
        world.server.inside.listen("$rookery/x", lambda message: None)
        for attempt in range(2):
            async with world.server.inside.subscription("a"), world.server.inside.subscription("b"):
                world.server.system_topics.tick()
                assert await _values(spy) == before, attempt
                world.server.inside.reset()
                world.server.system_topics.tick()
                assert await _values(spy) == before, attempt
