"""The contract of `cluster.registry.Registry`, on every implementation; and of several nodes on one store."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest
import trio

from cluster.policy import ClusterLimits
from cluster.redis.library import source
from cluster.redis.store import RedisCluster
from cluster.registry import BANS, KEYS, LOGINS, RULES, TOPICS, USERS, Occupied, Registry
from tests.kit.cluster_world import Maker, World, served
from tests.kit.redis_server import RedisServer, ServerCluster
from tests.kit.store_functions import execute

_numbers = itertools.count(1)

several = pytest.mark.parametrize("store", ["single", "shards"], indirect=True)

#: What clients may choose.
NAMES = ("anna", "", "a b", "{x}", "ä\0\n", "\udcff", "x" * 65535)


@pytest.fixture
async def registry(make_cluster: Maker) -> AsyncIterator[Registry]:
    async with served(make_cluster()) as world:
        yield world.cluster.registry


@contextlib.asynccontextmanager
async def two(store: RedisServer | ServerCluster, namespace: str = "") -> AsyncIterator[tuple[World, World]]:
    namespace = namespace or f"registry{next(_numbers)}"
    made = [RedisCluster(store.address, name, ClusterLimits(), namespace, 16) for name in ("a", "b")]
    async with served(made[0]) as one, served(made[1]) as other:
        yield one, other


async def test_documents_are_kept_as_they_are(registry: Registry) -> None:
    assert await registry.version() == 0
    assert await registry.document(USERS, "anna") is None
    assert await registry.documents(USERS) == {}
    changes: dict[str, bytes | None] = {name: b"\0\n%d" % number for number, name in enumerate(NAMES)}
    version = await registry.change(USERS, changes)
    assert version == await registry.version() > 0
    assert await registry.documents(USERS) == changes
    assert await registry.documents(RULES) == {}
    for name in NAMES:
        assert await registry.document(USERS, name) == changes[name]


async def test_a_document_may_be_empty(registry: Registry) -> None:
    await registry.change(USERS, {"anna": b""})
    assert await registry.document(USERS, "anna") == b""


async def test_changes_set_and_remove_in_one_step(registry: Registry) -> None:
    first = await registry.change(USERS, {"a": b"1", "b": b"2"})
    second = await registry.change(USERS, {"a": None, "c": b"3", "nobody": None})
    assert second > first
    assert await registry.documents(USERS) == {"b": b"2", "c": b"3"}
    await registry.change(USERS, {"b": None})
    assert await registry.documents(USERS) == {"c": b"3"}
    assert await registry.version() > second


async def test_each_kind_has_a_version(registry: Registry) -> None:
    assert await registry.versions() == {}
    users = await registry.change(USERS, {"a": b"1"})
    bans = await registry.change(BANS, {"a": b"1"})
    assert await registry.versions() == {USERS: users, BANS: bans}
    await registry.remove(BANS, {"a": b"2"})
    assert await registry.versions() == {USERS: users, BANS: bans}
    bans = await registry.remove(BANS, {"a": b"1"})
    assert await registry.versions() == {USERS: users, BANS: bans}


async def test_a_document_is_created_once(registry: Registry) -> None:
    assert await registry.create(KEYS, "admin", b"1")
    version = await registry.version()
    assert version > 0
    assert not await registry.create(KEYS, "admin", b"2")
    assert await registry.versions() == {KEYS: version}
    assert await registry.documents(KEYS) == {"admin": b"1"}
    assert await registry.create(LOGINS, "admin", b"")
    assert await registry.document(LOGINS, "admin") == b""
    for name in NAMES:
        assert await registry.create(TOPICS, name, b"x")
    assert set(await registry.documents(TOPICS)) == set(NAMES)


async def test_many_documents_are_read_in_portions(registry: Registry) -> None:
    changes: dict[str, bytes | None] = {f"n{number}": b"%d" % number for number in range(5000)}
    await registry.change(RULES, changes)
    assert await registry.documents(RULES) == changes


async def test_only_what_is_still_as_told_is_removed(registry: Registry) -> None:
    version = await registry.change(BANS, {"a": b"1", "b": b"2"})
    assert await registry.remove(BANS, {"a": b"other", "c": b"3"}) == version
    assert await registry.remove(BANS, {"a": b"1", "b": b"old"}) > version
    assert await registry.documents(BANS) == {"b": b"2"}


async def test_events_are_counted_by_name(registry: Registry) -> None:
    assert [await registry.count("a", 60) for _ in range(3)] == [1, 2, 3]
    for name in NAMES:
        assert await registry.count(f"n:{name}", 60) == 1


async def test_events_leave_the_window(registry: Registry) -> None:
    await registry.count("a", 0.3)
    with trio.fail_after(20):
        while await registry.count("a", 0.3) != 1:
            await trio.sleep(0.35)


async def test_places_are_taken_and_given_back(registry: Registry) -> None:
    user = [Occupied("user:anna", 2)]
    assert await registry.occupy(user) is None
    assert await registry.occupy(user) is None
    assert await registry.occupy(user) == "user:anna"
    assert await registry.occupy([Occupied("user:other", 2)]) is None
    registry.vacate(["user:anna"])
    assert await registry.occupy(user) is None
    assert await registry.occupy(user) == "user:anna"


async def test_all_places_or_none(registry: Registry) -> None:
    assert await registry.occupy([Occupied("a", 1)]) is None
    assert await registry.occupy([Occupied("b", 1), Occupied("a", 1)]) == "a"
    assert await registry.occupy([Occupied("b", 1)]) is None


async def test_nobody_gives_back_more_than_was_taken(registry: Registry) -> None:
    registry.vacate(["a", "a"])
    registry.vacate([])
    assert await registry.occupy([Occupied("a", 1)]) is None
    assert await registry.occupy([Occupied("a", 1)]) == "a"


async def test_a_recount_is_the_truth(registry: Registry) -> None:
    for name in ("a", "a", "b"):
        assert await registry.occupy([Occupied(name, 9)]) is None
    await registry.recount({"a": 1, "c": 2, **{f"n{number}": 1 for number in range(500)}})
    for name, taken in (("a", 1), ("b", 0), ("c", 2), ("n7", 1)):
        assert await registry.occupy([Occupied(name, taken)]) == name
        assert await registry.occupy([Occupied(name, taken + 1)]) is None
    await registry.recount({})
    assert await registry.occupy([Occupied("c", 1)]) is None


async def test_a_bucket_begins_full_and_fills_again(registry: Registry) -> None:
    assert await registry.draw("a", 70, 10, 100) == 70
    assert 30 <= await registry.draw("a", 70, 10, 100) < 70
    with trio.fail_after(20):
        while not await registry.draw("a", 70, 10, 100):
            await trio.sleep(0.1)
    assert await registry.draw("b", 70, 10, 100) == 70
    assert await registry.draw("b", 0, 10, 100) == 0


# Several nodes


@several
async def test_all_nodes_have_the_same(store: RedisServer | ServerCluster) -> None:
    async with two(store) as (one, other):
        a, b = one.cluster.registry, other.cluster.registry
        version = await a.change(USERS, {"anna": b"1"})
        assert await b.version() == version
        assert await b.document(USERS, "anna") == b"1"
        assert [await a.count("x", 60), await b.count("x", 60)] == [1, 2]
        assert await a.draw("x", 60, 0.001, 100) + await b.draw("x", 60, 0.001, 100) == 100
        assert await a.occupy([Occupied("x", 2)]) is None
        assert await b.occupy([Occupied("x", 2)]) is None
        assert await a.occupy([Occupied("x", 2)]) == "x"
        await b.recount({})
        assert await a.occupy([Occupied("x", 2)]) is None


@several
async def test_places_of_nodes_that_left_do_not_count(store: RedisServer | ServerCluster) -> None:
    namespace = f"registry{next(_numbers)}"
    async with served(RedisCluster(store.address, "a", ClusterLimits(), namespace, 16)) as one:
        async with served(RedisCluster(store.address, "b", ClusterLimits(), namespace, 16)) as other:
            for number in range(200):
                assert await other.cluster.registry.occupy([Occupied(f"x{number}", 1)]) is None
            assert await one.cluster.registry.occupy([Occupied("x7", 1)]) == "x7"
        assert await one.cluster.registry.occupy([Occupied("x7", 1)]) is None
        keys = f"{namespace}:{{c}}:"
        with owner(store, keys.encode()).client() as client:
            # What is left of the dead node goes with it, but for what is here.
            await one.events.within(lambda: not client.keys(f"{keys}pl:b:*"))
            assert len(client.keys(f"{keys}pl:a:*")) == 1


@several
async def test_an_older_library_is_replaced(store: RedisServer | ServerCluster) -> None:
    """A node of the version before connected last: its library has none of these functions."""
    async with two(store) as (one, other):
        for server in store.primaries if isinstance(store, ServerCluster) else [store]:
            with server.client() as client:
                execute(client, "FUNCTION", "LOAD", "REPLACE", source().partition(b"-- What nodes share")[0])
        registry = one.cluster.registry
        assert await registry.change(USERS, {"anna": b"1"}) > 0
        assert await registry.count("x", 60) == 1
        await registry.recount({"a": 1})
        assert await other.cluster.registry.occupy([Occupied("a", 1)]) == "a"


async def test_a_full_store_lets_go_and_takes_places(single: RedisServer) -> None:
    async with two(single) as (one, _):
        registry = one.cluster.registry
        await registry.change(BANS, {"a": b"1", "b": b"2"})
        with single.client() as client:
            client.config_set("maxmemory", "1")
            try:
                await registry.change(BANS, {"a": None})
                await registry.remove(BANS, {"b": b"2"})
                assert await registry.occupy([Occupied("x", 1)]) is None
                await registry.recount({})
            finally:
                client.config_set("maxmemory", "0")
        assert await registry.documents(BANS) == {}


def owner(store: RedisServer | ServerCluster, key: bytes) -> RedisServer:
    return store.owner(key) if isinstance(store, ServerCluster) else store
