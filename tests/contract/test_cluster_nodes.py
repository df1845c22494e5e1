"""Two nodes on one store, as their brokers see them through the port."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import cast

import pytest
import trio

from broker.errors import SessionLost
from broker.session.run import Run
from cluster.api import HASH_TOPIC, REFUSED_GONE, ROUND_ROBIN, Extension, NodeTarget, StoredSubscription, StoredWill
from cluster.policy import ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import Answer, GroupHand, WaitingPublication, World, message, served, target
from tests.kit.redis_server import RedisServer

pytestmark = pytest.mark.parametrize("store", ["single", "shards"], indirect=True)

_numbers = itertools.count(1)


def make(server: RedisServer, namespace: str, node: str, **limits: float) -> RedisCluster:
    return RedisCluster(server.address, node, ClusterLimits(**limits), namespace, 16)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def two(server: RedisServer, **limits: float) -> AsyncIterator[tuple[World, World]]:
    namespace = f"nodes{next(_numbers)}"
    async with (
        served(make(server, namespace, "a", **limits)) as one,
        served(make(server, namespace, "b", **limits)) as other,
    ):
        yield one, other


def member(world: World) -> bytes:
    """The name of a node among the members."""
    (own,) = [
        each
        for each in world.cluster.health().members
        if each.startswith(cast(RedisCluster, world.cluster).node_name + ":")
    ]
    return own.encode()


def kill(world: World) -> None:
    """With its link closed a node can neither beat nor leave."""
    cast(RedisCluster, world.cluster)._link.close()


def filters(world: World) -> list[tuple[bool, str]]:
    """Changes of the route table in the order in which a node was told."""
    return [
        (change.removed, (change.session.subscription if change.session is not None else change.node).topic_filter)  # type: ignore[union-attr]
        for change in world.events.changes
    ]


async def test_both_are_members(store: RedisServer) -> None:
    async with two(store) as (one, other):
        await one.events.within(lambda: len(one.cluster.health().members) == 2)
        assert sorted(one.cluster.health().members) == sorted(other.cluster.health().members)
        assert not one.cluster.alone()
        assert not other.cluster.alone()
        assert one.cluster.holds_lease()
        assert other.cluster.holds_lease()


async def test_g5_a_subscription_is_known_before_anything_is_answered(store: RedisServer) -> None:
    """SUBSCRIBE is answered on one node; what the other then gets is not acknowledged before it knows of it."""
    async with two(store) as (one, other):
        at, visitor = await other.connect("c"), await other.connect("e", expiry_s=0)
        for number in range(50):
            name, plain = f"s/{number}", f"e/{number}"
            await other.subscribe(at, name)
            publication = await one.publish(message(name))
            assert (publication.error, (False, name) in filters(one)) == (None, True)
            await other.cluster.subscribe(visitor.ref, [StoredSubscription(plain, 1)], False)
            publication = await one.publish(message(plain))
            assert (publication.error, (False, plain) in filters(one)) == (None, True)
        await other.cluster.unsubscribe(at.ref, ["s/7"], True)
        await other.cluster.unsubscribe(visitor.ref, ["e/7"], False)
        await one.publish(message())
        assert {(True, "s/7"), (True, "e/7")} <= set(filters(one))
        await other.cluster.detach(visitor.ref, 0, 0, False)
        await one.events.until(lambda: (True, "e/8") in filters(one))
        assert filters(other) == []


async def test_g4_what_came_by_another_node_before_is_not_overtaken(store: RedisServer) -> None:
    """A publisher of QoS 2 moves from one node to another and repeats what the first one stored: the word of that may
    still be on its way to the subscriber's node when the newer messages come there."""
    async with two(store) as (one, other):
        at = await one.connect("c")
        repeated = message(payload=b"1", qos=2, message_id=b"a" * 16)
        await one.publish(repeated, [target(at, 2)], deduplicate=True)
        again = await other.publish(repeated, [target(at, 2)], deduplicate=True)
        assert again.targets[0].seq == 0
        await other.publish(message(payload=b"2", qos=2), [target(at, 2)])
        await one.events.until(lambda: len(one.events.stored) == 2)
        # First its session has to look into the queue, which has the older one.
        assert [(seq, told and told.payload) for _, seq, told in one.events.stored] == [(0, None), (2, b"2")]


