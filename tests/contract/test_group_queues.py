"""Queues of shared subscriptions on Redis: lost connections, members that leave at the wrong time, lengths, crashes."""

from __future__ import annotations

import contextlib
import itertools
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import cast

import pytest
import trio

from broker.errors import StoreUnavailable
from cluster.api import REFUSED_GONE, ROUND_ROBIN, GroupEntry, GroupMemberState, GroupTarget, shared_group_id
from cluster.keys import GROUP_QUEUE, Keys, partition_of, session_id
from cluster.policy import ClusterLimits
from cluster.records import pack_body
from cluster.redis.link import RedisLink
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import LIMIT_S, GroupHand, World, message, served
from tests.kit.redis_server import RedisServer

_numbers = itertools.count(1)
_FILTER = "$share/g/a"


class Nodes:
    """Two nodes in a namespace of their own."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.namespace = f"gq{next(_numbers)}"
        self.keys = Keys(self.namespace, 4)
        self.prefix = self.keys.partitions[partition_of(shared_group_id(_FILTER), 4)]

    def make(self, name: str, **limits: float) -> RedisCluster:
        return RedisCluster(self.server.address, name, ClusterLimits(**limits), self.namespace, 4)  # type: ignore[arg-type]

    @contextlib.asynccontextmanager
    async def two(self, **limits: float) -> AsyncIterator[tuple[World, World]]:
        async with served(self.make("a", **limits)) as one, served(self.make("b", **limits)) as other:
            yield one, other

    def waiting(self) -> int:
        """Entries in the group's queue."""
        with self.server.client() as client:
            return cast(int, client.xlen(self.prefix + GROUP_QUEUE + shared_group_id(_FILTER)))


def cut(world: World) -> None:
    """Breaks the connection for commands; what the store has answered meanwhile is lost."""
    link = cast(RedisLink, cast(RedisCluster, world.cluster)._link)
    link._drop(StoreUnavailable("cut"))


@pytest.fixture
def nodes(store: RedisServer) -> Nodes:
    return Nodes(store)


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(LIMIT_S):
        while not condition():
            await trio.sleep(0.01)


