"""A store that is full for a while: who waits, who is refused, and what is known of calls whose answer was lost."""

from __future__ import annotations

import itertools
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio

from broker.errors import StoreFull, StoreUnavailable
from cluster.api import Attachment, GroupTarget, shared_group_id
from cluster.keys import Keys, partition_of, session_id
from cluster.policy import MAX_CALL_BYTES, ClusterLimits
from cluster.redis.link import RedisLink
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import Answer, GroupHand, WaitingPublication, World, entry_order, message, served, target
from tests.kit.redis_server import RedisServer, redis_server

_numbers = itertools.count(1)
_PARTITIONS = 4
G = shared_group_id("$share/g/a")


class Patient(WaitingPublication):
    """Waits until there is room, until told otherwise."""

    __slots__ = ("gone",)

    gone: bool

    @property
    def patient(self) -> bool:
        return not hasattr(self, "gone")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server(unix=True) as server:
        yield server


@asynccontextmanager
async def fillable(server: RedisServer) -> AsyncIterator[tuple[World, str]]:
    namespace = f"f{next(_numbers)}"
    try:
        async with served(RedisCluster(server.address, "a", ClusterLimits(), namespace, _PARTITIONS)) as world:
            yield world, namespace
    finally:
        fill(server, False)


def fill(server: RedisServer, full: bool) -> None:
    with server.client() as client:
        client.config_set("maxmemory", 1 if full else 0)


def last_seq(server: RedisServer, namespace: str, client_id: str) -> int:
    sid = session_id(client_id)
    key = Keys(namespace, _PARTITIONS).partitions[partition_of(sid, _PARTITIONS)] + b"s:" + sid
    with server.client() as client:
        record = cast("bytes", client.hget(key, "c"))
    return int(struct.unpack("<8d", record)[1])


