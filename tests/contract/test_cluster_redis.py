"""What only a real store can show: restarts of nodes and of the store, a full store, who may join."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import cast

import pytest
import trio

from broker.errors import ClusterError, StoreFull, StoreUnavailable
from cluster.api import REFUSED_GONE, StoredSubscription, StoredWill
from cluster.keys import Keys, partition_of, session_id
from cluster.policy import ClusterLimits
from cluster.records import pack_body, queue_prefix
from cluster.redis import library
from cluster.redis.publish import Item
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import Answer, GroupHand, WaitingPublication, World, message, served, target
from tests.kit.redis_server import RedisServer, redis_server

_numbers = itertools.count(1)


@pytest.fixture
def namespace() -> str:
    return f"r{next(_numbers)}"


def make(
    server: RedisServer, namespace: str, node: str = "a", partitions: int = 16, **limits: float | str
) -> RedisCluster:
    return RedisCluster(server.address, node, ClusterLimits(**limits), namespace, partitions)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def crashing(cluster: RedisCluster) -> AsyncIterator[World]:
    async with served(cluster) as world:
        yield world
        # With its link closed a node can neither detach nor leave.
        cluster._link.close()


def in_store(server: RedisServer, namespace: str, client_id: str) -> dict[bytes, bytes]:
    sid = session_id(client_id)
    key = Keys(namespace, 16).partitions[partition_of(sid, 16)] + b"s:" + sid
    with server.client() as client:
        return cast("dict[bytes, bytes]", client.hgetall(key))


async def test_g9_a_restarted_node_finds_everything(store: RedisServer, namespace: str) -> None:
    async with crashing(make(store, namespace)) as world:
        at = await world.connect("c")
        gone = await world.connect("gone", expiry_s=0)
        await world.cluster.subscribe(
            at.ref, [StoredSubscription("a/+", 2, 7), StoredSubscription("$share/g/b", 1)], True
        )
        await world.cluster.subscribe(gone.ref, [StoredSubscription("z", 1)], True)
        persistent, ephemeral = GroupHand(world, "$share/g/b"), GroupHand(world, "$share/ephemeral/b")
        await persistent.members(at)
        await ephemeral.members(gone, persistent=False)
        await persistent.put(b"1")
        await ephemeral.put(b"1")
        await world.publish(message("kept"), [target(at)], retain=True)
        await world.send(at, b"2")
    async with served(make(store, namespace)) as world:
        assert {
            (r.session_id, r.client_id, r.birth, r.subscription.topic_filter, r.subscription.options)
            for r in world.events.routes
        } == {(at.ref.session_id, "c", at.ref.birth, "a/+", 2), (at.ref.session_id, "c", at.ref.birth, "$share/g/b", 1)}
        assert list(world.cluster.retained_match("#")) == ["kept"]
        assert not (await world.connect("gone")).session_present
        again = await world.connect("c")
        persistent, ephemeral = GroupHand(world, "$share/g/b"), GroupHand(world, "$share/ephemeral/b")
        await persistent.members(again)
        assert await persistent.until(1) == [b"1"]
        assert [each.depth for each in await ephemeral.put(b"2")] == [REFUSED_GONE]
        assert (again.session_present, again.last_seq) == (True, 2)
        # How far the dead one came is not known: all of it may have been sent.
        assert again.sent_seq == 2
        assert await world.queue(again.ref) == [b"x", b"2"]
        assert await world.send(again, b"3") == [3]


async def test_the_sessions_of_a_dead_node_are_free_and_its_writes_refused(store: RedisServer, namespace: str) -> None:
    old = make(store, namespace)
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(old) as paused:
            at = await paused.connect("c")
            async with served(make(store, namespace)) as world:
                assert b"token" not in in_store(store, namespace, "c")
                late = paused.start(WaitingPublication(message(payload=b"late"), [target(at)]))
                with trio.move_on_after(20):
                    while not old._member.superseded:
                        await trio.sleep(0.01)
                assert not late.done.is_set()
                again = await world.connect("c")
                assert await world.queue(again.ref) == []
                assert await world.send(again, b"1") == [1]
            await trio.sleep_forever()
    assert "took over" in str(raised.value.exceptions[0].exceptions[0])


async def test_another_node_may_follow(store: RedisServer, namespace: str) -> None:
    async with served(make(store, namespace)) as world:
        at = await world.connect("c")
        await world.send(at, b"1")
    async with served(make(store, namespace, "b")) as world:
        assert (await world.connect("c")).session_present


async def test_the_number_of_partitions_is_fixed(store: RedisServer, namespace: str) -> None:
    async with served(make(store, namespace)):
        pass
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(make(store, namespace, partitions=8)):
            pass
    assert raised.group_contains(ClusterError, match="partitions = 16, this node has 8", depth=None)


def will(delay_s: int = 0) -> StoredWill:
    return StoredWill(message("will", b"bye", message_id=b"w" * 16), delay_s)


async def test_g11_wills_of_a_dead_node(store: RedisServer, namespace: str) -> None:
    async with crashing(make(store, namespace)) as world:
        for client_id, expiry_s, delay_s in (
            ("e", 0, 0),
            ("p", 60, 0),
            ("late", 60, 600),
            ("back", 60, 0),
            ("ee", 0, 0),
        ):
            await world.connect(client_id, expiry_s=expiry_s, will=will(delay_s))
    async with served(make(store, namespace, will_failover_grace_s=1)) as world:
        assert world.events.wills == []
        await world.connect("back")
        await world.connect("ee", clean_start=True, expiry_s=0)
        last = await world.connect("last", will=will(2))
        await world.cluster.detach(last.ref, 60, 0, True)
        await world.events.until(lambda: len(world.events.wills) >= 3)
        assert sorted(client_id for client_id, _ in world.events.wills[:2]) == ["e", "p"]
        assert world.events.wills[2][0] == "last"
    async with served(make(store, namespace, will_failover_grace_s=1)) as world:
        # Published means done: nothing comes a second time.
        last = await world.connect("last", will=will(1))
        await world.cluster.detach(last.ref, 60, 0, True)
        await world.events.until(lambda: world.events.wills)
        assert [client_id for client_id, _ in world.events.wills] == ["last"]


async def test_g11_a_will_that_a_reconnect_does_not_cancel(store: RedisServer, namespace: str) -> None:
    """As the setting will_failover says."""
    async with crashing(make(store, namespace)) as world:
        await world.connect("back", expiry_s=60, will=will())
        await world.connect("gone", expiry_s=60, will=will())
    async with served(make(store, namespace, will_failover_grace_s=1, will_failover="publish")) as world:
        await world.connect("back")
        await world.events.until(lambda: len(world.events.wills) >= 2)
        assert sorted(client_id for client_id, _ in world.events.wills) == ["back", "gone"]


async def test_g13_delayed_messages_survive_their_node(store: RedisServer, namespace: str) -> None:
    async with crashing(make(store, namespace)) as world:
        for number, delay_s in ((1, 1), (2, 1), (3, 2)):
            sent = message(payload=b"%d" % number, message_id=b"%016d" % number)
            publication = await world.publish(sent, deduplicate=True, delay_s=delay_s)
            assert publication.error is None
        world.events.delayed_errors += [ValueError("not now")] * 99
        await world.events.until(lambda: len(world.events.delayed) >= 3)
    # They were handed out and not done: their lease ends some time; here that is now.
    with store.client() as client:
        for prefix in Keys(namespace, 16).partitions:
            for item in client.zrange(prefix + b"t", 0, -1):
                client.zadd(prefix + b"t", {item: 0})
    async with served(make(store, namespace)) as world:
        await world.events.until(lambda: len(world.events.delayed) >= 3)
        with store.client() as client:
            await world.events.within(lambda: not list(client.scan_iter(f"{namespace}:*:dly")))
        assert sorted(due.payload for due in world.events.delayed) == [b"1", b"2", b"3"]


async def test_g14_a_killed_node_leaves_behind_whose_a_group_message_is(store: RedisServer, namespace: str) -> None:
    async with crashing(make(store, namespace)) as world:
        at = await world.connect("c")
        group = GroupHand(world)
        await world.subscribe(at, group.topic_filter, qos=2)
        await group.members(at)
        await group.put(b"1", b"2", qos=2)
        await group.settle(group.entries[0], keep_for=at.ref.session_id)
    async with served(make(store, namespace)) as world:
        group = GroupHand(world)
        await group.members(await world.connect("c"))
        await group.until(2)
        assert {entry.message.payload: entry.kept_for for entry in group.entries} == {
            b"1": at.ref.session_id,
            b"2": b"",
        }
        (one,) = [entry for entry in group.entries if entry.kept_for]
        await group.settle(one)
        (three,) = await group.put(b"3")
        assert three.depth == 2
        # Its mark went with it, although another node had made it.
        with store.client() as client:
            assert list(client.scan_iter(f"{namespace}:*:ga:*")) == []


async def test_routes_that_a_dead_node_left_behind(store: RedisServer, namespace: str) -> None:
    """Killed between the session and the route table: the next node brings them in line."""
    async with crashing(make(store, namespace)) as world:
        at = await world.connect("c")
        await world.cluster.subscribe(at.ref, [StoredSubscription("old", 1)], True)
        cluster = cast(RedisCluster, world.cluster)
        prefix = cluster._sessions.prefix(at.ref.session_id)
        head = ("FCALL", "rk1_subscribe", 1, prefix, at.ref.session_id, at.ref.token)
        assert await cluster._link.call(*head, b"new", b"\x01\x02\x00\x00\x00\x00") == 1
        head = ("FCALL", "rk1_unsubscribe", 1, prefix, at.ref.session_id, at.ref.token)
        assert await cluster._link.call(*head, b"old") == 1
    async with served(make(store, namespace)) as world:
        assert [(r.subscription.topic_filter, r.subscription.options) for r in world.events.routes] == [("new", 2)]


async def test_ended_sessions_leave_no_routes(store: RedisServer, namespace: str) -> None:
    async with served(make(store, namespace)) as world:
        wiped, ended, expired = await world.connect("1"), await world.connect("2"), await world.connect("3")
        for each in (wiped, ended, expired):
            await world.cluster.subscribe(each.ref, [StoredSubscription("a", 1)], True)
        again = await world.connect("1", clean_start=True)
        await world.cluster.subscribe(again.ref, [StoredSubscription("b", 1)], True)
        await world.cluster.detach(ended.ref, 0, 0, False)
        await world.cluster.detach(expired.ref, 1, 0, False)
        await world.events.until(lambda: world.events.ended)
    async with served(make(store, namespace)) as world:
        assert [(r.client_id, r.subscription.topic_filter) for r in world.events.routes] == [("1", "b")]


async def test_nothing_is_left_when_all_is_done(store: RedisServer, namespace: str) -> None:
    async with served(make(store, namespace)) as world:
        at = await world.connect("c", will=will())
        await world.cluster.subscribe(at.ref, [StoredSubscription("a", 1)], True)
        await world.send(at, b"1", b"2", qos=2)
        received = Answer()
        world.cluster.received(at.ref, 1, 2, received)
        reserved = Answer()
        world.cluster.reserve(at.ref, 1, b"m" * 16, reserved)
        await world.finished(received, reserved)
        await world.publish(message("r"), retain=True)
        await world.publish(message("r", b""), retain=True)
        await world.cluster.detach(at.ref, 0, 0, True)
        await world.events.until(lambda: world.events.wills)
    # The next node clears away what the first one left.
    async with served(make(store, namespace, "b")) as world:
        with store.client() as client:
            await world.events.within(lambda: not list(client.scan_iter(f"{namespace}:*a:1*")))
    with store.client() as client:
        names = {name.split(b":", 2)[2] for name in client.scan_iter(f"{namespace}:*")}
    own = {name for name in names if b"b:" in name}
    assert names - own <= {b"fence", b"meta", b"dead", b"ver", b"log", b"rver", b"rlog"}


async def test_full_store(namespace: str) -> None:
    with redis_server(unix=True) as server, server.client() as client:
        async with served(make(server, namespace)) as world:
            at = await world.connect("c")
            await world.send(at, b"1", b"2")
            await world.publish(message("r"), retain=True)
            client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
            refused = await world.publish(message(), [target(at)])
            assert isinstance(refused.error, StoreFull)
            assert isinstance((await world.publish(message("r2"), retain=True)).error, StoreFull)
            with pytest.raises(StoreFull):
                await world.connect("new")
            with pytest.raises(StoreFull):
                await world.cluster.subscribe(at.ref, [StoredSubscription("a", 1)], True)
            # What frees, still works.
            cleared = await world.publish(message("r", b""), retain=True)
            assert cleared.error is None
            world.cluster.acknowledge(at.ref, 1, 2)
            await world.settle(at.ref)
            await world.cluster.detach(at.ref, 60, 2, False)
            again = await world.connect("c")
            assert again.session_present
            assert await world.queue(again.ref) == [b"2"]
            await world.cluster.unsubscribe(again.ref, ["a"], True)
            client.config_set("maxmemory", 0)
            # And nothing of what was refused is there.
            assert await world.send(again, b"3") == [3]
            assert await world.queue(again.ref) == [b"2", b"3"]
            assert [topic for topic in world.cluster.retained_match("#") if topic != "r2"] == []
            assert await world.cluster.retained_values(["r2"]) == [None]
            assert list(world.cluster.retained_match("#")) == []


async def test_g2_a_killed_store_keeps_every_message_once_and_in_order(namespace: str) -> None:
    with redis_server(unix=True, aof=True, options=["--appendfsync", "always"]) as server:
        async with served(make(server, namespace, max_queued_messages=100_000)) as world:
            assert world.cluster.health().durability == "fsync"
            sessions = [await world.connect(f"c{number}") for number in range(20)]
            sent: list[WaitingPublication] = []
            stop = trio.Event()

            async def publish_on() -> None:
                number = 0
                while not stop.is_set():
                    for each in sessions:
                        publication = WaitingPublication(message(payload=b"%d" % number), [target(each)])
                        sent.append(world.start(publication))
                    number += 1
                    await trio.sleep(0.001)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_on)
                for _ in range(3):
                    before = len(sent)
                    with trio.fail_after(20):
                        while len(sent) < before + 2000 or not sent[before].done.is_set():
                            await trio.sleep(0.001)
                    await trio.to_thread.run_sync(server.restart)
                stop.set()
            await world.finished(*sent)
            assert {each.answers for each in sent} == {1}
            assert {each.error for each in sent} == {None}
            count = len(sent) // len(sessions)
            expected = [b"%d" % number for number in range(count)]
            for position, each in enumerate(sessions):
                assert await world.queue(each.ref) == expected
                seqs = [each.targets[0].seq for each in sent[position :: len(sessions)]]
                # A store that came back may have lost the last of it: what follows takes other packet ids.
                assert seqs == sorted(set(seqs))
                assert {later - seq for seq, later in pairwise(seqs)} <= {1, 28_673}
                assert seqs[-1] - count in (0, *(28_672 * restarts for restarts in (1, 2, 3)))
            assert world.events.available == [False, True] * 3


async def test_g16_a_store_that_is_away(namespace: str) -> None:
    with redis_server(unix=True, aof=True) as server:
        async with served(make(server, namespace, max_pending_bytes=100_000)) as world:
            at = await world.connect("c")
            await world.send(at, b"1")
            await trio.to_thread.run_sync(server.kill)
            await world.events.until(lambda: world.events.available == [False])
            assert not world.cluster.health().available
            with pytest.raises(StoreUnavailable):
                await world.connect("new")
            with pytest.raises(StoreUnavailable):
                await world.cluster.page(at.ref, 0, 1)
            kept = world.start(WaitingPublication(message(payload=b"2"), [target(at)]))
            world.cluster.acknowledge(at.ref, 1, 1)
            many = [world.start(WaitingPublication(message(payload=b"x" * 1000), [target(at)])) for _ in range(200)]
            await world.finished(many[-1])
            assert isinstance(many[-1].error, StoreUnavailable)
            assert not kept.done.is_set()
            await trio.to_thread.run_sync(server.start)
            await world.finished(kept, *many)
            refused = sum(1 for each in many if each.error is not None)
            assert 0 < refused < 200
            assert (await world.queue(at.ref))[0] == b"2"
            assert len(await world.queue(at.ref)) == 201 - refused
            await world.cluster.detach(at.ref, 60, 1, False)


async def test_alone_needs_an_answered_beat(namespace: str) -> None:
    with redis_server(unix=True) as server:
        async with served(make(server, namespace)) as world:
            assert world.cluster.alone()
            server.pause()
            try:
                with trio.fail_after(20):
                    while world.cluster.alone():
                        await trio.sleep(0.05)
            finally:
                server.resume()
            with trio.fail_after(20):
                while not world.cluster.alone():
                    await trio.sleep(0.05)


@pytest.mark.parametrize(("options", "durability"), [((), "memory"), (("--appendonly", "yes"), "aof")])
async def test_the_durability_class_is_read(options: tuple[str, ...], durability: str, namespace: str) -> None:
    with redis_server(unix=True, options=options) as server:
        async with served(make(server, namespace)) as world:
            health = world.cluster.health()
            assert (health.durability, health.available) == (durability, True)
            assert health.kind in ("redis", "valkey")


async def test_a_store_that_evicts_is_refused(namespace: str) -> None:
    with redis_server(unix=True, options=["--maxmemory-policy", "allkeys-lru"]) as server:
        with pytest.raises(BaseExceptionGroup) as raised:
            async with served(make(server, namespace)):
                pass
        assert raised.group_contains(ClusterError, match="maxmemory-policy noeviction", depth=None)


async def test_the_library_is_loaded_once_and_an_older_build_replaced(store: RedisServer, namespace: str) -> None:
    async with served(make(store, namespace)) as world:
        await world.connect("c")
    with store.client() as client:
        client.function_load(
            f"#!lua name={library.NAME}\nredis.register_function('rk1_join', function() return 1 end)", replace=True
        )
    async with served(make(store, namespace)) as world:
        assert (await world.connect("c")).session_present
        with store.client() as client:
            assert len(client.function_list(library.NAME)) == 1


async def test_records_of_a_later_format_are_kept(store: RedisServer, namespace: str) -> None:
    async with served(make(store, namespace)) as world:
        at = await world.connect("c")
        await world.send(at, b"1", b"2", b"3")
        key = Keys(namespace, 16).partitions[partition_of(at.ref.session_id, 16)] + b"q:" + at.ref.session_id
        with store.client() as client:
            client.hset(key, "2", b"\x63later")
            assert await world.queue(at.ref) == [b"1", b"3"]
            assert await world.queue(at.ref, 1) == [b"1", b"3"]
            assert client.hget(key, "2") == b"\x63later"


async def test_a_will_that_failed_comes_again(store: RedisServer, namespace: str) -> None:
    async with crashing(make(store, namespace)) as world:
        at = await world.connect("c", will=will())
        world.events.will_errors.append(ValueError("not now"))
        await world.cluster.detach(at.ref, 3600, 0, True)
        await world.events.until(lambda: world.events.wills)
    key = Keys(namespace, 16).partitions[partition_of(at.ref.session_id, 16)] + b"t"
    with store.client() as client:
        # Not done: it waits for its lease to end; here that is now.
        (item,) = [each for each in client.zrange(key, 0, -1) if each[:1] == b"x"]
        client.zadd(key, {item: 0})
    async with served(make(store, namespace)) as world:
        await world.events.until(lambda: world.events.wills)
        with trio.fail_after(20):
            with store.client() as client:
                while [each for each in client.zrange(key, 0, -1) if each[:1] == b"x"]:
                    await trio.sleep(0.01)
        assert [client_id for client_id, _ in world.events.wills] == ["c"]


async def test_a_repeated_number_adds_nothing(store: RedisServer, namespace: str) -> None:
    """Rule 5: the same call again gets the same answer; a gap, a late call and a dead incarnation are refused."""
    async with served(make(store, namespace)) as world:
        at = await world.connect("c")
        await world.send(at, b"1")
        cluster = cast(RedisCluster, world.cluster)
        lane = cluster._batch.partitions[partition_of(at.ref.session_id, 16)]
        number, later = lane._number, world.cluster.now_ms() + 5000
        lane.pending.append((_item(b"again"), target(at), 0))
        built = lane.build()
        assert built is not None
        name, *arguments = built
        lane._pairs.clear()

        async def call(valid_until: int, running: int, inc: bytes = cluster._member.incarnation_text) -> object:
            head = ("FCALL", name, 1, lane.prefix, "a", inc, valid_until, running)
            return await cluster._link.call(*head, *arguments)

        assert await call(later, number + 2) == [1, b"%d" % number]
        status, _ = cast("list[int]", await call(later - 60_000, number + 1))
        assert status == 2
        first = await call(later, number + 1)
        assert first == await call(later - 60_000, number + 1) == await call(later, number + 1)
        lane._number = number + 1
        assert await world.queue(at.ref) == [b"1", b"again"]
        assert await world.send(at, b"3") == [3]
    async with served(make(store, namespace)):
        pass
    with store.client() as client:
        status, _ = client.execute_command("FCALL", name, 1, lane.prefix, "a", "0", later, 1, *arguments)
        assert status == 3


def _item(payload: bytes) -> Item:
    publication = WaitingPublication(message(payload=payload))
    return Item(publication, pack_body(publication.message), lambda item: None)


async def test_g8_a_full_outbox_of_acknowledgements_goes_before_the_detach(store: RedisServer, namespace: str) -> None:
    async with served(make(store, namespace)) as world:
        at = await world.connect("c")
        await world.send(at, *[b"x"] * 50)
        for seq in range(1, 50):
            world.cluster.acknowledge(at.ref, seq, seq)
        await world.cluster.detach(at.ref, 60, 50, False)
        assert await world.queue(at.ref) == [b"x"]
        assert world.events.lost == []
        _, last, count, size, releasing, sent, _, _ = struct.unpack("<8d", in_store(store, namespace, "c")[b"c"])
        assert (last, count, releasing, sent) == (50, 1, 0, 50)
        (left,) = await world.cluster.page(at.ref, 0, 9)
        assert size == len(queue_prefix(1, False, ()) + pack_body(left.message))


async def test_an_expiry_that_was_handed_out_is_cancelled_by_a_reconnect(store: RedisServer, namespace: str) -> None:
    """Between taking the item and ending the session the client may come back; a lost answer changes nothing."""
    async with crashing(make(store, namespace)) as world:
        cluster = cast(RedisCluster, world.cluster)
        for client_id in ("back", "gone"):
            at = await world.connect(client_id)
            await world.cluster.detach(at.ref, 3600, 0, False)
        for client_id in ("back", "gone"):
            sid = session_id(client_id)
            prefix = cluster._sessions.prefix(sid)
            birth = in_store(store, namespace, client_id)[b"birth"]
            with store.client() as client:
                client.zadd(prefix + b"t", {b"e" + sid: 2**50})
            if client_id == "back":
                await world.connect(client_id)
                assert await cluster._link.call("FCALL", "rk1_expire", 1, prefix, sid, birth, 2**50) == 0
                assert (await world.connect(client_id)).session_present
            else:
                assert await cluster._link.call("FCALL", "rk1_expire", 1, prefix, sid, birth, 99999) == 0
                for _ in range(2):
                    assert await cluster._link.call("FCALL", "rk1_expire", 1, prefix, sid, birth, 2**50) == 1
                assert in_store(store, namespace, client_id) == {}
