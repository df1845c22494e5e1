"""Who is a member: joining, leases that run out, nodes that were taken for dead, and what becomes of what they had."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import cast

import pytest
import redis
import trio

from broker.errors import Fenced
from broker.session.run import Run
from cluster import layout
from cluster.api import AttachRequest, NodeTarget, StoredSubscription
from cluster.keys import Keys
from cluster.policy import ClusterLimits
from cluster.records import unpack_push
from cluster.redis import membership
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import LIMIT_S, WaitingPublication, World, message, served, target
from tests.kit.redis_server import RedisServer

_numbers = itertools.count(1)


class Place:
    """A namespace of the store, and members in it that are played by hand."""

    def __init__(self, server: RedisServer, partitions: int = 4) -> None:
        self.namespace = f"m{next(_numbers)}"
        self.partitions = partitions
        self.keys = Keys(self.namespace, partitions)
        self._server = server

    def node(self, name: str) -> RedisCluster:
        return RedisCluster(self._server.address, name, ClusterLimits(), self.namespace, self.partitions)

    def client(self) -> redis.Redis:
        return self._server.client()

    def call(self, function: str, *arguments: object, prefix: bytes = b"") -> object:
        with self.client() as client:
            return client.fcall(function, 1, prefix or self.keys.members, *arguments)

    def join(self, name: str, lease_ms: int = 60_000, feature: int = 1) -> tuple[bytes, int]:
        """Another member, and the version of the member list."""
        reply = self.call("rk1_join", name, layout.LAYOUT, self.partitions, lease_ms, feature)
        _, incarnation, _, version = cast("list[int]", reply)
        return b"%s:%d" % (name.encode(), incarnation), version

    def beat(self, member: bytes, seen: int, bury_until_ms: int = 0, lease_ms: int = 60_000) -> list[object]:
        name, _, incarnation = member.rpartition(b":")
        reply = self.call(
            "rk1_beat", name, incarnation, lease_ms, layout.LAYOUT, self.partitions, seen, bury_until_ms, 1
        )
        return cast("list[object]", reply)

    def members(self) -> list[bytes]:
        with self.client() as client:
            return cast("list[bytes]", client.zrange(self.keys.members + b"nodes", 0, -1))

    def dead(self) -> list[bytes]:
        with self.client() as client:
            return cast("list[bytes]", client.zrange(self.keys.members + b"dead", 0, -1))

    async def seen(self, condition: object) -> None:
        """Returns when a function of this place gives what is true."""
        assert callable(condition)
        with trio.fail_after(LIMIT_S):
            while not condition():
                await trio.sleep(0.01)


@pytest.fixture
def place(store: RedisServer) -> Place:
    return Place(store)


def membership_of(world: World) -> membership.Membership:
    return cast(RedisCluster, world.cluster)._member


@contextlib.asynccontextmanager
async def crashing(cluster: RedisCluster) -> AsyncIterator[World]:
    """It goes without a word to the store."""
    async with served(cluster) as world:
        yield world
        cluster._link.close()


async def test_three_nodes_know_of_each_other(place: Place) -> None:
    async with served(place.node("a")) as one:
        assert one.cluster.alone()
        async with served(place.node("b")) as two, served(place.node("c")) as three:
            worlds = (one, two, three)
            for world in worlds:
                await place.seen(lambda world=world: len(world.cluster.health().members) == 3)
                assert not world.cluster.alone()
            assert {tuple(world.cluster.health().members) for world in worlds} == {("a:1", "b:2", "c:3")}
            assert len({membership_of(world).mver for world in worlds}) == 1
        # They left in good order: nobody waits for a lease to run out, and nothing is left to reap.
        await one.events.until(lambda: sorted(one.events.gone) == [b"b:2", b"c:3"])
        await place.seen(lambda: one.cluster.alone() and not place.dead())


async def test_one_that_joins_waits_until_all_others_know_of_it(place: Place) -> None:
    async with served(place.node("a")) as one:
        silent, version = place.join("silent")
        with place.client() as client, client.pubsub() as listener:
            channel = place.keys.node(silent) + b"k"
            listener.ssubscribe(channel)
            listener.get_message(timeout=LIMIT_S)
            joined = trio.Event()

            async def join() -> None:
                async with served(place.node("b")):
                    joined.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(join)
                await place.seen(lambda: len(place.members()) == 3)
                # It is told at once, and asked again and again.
                assert await trio.to_thread.run_sync(lambda: listener.get_message(timeout=LIMIT_S)) is not None
                await place.seen(lambda: not one.cluster.alone())
                place.beat(silent, version)
                await place.seen(lambda: membership_of(one).mver > version)
                assert not joined.is_set()
                answer = place.beat(silent, version)
                place.beat(silent, cast(int, answer[2]))
                with trio.fail_after(LIMIT_S):
                    await joined.wait()


async def test_one_whose_lease_is_over_holds_up_nobody(place: Place) -> None:
    silent, _ = place.join("silent", lease_ms=1)
    async with served(place.node("a")) as one:
        # It is nobody's to bury yet: it may come back, and until then this node is not alone.
        assert silent in membership_of(one).members
        assert not one.cluster.alone()


async def test_nobody_is_buried_by_one_that_was_away_itself(place: Place) -> None:
    silent, _ = place.join("silent", lease_ms=1)
    async with served(place.node("a")) as one:
        member = membership_of(one)
        beats: list[int] = []
        told = member.on_beat

        def beaten() -> None:
            told()
            beats.append(member.mver)

        member.on_beat = beaten
        member.beat_soon()
        await place.seen(lambda: beats)
        assert silent in place.members()
        # The store answered for a whole lease.
        assert member._steady_since_s is not None
        member._steady_since_s -= 10
        member.beat_soon()
        await one.events.until(lambda: one.events.gone == [silent])
        assert place.members() == [member.member]
        await place.seen(lambda: one.cluster.alone() and not place.dead())


async def test_a_beat_that_comes_late_buries_nobody(place: Place) -> None:
    silent, _ = place.join("silent", lease_ms=1)
    late, _ = place.join("late")
    now = cast(int, place.beat(late, 0)[0])
    assert silent in cast("list[bytes]", place.beat(late, 0, now - 1)[4])
    assert place.beat(late, 0, now + 60_000)[4:] == [[late], [silent]]


async def test_g8_a_node_that_was_buried_stops(place: Place) -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(place.node("a")) as one:
            at = await one.connect("c")
            place.call("rk1_leave", membership_of(one).member)
            for prefix in place.keys.partitions:
                place.call("rk1_reap", "a", 1, 0, 200, 164, 0, prefix=prefix)
            # Not with the next beat: with the first call that is refused.
            late = one.start(WaitingPublication(message(), [target(at)]))
            await trio.sleep_forever()
    assert raised.group_contains(Fenced, match="taken for dead", depth=None)
    assert not late.answers or late.error is not None
    async with served(place.node("a")) as one:
        again = await one.connect("c")
        assert await one.queue(again.ref) == []


async def test_g8_a_node_that_is_refused_stops_whatever_the_members_say(place: Place) -> None:
    """A failover may forget that it was buried, and not what followed."""
    with pytest.raises(BaseExceptionGroup) as raised:
        async with served(place.node("a")) as one:
            at = await one.connect("c")
            for prefix in place.keys.partitions:
                place.call("rk1_reap", "a", 1, 0, 200, 164, 0, prefix=prefix)
            one.start(WaitingPublication(message(), [target(at)]))
            await trio.sleep_forever()
    assert raised.group_contains(Fenced, depth=None)


async def test_a_node_that_stood_still_lets_nothing_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(place.node("a")) as one:
        assert one.cluster.holds_lease()
        clock, skipped_s = membership.monotonic_s, 100.0
        monkeypatch.setattr(membership, "monotonic_s", lambda: clock() + skipped_s)
        assert not one.cluster.holds_lease()
        assert not one.cluster.alone()
        await place.seen(one.cluster.holds_lease)
        assert one.cluster.alone()


async def test_g9_a_dead_node_is_reaped_whole(store: RedisServer) -> None:
    place = Place(store, partitions=1)
    with pytest.raises(BaseExceptionGroup) as raised:
        async with crashing(place.node("b")) as two, served(place.node("a")) as one:
            requests = [AttachRequest(f"c{number}", False, 3600 * (number % 2)) for number in range(450)]
            for request in requests:
                at = await two.cluster.attach(request)
                if request.expiry_s:
                    await two.cluster.subscribe(at.ref, [StoredSubscription("a", 1)], True)
            await two.cluster.subscribe(at.ref, [StoredSubscription("e", 1)], False)
            dead = membership_of(two).member
            own = place.keys.partitions[0] + b"own:" + dead
            with place.client() as client:
                assert client.scard(own) == 450
                place.call("rk1_leave", dead)
                membership_of(one).beat_soon()
                await one.events.until(lambda: dead in one.events.gone)
                await place.seen(lambda: not place.dead())
                assert client.exists(own) == 0
                namespace = place.keys.partitions[0].partition(b"{")[0]
                assert [key for key in client.keys(namespace + b"*" + dead + b"*") if dead in key] == []
                assert client.hexists(place.keys.routes + b"f", b"n" + dead + b"\0e") is False
                assert len(client.keys(place.keys.partitions[0] + b"s:*")) == 225
            again = await one.connect("c1")
            assert again.session_present
            await trio.sleep_forever()
    assert raised.group_contains(Fenced, depth=None)


async def test_the_features_of_the_oldest_node_count(place: Place) -> None:
    async with served(place.node("a")) as one:
        assert membership_of(one).lowest_feature == layout.FEATURES
        place.join("old", feature=0)
        await place.seen(lambda: membership_of(one).lowest_feature == 0)


async def test_runs_go_to_nodes_that_know_them(place: Place) -> None:
    """Others get each QoS 0 packet by itself, and messages of QoS 1."""
    async with served(place.node("a")) as one, served(place.node("b")) as other:
        frame, numbered = b"\x30\x04\x00\x01tx", b"\x32\x06\x00\x01t\x00\x01x"
        there = [NodeTarget(membership_of(other).member)]
        stream = place.keys.node(membership_of(other).member) + b"in"
        packets = Run(4, numbered * 2, 2, 7, b"p" * 16)
        assert one.cluster.relays()
        with place.client() as client:
            one.cluster.forward(there, 4, frame * 2, 2)
            await one.finished(one.start(WaitingPublication(message(), nodes=there, packets=packets)))
            await other.events.until(lambda: len(other.events.delivered) == 2)
            place.join("old", feature=1)
            await place.seen(lambda: not one.cluster.relays())
            one.cluster.forward(there, 4, frame * 2, 2)
            await one.publish(message(), nodes=there)
            await other.events.until(lambda: len(other.events.delivered) == 3)
            records = [unpack_push(fields[b"b"]) for _, fields in client.xrange(stream)]
        assert other.events.frames == [(4, frame)] * 4
        [first, second] = [records[0], records[-1]]
        assert first is not None and second is not None
        assert first[:10] == [14, frame * 2, 2, 0, b"", 14, numbered * 2, 2, 7, b"p" * 16]
        assert second[:4] == [4, frame, 4, frame]
