"""A store that comes back without its last writes: what connected sessions were told to have is written again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import cast

import redis
import trio

from cluster.api import Attachment, StoredSubscription, shared_group_id
from cluster.keys import Keys, partition_of
from cluster.policy import ClusterLimits
from cluster.records import route_field
from cluster.redis.generations import Generations
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import GroupHand, World, served
from tests.kit.redis_server import RedisServer, redis_server

KEYS = Keys("n", 16)


def make(server: RedisServer) -> RedisCluster:
    return RedisCluster(server.address, "a", ClusterLimits(), "n", 16)


def prefix_of(identifier: bytes) -> bytes:
    return KEYS.partitions[partition_of(identifier, 16)]


def sid(at: Attachment) -> bytes:
    return at.ref.session_id


def raw(client: redis.Redis, *command: object) -> object:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def stored_filters(client: redis.Redis, at: Attachment) -> set[bytes]:
    """Filters of a session that are stored and have a route."""
    sid = at.ref.session_id
    stored = cast("list[bytes]", raw(client, "HKEYS", prefix_of(sid) + b"sub:" + sid))
    routed = {each[17:] for each in table(client) if each.startswith(b"s" + sid)}
    return set(stored) & routed


def table(client: redis.Redis) -> set[bytes]:
    return set(cast("list[bytes]", raw(client, "HKEYS", KEYS.routes + b"f")))


class Loss:
    """What is written in `tail` is lost when the store comes back."""

    def __init__(self, server: RedisServer, client: redis.Redis, world: World) -> None:
        self.server = server
        self.client = client
        self.world = world
        self.member = cast(RedisCluster, world.cluster)._member.member

    @contextlib.asynccontextmanager
    async def tail(self) -> AsyncIterator[None]:
        self.client.save()
        yield
        await trio.to_thread.run_sync(self.server.restart)
        await self.world.events.until(lambda: self.world.events.available == [False, True])


@contextlib.asynccontextmanager
async def loss() -> AsyncIterator[Loss]:
    with redis_server(unix=True) as server:
        async with served(make(server)) as world:
            with server.client() as client:
                yield Loss(server, client, world)


async def test_lost_subscriptions_of_connected_sessions_are_stored_again() -> None:
    async with loss() as it:
        world = it.world
        one, two = await world.connect("one"), await world.connect("two")
        await world.subscribe(one, "kept", "changed", qos=0)
        await world.subscribe(two, "kept")
        async with it.tail():
            await world.subscribe(one, "new", "$share/x/g")
            await world.subscribe(one, "changed", qos=2)
        await world.events.within(
            lambda: stored_filters(it.client, one) == {b"kept", b"changed", b"new", b"$share/x/g"}
        )
        await world.events.within(
            lambda: raw(it.client, "HEXISTS", prefix_of(gid := shared_group_id("$share/x/g")) + b"gm:" + gid, sid(one))
        )
        again = await world.connect("one")
        assert {each.topic_filter: each.options for each in again.subscriptions} == {
            "kept": 0,
            "changed": 2,
            "new": 1,
            "$share/x/g": 1,
        }
        assert not world.events.lost
        assert stored_filters(it.client, two) == {b"kept"}


async def test_lost_unsubscribes_are_done_again() -> None:
    async with loss() as it:
        world = it.world
        at = await world.connect("c")
        await world.subscribe(at, "kept", "gone")
        async with it.tail():
            del world.events.subscribed[at.ref.token]["gone"]
            await world.cluster.unsubscribe(at.ref, ["gone"], True)
        await world.events.within(lambda: stored_filters(it.client, at) == {b"kept"})
        await world.events.within(lambda: route_field(sid(at), b"gone") not in table(it.client))


async def test_sessions_that_are_lost_are_told() -> None:
    async with loss() as it:
        world = it.world
        kept, moved = await world.connect("kept"), await world.connect("moved")
        await world.subscribe(kept, "kept")
        async with it.tail():
            moved = await world.connect("moved")
            lost = await world.connect("lost")
            short = await world.connect("short", expiry_s=0)
        await world.events.until(lambda: len(world.events.lost) >= 3)
        assert {each.client_id for each in world.events.lost} == {"moved", "lost", "short"}
        assert {each.token for each in world.events.lost} == {moved.ref.token, lost.ref.token, short.ref.token}


async def test_the_lost_end_of_a_connection_is_made_good() -> None:
    async with loss() as it:
        world = it.world
        stays, goes = await world.connect("stays"), await world.connect("goes", expiry_s=1)
        async with it.tail():
            await world.cluster.detach(goes.ref, 1, 0, False)
        await world.events.until(lambda: ("goes", []) in world.events.ended)
        assert await world.send(stays, b"1") == [28673]
        assert not world.events.lost


async def test_lost_routes_of_the_node_are_written_again() -> None:
    async with loss() as it:
        world = it.world
        visitor = await world.connect("v", expiry_s=0)
        await world.cluster.subscribe(visitor.ref, [StoredSubscription(each, 1) for each in ("kept", "gone")], False)
        async with it.tail():
            await world.cluster.subscribe(visitor.ref, [StoredSubscription("new", 1)], False)
            await world.cluster.unsubscribe(visitor.ref, ["gone"], False)
        own = b"n" + it.member + b"\0"
        await world.events.within(lambda: table(it.client) == {own + b"kept", own + b"new"})


async def test_lost_members_of_groups_are_told_again() -> None:
    async with loss() as it:
        world = it.world
        one, two = await world.connect("one"), await world.connect("two")
        old, new = GroupHand(world, "$share/x/old"), GroupHand(world, "$share/x/new")
        await old.members(one)
        async with it.tail():
            await new.members(two)
            await old.members()
        await world.events.within(
            lambda: raw(it.client, "EXISTS", prefix_of(new.group_id) + b"gn:" + new.group_id) == 1
        )
        await new.put(b"1")
        await new.until(1)
        own = b"ng:" + it.member
        await world.events.within(lambda: not raw(it.client, "SISMEMBER", prefix_of(old.group_id) + own, old.group_id))


async def test_a_store_that_lost_nothing_hears_little_and_nobody_notices() -> None:
    async with loss() as it:
        world = it.world
        for first in range(0, 600, 100):
            async with trio.open_nursery() as nursery:
                for number in range(first, first + 100):
                    nursery.start_soon(visit, world, number)
        async with it.tail():
            pass
        cluster = cast(RedisCluster, world.cluster)
        await world.events.within(lambda: cluster._verifier.idle)
        stats = cast("dict[str, dict[str, int]]", it.client.info("commandstats"))
        assert stats["cmdstat_fcall"]["calls"] < 300
        assert not world.events.lost
        assert not world.events.changes


async def visit(world: World, number: int) -> None:
    at = await world.connect(f"c{number}")
    await world.subscribe(at, f"a/{number}", "b")


class Connections:
    """A store with this replication id."""

    def __init__(self) -> None:
        self.replid = b"x"

    async def __call__(self, *parts: object) -> object:
        await trio.lowlevel.checkpoint()
        return b"role:master\r\nmaster_replid:" + self.replid + b"\r\n" if parts[0] == "INFO" else 1


async def test_another_life_is_noticed_by_its_id_even_if_its_number_is_the_same() -> None:
    generations, store = Generations(KEYS), Connections()
    changed: list[bytes] = []
    generations.on_changed = changed.append
    await generations.register(store)
    await generations.register(store)
    assert not changed
    store.replid = b"y"
    await generations.register(store, lambda prefix: prefix in (KEYS.partitions[3], KEYS.routes))
    assert sorted(changed) == sorted((KEYS.partitions[3], KEYS.routes))