def calls(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_fcall", {"calls": 0})["calls"])


async def sent(world: World, at: Attachment, *payloads: bytes) -> list[WaitingPublication]:
    """Starts a publication each; capital letters wait for room."""
    made: list[WaitingPublication] = []
    for payload in payloads:
        kind = Patient if payload.isupper() else WaitingPublication
        made.append(world.start(kind(message(payload=payload), [target(at)], [GroupTarget(G)])))
    return made


def group(publications: list[WaitingPublication]) -> list[bytes]:
    """What they put into the group's queue, in its order."""
    entries = [entry for each in publications if (entry := each.groups[0].entry) is not None]
    return [entry.message.payload for entry in sorted(entries, key=lambda entry: entry_order(entry.entry_id))]


async def test_g4_what_waits_for_room_keeps_its_order(server: RedisServer) -> None:
    async with fillable(server) as (world, _):
        at = await world.connect("c")
        await GroupHand(world).members(at, window=1000)
        fill(server, True)
        first = await sent(world, at, b"A", b"b", b"C", b"d")
        await world.finished(first[1], first[3])
        assert [type(each.error) for each in (first[1], first[3])] == [StoreFull, StoreFull]
        # What comes later is refused as quickly, however much waits, and overtakes nothing.
        second = await sent(world, at, b"E", b"f")
        await world.finished(second[1])
        assert isinstance(second[1].error, StoreFull)
        assert [each.answers for each in (*first, *second)] == [0, 1, 0, 1, 0, 1]
        fill(server, False)
        last = await sent(world, at, b"G", b"H")
        waiting = [first[0], first[2], second[0], *last]
        await world.finished(*waiting)
        assert [(each.error, each.answers, each.targets[0].seq) for each in waiting] == [
            (None, 1, seq) for seq in range(1, 6)
        ]
        assert await world.queue(at.ref) == group([*first, *second, *last]) == [b"A", b"C", b"E", b"G", b"H"]


async def test_it_is_stored_without_anything_new(server: RedisServer) -> None:
    """The beat asks again; the store is not asked more often than that."""
    async with fillable(server) as (world, _):
        at = await world.connect("c")
        await GroupHand(world).members(at, window=1000)
        fill(server, True)
        waiting = await sent(world, at, *[b"%c" % (65 + n) for n in range(20)])
        (refused,) = await sent(world, at, b"x")
        await world.finished(refused)
        fill(server, False)
        await world.finished(*waiting)
        assert [each.targets[0].seq for each in waiting] == list(range(1, 21))
        assert group(waiting) == [each.message.payload for each in waiting]


async def test_a_full_store_is_not_asked_all_the_time(server: RedisServer) -> None:
    """More than one call can carry waits: the lane rests all the same."""
    async with fillable(server) as (world, _):
        at = await world.connect("c")
        await GroupHand(world).members(at, window=1000)
        fill(server, True)
        body = b"X" * (MAX_CALL_BYTES // 4)
        waiting = [world.start(Patient(message(payload=body), [target(at)])) for _ in range(12)]
        (refused,) = await sent(world, at, b"x")
        await world.finished(refused)
        before = calls(server)
        for _ in range(300):  # as many turns as the lane would need for as many calls
            await world.settle(at.ref)
        assert calls(server) - before < 450
        assert [each.answers for each in waiting] == [0] * 12
        fill(server, False)
        await world.finished(*waiting)
        assert [each.targets[0].seq for each in waiting] == list(range(1, 13))


async def test_who_does_not_wait_any_more_is_refused(server: RedisServer) -> None:
    async with fillable(server) as (world, _):
        at = await world.connect("c")
        await GroupHand(world).members(at, window=1000)
        fill(server, True)
        gone, staying = await sent(world, at, b"A", b"B")
        (refused,) = await sent(world, at, b"c")
        await world.finished(refused)
        cast("Patient", gone).gone = True
        await world.finished(gone)
        assert isinstance(gone.error, StoreFull)
        assert staying.answers == 0
        fill(server, False)
        await world.finished(staying)
        assert await world.queue(at.ref) == group([gone, staying]) == [b"B"]


def retained(world: World, payload: bytes, topic: str = "r") -> WaitingPublication:
    kind = Patient if payload.isupper() else WaitingPublication
    return world.start(kind(message(topic, payload), retain=True))


async def test_g12_the_last_retained_message_is_the_last_that_was_taken(server: RedisServer) -> None:
    async with fillable(server) as (world, _):
        fill(server, True)
        first, refused, second = retained(world, b"A"), retained(world, b"b"), retained(world, b"C")
        await world.finished(refused)
        assert isinstance(refused.error, StoreFull)
        assert (first.answers, second.answers) == (0, 0)
        fill(server, False)
        await world.finished(first, second)
        (value,) = await world.cluster.retained_values(["r"])
        assert value is not None
        assert value.payload == b"C"
        assert list(world.cluster.retained_match("#")) == ["r"]


async def test_g12_a_full_store_clears_while_others_wait(server: RedisServer) -> None:
    """In any order: topics of one shard are removed, but for one whose older message waits."""
    topics = [f"t{n}" for n in range(64)]
    async with fillable(server) as (world, _):
        await world.finished(*[retained(world, b"old", topic) for topic in topics])
        fill(server, True)
        waiting = retained(world, b"A", "t0")
        after = retained(world, b"", "t0")
        cleared = [retained(world, b"", topic) for topic in topics[1:]]
        await world.finished(*cleared)
        assert [each.error for each in cleared] == [None] * 63
        assert (waiting.answers, after.answers) == (0, 0)
        fill(server, False)
        await world.finished(waiting, after)
        assert (waiting.error, after.error) == (None, None)
        assert await world.cluster.retained_values(topics) == [None] * 64
        assert list(world.cluster.retained_match("#")) == []


async def test_g7_an_inbound_packet_id_is_kept_in_a_full_store(server: RedisServer) -> None:
    async with fillable(server) as (world, _):
        at = await world.connect("c")
        fill(server, True)
        reserved = Answer()
        world.cluster.reserve(at.ref, 7, b"m" * 16, reserved)
        await world.finished(reserved)
        assert reserved.errors == [None]
        assert (await world.connect("c")).inbound == {7: b"m" * 16}


async def test_g1_no_answer_is_taken_for_that_of_another_message(server: RedisServer) -> None:
    """Executed, the answer lost, and a full store at the second time: it was stored and nothing else may be told."""
    async with fillable(server) as (world, namespace):
        cluster = cast(RedisCluster, world.cluster)
        at = await world.connect("c")
        assert await world.send(at, b"1") == [1]
        lost = WaitingPublication(message(payload=b"2"), [target(at)])
        cluster.publish(lost)
        cluster.flush()
        cast(RedisLink, cluster._link)._drop(StoreUnavailable("cut"))
        while last_seq(server, namespace, "c") < 2:  # nothing of the node runs meanwhile
            pass
        fill(server, True)
        await world.finished(lost)  # while the store is full
        assert (lost.error, lost.targets[0].seq) == (None, 2)
        fill(server, False)
        assert await world.send(at, b"3") == [3]
        assert await world.queue(at.ref) == [b"1", b"2", b"3"]


async def test_a_call_that_was_not_executed_does_not_hold_up_its_partition(server: RedisServer) -> None:
    """Sent and never executed, and then the store is full: who does not wait is told so, and nothing is stored."""
    async with fillable(server) as (world, _):
        cluster = cast(RedisCluster, world.cluster)
        at = await world.connect("c")
        assert await world.send(at, b"1") == [1]
        cluster._batch.partitions[partition_of(at.ref.session_id, _PARTITIONS)]._uncertain = True
        fill(server, True)
        refused = world.start(WaitingPublication(message(payload=b"2"), [target(at)]))
        await world.finished(refused)
        assert isinstance(refused.error, StoreFull)
        fill(server, False)
        assert await world.send(at, b"3") == [2]
        assert await world.queue(at.ref) == [b"1", b"3"]


async def test_g15_publishers_are_held_before_the_store_is_full(server: RedisServer) -> None:
    """Everything but their messages goes on: there is room, and it is kept for that."""
    async with fillable(server) as (world, _):
        at, busy = await world.connect("c"), await world.connect("busy")
        assert await world.send(at, b"1") == [1]
        with server.client() as client:
            used = cast("dict[str, int]", client.info("memory"))["used_memory"]
            client.config_set("maxmemory", int(used * 1.1))
        error: Exception | None = None
        with trio.fail_after(10):
            while error is None:
                refused = world.start(WaitingPublication(message(), [target(busy)]))
                await world.finished(refused)
                error = refused.error
        assert isinstance(error, StoreFull)
        assert "nearly full" in str(error)
        await world.subscribe(await world.connect("other"), "t")
        assert await world.queue(at.ref) == [b"1"]
        patient = world.start(Patient(message(payload=b"3"), [target(at)]))
        fill(server, False)
        await world.finished(patient)
        assert patient.error is None
        assert patient.targets[0].seq == 2
