"""A store that answers, and refuses all writes for a while: what was asked of it happens when it takes them again."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import cast

import hiredis
import msgpack
import pytest
import trio

from broker.errors import ClusterError, StoreUnavailable
from cluster import layout
from cluster.api import GroupTarget
from cluster.keys import GROUP_QUEUE, Keys, partition_of
from cluster.policy import ClusterLimits
from cluster.redis import membership
from cluster.redis.group_calls import ACKNOWLEDGED, RETURNED, GroupAnswer, GroupSettler, Settlement
from cluster.redis.link import RedisLink
from cluster.redis.links import Link
from cluster.redis.pipeline import Part
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import LIMIT_S, Answer, GroupHand, WaitingPublication, World, message, served
from tests.kit.redis_server import RedisServer, redis_server

_numbers = itertools.count(1)
_PARTITIONS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server(unix=True) as server:
        yield server


class Place:
    """A namespace of a store that refuses writes or takes them."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.namespace = f"r{next(_numbers)}"
        self.keys = Keys(self.namespace, _PARTITIONS)

    def refuse(self, refused: bool = True) -> None:
        """As where its replicas are away: NOREPLICAS."""
        with self.server.client() as client:
            client.config_set("min-replicas-to-write", int(refused))

    def counters(self, session_id: bytes) -> tuple[int, int]:
        """Queued messages of a session, and their bytes."""
        with self.server.client() as client:
            key = self.keys.partitions[partition_of(session_id, _PARTITIONS)] + b"s:" + session_id
            values = struct.unpack("<8d", cast(bytes, client.hget(key, "c")))
        return int(values[2]), int(values[3])

    def group(self, hand: GroupHand) -> tuple[int, int]:
        """Length of a group's queue, and entries that somebody holds."""
        key = self.keys.partitions[partition_of(hand.group_id, _PARTITIONS)] + GROUP_QUEUE + hand.group_id
        with self.server.client() as client:
            return cast(int, client.xlen(key)), cast(int, client.xpending(key, "m")["pending"])

    @contextlib.asynccontextmanager
    async def node(self, name: str = "a") -> AsyncIterator[World]:
        cluster = RedisCluster(self.server.address, name, ClusterLimits(), self.namespace, _PARTITIONS)
        async with served(cluster) as world:
            yield world


@pytest.fixture
def place(server: RedisServer) -> Iterator[Place]:
    place = Place(server)
    yield place
    place.refuse(False)


def member_of(world: World) -> membership.Membership:
    return cast(RedisCluster, world.cluster)._member


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(LIMIT_S):
        while not condition():
            await trio.sleep(0.01)


class Refusals:
    """Counts the calls of one function that the store refused."""

    def __init__(self, world: World, function: bytes) -> None:
        self.count = 0
        link = cast(RedisLink, cast(RedisCluster, world.cluster)._link)
        command = link.command

        def counted(parts, then=None, *args, **kwargs):  # type: ignore[no-untyped-def]
            def answered(reply: object) -> None:
                self.count += isinstance(reply, Exception)
                if then is not None:
                    then(reply)

            watched = len(parts) > 1 and parts[1] == function
            command(parts, answered if watched else then, *args, **kwargs)

        link.command = counted  # type: ignore[method-assign]


async def test_nobody_is_buried_before_beats_were_answered_for_a_lease(place: Place) -> None:
    async with place.node() as world:
        member = member_of(world)
        with place.server.client() as client:
            client.fcall("rk1_join", 1, place.keys.members, "silent", layout.LAYOUT, _PARTITIONS, 1, 1)
        refused: list[Exception] = []
        beat = member.beat

        async def watched(call: membership.Call) -> None:
            try:
                await beat(call)
            except ClusterError as error:
                refused.append(error)
                raise

        member.beat = watched  # type: ignore[method-assign]
        # It would be allowed to by now.
        assert member._steady_since_s is not None
        member._steady_since_s -= 10
        place.refuse()
        await until(lambda: refused)
        place.refuse(False)
        beats: list[int] = []
        member.on_beat = lambda: beats.append(member.mver)
        await until(lambda: len(beats) >= 2)
        assert len(member.members) == 2
        assert world.events.gone == []


