"""Retained messages for a new subscription: paced by the window, and never newer before older."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import Puback, Publish, Suback
from cluster.policy import ClusterLimits
from tests.node.kit import Peer, World, serving


def _feeds(world: World) -> int:
    """Retained feeds that are under way."""
    return sum(len(connection.feed_scopes) for connection in world.server.connections)


async def _retain(world: World, count: int, qos: int = 1) -> None:
    sender = await world.connect("sender")
    for start in range(0, count, 50):
        sender.put(
            *[
                Publish(f"r/{n}", b"%d" % n, qos, True, False, n % 50 + 1 if qos else 0)
                for n in range(start, start + 50)
            ]
        )
        await world.settle()
    await sender.received()


@pytest.mark.parametrize("window", [1, 2, 100])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_a_thousand_retained_messages_through_a_window(
    autojump_clock: trio.abc.Clock, window: int, expiry_s: int
) -> None:
    async with serving(limits=ClusterLimits(max_queued_messages=200)) as world:
        await _retain(world, 1000)
        taker = await world.connect("taker", receive_maximum=window, expiry_s=expiry_s)
        await taker.subscribe("r/#", qos=1)
        packets = await taker.received()
        assert isinstance(packets[0], Suback)
        messages = [packet for packet in packets if isinstance(packet, Publish)]
        open_ids: set[int] = set()
        seen: list[bytes] = []
        while messages:
            for message in messages:
                assert message.retain
                assert message.packet_id not in open_ids
                open_ids.add(message.packet_id)
                seen.append(message.payload)
            assert len(open_ids) <= window
            acked = min(open_ids)
            open_ids.discard(acked)
            await taker.send(Puback(acked))
            messages = await taker.publishes()
        while open_ids:
            await taker.send(Puback(open_ids.pop()))
            for message in await taker.publishes():
                seen.append(message.payload)
                open_ids.add(message.packet_id)
        assert sorted(seen, key=int) == [b"%d" % n for n in range(1000)]
        assert not world.metrics.dropped


async def test_two_feeds_at_a_time_both_end(autojump_clock: trio.abc.Clock) -> None:
    """Two SUBSCRIBEs of one client: its window is shared, and no feed waits for ever."""
    async with serving() as world:
        await _retain(world, 200)
        taker = await world.connect("taker", receive_maximum=1)
        await taker.subscribe("r/#", qos=1)
        await taker.subscribe("+/+", qos=1)
        packets = await taker.received()
        assert [packet.kind for packet in packets].count(Suback.kind) == 2
        messages = [packet for packet in packets if isinstance(packet, Publish)]
        taker.put(*[Puback(message.packet_id) for message in messages])
        messages += await taker.consume()
        assert len(messages) == 400
        assert world.tasks() == 0


async def test_qos0_retained_messages_wait_for_room(autojump_clock: trio.abc.Clock) -> None:
    """They are droppable, but a new subscriber gets them all if its output flows."""
    async with serving(bound=2000) as world:
        await _retain(world, 1000, qos=0)
        taker = await world.connect("taker")
        taker.socket.set_room(100)
        await taker.subscribe("r/#", qos=0)
        for _ in range(400):
            taker.socket.set_room(100)
            await world.settle()
        taker.socket.set_room(None)
        packets = await taker.received()
        payloads = [packet.payload for packet in packets if isinstance(packet, Publish)]
        assert sorted(payloads, key=int) == [b"%d" % n for n in range(1000)]
        assert not world.metrics.dropped


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_a_newer_live_message_is_not_followed_by_the_older_retained_one(
    autojump_clock: trio.abc.Clock, expiry_s: int
) -> None:
    async with serving() as world:
        await _retain(world, 50)
        sender = await world.connect("other")
        taker = await world.connect("taker", expiry_s=expiry_s)
        world.cluster.retained_read.shut()  # the old value is read, and on its way
        await taker.subscribe("r/7", qos=1)
        await taker.expect(Suback)
        await taker.nothing()
        await sender.send(Publish("r/7", b"new", 1, True, False, 1))
        world.cluster.retained_read.open()
        messages = await taker.publishes()
        assert [message.payload for message in messages] == [b"new"]


async def test_a_message_that_was_deleted_meanwhile(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await _retain(world, 50)
        sender = await world.connect("other")
        taker = await world.connect("taker", receive_maximum=1)
        await taker.subscribe("r/1", "r/2", qos=1)
        await taker.expect(Suback)
        first = await taker.expect(Publish)
        other = b"2" if first.payload == b"1" else b"1"
        await sender.send(Publish("r/" + other.decode(), b"", 1, True, False, 1))
        await taker.send(Puback(first.packet_id))
        messages = await taker.consume()
        assert [message.payload for message in messages] in ([b""], [other, b""])
        assert messages[-1].payload == b""


async def test_who_leaves_ends_the_feed(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await _retain(world, 500)
        taker = await world.connect("taker", receive_maximum=1)
        await taker.subscribe("r/#", qos=1)
        assert world.tasks() == 1
        taker.socket.reset()
        await world.settle()
        assert world.tasks() == 0


async def _values(peer: Peer) -> list[tuple[bytes, bool]]:
    return [(message.payload, message.retain) for message in await peer.publishes()]


async def test_expired_retained_messages_are_not_sent(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        # Message Expiry Interval 10 and a payload
        sender.socket.feed(b"\x31\x0d\x00\x03r/x\x05\x02\x00\x00\x00\x0aabc"[:13] + b"ab")
        await world.settle()
        first = await world.subscriber("first", "r/#", qos=0)
        assert await _values(first) == [(b"ab", True)]
        await trio.sleep(11)
        second = await world.subscriber("second", "r/#", qos=0)
        assert await _values(second) == []
