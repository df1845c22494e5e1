"""What runs between nodes: routes, pushed and stored messages, and what happens where some of it is lost."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest
import trio

from broker.session.run import Run
from cluster.api import (
    REFUSED_GONE,
    Extension,
    NodeRoute,
    NodeTarget,
    Publication,
    Route,
    SessionRef,
    StoredSubscription,
    Target,
)
from cluster.keys import Keys
from cluster.policy import ClusterLimits
from cluster.records import NODE_ROUTE, node_route_field, pack_subscription
from cluster.redis import nodes
from cluster.redis.arrivals import Attached
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import LIMIT_S, WaitingPublication, World, message, served, target
from tests.kit.redis_server import RedisServer, redis_server

_numbers = itertools.count(1)


def make(server: RedisServer, namespace: str, node: str) -> RedisCluster:
    return RedisCluster(server.address, node, ClusterLimits(), namespace, 4)


@contextlib.asynccontextmanager
async def two(server: RedisServer, namespace: str = "") -> AsyncIterator[tuple[World, World]]:
    namespace = namespace or f"streams{next(_numbers)}"
    async with (
        served(make(server, namespace, "a")) as one,
        served(make(server, namespace, "b")) as other,
    ):
        yield one, other


def inside(world: World) -> RedisCluster:
    return cast(RedisCluster, world.cluster)


def member(world: World) -> bytes:
    return inside(world)._member.member


def keys(world: World) -> Keys:
    return inside(world)._keys


class Table:
    """What a node knows of the routes of others, by exact filter."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.at = 0
        self.sessions: dict[str, dict[bytes, int]] = {}
        self.nodes: dict[str, set[bytes]] = {}
        for session in world.events.routes:
            self._change(False, session)
        for node in world.events.nodes:
            self._change(False, node)

    def _change(self, removed: bool, route: Route | NodeRoute) -> None:
        if isinstance(route, NodeRoute):
            found = self.nodes.setdefault(route.topic_filter, set())
            (found.discard if removed else found.add)(route.node)
        elif removed:
            self.sessions.get(route.subscription.topic_filter, {}).pop(route.session_id, None)
        else:
            self.sessions.setdefault(route.subscription.topic_filter, {})[route.session_id] = route.birth

    def catch_up(self) -> None:
        changes = self.world.events.changes
        for change in changes[self.at :]:
            for route in (change.session, change.node):
                if route is not None:
                    self._change(change.removed, route)
        self.at = len(changes)

    def match(self, topic: str) -> tuple[list[Target], list[NodeTarget]]:
        self.catch_up()
        return (
            [Target(sid, birth, 1, False, ()) for sid, birth in self.sessions.get(topic, {}).items()],
            [NodeTarget(node) for node in self.nodes.get(topic, ())],
        )


class Matched(Publication):
    """Matched by a table, and again when that changes."""

    __slots__ = ("done", "table")

    def __init__(self, table: Table, topic: str, payload: bytes) -> None:
        self.table = table
        super().__init__(message(topic, payload))
        self.targets, self.nodes = table.match(topic)
        self.done = trio.Event()

    def rematch(self) -> Extension | None:
        targets, found = self.table.match(self.message.topic.decode())
        known = {each.session_id for each in self.targets}
        at = {each.node for each in self.nodes}
        targets = [each for each in targets if each.session_id not in known]
        found = [each for each in found if each.node not in at]
        self.targets = [*self.targets, *targets]
        self.nodes = [*self.nodes, *found]
        return Extension(targets, [], found) if targets or found else None

    def stored(self) -> None:
        self.done.set()


async def answered(publications: Sequence[Matched | WaitingPublication]) -> None:
    with trio.fail_after(LIMIT_S):
        for each in publications:
            await each.done.wait()
            assert each.error is None


