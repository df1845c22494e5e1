"""Shared subscriptions with members on several nodes, and how the members of this one take turns."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from broker.codec.packets import Disconnect, Puback, Publish, Unsuback, Unsubscribe
from broker.message import Message
from cluster import keys
from cluster.api import (
    HASH_CLIENTID,
    HASH_TOPIC,
    LEAST_INFLIGHT,
    LOCAL,
    RANDOM,
    ROUND_ROBIN,
    STICKY,
    GroupEntry,
    shared_group_id,
)
from tests.node.faulty_cluster import node_route
from tests.node.kit import Peer, World, serving

B = b"b:1"
SHARED = "$share/g/t"
GROUP = shared_group_id(SHARED)


def _entry(number: int, member: str = "", kept_for: str = "", qos: int = 1) -> GroupEntry:
    return GroupEntry(
        b"%016d" % number,
        Message(b"t", b"%d" % number, qos, False),
        keys.session_id(kept_for) if kept_for else b"",
        keys.session_id(member) if member else b"",
    )


def _give(world: World, *entries: GroupEntry, depth: int = -1) -> None:
    world.cluster.events.group_entries(GROUP, entries, depth)
    world.reactor.wake()


def _numbers(messages: Sequence[Publish]) -> list[int]:
    return [int(message.payload) for message in messages]


async def _send(world: World, first: int, last: int, qos: int = 1, topic: str = "t") -> Peer:
    sender = await world.connect("sender")
    for number in range(first, last + 1):
        sender.put(Publish(topic, b"%d" % number, qos, False, False, number if qos else 0))
    await world.settle()
    return sender


async def test_the_cluster_knows_who_is_connected(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        first = await world.subscriber("first", SHARED, receive_maximum=7, expiry_s=100)
        second = await world.subscriber("second", SHARED)
        third = await world.connect("third")
        assert world.cluster.told_members(SHARED) == {"first": (True, 7), "second": (False, 100)}
        await second.send(Unsubscribe(5, [SHARED]))
        await second.expect(Unsuback)
        assert world.cluster.told_members(SHARED) == {"first": (True, 7)}
        await first.send(Disconnect())
        await third.subscribe(SHARED)
        assert world.cluster.told_members(SHARED) == {"third": (False, 100)}
        await world.connect("first", clean_start=False, expiry_s=100)
        assert world.cluster.told_members(SHARED) == {"first": (True, 100), "third": (False, 100)}


async def test_a_subscription_waits_until_the_members_are_known(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.connect("c")
        world.cluster.group_told.shut()
        await peer.subscribe(SHARED)
        await peer.nothing()
        world.cluster.fail()
        world.cluster.group_told.open()
        await peer.subscribe("later")
        await trio.sleep(3)
        world.cluster.recover()
        await trio.sleep(3)
        assert [packet.kind for packet in await peer.received()] == [9, 9]


async def test_qos0_takes_turns_over_nodes(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.single = False
        here = await world.subscriber("here", SHARED)
        world.cluster.change_routes(node_route(B, SHARED), node_route(B, "t"))
        await _send(world, 1, 4, 0)
        got = await here.payloads()
        given = [payload for _, live, groups, payload in world.cluster.pushed if groups == [GROUP] and live]
        assert len(got) == len(given) == 2
        assert sorted(got + given) == [b"1", b"2", b"3", b"4"]
        assert len(world.cluster.pushed) == 4, "the ephemeral sessions there get all"
        world.cluster.events.deliver(Message(b"t", b"5", 0, False), False, [GROUP, b"unknown"])
        world.reactor.wake()
        assert await here.payloads() == [b"5"]
        assert world.metrics.dropped == {"no_member_online": 1}


async def test_qos0_goes_where_members_are(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.single = False
        world.cluster.change_routes(node_route(B, SHARED))
        await _send(world, 1, 2, 0)
        assert world.cluster.pushed == [(B, False, [GROUP], b"1"), (B, False, [GROUP], b"2")]
        world.cluster.change_routes(node_route(B, SHARED, True))
        world.cluster.elsewhere("away", SHARED)
        await _send(world, 3, 3, 0)
        assert world.metrics.dropped == {"no_member_online": 1}


@pytest.mark.parametrize("strategy", [ROUND_ROBIN, LOCAL, RANDOM, LEAST_INFLIGHT, STICKY, HASH_TOPIC, HASH_CLIENTID])
async def test_every_strategy_gives_each_message_to_one_member(autojump_clock: trio.abc.Clock, strategy: str) -> None:
    async with serving(strategy_of=lambda name: strategy) as world:
        members = [await world.subscriber(f"m{n}", SHARED, qos=1, receive_maximum=5) for n in range(3)]
        await _send(world, 1, 60)
        got: list[list[int]] = [[], [], []]
        while any(found := [_numbers(await member.consume()) for member in members]):
            for each, new in zip(got, found, strict=True):
                each += new
        assert sorted(number for each in got for number in each) == list(range(1, 61))
        if strategy in (STICKY, HASH_TOPIC, HASH_CLIENTID):
            assert sorted(map(len, got)) == [0, 0, 60]
        elif strategy != RANDOM:
            assert all(got)


async def test_the_member_with_the_most_room(autojump_clock: trio.abc.Clock) -> None:
    async with serving(strategy_of=lambda name: LEAST_INFLIGHT) as world:
        small = await world.subscriber("small", SHARED, qos=1, receive_maximum=2)
        large = await world.subscriber("large", SHARED, qos=1, receive_maximum=6)
        await _send(world, 1, 6)
        assert len(await large.publishes()) == 5
        assert len(await small.publishes()) == 1


@pytest.mark.parametrize("strategy", [STICKY, HASH_TOPIC, HASH_CLIENTID])
async def test_qos0_by_what_the_strategy_looks_at(autojump_clock: trio.abc.Clock, strategy: str) -> None:
    async with serving(strategy_of=lambda name: strategy) as world:
        members = [await world.subscriber(f"m{n}", SHARED) for n in range(3)]
        await _send(world, 1, 9, 0)
        assert sorted([len(await member.publishes()) for member in members]) == [0, 0, 9]


async def test_an_entry_for_a_certain_member_waits_for_it(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        busy = await world.subscriber("busy", SHARED, qos=1, receive_maximum=1)
        free = await world.subscriber("free", SHARED, qos=1)
        world.cluster.change_routes(node_route(B, SHARED))
        _give(world, _entry(1, "busy"), _entry(2, "busy"), _entry(3, "busy"), _entry(4))
        [first] = await busy.publishes()
        assert _numbers(await free.publishes()) == [4]
        await trio.sleep(5)
        await free.nothing()
        await busy.send(Puback(first.packet_id))
        assert _numbers(await busy.publishes()) == [2]
        _give(world, _entry(5, "away"))
        assert world.cluster.returned == [5]
        busy.socket.reset()
        await world.settle()
        assert world.cluster.returned == [5, 3, 2]
        await free.nothing()


async def test_entries_that_nobody_here_takes_go_to_other_nodes(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.subscriber("c", SHARED, qos=1, receive_maximum=1)
        _give(world, *map(_entry, range(1, 4)))
        [first] = await peer.publishes()
        await trio.sleep(5)
        assert world.cluster.returned == [], "nobody else has members"
        world.cluster.change_routes(node_route(B, SHARED))
        await trio.sleep(0.5)
        await peer.send(Puback(first.packet_id))
        assert _numbers(await peer.publishes()) == [2]
        await trio.sleep(1)
        assert world.cluster.returned == [], "one was taken in this second"
        await trio.sleep(1)
        assert world.cluster.returned == [3]
        _give(world, _entry(3))
        await trio.sleep(1.5)
        assert world.cluster.returned == [3, 3], "it came back here"


async def test_what_the_last_member_had_goes_back_once_the_store_knows(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.subscriber("c", SHARED, qos=1, receive_maximum=2)
        _give(world, *map(_entry, range(1, 6)))
        await peer.publishes()
        world.cluster.group_told.shut()
        peer.socket.reset()
        await world.settle()
        assert world.cluster.returned == []
        world.cluster.group_told.open()
        await world.settle()
        assert sorted(world.cluster.returned) == [1, 2, 3, 4, 5]
        assert not world.server.dispatch.groups
        _give(world, _entry(6))
        await world.settle()
        assert world.cluster.returned[-1] == 6


async def test_an_entry_that_is_told_twice(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.subscriber("c", SHARED, qos=1, receive_maximum=1)
        _give(world, _entry(1), _entry(2), _entry(1), _entry(2))
        assert _numbers(await peer.consume()) == [1, 2]


async def test_a_message_kept_for_a_session_elsewhere(autojump_clock: trio.abc.Clock) -> None:
    """[MQTT-4.8.2-5] Whoever holds the entry moves it into the queue of that session."""
    async with serving() as world:
        await world.subscriber("here", SHARED)
        world.cluster.elsewhere("away", SHARED)
        _give(world, _entry(1, kept_for="away", qos=2), _entry(2, kept_for="gone", qos=2))
        await world.settle()
        assert world.cluster.queue_length("away") == 1
        assert world.metrics.dropped == {"session_gone": 1}
        assert world.cluster.returned == []


async def test_publishers_wait_while_the_queue_is_long(autojump_clock: trio.abc.Clock) -> None:
    async with serving(max_group_queue=20) as world:
        world.cluster.single = False
        world.cluster.change_routes(node_route(B, SHARED))
        world.cluster.elsewhere("away", SHARED)
        sender = await _send(world, 1, 14)
        assert [packet.kind for packet in await sender.received()] == [4] * 10
        _give(world, depth=14)
        assert len(await sender.received()) == 3, "half of the room is for what others publish"
        _give(world, depth=10)
        assert len(await sender.received()) == 1
        await _send(world, 1, 2)
        world.cluster.change_routes(node_route(B, SHARED, True))
        assert not world.server.dispatch.groups[GROUP].holding._held