async def test_a_node_is_not_available_while_its_beats_are_refused(place: Place) -> None:
    async with place.node() as world:
        assert world.cluster.health().available
        place.refuse()
        await until(lambda: not world.cluster.health().available)
        assert world.cluster.holds_lease()
        place.refuse(False)
        await until(lambda: world.cluster.health().available)


async def test_acknowledgements_are_repeated_when_the_store_takes_them(place: Place) -> None:
    async with place.node() as world:
        at = await world.connect("c")
        assert await world.send(at, b"1", b"2", b"3", b"4") == [1, 2, 3, 4]
        refusals = Refusals(world, b"rk1_settle")
        received, released = Answer(), Answer()
        place.refuse()
        world.cluster.acknowledge(at.ref, 1, 4)
        world.cluster.received(at.ref, 2, 4, received)
        world.poller.wake()
        await until(lambda: refusals.count)
        # What comes meanwhile goes behind it.
        world.cluster.acknowledge(at.ref, 3, 4)
        world.cluster.release(at.ref, 7, b"m" * 16, released)
        assert (received.errors, released.errors) == ([], [])
        place.refuse(False)
        await world.finished(received, released)
        assert (received.errors, released.errors) == ([None], [None])
        assert await world.queue(at.ref) == [b"4"]
        assert place.counters(at.ref.session_id)[0] == 1
        world.cluster.acknowledge(at.ref, 2, 4)
        world.cluster.acknowledge(at.ref, 4, 4)
        await world.settle(at.ref)
        assert place.counters(at.ref.session_id) == (0, 0)


async def test_ids_are_reserved_when_the_store_takes_them(place: Place) -> None:
    async with place.node() as world:
        at = await world.connect("c")
        refusals = Refusals(world, b"rk1_reserve")
        place.refuse()
        reserved = Answer()
        world.cluster.reserve(at.ref, 5, b"i" * 16, reserved)
        world.poller.wake()
        await until(lambda: refusals.count)
        assert reserved.errors == []
        place.refuse(False)
        await world.finished(reserved)
        assert reserved.errors == [None]
        await world.cluster.detach(at.ref, 3600, 0, False)
        assert (await world.connect("c")).inbound == {5: b"i" * 16}


async def group_of(world: World, window: int) -> GroupHand:
    hand = GroupHand(world)
    at = await world.connect("m")
    await world.subscribe(at, hand.topic_filter)
    await hand.members(at, window=window)
    return hand


async def test_g14_what_is_done_with_of_groups_is_told_again(place: Place) -> None:
    async with place.node() as world, place.node("b") as other:
        hand = await group_of(world, 4)
        await hand.put(*[b"%d" % number for number in range(10)])
        await hand.until(4)
        first, second, third, fourth = hand.entries[:4]
        refusals = Refusals(world, b"rk1_group_settle")
        place.refuse()
        acknowledged, returned, kept, late = Answer(), Answer(), Answer(), Answer()
        done = world.cluster.group_acknowledge
        done(hand.group_id, first.entry_id, acknowledged)
        done(hand.group_id, second.entry_id, returned, b"", True)
        done(hand.group_id, third.entry_id, kept, b"k" * 16)
        world.poller.wake()
        await until(lambda: refusals.count)
        done(hand.group_id, fourth.entry_id, late)
        answers = (acknowledged, returned, kept, late)
        assert [each.errors for each in answers] == [[], [], [], []]
        place.refuse(False)
        await world.finished(*answers)
        assert [each.errors for each in answers] == [[None]] * 4
        # The second one again, and as many as there is room for.
        await world.events.until(lambda: len(hand.entries) >= 7)
        assert sorted(hand.payloads()[4:]) == [b"1", b"4", b"5"]
        # Nobody is stuck: what another node publishes arrives.
        done_with = {first.entry_id, fourth.entry_id}
        while place.group(hand) != (0, 0):
            todo = {entry.entry_id: entry for entry in hand.entries if entry.entry_id not in done_with}
            done_with |= set(todo)
            await hand.settle(*todo.values())
        publication = WaitingPublication(message(payload=b"x"), groups=[GroupTarget(hand.group_id)])
        other.start(publication)
        await other.finished(publication)
        await world.events.until(lambda: hand.payloads()[-1] == b"x")