async def test_g5_what_is_matched_anew_is_reached_before_the_answer(store: RedisServer) -> None:
    async with two(store) as (one, other):
        at = await other.connect("c")
        # The subscription is made while the first node does not look.
        await other.subscribe(at, "a")
        late = target(at)
        publication = WaitingPublication(message("a"))
        publication.more = Extension([late], [], [NodeTarget(member(other))])
        if filters(one):  # it knew of it already: then it was matched with it
            publication.targets, publication.more = [late], None
        one.start(publication)
        await one.finished(publication)
        assert (publication.answers, publication.error, late.seq) == (1, None, 1)


async def test_g2_a_message_for_the_sessions_of_another_node(store: RedisServer) -> None:
    async with two(store) as (one, other):
        at = await other.connect("c")
        sent = [
            one.start(
                WaitingPublication(
                    message(payload=b"%d" % number), [target(at)], nodes=[NodeTarget(member(other), True)]
                )
            )
            for number in range(200)
        ]
        await one.finished(*sent)
        assert [each.error for each in sent] == [None] * 200
        assert [each.targets[0].seq for each in sent] == list(range(1, 201))
        await other.events.until(lambda: len(other.events.delivered) == len(other.events.stored) == 200)
        expected = [b"%d" % number for number in range(200)]
        assert [told.payload for told, live, _ in other.events.delivered if live] == expected
        assert [(sid, seq) for sid, seq, _ in other.events.stored] == [
            (at.ref.session_id, seq) for seq in range(1, 201)
        ]
        assert [told.payload for _, _, told in other.events.stored if told is not None] == expected
        assert not one.events.delivered
        assert not one.events.stored


async def test_g2_runs_for_the_sessions_of_another_node(store: RedisServer) -> None:
    """In order with messages, each answered when all its packets are there."""
    async with two(store) as (one, other):
        there = [NodeTarget(member(other))]
        sent = []
        for number in range(0, 400, 4):
            packet = b"\x32\x09\x00\x01t\x00\x01%04d"
            run = Run(4, packet % number + packet % (number + 1) + packet % (number + 2), 3, 9, b"p" * 16)
            sent.append(one.start(WaitingPublication(message(), nodes=there, packets=run)))
            sent.append(one.start(WaitingPublication(message(payload=b"%04d" % (number + 3)), nodes=there)))
            if number % 40 == 0:
                await trio.lowlevel.checkpoint()
        await one.finished(*sent)
        assert {each.error for each in sent} == {None}
        await other.events.until(lambda: len(other.events.delivered) == 400)
        assert [told.payload for told, _, _ in other.events.delivered] == [b"%04d" % number for number in range(400)]
        told = other.events.delivered[0][0]
        assert (told.topic, told.qos, told.accepted_at_ms, told.publisher) == (b"t", 1, 9, b"p" * 16)


async def test_g5_a_run_is_matched_again(store: RedisServer) -> None:
    async with two(store) as (one, other):
        at = await other.connect("c")
        packets = Run(4, b"\x32\x06\x00\x01t\x00\x01x", 1, 9, b"p" * 16)
        await other.subscribe(at, "t")
        publication = WaitingPublication(message(), nodes=[NodeTarget(member(other))], packets=packets)
        one.start(publication)
        await one.finished(publication)
        assert (False, "t") in filters(one)