@pytest.mark.parametrize("persistent", [True, False])
async def test_g5_raced_subscriptions_miss_nothing(store: RedisServer, persistent: bool) -> None:
    """One client subscribes on b while others publish on a: what is published after SUBACK arrives, all of it."""
    async with two(store) as (one, other):
        table = Table(one)
        at = await other.connect("c", expiry_s=3600 if persistent else 0)
        rolls = random.Random(5)
        wanted: list[tuple[str, bytes]] = []
        publications: list[Matched] = []

        def publish(topic: str, payload: bytes) -> None:
            publications.append(Matched(table, topic, payload))
            one.cluster.publish(publications[-1])
            one.poller.wake()

        async def publish_before(topic: str) -> None:
            for number in range(rolls.randrange(20)):
                publish(topic, b"before %d" % number)
                await trio.lowlevel.checkpoint()

        for number in range(60):
            topic = f"t/{number}"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_before, topic)
                await other.cluster.subscribe(at.ref, [StoredSubscription(topic, 1)], persistent)
                for index in range(3):
                    wanted.append((topic, b"%d" % index))
                    publish(topic, b"%d" % index)
        await answered(publications)
        assert sum(1 for each in publications if each.message.payload.startswith(b"before")) > 100

        def arrived() -> list[tuple[str, bytes]]:
            if persistent:
                sent = [found for _, _, found in other.events.stored if found is not None]
            else:
                sent = [found for found, live, _ in other.events.delivered if live]
            return [(each.topic.decode(), each.payload) for each in sent if not each.payload.startswith(b"before")]

        await other.events.until(lambda: len(arrived()) >= len(wanted))
        assert arrived() == wanted
        if persistent:
            assert [seq for _, seq, _ in other.events.stored] == list(range(1, len(other.events.stored) + 1))


async def test_g1_packets_of_qos_0_come_as_they_were_in_order(store: RedisServer) -> None:
    async with two(store) as (one, other):
        to = [NodeTarget(member(other))]
        frames = [(4 + number % 2, b"%06d" % number + b"x" * 200) for number in range(5000)]
        for number, (family, frame) in enumerate(frames):
            one.cluster.forward(to, family, frame, 1)
            if number % 700 == 0:
                one.poller.wake()
                await trio.lowlevel.checkpoint()
        one.poller.wake()
        await other.events.until(lambda: len(other.events.frames) >= len(frames))
        assert other.events.frames == frames
        # Its reader trims what it has handled.
        with store.client() as client:
            await other.events.within(lambda: client.xlen(keys(other).node(member(other)) + b"in") == 0)
            await other.events.within(
                lambda: int(client.hget(keys(other).node(member(other)) + b"fence", "bytes") or 0) == 0
            )


async def test_g5_what_was_matched_before_an_unsubscribe_is_asked_about_again(store: RedisServer) -> None:
    class Asked(WaitingPublication):
        __slots__ = ()

        def wants(self, target: Target) -> bool:
            return self.message.payload in (b"1", b"3", b"4")

    async with two(store) as (one, other):
        at = await other.connect("c")
        await other.subscribe(at, "a", "b")
        await one.publish(message())
        versions = inside(one)._versions
        old = versions.number
        await other.cluster.unsubscribe(at.ref, ["a"], True)
        await one.publish(message())
        new = versions.number
        assert new > old
        versions.number = old  # as if all of these had been matched before
        publications = []
        for number in range(4):
            publications.append(Asked(message(payload=b"%d" % number), [target(at)]))
            one.start(publications[-1])
        versions.number = new
        publications.append(Asked(message(payload=b"4"), [target(at)]))
        one.start(publications[-1])
        await answered(publications)
        assert [each.targets[0].seq for each in publications] == [REFUSED_GONE, 1, REFUSED_GONE, 2, 3]
        assert await other.queue(at.ref) == [b"1", b"3", b"4"]


async def test_routes_that_a_node_writes_for_others_are_its_own_news(store: RedisServer) -> None:
    """What is put right after a crash is of sessions that the broker does not have."""
    async with two(store) as (one, _):
        here, gone = await one.connect("c"), await one.connect("d")
        await one.cluster.detach(gone.ref, 3600, 0, False)
        record = pack_subscription(StoredSubscription("y", 1))
        for ref in (here.ref, gone.ref):
            await inside(one)._routes.set(ref.session_id, ref.birth, ref.client_id, [(b"y", record)])
        await one.publish(message())
        table = Table(one)
        assert [each.session_id for each in table.match("y")[0]] == [gone.ref.session_id]
        await inside(one)._routes.remove(gone.ref.session_id, gone.ref.birth, [b"y"])
        await one.publish(message())
        assert table.match("y") == ([], [])


