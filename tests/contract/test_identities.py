"""G19: a session is of the identity that began it; others are refused and change nothing."""

from __future__ import annotations

import itertools

import pytest

from broker.errors import NotOwner
from cluster.api import StoredSubscription, StoredWill
from cluster.policy import ClusterLimits
from cluster.redis.library import source
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import Maker, World, message, served
from tests.kit.redis_server import RedisServer, ServerCluster
from tests.kit.store_functions import Functions, execute, load_library

pytestmark = pytest.mark.usefixtures("both_ways")

_numbers = itertools.count(1)

#: The session id of the functions' tests.
SID = b"s" * 16


async def test_g19_another_identity_is_refused(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        first = await world.connect("c", identity="anna")
        await world.cluster.subscribe(first.ref, [StoredSubscription("a", 1)], True)
        await world.send(first, b"1")
        for connected in (True, False):
            if not connected:
                await world.cluster.detach(first.ref, 3600, 0, False)
            for clean_start in (False, True):
                for identity in ("bob", "", "Anna"):
                    with pytest.raises(NotOwner):
                        await world.connect("c", clean_start=clean_start, identity=identity)
            if connected:
                await world.send(first, b"2")
                assert world.events.wanted == []
                assert world.events.lost == []
        again = await world.connect("c", identity="anna")
        assert again.session_present
        assert await world.queue(again.ref) == [b"1", b"2"]


async def test_g19_a_refused_client_leaves_the_will_alone(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        will = StoredWill(message("will"), 3600)
        first = await world.connect("c", identity="anna", will=will)
        await world.cluster.detach(first.ref, 3600, 0, True)
        with pytest.raises(NotOwner):
            await world.connect("c", clean_start=True, identity="bob")
        again = await world.connect("c", clean_start=True, identity="anna")
        assert again.ended_will is not None
        assert world.events.wills == []


async def test_g19_its_own_clean_start_keeps_it(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        await world.connect("c", identity="anna")
        assert not (await world.connect("c", clean_start=True, identity="anna")).session_present
        with pytest.raises(NotOwner):
            await world.connect("c", identity="bob")


async def test_g19_the_end_of_a_session_frees_the_client_id(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        first = await world.connect("c", expiry_s=0, identity="anna")
        with pytest.raises(NotOwner):
            await world.connect("c", identity="bob")
        await world.cluster.detach(first.ref, 0, 0, False)
        await world.connect("c", identity="bob")
        second = await world.connect("d", expiry_s=1, identity="anna")
        await world.cluster.detach(second.ref, 1, 0, False)
        await world.events.until(lambda: world.events.ended)
        await world.connect("d", identity="bob")


async def test_g19_clients_that_nobody_checked_are_one_identity(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        await world.connect("c", identity="")
        assert (await world.connect("c", identity="")).session_present
        with pytest.raises(NotOwner):
            await world.connect("c", identity="anna")


async def test_g19_a_clean_start_may_end_a_session_of_nobody(make_cluster: Maker) -> None:
    """That of clients that nobody checked, once authentication is switched on; nothing of it is seen."""
    async with served(make_cluster()) as world:
        first = await world.connect("c", identity="")
        await world.cluster.subscribe(first.ref, [StoredSubscription("a", 1)], True)
        await world.send(first, b"1")
        with pytest.raises(NotOwner):
            await world.connect("c", clean_start=True, identity="anna")  # somebody is connected with it
        await world.cluster.detach(first.ref, 3600, 0, False)
        with pytest.raises(NotOwner):
            await world.connect("c", identity="anna")
        second = await world.connect("c", clean_start=True, identity="anna")
        assert not second.session_present
        assert second.subscriptions == []
        assert await world.queue(second.ref) == []
        await world.cluster.detach(second.ref, 3600, 0, False)
        for identity in ("", "bob"):
            with pytest.raises(NotOwner):
                await world.connect("c", clean_start=True, identity=identity)
        assert (await world.connect("c", identity="anna")).session_present


async def test_g19_identities_may_not_matter(make_cluster: Maker) -> None:
    """`session_owner = any`: and what was known of a session stays known."""
    async with served(make_cluster()) as world:
        await world.connect("c", identity="anna")
        assert (await world.connect("c", identity=None)).session_present
        with pytest.raises(NotOwner):
            await world.connect("c", identity="bob")
        assert (await world.connect("c", identity="anna")).session_present


async def test_g19_a_session_of_nobody_is_the_first_ones(make_cluster: Maker) -> None:
    """As those are that an older version began."""
    async with served(make_cluster()) as world:
        await world.connect("c", identity=None)
        assert (await world.connect("c", identity="bob")).session_present
        with pytest.raises(NotOwner):
            await world.connect("c", identity="anna")


async def test_who_is_connected(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        assert not await world.cluster.connected("c", "anna")
        first = await world.connect("c", identity="anna")
        assert await world.cluster.connected("c", "anna")
        assert not await world.cluster.connected("c", "bob")
        await world.cluster.detach(first.ref, 3600, 0, False)
        assert not await world.cluster.connected("c", "anna")


@pytest.mark.parametrize("store", ["single", "shards"], indirect=True)
async def test_g19_on_another_node_nobody_is_asked(store: RedisServer | ServerCluster) -> None:
    namespace = f"ident{next(_numbers)}"
    limits = ClusterLimits()
    async with (
        served(RedisCluster(store.address, "a", limits, namespace, 4)) as one,
        served(RedisCluster(store.address, "b", limits, namespace, 4)) as other,
    ):
        first = await one.connect("c", identity="anna")
        one.events.here.add("c")
        for clean_start in (False, True):
            with pytest.raises(NotOwner):
                await other.connect("c", clean_start=clean_start, identity="bob")
        await one.send(first, b"1")
        assert one.events.wanted == []
        one.events.here.clear()
        assert (await other.connect("c", identity="anna")).session_present
        assert one.events.wanted[:1] == ["c"]


# The functions of the store


def test_what_is_kept(single: RedisServer) -> None:
    with single.client() as client:
        load_library(client)
        f = Functions(client)
        key = f.key(b"s:" + SID)
        assert len(f.attach(SID, "a")) == 11, "as a node of the version before calls it"
        assert not client.hexists(str(key, "latin-1"), "identity")
        assert len(f.attach(SID, "a", identity=b"")) == 11
        assert f.attach(SID, "a", identity=b"x" * 16)[:2] == [0, 1]
        before = client.hgetall(key)
        assert f.attach(SID, "a", identity=b"y" * 16, clean=1) == [4]
        assert f.attach(SID, "b", identity=b"y" * 16) == [4]
        assert f.attach(SID, "b", identity=b"y" * 16, name="attach_as_full", force="a:1") == [4]
        assert client.hgetall(key) == before
        assert f.attach(SID, "b", identity=b"x" * 16) == [3, b"a:1"]
        assert client.object("encoding", key) in (b"listpack", b"ziplist")
        # What is older than this does not look, and keeps it.
        assert f.attach(SID, "a")[:2] == [0, 1]
        assert f.attach(SID, "a", identity=b"y" * 16) == [4]


@pytest.mark.parametrize("clean_start", [False, True])
async def test_an_older_library_is_replaced(single: RedisServer, clean_start: bool) -> None:
    """A node of the version before connected last: its library looks at nobody's identity, so it is not asked."""
    world: World
    async with served(RedisCluster(single.address, "a", ClusterLimits(), f"ident{next(_numbers)}", 4)) as world:
        first = await world.connect("c", identity="anna")
        with single.client() as client:
            execute(client, "FUNCTION", "LOAD", "REPLACE", older(source()))
        with pytest.raises(NotOwner):
            await world.connect("c", clean_start=clean_start, identity="bob")
        await world.send(first, b"1")
        assert world.events.lost == []
        again = await world.connect("c", identity="anna")
        assert again.session_present
        assert await world.queue(again.ref) == [b"1"]


def older(library: bytes) -> bytes:
    """Without what came with identities: the argument is not known, nor the functions that look at it."""
    found = library.replace(b"args[14]", b"nil")
    assert found != library
    return b"\n".join(
        line for line in found.splitlines() if b"rk1_attach_as" not in line and b"rk1_attach_numbered" not in line
    )