async def test_g1_qos_0_needs_no_answer(store: RedisServer) -> None:
    async with two(store) as (one, other):
        there = NodeTarget(member(other))
        at = await other.connect("c")
        one.cluster.forward([there], 4, b"0\x04\x00\x01ax", 1)
        quiet = one.start(
            WaitingPublication(
                message(payload=b"0", qos=0), [target(at, 0)], nodes=[NodeTarget(member(other), False, [b"g" * 16])]
            )
        )
        one.cluster.forward([there], 5, b"0\x05\x00\x01a\x00y", 1)
        await one.finished(quiet)
        assert (quiet.error, quiet.targets[0].seq) == (None, 0)
        await other.events.until(
            lambda: len(other.events.frames) == 2 and other.events.delivered and other.events.stored
        )
        assert other.events.frames == [(4, b"0\x04\x00\x01ax"), (5, b"0\x05\x00\x01a\x00y")]
        ((told, live, groups),) = other.events.delivered
        assert (told.payload, live, groups) == (b"0", False, [b"g" * 16])
        ((sid, seq, stored),) = other.events.stored
        assert stored is not None
        assert (sid, seq, stored.payload) == (at.ref.session_id, 0, b"0")
        assert await other.queue(at.ref) == []


async def test_g14_members_of_two_nodes_share_a_group(store: RedisServer) -> None:
    async with two(store) as (one, other):
        here, there = await one.connect("m"), await other.connect("n")
        mine, theirs = GroupHand(one), GroupHand(other)
        await one.subscribe(here, mine.topic_filter)
        await other.subscribe(there, mine.topic_filter)
        await mine.members(here, window=5)
        await theirs.members(there, window=5)
        await mine.put(*[b"%d" % number for number in range(20)])
        await other.events.until(lambda: len(theirs.entries) == 5)
        assert len(mine.entries) == 5
        assert set(mine.payloads()).isdisjoint(theirs.payloads())
        # What one gives back goes to the other as soon as that has room, before anything newer.
        given_back = mine.entries[2]
        await theirs.settle(theirs.entries[0])
        await mine.members()
        await mine.settle(given_back, again=True)
        await theirs.settle(*theirs.entries[1:6])
        await other.events.until(lambda: given_back.message.payload in theirs.payloads())
        last = theirs.payloads().index(given_back.message.payload)
        assert all(int(each) > int(given_back.message.payload) for each in theirs.payloads()[last + 1 :])


async def test_g14_the_messages_of_a_dead_node_go_to_others(store: RedisServer) -> None:
    namespace = f"nodes{next(_numbers)}"
    async with served(make(store, namespace, "a", will_failover_grace_s=0)) as one:
        mine = GroupHand(one)
        here = await one.connect("m")
        await one.subscribe(here, mine.topic_filter, qos=2)
        async with served(make(store, namespace, "b")) as other:
            theirs = GroupHand(other)
            will = StoredWill(message("will", b"bye", message_id=b"w" * 16), 0)
            there, visitor = await other.connect("n", will=will), await other.connect("e", expiry_s=0)
            await other.subscribe(there, theirs.topic_filter, qos=2)
            await other.cluster.subscribe(visitor.ref, [StoredSubscription("e", 1)], False)
            await theirs.members(there)
            await theirs.put(b"1", b"2", b"3", qos=2)
            await theirs.settle(theirs.entries[1], keep_for=there.ref.session_id)
            dead = member(other)
            kill(other)
            await mine.members(here)
            await one.events.until(lambda: dead in one.events.gone)
            await mine.until(3)
            assert {entry.message.payload: entry.kept_for for entry in mine.entries} == {
                b"1": b"",
                b"2": there.ref.session_id,
                b"3": b"",
            }
            await one.events.until(lambda: one.events.wills)
            assert [client_id for client_id, _ in one.events.wills] == ["n"]
            again = await one.connect("n")
            assert again.session_present
            # Nobody waits for the dead one.
            publication = await one.publish(message("e"), nodes=[NodeTarget(dead)])
            assert publication.error is None


