"""What operators change of sessions that nobody is connected with, as clients and publishers see it."""

from __future__ import annotations

import trio

from broker.codec.packets import Disconnect, Puback, Publish
from broker.reasons import NO_MATCHING_SUBSCRIBERS
from cluster.api import StoredSubscription
from tests.node.kit import Peer, World, serving


async def offline(world: World, *topic_filters: str) -> None:
    """A session "c" that nobody is connected with."""
    peer = await world.connect("c", expiry_s=600)
    if topic_filters:
        await peer.subscribe(*topic_filters)
    await peer.send(Disconnect())
    await world.settle()


async def publish(world: World, peer: Peer, topic: str, payload: bytes) -> int:
    """Returns the reason code of the acknowledgement."""
    await peer.send(Publish(topic, payload, 1, False, False, 1))
    return (await peer.expect(Puback)).reason_code


async def test_a_subscription_on_behalf_of_a_client_gets_what_is_published_then(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with serving() as world:
        await offline(world, "old")
        sender = await world.connect("sender")
        assert await publish(world, sender, "new", b"0") == NO_MATCHING_SUBSCRIBERS
        assert await world.cluster.inspection.change_subscriptions("c", [StoredSubscription("new", 1)], ["old"])
        assert await publish(world, sender, "new", b"1") == 0
        assert await publish(world, sender, "old", b"2") == NO_MATCHING_SUBSCRIBERS
        again = await world.connect("c", clean_start=False, expiry_s=600)
        assert await again.payloads() == [b"1"]
        assert await publish(world, sender, "new", b"3") == 0
        assert await again.payloads() == [b"3"]


async def test_a_member_of_a_group_on_behalf_of_a_client(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await offline(world)
        sender = await world.connect("sender")
        assert await world.cluster.inspection.change_subscriptions("c", [StoredSubscription("$share/g/t", 1)], [])
        assert await publish(world, sender, "t", b"1") == 0
        again = await world.connect("c", clean_start=False, expiry_s=600)
        assert await again.payloads() == [b"1"]


async def test_an_ended_session_gets_nothing_more(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await offline(world, "t", "$share/g/t")
        sender = await world.connect("sender")
        assert await publish(world, sender, "t", b"1") == 0
        assert await world.cluster.inspection.end_session("c")
        assert await publish(world, sender, "t", b"2") == NO_MATCHING_SUBSCRIBERS
        again = await world.connect("c", clean_start=False, expiry_s=600)
        assert await again.payloads() == []