class HandLink:
    """Keeps commands, to be answered by hand."""

    def __init__(self) -> None:
        self.commands: list[tuple[tuple[Part, ...], Callable[[object], None]]] = []

    def command(self, parts: tuple[Part, ...], then: Callable[[object], None], resend: bool, durable: bool) -> None:
        self.commands.append((parts, then))


def settler_of(link: HandLink) -> tuple[GroupSettler, list[tuple[list[bytes], bool]]]:
    told: list[tuple[list[bytes], bool]] = []

    def answered(batch: list[Settlement], _: list[tuple[bytes, GroupAnswer]], repeated: bool) -> None:
        told.append(([entry_id for _, _, entry_ids, *_ in batch for entry_id in entry_ids], repeated))

    member = membership.Membership("a", Keys("n", 1))
    return GroupSettler(b"p", cast(Link, link), member, answered), told


@pytest.mark.parametrize(
    "refusal",
    [
        hiredis.ReplyError("NOREPLICAS Not enough good replicas to write."),
        StoreUnavailable("too many connections broke"),
    ],
)
@pytest.mark.parametrize("broke", [False, True])
def test_g14_a_call_that_is_refused_keeps_its_number(refusal: Exception, broke: bool) -> None:
    """It may have been executed on a connection before: what came back to this node since is not returned again."""
    link = HandLink()
    settler, told = settler_of(link)
    one, two = Answer(), Answer()
    settler.add((RETURNED, b"g", [b"1-1"], b"", one))
    settler.pump()
    if broke:
        settler.link_up()
    (call, then), *_ = link.commands
    then(refusal)
    settler.add((RETURNED, b"g", [b"1-2"], b"", two))
    settler.pump()
    assert len(link.commands) == 1
    settler.retry()
    settler.retry()
    assert [parts for parts, _ in link.commands] == [call, call]
    assert (told, one.errors) == ([], [])
    link.commands[1][1]([[0, []]])
    assert told == [([b"1-1"], broke)]
    assert (one.errors, two.errors) == ([None], [])
    assert link.commands[2][0][-1] != call[-1]
    link.commands[2][1]([[0, []]])
    assert told[1:] == [([b"1-2"], False)]
    assert two.errors == [None]


def test_what_will_never_be_done_is_told() -> None:
    link = HandLink()
    settler, told = settler_of(link)
    answer = Answer()
    settler.add((ACKNOWLEDGED, b"g", [b"1-1"], b"", answer))
    settler.pump()
    link.commands[0][1](hiredis.ReplyError("ERR no such function"))
    assert [str(each) for each in answer.errors] == ["ERR no such function"]
    settler.retry()
    assert (len(link.commands), told) == (1, [])


def test_what_nobody_asks_about_goes_out_in_its_order() -> None:
    link = HandLink()
    settler, told = settler_of(link)
    answer = Answer()
    settler.acknowledge(b"g", [b"1-1", b"1-2"])
    settler.acknowledge(b"g", [b"1-3"])
    settler.acknowledge(b"h", [b"2-1"])
    settler.add((ACKNOWLEDGED, b"g", [b"1-4"], b"", answer))
    settler.acknowledge(b"g", [b"1-5"])
    settler.add((RETURNED, b"g", [b"1-6"], b"", None))
    settler.pump()
    [(call, then)] = link.commands
    assert msgpack.unpackb(cast(bytes, call[-2]), raw=True) == [
        [b"g", [b"1-1", b"1-2", b"1-3", b"1-4", b"1-5"], [b"1-6"], []],
        [b"h", [b"2-1"], [], []],
    ]
    then([[0, []], [0, []]])
    assert told == [([b"1-1", b"1-2", b"1-3", b"2-1", b"1-4", b"1-5", b"1-6"], False)]
    assert answer.errors == [None]


def test_g14_a_call_settles_a_bounded_number() -> None:
    link = HandLink()
    settler, told = settler_of(link)
    ids = [b"1-%d" % number for number in range(3000)]
    for at in range(0, 3000, 50):
        settler.acknowledge(b"g", ids[at : at + 50])
    settler.pump()
    for number in range(3):
        link.commands[number][1]([[0, []]])
    assert [len(each) for each, _ in told] == [1000, 1000, 1000]
    assert [entry_id for each, _ in told for entry_id in each] == ids