async def test_sticky_and_hash_name_members_of_other_nodes(store: RedisServer) -> None:
    async with two(store) as (one, other):
        here, there = await one.connect("m"), await other.connect("n")
        mine, theirs = GroupHand(one, strategy=HASH_TOPIC), GroupHand(other, strategy=HASH_TOPIC)
        await mine.members(here, persistent=False)
        await theirs.members(there, persistent=False)
        for number in range(40):
            await mine.put(b"%d" % number, topic=f"t/{number}")
        await other.events.until(lambda: len(mine.entries) + len(theirs.entries) == 40)
        assert {entry.member for entry in mine.entries} == {here.ref.session_id}
        assert {entry.member for entry in theirs.entries} == {there.ref.session_id}


@pytest.mark.parametrize("answers", [True, False])
async def test_g8_a_client_moves_from_node_to_node(store: RedisServer, answers: bool) -> None:
    """Its node lets it go, or does not and is fenced."""
    async with two(store) as (one, other):
        old = await one.connect("c")
        await one.subscribe(old, "a")
        await one.send(old, b"1", b"2")
        if answers:
            one.events.here.add("c")

        async def let_go() -> None:
            await one.events.until(lambda: one.events.wanted)
            one.cluster.acknowledge(old.ref, 1, 2)
            await one.cluster.detach(old.ref, 3600, 2, False)

        async with trio.open_nursery() as nursery:
            if answers:
                nursery.start_soon(let_go)
            new = await other.connect("c")
        assert one.events.wanted == ["c"]
        assert (new.session_present, [each.topic_filter for each in new.subscriptions]) == (True, ["a"])
        assert await other.queue(new.ref) == ([b"2"] if answers else [b"1", b"2"])
        refused = Answer()
        one.cluster.acknowledge(old.ref, 2, 2)
        one.cluster.received(old.ref, 2, 2, refused)
        await one.finished(refused)
        assert isinstance(refused.errors[0], SessionLost)
        with pytest.raises(SessionLost):
            await one.cluster.subscribe(old.ref, [StoredSubscription("b", 1)], True)
        assert b"2" in await other.queue(new.ref)
        assert await one.send(new, b"3") == [3]
        await other.events.until(lambda: other.events.stored)


async def test_g12_retained_messages_of_one_are_seen_on_the_other(store: RedisServer) -> None:
    async with two(store) as (one, other):
        at = await other.connect("c")
        for number in range(20):
            await one.publish(message(f"r/{number}", b"%d" % number), retain=True)
            await other.subscribe(at, f"r/{number}" if number % 2 else "r/#")
            assert f"r/{number}" in list(other.cluster.retained_match("r/#" if number % 2 == 0 else f"r/{number}"))
        (value,) = await other.cluster.retained_values(["r/7"])
        assert value is not None
        assert value.payload == b"7"
        await other.publish(message("r/7", b""), retain=True)
        await one.events.within(lambda: "r/7" not in list(one.cluster.retained_match("r/#")))


async def test_g13_a_delayed_message_comes_to_one_node(store: RedisServer) -> None:
    async with two(store) as (one, other):
        for number in range(30):
            sent = message(payload=b"%d" % number, message_id=b"%016d" % number)
            publication = await one.publish(sent, deduplicate=True, delay_s=1)
            assert publication.error is None
        await one.events.within(lambda: len(one.events.delayed) + len(other.events.delayed) >= 30)
        got = [due.payload for world in (one, other) for due in world.events.delayed]
        assert sorted(got, key=int) == [b"%d" % number for number in range(30)]


async def test_a_group_ends_when_nobody_on_any_node_is_a_member(store: RedisServer) -> None:
    async with two(store) as (one, other):
        here, there = await one.connect("m", expiry_s=0), await other.connect("n", expiry_s=0)
        mine, theirs = GroupHand(one, strategy=ROUND_ROBIN), GroupHand(other)
        await mine.members(here, persistent=False)
        await theirs.members(there, persistent=False)
        await mine.members()
        assert [each.depth for each in await mine.put(b"1")] == [1]
        await theirs.members()
        assert [each.depth for each in await mine.put(b"2")] == [REFUSED_GONE]
