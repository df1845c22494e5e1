"""The contract of `cluster.inspection.Inspection`, on every implementation; and of several nodes on one store."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest

from broker.errors import SessionConnected, StoreUnavailable
from cluster import keys
from cluster.api import Attachment, StoredSubscription, StoredWill, shared_group_id
from cluster.inspection import GroupTotals, Inspection, SessionState
from cluster.policy import NEVER_EXPIRES, ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import Answer, GroupHand, Maker, WaitingPublication, World, message, served, target
from tests.kit.redis_server import RedisServer, ServerCluster

_numbers = itertools.count(1)

several = pytest.mark.parametrize("store", ["single", "shards"], indirect=True)


@pytest.fixture
async def world(make_cluster: Maker) -> AsyncIterator[World]:
    async with served(make_cluster()) as world:
        yield world


@contextlib.asynccontextmanager
async def two(store: RedisServer | ServerCluster) -> AsyncIterator[tuple[World, World]]:
    namespace = f"inspection{next(_numbers)}"
    made = [RedisCluster(store.address, name, ClusterLimits(), namespace, 16) for name in ("a", "b")]
    async with served(made[0]) as one, served(made[1]) as other:
        yield one, other


async def leave(world: World, at: Attachment, expiry_s: int = 3600, sent_seq: int = 0, will: bool = False) -> None:
    await world.cluster.detach(at.ref, expiry_s, sent_seq, will)


async def names(inspection: Inspection, after: str = "", limit: int = 100, prefix: str = "") -> list[str]:
    return [each.client_id for each in await inspection.sessions(after, limit, prefix)]


async def state(world: World, client_id: str) -> SessionState:
    found = await world.cluster.inspection.session(client_id)
    assert found is not None
    return found


# Sessions


async def test_sessions_are_listed_in_the_order_of_their_bytes(world: World) -> None:
    inspection = world.cluster.inspection
    assert await names(inspection) == []
    wanted = sorted(
        ["a", "a\x01", "aa", "a b", "b", "Z", "é", "\uffff", "\U0001f600", *(f"n{each}" for each in range(50))]
    )
    for name in reversed(wanted):
        await leave(world, await world.connect(name))
    await world.connect("ephemeral", expiry_s=0)
    assert await names(inspection) == wanted
    paged: list[str] = []
    while page := await names(inspection, paged[-1] if paged else "", 7):
        assert len(page) <= 7
        paged += page
    assert paged == wanted
    assert await names(inspection, prefix="n1") == sorted(["n1", *(f"n1{each}" for each in range(10))])
    assert await names(inspection, after="n15", prefix="n1") == ["n16", "n17", "n18", "n19"]
    assert await names(inspection, after="a", limit=2) == ["a\x01", "a b"]
    assert await names(inspection, after="n2", prefix="n1") == []
    assert await names(inspection, prefix="é") == ["é"]


async def test_a_session_is_listed_while_it_would_outlive_its_connection(world: World) -> None:
    inspection = world.cluster.inspection
    at = await world.connect("c", expiry_s=0)
    assert await names(inspection) == []
    await leave(world, at, 0)
    at = await world.connect("c", expiry_s=5)
    assert await names(inspection) == ["c"]
    at = await world.connect("c", expiry_s=0)
    assert at.session_present
    assert await names(inspection) == []
    await leave(world, at, 60)
    assert await names(inspection) == ["c"]
    await leave(world, await world.connect("c", clean_start=True), 0)
    assert await names(inspection) == []
    await leave(world, await world.connect("c"), 1)
    await world.events.until(lambda: world.events.ended)
    assert await names(inspection) == []
    assert await inspection.session("c") is None


async def test_the_state_of_a_session(world: World) -> None:
    inspection = world.cluster.inspection
    assert await inspection.session("c") is None
    assert await inspection.subscriptions("c") is None
    began_ms = world.cluster.now_ms()
    at = await world.connect("c", expiry_s=600, identity="anna")
    await world.subscribe(at, "a/+", "b")
    found = await state(world, "c")
    assert (found.client_id, found.birth, found.node, found.connected) == ("c", at.ref.birth, "a", True)
    assert (found.expiry_s, found.expires_at_ms, found.has_identity, found.subscriptions) == (600, 0, True, 2)
    assert abs(found.created_ms - began_ms) < 20_000
    assert (found.queued, found.queued_bytes, found.oldest_ms, found.in_flight) == (0, 0, 0, 0)
    then_ms = world.cluster.now_ms() - 5000
    for number in range(5):
        sent = message(payload=b"%d" % number, qos=2, accepted_at_ms=then_ms + number * 1000)
        await world.publish(sent, [target(at, 2)])
    inbound = Answer()
    world.cluster.reserve(at.ref, 7, b"m" * 16, inbound)
    received = Answer()
    world.cluster.received(at.ref, 2, 3, received)
    await world.finished(inbound, received)
    found = await state(world, "c")
    assert (found.queued, found.in_flight, found.releasing, found.inbound) == (4, 2, 1, 1)
    assert found.queued_bytes > 0
    assert 5000 <= found.oldest_ms < 25_000
    await leave(world, at, 600, 5)
    found = await state(world, "c")
    assert (found.node, found.connected, found.in_flight) == ("", False, 4)
    assert abs(found.expires_at_ms - world.cluster.now_ms() - 600_000) < 20_000
    [listed] = await inspection.sessions("", 10)
    assert (listed.client_id, listed.queued, listed.created_ms) == ("c", 4, found.created_ms)
    subscriptions = await inspection.subscriptions("c")
    assert subscriptions is not None
    assert sorted((each.topic_filter, each.options) for each in subscriptions) == [("a/+", 1), ("b", 1)]


async def test_a_session_that_never_ends(world: World) -> None:
    await leave(world, await world.connect("c", expiry_s=NEVER_EXPIRES), NEVER_EXPIRES)
    found = await state(world, "c")
    assert (found.expiry_s, found.expires_at_ms, found.has_identity) == (NEVER_EXPIRES, 0, False)


async def test_epochs_grow_whatever_becomes_of_the_session(world: World) -> None:
    epochs = []
    for expiry_s, clean_start in ((0, False), (0, True), (60, False), (60, False), (60, True), (0, False)):
        at = await world.connect("c", clean_start, expiry_s)
        epochs.append(at.epoch)
        if expiry_s == 0:
            await leave(world, at, 0)
    assert epochs == sorted(set(epochs))
    assert abs(epochs[-1] - world.cluster.now_ms()) < 20_000


# Queues


async def test_a_queue_is_looked_at_and_left_as_it_is(world: World) -> None:
    inspection = world.cluster.inspection
    assert await inspection.queue("c", 0, 10) == []
    at = await world.connect("c")
    seqs = await world.send(at, *(b"%d" % number for number in range(250)))
    world.cluster.acknowledge(at.ref, seqs[100], seqs[100])
    await world.settle(at.ref)
    await leave(world, at)
    payloads: list[bytes] = []
    after = 0
    while page := await inspection.queue("c", after, 60):
        assert len(page) <= 60
        payloads += [each.message.payload for each in page]
        after = page[-1].seq
    assert payloads == [b"%d" % number for number in range(250) if number != 100]
    again = await world.connect("c")
    assert await world.queue(again.ref) == payloads


# Ending


async def test_a_session_is_ended_with_all_it_had(world: World) -> None:
    inspection = world.cluster.inspection
    at = await world.connect("c", will=StoredWill(message("will", message_id=b"w" * 16), 3000))
    await world.subscribe(at, "a", "$share/g/b")
    await world.send(at, b"1")
    with pytest.raises(SessionConnected) as caught:
        await inspection.end_session("c")
    assert caught.value.node == "a"
    assert await names(inspection) == ["c"]
    await leave(world, at, 3600, will=True)
    assert await inspection.end_session("c")
    assert world.events.ended == [("c", ["$share/g/b", "a"])]
    assert await names(inspection) == []
    assert await inspection.groups("", 10) == []
    assert not await inspection.end_session("c")
    assert not await inspection.end_session("never")
    again = await world.connect("c")
    assert (again.session_present, again.ended_will, again.subscriptions) == (False, None, [])
    assert await world.queue(again.ref) == []
    assert world.events.wills == []


# Subscriptions of sessions that nobody is connected with


async def test_subscriptions_are_changed_for_a_session(world: World) -> None:
    inspection = world.cluster.inspection
    change = inspection.change_subscriptions
    assert not await change("c", [StoredSubscription("a", 1)], [])
    at = await world.connect("c")
    await world.subscribe(at, "a", "b", "$share/g/x")
    with pytest.raises(SessionConnected):
        await change("c", [StoredSubscription("z", 1)], ["a"])
    await leave(world, at)
    world.events.changes.clear()
    assert await change(
        "c", [StoredSubscription("n/#", 2, 7), StoredSubscription("$share/h/y", 1)], ["a", "$share/g/x"]
    )
    routes = {
        (each.removed, each.session.subscription.topic_filter)
        for each in world.events.changes
        if each.session is not None and each.session.session_id == at.ref.session_id
    }
    assert routes >= {(False, "n/#"), (False, "$share/h/y"), (True, "a"), (True, "$share/g/x")}
    assert [each.topic_filter for each in await inspection.groups("", 10)] == ["$share/h/y"]
    assert await change("c", [], ["b", "nothing"])
    assert await change("c", [], [])
    again = await world.connect("c")
    assert again.session_present
    found = {each.topic_filter: (each.options, each.subscription_identifier) for each in again.subscriptions}
    assert found == {"n/#": (2, 7), "$share/h/y": (1, 0)}


# Groups


async def test_groups_with_members_and_queues(world: World) -> None:
    inspection = world.cluster.inspection
    assert await inspection.groups("", 10) == []
    one, other = await world.connect("one"), await world.connect("other", expiry_s=0)
    gone = await world.connect("gone")
    await world.subscribe(one, "$share/g/a")
    await world.subscribe(gone, "$share/g/a", "$share/f/a")
    await leave(world, gone)
    hand = GroupHand(world)
    await hand.members(one, window=2)
    await world.cluster.group_members("$share/e/ü", "sticky", [])
    await hand.put(b"1", b"2", b"3")
    assert await hand.until(2) == [b"1", b"2"]
    first, second = await inspection.groups("", 10)
    assert (first.topic_filter, first.group_id) == ("$share/f/a", shared_group_id("$share/f/a"))
    assert await members(inspection, "$share/f/a") == {("gone", "", True)}
    assert (first.members, first.members_by_node) == (1, {})
    assert (first.length, first.lag, first.pending, first.oldest_ms) == (0, 0, 0, 0)
    assert (second.topic_filter, second.strategy) == ("$share/g/a", "round_robin")
    assert await members(inspection, "$share/g/a") == {("one", "a", True), ("gone", "", True)}
    assert (second.members, second.members_by_node) == (2, {"a": 1})
    assert (second.length, second.lag, second.pending, second.pending_by_node) == (3, 1, 2, {"a": 2})
    await hand.members(one, other, window=2)
    await hand.until(3)
    third = await inspection.group("$share/g/a")
    assert third is not None
    found = {(client_id, node) for client_id, node, _ in await members(inspection, "$share/g/a")}
    assert found == {("one", "a"), ("gone", ""), ("other", "a")}
    assert (third.lag, third.pending, third.members, third.members_by_node) == (0, 3, 3, {"a": 2})
    assert await inspection.group("$share/g/b") is None
    assert await inspection.group_members("$share/g/b", 10) == []
    assert len(await inspection.group_members("$share/g/a", 2)) == 2
    totals = await inspection.group_totals()
    assert isinstance(totals, GroupTotals)
    assert (totals.groups, totals.lag, totals.lag_max, totals.pending) == (2, 0, 0, 3)


async def members(inspection: Inspection, name: str) -> set[tuple[str, str, bool]]:
    return {(each.client_id, each.node, each.persistent) for each in await inspection.group_members(name, 1000)}


async def test_groups_in_parts(world: World, implementation: str) -> None:
    """By name, whatever it is and however long; what comes and goes meanwhile does not matter to the others."""
    inspection = world.cluster.inspection
    at = await world.connect("c")
    long = "x" * 60_000
    names = [f"$share/{name}" for name in ("a/1", "a/1/", "a/2", "a/ü", "a/\uffff", "b/1")]
    names += [f"$share/long{number}/{long}" for number in range(30)]
    names += [f"$share/same/{'y' * 300}{number}" for number in range(5)]
    await world.subscribe(at, *names)
    found: list[str] = []
    after = ""
    while page := await inspection.groups(after, 4):
        assert 1 <= len(page) <= 4
        found += [each.topic_filter for each in page]
        after = page[-1].place
    assert sorted(found, key=lambda name: name.encode()[:256]) == found
    assert sorted(found) == sorted(names)
    if implementation != "memory":  # which has no way to go
        assert 1 <= len(await inspection.groups("", 1000, "$share/long")) < 25
    assert [each.topic_filter for each in await inspection.groups("", 9, "$share/a/1")] == names[:2]
    assert [each.topic_filter for each in await inspection.groups("", 9, names[-1])] == names[-1:]
    assert await inspection.groups(after, 9) == await inspection.groups("", 9, "$share/c") == []


async def test_many_groups_and_a_group_of_many(world: World) -> None:
    inspection = world.cluster.inspection
    for number in range(700):
        await world.subscribe(await world.connect(f"c{number}", expiry_s=60), "$share/all/a")
    wanted = [f"$share/g{number:04}/a" for number in range(1100)]
    await world.subscribe(await world.connect("many"), *wanted)
    group = await inspection.group("$share/all/a")
    assert group is not None
    assert group.members == 700
    found = await inspection.group_members("$share/all/a", 1000)
    assert sorted(each.client_id for each in found) == sorted(f"c{number}" for number in range(700))
    assert len(await inspection.group_members("$share/all/a", 600)) == 600
    listed: list[str] = []
    after = ""
    while page := await inspection.groups(after, 1000):
        listed += [each.topic_filter for each in page]
        after = page[-1].place
    assert listed == ["$share/all/a", *wanted]
    # The order that is kept has those that ended meanwhile.
    await leave(world, await world.connect("many"))
    assert await inspection.change_subscriptions("many", [], wanted[:5])
    assert [each.topic_filter for each in await inspection.groups("", 3, "$share/g")] == wanted[5:8]


async def test_what_waits_in_all_groups(world: World) -> None:
    inspection = world.cluster.inspection
    assert await inspection.group_totals() == GroupTotals()
    one, gone = await world.connect("one"), await world.connect("gone")
    await world.subscribe(one, "$share/g/a")
    await world.subscribe(gone, *(f"$share/f{number}/b" for number in range(120)))
    assert await inspection.group_totals() == GroupTotals(121)
    there, absent = GroupHand(world, "$share/g/a"), GroupHand(world, "$share/f7/b")
    await there.members(one, window=2)
    await there.put(b"1", b"2", b"3")
    await there.until(2)
    await leave(world, gone)
    await absent.put(b"4", b"5", b"6", b"7")
    found = await inspection.group_totals()
    assert (found.groups, found.lag, found.lag_max, found.pending) == (121, 5, 4, 2)
    assert 0 <= found.oldest_ms < 60_000


# Delayed messages


async def delay(world: World, payload: bytes, delay_s: int) -> None:
    number = next(_numbers)
    sent = message(payload=payload, message_id=b"%016d" % number)
    publication = WaitingPublication(sent, deduplicate=True, delay_s=delay_s)
    await world.finished(world.start(publication))
    assert publication.error is None


async def test_delayed_messages_in_the_order_of_their_time(world: World) -> None:
    inspection = world.cluster.inspection
    assert await inspection.delayed("", 10) == []
    for number in range(40):
        await delay(world, b"%d" % number, 1000 + (number * 7) % 40)
    # Other timers lie in between.
    for number in range(5):
        await leave(world, await world.connect(f"c{number}", expiry_s=1020), 1020)
    wanted = [b"%d" % number for number in sorted(range(40), key=lambda number: (number * 7) % 40)]
    payloads: list[bytes] = []
    after, last_ms = "", 0
    while page := await inspection.delayed(after, 7):
        assert len(page) <= 7
        assert [each.delayed_id for each in page] == sorted(each.delayed_id for each in page)
        assert last_ms <= page[0].due_ms <= page[-1].due_ms
        payloads += [each.message.payload for each in page]
        after, last_ms = page[-1].delayed_id, page[-1].due_ms
    assert payloads == wanted
    first = (await inspection.delayed("", 1))[0]
    shown = await inspection.delayed_message(first.delayed_id)
    assert shown is not None
    assert (shown.delayed_id, shown.due_ms, shown.message.payload) == (first.delayed_id, first.due_ms, wanted[0])
    assert abs(first.due_ms - world.cluster.now_ms() - 1_000_000) < 20_000
    assert await inspection.cancel_delayed(first.delayed_id)
    assert not await inspection.cancel_delayed(first.delayed_id)
    assert await inspection.delayed_message(first.delayed_id) is None
    assert [each.message.payload for each in await inspection.delayed("", 1000)] == wanted[1:]
    for text in ("", "x", "1-2-3", "000000000000001-0000-zz"):
        with pytest.raises(ValueError, match=r"id|hex"):
            await inspection.cancel_delayed(text)
        with pytest.raises(ValueError, match=r"id|hex"):
            await inspection.delayed_message(text)


async def test_a_delayed_message_that_was_taken_back_never_comes(world: World) -> None:
    await delay(world, b"1", 1)
    await delay(world, b"2", 2)
    (first, _) = await world.cluster.inspection.delayed("", 10)
    assert await world.cluster.inspection.cancel_delayed(first.delayed_id)
    await world.events.until(lambda: world.events.delayed)
    assert [each.payload for each in world.events.delayed] == [b"2"]


async def test_a_delayed_message_that_is_being_published_is_not_taken_back(world: World) -> None:
    world.events.delayed_held = []
    await delay(world, b"1", 1)
    (found,) = await world.cluster.inspection.delayed("", 10)
    await world.events.until(lambda: world.events.delayed)
    assert not await world.cluster.inspection.cancel_delayed(found.delayed_id)
    world.events.delayed_held[0](None)


# Retained messages, and the store


async def test_persistent_sessions_are_counted(world: World) -> None:
    kept = await world.connect("kept")
    await world.connect("connected")
    await world.connect("passing", expiry_s=0)
    await world.cluster.detach(kept.ref, 3600, 0, False)
    assert await world.cluster.inspection.session_count() == 2
    assert await world.cluster.inspection.end_session("kept")
    assert await world.cluster.inspection.session_count() == 1


async def test_retained_messages_are_counted_and_browsed(world: World) -> None:
    for topic in ("a", "a/b", "a/b/c", "a/d", "x/y/z", "/", "e/"):
        await world.publish(message(topic), retain=True)
    await world.publish(message("a/d", b""), retain=True)
    assert (await world.cluster.inspection.retained_count())[0] == 6
    children = world.cluster.retained_children
    assert sorted(children(())) == [("", False, 1), ("a", True, 2), ("e", False, 1), ("x", False, 1)]
    assert sorted(children(("a",))) == [("b", True, 1)]
    assert sorted(children(["x", "y"])) == [("z", True, 0)]
    assert list(children(["x", "q"])) == list(children(["x", "y", "z"])) == list(children(["never"])) == []


async def test_the_memory_of_the_store(world: World, implementation: str) -> None:
    found = await world.cluster.inspection.memory()
    assert len(found) == {"memory": 0, "redis": 1, "shards": 3}[implementation]
    for each in found:
        assert each.used_bytes > 100_000
        assert each.host_bytes > each.used_bytes
        assert each.limit_bytes == each.replicas == 0
        assert each.role == "master"
        assert int(each.version.partition(".")[0]) >= 7
        assert each.address
    assert not found or sum(each.keys for each in found) > 0


async def test_telemetry(world: World, implementation: str) -> None:
    await world.send(await world.connect("c"), b"1")
    found = world.cluster.telemetry()
    if implementation == "memory":
        assert (found.commands, found.round_trip.count, found.lease_age_s) == (0, 0, 0)
        return
    assert found.commands >= found.batch.count > 0
    assert 0 < found.round_trip.count <= found.batch.count
    assert (found.reconnects, found.failovers) == (0, 0)
    assert 0 < found.lease_age_s < 20
    assert found.unanswered >= 0
    assert found.pending_bytes >= 0
    assert found.short_s == 0


# Several nodes


@several
async def test_any_node_tells_of_all(store: RedisServer | ServerCluster) -> None:
    async with two(store) as (one, other):
        await one.connect("one")
        left = await other.connect("left")
        await other.connect("other")
        await other.send(left, b"1")
        await leave(other, left)
        for world in (one, other):
            inspection = world.cluster.inspection
            assert [(each.client_id, each.node) for each in await inspection.sessions("", 9)] == [
                ("left", ""),
                ("one", "a"),
                ("other", "b"),
            ]
            assert [each.message.payload for each in await inspection.queue("left", 0, 9)] == [b"1"]
        with pytest.raises(SessionConnected) as caught:
            await one.cluster.inspection.end_session("other")
        assert caught.value.node == "b"
        assert await one.cluster.inspection.end_session("left")
        assert await names(other.cluster.inspection) == ["one", "other"]


@several
async def test_every_node_matches_with_what_was_changed(store: RedisServer | ServerCluster) -> None:
    """When the change returns, a message that the other node receives is answered with it in its table (G5)."""
    async with two(store) as (one, other):
        await leave(one, await one.connect("c"))
        for number in range(10):
            assert await one.cluster.inspection.change_subscriptions("c", [StoredSubscription(f"t{number}", 1)], [])
            for world in (one, other):
                await world.publish(message(f"t{number}"))
                assert f"t{number}" in added(world)
        assert await one.cluster.inspection.end_session("c")
        await other.events.until(lambda: {f"t{number}" for number in range(10)} == removed(other))


def added(world: World) -> set[str]:
    return {
        each.session.subscription.topic_filter for each in world.events.changes if each.session and not each.removed
    }


def removed(world: World) -> set[str]:
    return {each.session.subscription.topic_filter for each in world.events.changes if each.session and each.removed}


@several
async def test_epochs_grow_from_node_to_node(store: RedisServer | ServerCluster) -> None:
    async with two(store) as (one, other):
        epochs = []
        for _ in range(5):
            for world in (one, other):
                at = await world.connect("c", expiry_s=0)
                epochs.append(at.epoch)
                await leave(world, at, 0)
        assert epochs == sorted(set(epochs))


async def test_a_session_of_before_the_list_comes_in_when_it_is_connected(single: RedisServer) -> None:
    async with served(RedisCluster(single.address, "a", ClusterLimits(), f"inspection{next(_numbers)}", 1)) as world:
        await leave(world, await world.connect("c"))
        with single.client() as client:
            prefix = world.cluster._keys.partitions[0].decode()  # type: ignore[attr-defined]
            [session] = client.keys(f"{prefix}s:*")
            assert client.hdel(session, "created") == client.delete(f"{prefix}ix") == 1
        assert await names(world.cluster.inspection) == []
        assert (await state(world, "c")).created_ms == 0
        assert (await world.connect("c")).session_present
        assert await names(world.cluster.inspection) == ["c"]
        assert (await state(world, "c")).created_ms == 0


async def stale(cluster: RedisCluster, client_ids: list[str]) -> None:
    """Puts names into the list, as what an older library leaves behind."""
    for client_id in client_ids:
        prefix = cluster._sessions.prefix(keys.session_id(client_id))
        await cluster._link.call("ZADD", prefix + keys.SESSION_INDEX, 0, client_id)


async def listed(cluster: RedisCluster) -> int:
    counts = [await cluster._link.call("ZCARD", prefix + keys.SESSION_INDEX) for prefix in cluster._keys.partitions]
    return sum(each for each in counts if isinstance(each, int))


@several
async def test_names_of_sessions_that_a_node_of_before_ended_leave_the_list(
    store: RedisServer | ServerCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(store) as (world, _):
        cluster, inspection = world.cluster, world.cluster.inspection
        assert isinstance(cluster, RedisCluster)
        for name in ("c1", "c2"):
            await leave(world, await world.connect(name))
        await stale(cluster, [f"c{number}" for number in range(10, 60)] + ["z1", "z2"])
        assert await listed(cluster) == 54
        assert await names(inspection, limit=3) == ["c1"], "and what is stale behind it"
        assert await names(inspection) == ["c1", "c2"]
        assert await listed(cluster) == 2
        # One that is there again is not forgotten.
        session_id = keys.session_id("c1")
        prefix = cluster._sessions.prefix(session_id)
        assert await cluster._link.call("FCALL", "rk1_forget_sessions", 1, prefix, session_id, "c1") == 0
        assert await names(inspection) == ["c1", "c2"]
        # However many they are, no call takes long for them.
        monkeypatch.setattr("cluster.redis.inspection._STALE_PAGES", 2)
        await stale(cluster, [f"a{number}" for number in range(10, 20)])
        with pytest.raises(StoreUnavailable):
            await names(inspection, limit=3)
        assert 2 < await listed(cluster) < 12
        for _ in range(3):
            with contextlib.suppress(StoreUnavailable):
                await names(inspection, limit=3)
        assert await names(inspection, limit=3) == ["c1", "c2"]
        assert await listed(cluster) == 2