def test_a_session_that_is_being_attached_looks_afterwards() -> None:
    attached = Attached(4)
    ref = SessionRef("c", b"s" * 16, 1, b"token")
    assert not attached.takes(ref.session_id, 1)
    assert not attached.looks
    attached.coming(ref.session_id)
    assert not attached.takes(ref.session_id, 2)
    assert list(attached.looks) == [ref.session_id]
    attached.looks.clear()
    attached.attach(ref, 5)
    attached.came(ref.session_id)
    # Perhaps of an older session of this client; whatever it told is in the queue.
    assert not attached.takes(ref.session_id, 5)
    assert list(attached.looks) == [ref.session_id]
    assert attached.takes(ref.session_id, 6)
    newer = SessionRef("c", ref.session_id, 1, b"newer")
    attached.attach(newer, 6)
    attached.detach(ref)
    assert attached.takes(ref.session_id, 7)
    attached.detach(newer)
    assert not attached.takes(ref.session_id, 8)
    assert ref.session_id not in attached


async def test_a_gap_in_the_log_of_routes_is_filled_from_the_table(store: RedisServer) -> None:
    async with two(store) as (one, other):
        at = await other.connect("c")
        await other.subscribe(at, "kept")
        await one.publish(message())
        table = Table(one)
        prefix = keys(one).routes

        async def gap(*, gone: bytes = b"", new: bytes) -> None:
            """Three changes, of which nobody finds the first two in the log; of a node that mends nothing, as it is
            none."""
            with store.client() as client:
                number = int(client.get(prefix + b"ver").partition(b":")[0])
                pipe = client.pipeline()
                pipe.hdel(prefix + b"f", node_route_field(b"z:9", gone))
                pipe.hset(prefix + b"f", node_route_field(b"z:9", new), NODE_ROUTE)
                pipe.set(prefix + b"ver", b"%d:tag" % (number + 3))
                pipe.xadd(prefix + b"log", {b"t": b"tag", b"o": b"", b"c": b"\x90"}, id=f"0-{number + 3}")
                pipe.execute()
            publication = await one.publish(message())
            assert publication.error is None
            assert inside(one)._versions.number == number + 3

        await gap(new=b"goes")
        assert (len(table.match("kept")[0]), len(table.match("goes")[1])) == (1, 1)
        await gap(gone=b"goes", new=b"new")
        assert (len(table.match("kept")[0]), table.match("goes"), len(table.match("new")[1])) == (1, ([], []), 1)
        # From there on the log is followed again; a node's own sessions are none of its business.
        await other.subscribe(at, "later")
        await one.publish(message())
        assert table.match("later")[0]
        assert [change for change in other.events.changes if change.session is not None] == []


async def test_another_history_of_routes_is_read_from_the_beginning(store: RedisServer) -> None:
    async with two(store) as (one, other):
        at = await other.connect("c")
        await other.subscribe(at, "x")
        await one.publish(message())
        prefix = keys(one).routes
        table = Table(one)
        with store.client() as client:
            # An older state of the store: the last changes were lost, others have their numbers.
            client.delete(prefix + b"log")
            client.set(prefix + b"ver", b"1:other")
        assert (await one.publish(message())).error is None
        assert inside(one)._versions.number == 1
        assert table.match("x")[0]
        await other.subscribe(at, "y")
        assert (await one.publish(message())).error is None
        assert table.match("y")[0]


async def test_a_lost_entry_makes_the_sessions_of_its_partition_look(store: RedisServer) -> None:
    async with two(store) as (one, other):
        at, apart = await other.connect("c"), await other.connect("d")
        await one.publish(message(), [target(at)])
        await other.events.until(lambda: other.events.stored)
        partition = next(
            number for number, prefix in enumerate(keys(other).partitions) if number == at.ref.session_id[1] % 4
        )
        stream = keys(other).partitions[partition] + b"n:" + member(other)
        with store.client() as client:
            last = client.xinfo_stream(stream)["last-generated-id"].decode().partition("-")[2]
            client.xadd(stream, {b"b": b"\xff"}, id=f"0-{int(last) + 2}")
        await other.events.until(lambda: (at.ref.session_id, 0, None) in other.events.stored)
        if apart.ref.session_id[1] % 4 != partition:
            assert (apart.ref.session_id, 0, None) not in other.events.stored
        await one.publish(message(payload=b"after"), [target(at)])
        await other.events.until(lambda: (at.ref.session_id, 2) in [each[:2] for each in other.events.stored])


