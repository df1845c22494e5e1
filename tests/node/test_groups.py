"""Shared subscriptions on one node: who gets a message, and what becomes of it when that member leaves."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import Disconnect, Puback, Publish, Pubrec, Pubrel
from broker.session.quotas import Quotas
from cluster.policy import ClusterLimits
from tests.node.kit import Peer, World, serving

SHARED = "$share/g/t"


async def _send(world: World, first: int, last: int, qos: int = 1) -> None:
    sender = await world.connect("sender")
    for n in range(first, last + 1):
        sender.put(Publish("t", b"%d" % n, qos, False, False, 1 + n % 60_000))
        if qos == 2:
            sender.put(Pubrel(1 + n % 60_000))
        await world.settle()
    await sender.send(Disconnect())


def _numbers(messages: list[Publish]) -> list[int]:
    return [int(message.payload) for message in messages]


async def _queued(world: World) -> int:
    await world.settle()
    return sum(map(len, world.cluster._groups._queues.values()))


@pytest.mark.parametrize("expiry_s", [0, 100])
@pytest.mark.parametrize("qos", [1, 2])
async def test_each_message_goes_to_one_member(autojump_clock: trio.abc.Clock, qos: int, expiry_s: int) -> None:
    async with serving() as world:
        members = [await world.subscriber(f"m{n}", SHARED, expiry_s=expiry_s) for n in range(3)]
        await _send(world, 1, 30, qos)
        got = [_numbers(await member.consume()) for member in members]
        assert sorted(n for each in got for n in each) == list(range(1, 31))
        assert [len(each) for each in got] == [10, 10, 10]
        assert all(each == sorted(each) for each in got)
        assert await _queued(world) == 0


@pytest.mark.parametrize("how", ["disconnect", "reset"])
async def test_what_a_leaving_member_had_goes_to_others_oldest_first(autojump_clock: trio.abc.Clock, how: str) -> None:
    async with serving() as world:
        leaving = await world.subscriber("leaving", SHARED, receive_maximum=10)
        await _send(world, 1, 25)
        first = await leaving.publishes()
        assert _numbers(first) == list(range(1, 11))
        await leaving.send(Puback(first[3].packet_id), Puback(first[0].packet_id))
        more = await leaving.publishes()
        assert _numbers(more) == [11, 12]
        staying = await world.subscriber("staying", SHARED, receive_maximum=4)
        if how == "disconnect":
            await leaving.send(Disconnect())
        else:
            leaving.socket.reset()
        given = _numbers(await staying.consume())
        # It had four newer ones when the other left; then come the oldest.
        assert sorted(given) == [2, 3, *range(5, 26)]
        rest = [n for n in given if n not in given[:4]]
        assert rest == sorted(rest)
        assert await _queued(world) == 0


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_members_that_come_back_find_what_waited(autojump_clock: trio.abc.Clock, expiry_s: int) -> None:
    """More than the node keeps in memory: the rest is paged."""
    async with serving() as world:
        keeper = await world.subscriber("keeper", SHARED, expiry_s=1000, qos=1)
        await keeper.send(Disconnect())
        await _send(world, 1, 2500)
        assert await _queued(world) == 2500
        if expiry_s:
            member = await world.connect("keeper", clean_start=False, expiry_s=1000, receive_maximum=7)
        else:
            member = await world.subscriber("other", SHARED, qos=1, receive_maximum=7)
        assert _numbers(await member.consume()) == list(range(1, 2501))
        assert await _queued(world) == 0


@pytest.mark.parametrize("expiry_s", [0, 1000])
async def test_qos2_is_given_as_the_window_allows(autojump_clock: trio.abc.Clock, expiry_s: int) -> None:
    """A long queue is not poured into the first member: what its own queue cannot hold would be lost."""
    async with serving(Quotas(max_queued_messages=20), ClusterLimits(max_queued_messages=20)) as world:
        keeper = await world.subscriber("keeper", SHARED, expiry_s=1000)
        await keeper.send(Disconnect())
        await _send(world, 1, 300, 2)
        member = await world.subscriber("member", SHARED, expiry_s=expiry_s, receive_maximum=5)
        assert _numbers(await member.consume()) == list(range(1, 301))
        assert not world.metrics.dropped


async def test_qos2_stays_with_the_session_that_got_it(autojump_clock: trio.abc.Clock) -> None:
    """[MQTT-4.8.2-5]"""
    async with serving() as world:
        member = await world.subscriber("member", SHARED, expiry_s=1000)
        await _send(world, 1, 3, 2)
        [first, *_] = await member.publishes()
        await member.send(Pubrec(first.packet_id))
        member.socket.reset()
        other = await world.subscriber("other", SHARED)
        await other.nothing()
        again = await world.connect("member", clean_start=False, expiry_s=1000)
        assert _numbers(await again.consume()) == [2, 3]


async def test_a_full_store_does_not_spin(autojump_clock: trio.abc.Clock) -> None:
    """A QoS 2 message whose member's queue cannot take it is offered again after a while, not at once."""
    async with serving() as world:
        keeper = await world.subscriber("keeper", SHARED, expiry_s=1000)
        await keeper.send(Disconnect())
        await _send(world, 1, 5, 2)
        world.cluster.full = True
        before = world.cluster.publications
        member = await world.connect("keeper", clean_start=False, expiry_s=1000)
        with trio.move_on_after(2.5):
            await world.settle()
            await trio.sleep(100)
        assert world.cluster.publications - before <= 5 * 4
        world.cluster.full = False
        await trio.sleep(3)
        assert sorted(_numbers(await member.consume())) == [1, 2, 3, 4, 5]


async def test_expired_messages_are_not_given(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        keeper = await world.subscriber("keeper", SHARED, expiry_s=1000, qos=1)
        await keeper.send(Disconnect())
        sender = await world.connect("sender")
        sender.socket.feed(b"\x32\x0c\x00\x01t\x00\x02\x05\x02\x00\x00\x00\x05x")
        await sender.send(Publish("t", b"2", 1, False, False, 3))
        await trio.sleep(6)
        member = await world.connect("keeper", clean_start=False, expiry_s=1000)
        assert _numbers(await member.consume()) == [2]
        assert world.metrics.dropped == {"expired": 1}
        assert await _queued(world) == 0


async def test_a_message_too_large_for_a_member_is_done_with(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        member = await world.subscriber("member", SHARED, qos=1, maximum_packet_size=50, receive_maximum=1)
        sender = await world.connect("sender")
        await sender.send(
            Publish("t", b"x" * 60, 1, False, False, 1),
            Publish("t", b"1", 1, False, False, 2),
            Publish("t", b"x" * 60, 1, False, False, 3),
            Publish("t", b"2", 1, False, False, 4),
        )
        assert _numbers(await member.consume()) == [1, 2]
        assert await _queued(world) == 0


async def _leave_and_return(world: World, member: Peer) -> Peer:
    member.socket.reset()
    await world.settle()
    return await world.connect("member", clean_start=False, expiry_s=1000, receive_maximum=3)


async def test_redelivery_to_a_member_that_comes_and_goes(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        member = await world.subscriber("member", SHARED, qos=1, expiry_s=1000, receive_maximum=3)
        await _send(world, 1, 20)
        done: list[int] = []
        for _ in range(6):
            messages = await member.publishes()
            assert len(messages) == 3
            done.append(int(messages[0].payload))
            await member.send(Puback(messages[0].packet_id))
            await member.publishes()
            member = await _leave_and_return(world, member)
        assert done == [1, 2, 3, 4, 5, 6]
        assert _numbers(await member.consume()) == list(range(7, 21))
