"""G3, G11, G13: a message that comes again, by a retry or from the store, is no second copy for sessions without a
queue, and one that never came is a first one."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import Pubcomp, Publish, Pubrec, Pubrel
from broker.message import Message
from cluster import keys
from cluster.api import StoredWill
from tests.node.kit import Peer, World, serving

ID = b"0123456789abcdef"


def _again(payload: bytes = b"m", qos: int = 2, message_id: bytes = ID) -> Message:
    return Message(b"t", payload, qos, False, message_id=message_id)


async def _taken(peer: Peer) -> list[bytes]:
    return [message.payload for message in await peer.consume()]


async def _publisher(world: World) -> Peer:
    return await world.connect("p", clean_start=False, expiry_s=1000)


async def _retry(world: World, *readers: Peer) -> list[list[bytes]]:
    """The publisher comes back and finishes; returns what the readers got of it."""
    publisher = await _publisher(world)
    await publisher.send(Publish("t", b"m", 2, False, True, 7))
    await publisher.expect(Pubrec)
    await publisher.send(Pubrel(7))
    await publisher.expect(Pubcomp)
    return [await _taken(reader) for reader in readers]


@pytest.mark.parametrize("others", [False, True])
async def test_g3_a_message_that_was_reserved_only_is_delivered(autojump_clock: trio.abc.Clock, others: bool) -> None:
    async with serving() as world:
        world.cluster.single = not others
        reader = await world.subscriber("r", "t")
        publisher = await _publisher(world)
        world.cluster.held = True
        await publisher.send(Publish("t", b"m", 2, False, False, 7))
        world.cluster.held = False
        publisher.socket.reset()  # seen before the answer to `reserve`, which the store has carried out
        await reader.nothing()
        assert await _retry(world, reader) == [[b"m"]]


async def test_g3_a_message_that_was_delivered_is_not_delivered_again(autojump_clock: trio.abc.Clock) -> None:
    """Who subscribed since then (also at QoS 0) has not got it."""
    async with serving() as world:
        reader = await world.subscriber("r", "t")
        low = await world.subscriber("low", "t", qos=0, expiry_s=100)
        publisher = await _publisher(world)
        await publisher.send(Publish("t", b"m", 2, False, False, 7))
        await publisher.expect(Pubrec)
        publisher.socket.reset()
        assert await _taken(reader) == await _taken(low) == [b"m"]
        await reader.subscribe("t", "+")
        await reader.received()
        late = await world.subscriber("late", "t")
        assert await _retry(world, reader, low, late) == [[], [], [b"m"]]


@pytest.mark.parametrize("qos", [0, 2])
async def test_g3_a_message_of_another_node_that_comes_twice(autojump_clock: trio.abc.Clock, qos: int) -> None:
    """From its first node, and from the one that the publisher went to."""
    async with serving() as world:
        reader = await world.subscriber("r", "t")
        events = world.cluster.events
        for _ in range(2):
            events.deliver(_again(qos=qos), True, ())
            events.deliver(_again(qos=1, message_id=b""), True, ())
            world.reactor.wake()
        assert await _taken(reader) == [b"m"] * 3
        late = await world.subscriber("late", "t")
        events.deliver(_again(qos=qos), True, ())
        world.reactor.wake()
        assert [await _taken(reader), await _taken(late)] == [[], [b"m"]]


async def test_g3_a_retry_of_a_message_that_another_node_delivered_here(autojump_clock: trio.abc.Clock) -> None:
    """The publisher goes from the other node to this one."""
    async with serving() as world:
        world.cluster.single = False
        reader = await world.subscriber("r", "t")
        publisher = await _publisher(world)
        world.cluster.held = True
        await publisher.send(Publish("t", b"m", 2, False, False, 7))
        world.cluster.held = False
        publisher.socket.reset()  # seen before the answer to `reserve`, which the store has carried out
        await world.settle()
        [message_id] = world.cluster.inbound_messages("p")
        world.cluster.events.deliver(_again(message_id=message_id), True, ())
        world.reactor.wake()
        assert await _taken(reader) == [b"m"]
        assert await _retry(world, reader) == [[]]


async def test_a_retry_adds_no_copy_at_qos_0(autojump_clock: trio.abc.Clock) -> None:
    """A persistent session is given those by a stream of its own; the publisher comes from the other node."""
    async with serving() as world:
        world.cluster.single = False
        low = await world.subscriber("low", "t", qos=0, expiry_s=100)
        other = await world.subscriber("other", "t", qos=0, expiry_s=100)
        events = world.cluster.events
        for qos in (2, 0):
            message = _again(qos=qos, message_id=ID[:-1] + b"%d" % qos)
            for _ in range(2):
                events.deliver_stored(keys.session_id("low"), 0, message, 0, False, ())
                world.reactor.wake()
            await events.will_due("c", StoredWill(message, 0))
            events.deliver_stored(keys.session_id("other"), 0, message, 0, False, ())
            world.reactor.wake()
            assert await low.payloads() == await other.payloads() == [b"m"]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_g13_what_is_due_comes_twice(autojump_clock: trio.abc.Clock, qos: int) -> None:
    """The node that published it could not say so in time, or died; or this one could not."""
    async with serving() as world:
        world.cluster.single = False
        reader = await world.subscriber("r", "t")
        await world.subscriber("away", "t", expiry_s=100)
        events = world.cluster.events
        for number in range(4):
            events.deliver(_again(b"d", qos, ID[:-1] + b"d"), True, ())
            if number % 2:
                await events.will_due("c", StoredWill(_again(b"w", qos), 0))
        assert sorted(await _taken(reader)) == [b"d", b"w"]
        assert world.cluster.queue_length("away") == (1 if qos else 0)


async def test_what_is_remembered_is_bounded(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        given = world.server.dispatch.given
        for number in range(70_000):
            assert not given.note(b"%016d" % number)
        assert len(given) == 65_536
        assert given.note(b"%016d" % 69_999) == 70_000
        assert not given.note(b"%016d" % 0)


async def test_messages_without_an_id_are_not_remembered(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.single = False
        await world.subscriber("r", "t")
        publisher = await _publisher(world)
        await publisher.send(Publish("t", b"0", 0, False, False, 0), Publish("t", b"1", 1, False, False, 1))
        world.cluster.events.deliver(_again(message_id=b""), True, ())
        other = await world.connect("ephemeral")
        await other.send(Publish("t", b"2", 2, False, False, 1))
        assert not len(world.server.dispatch.given)
