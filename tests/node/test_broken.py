"""Connections that break, and a store that loses its data, while something is under way."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import (
    Connack,
    Disconnect,
    Puback,
    Publish,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from tests.node.kit import Peer, World, serving


async def _publish(world: World, topic: str) -> int:
    """The reason code of the answer to a message."""
    sender = await world.connect("sender")
    await sender.send(Publish(topic, b"x", 1, False, False, 1))
    reason_code = (await sender.expect(Puback)).reason_code
    await sender.send(Disconnect())
    return reason_code


async def _break_subscribing(world: World, peer: Peer, gate: str, topic_filter: str) -> None:
    """The connection ends between SUBSCRIBE and SUBACK, on either side of the store's work."""
    shut = getattr(world.cluster, gate)
    shut.shut()
    await peer.send(Subscribe(9, [SubscriptionRequest(topic_filter, 1)]))
    assert shut.waiting == 1
    peer.socket.reset()
    await world.settle()
    shut.open()
    await world.settle()


@pytest.mark.parametrize("topic_filter", ["t", "$share/g/t"])
@pytest.mark.parametrize("gate", ["subscribing", "subscribed"])
@pytest.mark.parametrize("others", [False, True])
async def test_a_connection_that_breaks_before_suback(
    autojump_clock: trio.abc.Clock, topic_filter: str, gate: str, others: bool
) -> None:
    """Whether the subscription is there or not: the store and the node agree, and a new SUBSCRIBE works."""
    async with serving() as world:
        peer = await (world.subscriber("c", "other", expiry_s=100) if others else world.connect("c", expiry_s=100))
        await _break_subscribing(world, peer, gate, topic_filter)
        [stored] = [set(each.subscriptions) for each in world.cluster._sessions.values()]
        again = await world.connect("c", clean_start=False, expiry_s=100)
        assert again.connack is not None
        assert again.connack.session_present
        there = topic_filter in stored
        assert there or gate == "subscribing"
        assert await _publish(world, "t") == (0 if there else 0x10)
        assert await again.payloads() == ([b"x"] if there else [])
        await again.send(Subscribe(10, [SubscriptionRequest(topic_filter, 1)]))
        await again.expect(Suback)
        assert await _publish(world, "t") == 0
        assert await again.payloads() == [b"x"]


@pytest.mark.parametrize("topic_filter", ["t", "$share/g/t"])
async def test_a_taken_over_connection_that_was_subscribing(autojump_clock: trio.abc.Clock, topic_filter: str) -> None:
    """The next connection is there before the answer of the store."""
    async with serving() as world:
        peer = await world.subscriber("c", "other", expiry_s=100)
        world.cluster.subscribed.shut()
        await peer.send(Subscribe(9, [SubscriptionRequest(topic_filter, 1)]))
        assert world.cluster.subscribed.waiting == 1
        again = world.connecting("c", clean_start=False, expiry_s=100)
        await world.settle()
        world.cluster.subscribed.open()
        assert (await again.expect(Connack)).session_present
        assert await _publish(world, "t") == 0
        assert await again.payloads() == [b"x"]


@pytest.mark.parametrize("topic_filter", ["t", "$share/g/t"])
async def test_a_group_whose_last_member_leaves_while_another_subscribes(
    autojump_clock: trio.abc.Clock, topic_filter: str
) -> None:
    async with serving() as world:
        leaving = await world.subscriber("leaving", topic_filter)
        coming = await world.connect("coming", expiry_s=100)
        world.cluster.subscribed.shut()
        await coming.send(Subscribe(9, [SubscriptionRequest(topic_filter, 1)]))
        await leaving.send(Disconnect())
        world.cluster.subscribed.open()
        await coming.expect(Suback)
        assert await _publish(world, "t") == 0
        assert await coming.payloads() == [b"x"]


@pytest.mark.parametrize("gate", ["attaching", "attached"])
async def test_a_session_that_ends_with_a_connection_that_was_never_let_in(
    autojump_clock: trio.abc.Clock, gate: str
) -> None:
    """Resumed with a Session Expiry Interval of 0, and gone before CONNACK."""
    async with serving() as world:
        peer = await world.subscriber("c", "t", "$share/g/u", expiry_s=100)
        await peer.send(Disconnect())
        shut = getattr(world.cluster, gate)
        shut.shut()
        peer = world.connecting("c", clean_start=False)
        await world.settle()
        assert shut.waiting == 1
        peer.socket.reset()
        await world.settle()
        shut.open()
        await world.settle()
        assert not world.cluster._sessions
        assert not world.server.dispatch.subscribers
        assert not world.server.dispatch.groups
        assert not world.cluster._groups._queues
        assert [await _publish(world, topic) for topic in ("t", "u")] == [0x10, 0x10]


@pytest.mark.parametrize("how", ["reset", "finish"])
@pytest.mark.parametrize("version", [4, 5])
async def test_a_disconnect_that_waits_behind_a_subscribe(
    autojump_clock: trio.abc.Clock, how: str, version: int
) -> None:
    """It was received: the will is deleted [MQTT-3.14.4-3], also if the peer is gone when its turn comes."""
    async with serving() as world:
        watcher = await world.subscriber("watcher", "#")
        persistent = {"clean_start": version == 5, "expiry_s": 100}
        leaving = await world.connect("leaving", version, will=Will("will", b"left", 1, False), **persistent)
        broken = await world.connect("broken", version, will=Will("will", b"broken", 1, False), **persistent)
        world.cluster.subscribing.shut()
        subscribe = Subscribe(9, [SubscriptionRequest("x", 1)])
        await leaving.send(subscribe, Disconnect())
        await broken.send(subscribe)
        assert world.cluster.subscribing.waiting == 2
        for peer in (leaving, broken):
            getattr(peer.socket, how)()
            await world.settle()
        world.cluster.subscribing.open()
        assert await watcher.payloads() == [b"broken"]
        assert leaving.closed()
        assert broken.closed()


async def test_a_store_that_lost_its_data(autojump_clock: trio.abc.Clock) -> None:
    """Clients begin anew: no session that the node knows exists any more."""
    async with serving() as world:
        peers = [
            await world.subscriber("persistent", "t", "$share/g/u", expiry_s=100),
            await world.subscriber("ephemeral", "t"),
            await world.subscriber("old", "t", version=4),
        ]
        away = await world.subscriber("away", "away", expiry_s=100)
        await away.send(Disconnect())
        world.cluster._sessions.clear()
        world.cluster._groups._queues.clear()
        world.cluster.events.store_emptied()
        await world.settle()
        assert all(peer.closed() for peer in peers)
        assert [(await peer.expect(Disconnect)).reason_code for peer in peers[:2]] == [0x83, 0x83]
        await peers[2].nothing()
        assert not world.server.dispatch.subscribers
        assert not world.server.dispatch.groups
        assert [await _publish(world, topic) for topic in ("t", "u", "away")] == [0x10] * 3
        again = await world.subscriber("persistent", "t", "$share/g/u", expiry_s=100, clean_start=False)
        assert again.connack is not None
        assert not again.connack.session_present
        assert [await _publish(world, topic) for topic in ("t", "u")] == [0, 0]
        assert await again.payloads() == [b"x", b"x"]