async def test_g15_a_full_stream_holds_publishers_up_until_its_node_is_overloaded(
    store: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(store) as (one, other):
        to = [NodeTarget(member(other))]
        fence = keys(other).node(member(other)) + b"fence"
        with store.client() as client:
            client.hset(fence, "bytes", 64 * 1024 * 1024)
            held = one.start(WaitingPublication(message(payload=b"held"), nodes=to))
            lane = inside(one)._batch.nodes._lane(member(other))
            await one.events.within(lambda: lane.blocked)
            assert held.answers == 0
            client.hset(fence, "bytes", 0)
            await one.finished(held)
            assert held.error is None
            await other.events.until(lambda: [each[0].payload for each in other.events.delivered] == [b"held"])
            client.hset(fence, "bytes", 64 * 1024 * 1024)
            monkeypatch.setattr(nodes, "OVERLOADED_S", -1.0)
            dropped = one.start(WaitingPublication(message(payload=b"dropped"), nodes=to))
            one.cluster.forward(to, 4, b"frame", 1)
            one.cluster.forward(to, 4, b"frameframe", 2)
            run = Run(4, b"\x32\x05\x00\x01t\x00\x01" * 3, 3, 0, b"")
            relayed = one.start(WaitingPublication(message(), nodes=to, packets=run))
            await one.finished(dropped, relayed)
            assert (dropped.error, relayed.error) == (None, None)
            await one.events.until(lambda: one.events.dropped == {"node_overloaded": 7})
            client.hset(fence, "bytes", 0)
        last = await one.publish(message(payload=b"last"), nodes=to)
        assert last.error is None
        await other.events.until(lambda: len(other.events.delivered) == 2)
        assert [each[0].payload for each in other.events.delivered] == [b"held", b"last"]
        assert other.events.frames == []


async def test_what_was_under_way_when_the_store_was_killed_comes_in_order() -> None:
    with redis_server(unix=True, aof=True) as server:
        async with two(server, "restart") as (one, other):
            visitor, at = await other.connect("e", expiry_s=0), await other.connect("c")
            await other.cluster.subscribe(visitor.ref, [StoredSubscription("t", 1)], False)
            await other.subscribe(at, "t")
            await one.publish(message())
            table = Table(one)
            publications: list[Matched] = []

            async def publish(count: int) -> None:
                for _ in range(count):
                    publications.append(Matched(table, "t", b"%d" % len(publications)))
                    one.cluster.publish(publications[-1])
                    one.poller.wake()
                    await trio.lowlevel.checkpoint()

            await publish(200)
            await trio.to_thread.run_sync(server.restart)
            await publish(200)
            await answered(publications)
            await one.events.until(lambda: one.events.available[-1:] == [True])
            await other.events.until(lambda: other.events.available[-1:] == [True])
            await publish(10)
            await answered(publications)
            wanted = [b"%d" % number for number in range(len(publications))]
            await other.events.until(lambda: len(other.events.delivered) >= len(wanted))
            assert [each.payload for each, _, _ in other.events.delivered] == wanted
            assert await other.queue(at.ref) == wanted
            seqs = [seq for _, seq, found in other.events.stored if found is not None]
            assert seqs == sorted(set(seqs))
            assert seqs[-10:] == list(range(seqs[-1] - 9, seqs[-1] + 1))


async def test_a_node_is_found_again_after_the_store_lost_everything() -> None:
    with redis_server(unix=True) as server, server.client() as client:
        async with served(make(server, "lost", "b")) as other:
            visitor = await other.connect("e", expiry_s=0)
            await other.cluster.subscribe(visitor.ref, [StoredSubscription("e", 1)], False)
            old = await other.connect("c")
            async with served(make(server, "lost", "a")) as one:
                # So that the streams have been read up to some place.
                for _ in range(40):
                    await one.publish(message(payload=b"old"), [target(old)], nodes=[NodeTarget(member(other))])
                await other.events.until(lambda: len(other.events.delivered) == len(other.events.stored) == 40)
            client.flushall()
            # The lease is that of the only member, or of one that joins anew: never of both.
            await other.events.until(lambda: "store emptied" in other.events.log)
            again = await other.connect("c")
            assert not again.session_present
            await other.subscribe(again, "c")
            async with served(make(server, "lost", "a")) as one:
                table = Table(one)
                await one.events.within(lambda: table.match("e")[1])
                publications = [Matched(table, "c", b"1"), Matched(table, "e", b"2")]
                for each in publications:
                    one.cluster.publish(each)
                one.poller.wake()
                await answered(publications)
                await other.events.until(lambda: [each[0].payload for each in other.events.delivered[40:]] == [b"2"])
                await other.events.until(
                    lambda: (
                        (again.ref.session_id, 1, b"1")
                        in [(sid, seq, found and found.payload) for sid, seq, found in other.events.stored]
                    )
                )