class Worker:
    """Members on one node that acknowledge what they are given, and give some of it back first."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.group_id = shared_group_id(_FILTER)
        self.done: list[bytes] = []
        #: Entries given to this node and not yet acknowledged or given back.
        self.open: set[bytes] = set()
        #: Those that came while they were open.
        self.twice: list[bytes] = []
        self._returned: set[bytes] = set()
        world.events.group_entries = self._take  # type: ignore[method-assign]

    def _take(self, group_id: bytes, entries: object, depth: int) -> None:
        for entry in cast("list[GroupEntry]", entries):
            self.take(entry)

    def take(self, entry: GroupEntry) -> None:
        name = entry.entry_id
        if name in self.open:
            self.twice.append(name)
        self.open.add(name)
        again = name not in self._returned and zlib.crc32(name) % 7 == 0
        if again:
            self._returned.add(name)
            self.open.discard(name)
        self.world.cluster.group_acknowledge(
            self.group_id, name, lambda error: self._answered(entry, error), b"", again
        )

    def _answered(self, entry: GroupEntry, error: Exception | None) -> None:
        assert error is None
        if entry.entry_id in self.open:
            self.open.discard(entry.entry_id)
            self.done.append(entry.message.payload)


async def test_g14_connections_that_break_lose_nothing(nodes: Nodes) -> None:
    async with nodes.two() as (one, other):
        workers = Worker(one), Worker(other)
        for world, name in ((one, "m"), (other, "n")):
            at = await world.connect(name)
            await world.subscribe(at, _FILTER)
            await GroupHand(world, _FILTER).members(at, window=20)
        expected: set[bytes] = set()

        async def publish(world: World, worker: Worker, name: str) -> None:
            for number in range(300):
                payload = b"%s %d" % (name.encode(), number)
                publication = await world.publish(
                    message(payload=payload, message_id=payload.ljust(16)),
                    groups=[GroupTarget(worker.group_id)],
                    deduplicate=True,
                )
                if publication.error is None:
                    expected.add(payload)
                if (entry := publication.groups[0].entry) is not None:
                    worker.take(entry)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, one, workers[0], "one")
            nursery.start_soon(publish, other, workers[1], "other")
            for part in range(1, 11):
                await until(lambda part=part: len(expected) >= part * 50)
                cut(one)
                cut(other)
        assert len(expected) == 600
        await until(lambda: expected <= {*workers[0].done, *workers[1].done} and not nodes.waiting())
        assert workers[0].twice == workers[1].twice == []
        assert Counter(workers[0].done + workers[1].done).most_common(1)[0][1] == 1
        assert workers[0].done
        assert workers[1].done


async def test_g14_what_the_stream_did_not_tell_is_asked_for(nodes: Nodes) -> None:
    async with nodes.two() as (one, _):
        group = GroupHand(one, _FILTER)
        at = await one.connect("m")
        await one.subscribe(at, _FILTER)
        await group.members(at)
        await group.put(b"1", b"2")
        known = await group.until(2)
        groups = cast(RedisCluster, one.cluster)._groups
        partition = partition_of(group.group_id, 4)
        groups.missed(partition)
        # As if this node had never heard of the second one.
        lost = group.entries[1].entry_id
        del groups._groups[group.group_id].held[lost]
        groups.missed(partition)
        await one.events.until(lambda: len(group.entries) >= 3)
        assert group.payloads() == [*known, b"2"]
        # The stream tells of it after all.
        groups.given([group.group_id, lost, b"", b"", 1, 2], [b""])
        await group.settle(group.entries[0], group.entries[2])
        assert len(group.entries) == 3
        assert nodes.waiting() == 0


async def test_g14_what_is_done_with_is_not_given_once_more(nodes: Nodes) -> None:
    """Word of an entry that was on its way while a connection broke comes after all."""
    async with nodes.two() as (one, _):
        group = GroupHand(one, _FILTER)
        at = await one.connect("m")
        await one.subscribe(at, _FILTER)
        await group.members(at)
        await group.put(b"1")
        await group.until(1)
        [entry] = group.entries
        await group.settle(entry)
        groups = cast(RedisCluster, one.cluster)._groups
        groups.given([group.group_id, entry.entry_id, b"", b"", 1, 1], [pack_body(entry.message)])
        await group.put(b"2")
        assert await group.until(2) == [b"1", b"2"]
        await group.settle(group.entries[1])
        assert nodes.waiting() == 0


async def test_g14_entries_on_their_way_to_a_member_that_leaves(nodes: Nodes) -> None:
    async with nodes.two() as (one, other):
        here, there = await one.connect("m"), await other.connect("n")
        mine, theirs = GroupHand(one, _FILTER), GroupHand(other, _FILTER)
        await one.subscribe(here, _FILTER)
        await other.subscribe(there, _FILTER)
        await mine.put(*[b"%d" % number for number in range(200)])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.members, here)
            nursery.start_soon(mine.members)
        await mine.members(here)
        # The store gives, and the stream has not told of it yet.
        await mine.members()
        for entry in list(mine.entries):
            one.cluster.group_acknowledge(mine.group_id, entry.entry_id, None, again=True)
        one.poller.wake()
        await theirs.members(there, window=1000)
        await other.events.until(lambda: len({entry.entry_id for entry in theirs.entries}) == 200)
        await theirs.settle(*theirs.entries)
        assert nodes.waiting() == 0


async def test_the_last_of_many_changes_of_members_counts(nodes: Nodes) -> None:
    async with nodes.two() as (one, _):
        at = await one.connect("m")
        await one.subscribe(at, _FILTER)
        calls = last = 0
        link = cast(RedisCluster, one.cluster)._link
        send = link.command

        def counting(parts: tuple[object, ...], *rest: object, **named: object) -> None:
            nonlocal calls
            calls += parts[1:2] == ("rk1_group_members",)
            send(parts, *rest, **named)  # type: ignore[arg-type]

        link.command = counting  # type: ignore[assignment, method-assign]

        async def change(window: int) -> None:
            nonlocal last
            last = window
            states = [GroupMemberState(at.ref.session_id, at.ref.birth, True, window)]
            await one.cluster.group_members(_FILTER, ROUND_ROBIN, states)

        async with trio.open_nursery() as nursery:
            for window in range(1, 101):
                nursery.start_soon(change, window)
        assert calls == 2
        group = GroupHand(one, _FILTER)
        await group.put(*[b"%d" % number for number in range(150)])
        assert len(await group.until(last)) == last
        await group.members()
        await group.members(window=9)


async def test_g15_publishers_hear_that_others_emptied_the_queue(nodes: Nodes) -> None:
    async with nodes.two(max_group_queue=20) as (one, other):
        there = await other.connect("n")
        mine, theirs = GroupHand(one, _FILTER), GroupHand(other, _FILTER)
        await other.subscribe(there, _FILTER)
        await theirs.members(there, window=100)
        await mine.put(*[b"%d" % number for number in range(20)])
        await one.events.until(lambda: one.events.depths.get(mine.group_id) == 20)
        await other.events.until(lambda: len(theirs.entries) == 20)
        await theirs.settle(*theirs.entries[:5])
        await one.events.until(lambda: one.events.depths[mine.group_id] == 15)
        await theirs.settle(*theirs.entries[5:])
        await one.events.until(lambda: one.events.depths[mine.group_id] == 0)
        assert mine.entries == []
        assert (await one.cluster.inspection.group_totals()).pending == 0


async def test_a_crash_between_unsubscribe_and_leaving_the_group(nodes: Nodes) -> None:
    async with served(nodes.make("a")) as one:
        at = await one.connect("c")
        await one.subscribe(at, _FILTER)
        (put,) = await GroupHand(one, _FILTER).put(b"1")
        assert put.depth == 1
        own = nodes.keys.partitions[partition_of(session_id("c"), 4)]
        with nodes.server.client() as client:
            client.fcall("rk1_unsubscribe", 1, own, session_id("c"), at.ref.token, _FILTER)
    async with served(nodes.make("a")) as one:
        assert one.events.routes == []
        (put,) = await GroupHand(one, _FILTER).put(b"2")
        assert put.depth == REFUSED_GONE
    assert nodes.waiting() == 0


async def test_g14_what_a_lost_answer_gave_is_asked_for_to_the_last_page(nodes: Nodes) -> None:
    """The repeated call answers with the beginning of what this node holds: that is what it knows already."""
    async with served(nodes.make("a")) as world:
        hand = GroupHand(world)
        at = await world.connect("m")
        await world.subscribe(at, _FILTER)
        await hand.members(at, window=150)
        filling = b" " + b"x" * 20_000
        for first in range(0, 200, 40):
            await hand.put(*[b"%d" % number + filling for number in range(first, first + 40)])
        await hand.until(150)
        done = hand.entries[:50]
        for entry in done:
            world.cluster.group_acknowledge(hand.group_id, entry.entry_id, None)
        world.cluster.flush()
        # Executed, and its answer lost: nothing is read meanwhile.
        deadline = time.monotonic() + LIMIT_S
        while nodes.waiting() > 150:
            assert time.monotonic() < deadline
        with nodes.server.client() as client:
            key = nodes.prefix + GROUP_QUEUE + hand.group_id
            held = cast("dict[str, int]", client.xpending(key, "m"))["pending"]
        assert held > 100
        cut(world)
        assert len(set(await hand.until(50 + held))) == 50 + held
        while nodes.waiting():
            settled, done = len(hand.entries), hand.entries[len(done) :]
            await hand.settle(*done)
            done = hand.entries[:settled]
        assert sorted(int(payload.split()[0]) for payload in hand.payloads()) == list(range(200))
