"""G8 between nodes: a client that comes to another node gets its session there, and the connection before ends."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest
import trio

from broker.errors import SessionLost
from cluster.api import Attachment, SessionRef, StoredSubscription, StoredWill
from cluster.policy import ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import LIMIT_S, World, message, served
from tests.kit.redis_server import RedisServer, ServerCluster

pytestmark = [
    pytest.mark.parametrize("store", ["single", "shards"], indirect=True),
    pytest.mark.usefixtures("both_ways"),
]

_numbers = itertools.count(1)

Store = RedisServer | ServerCluster


class Door:
    """What a broker does with connections: one for each client, ended when the session is wanted or lost."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self.here: dict[str, SessionRef] = {}
        #: Connections that ended because a newer one came.
        self.ended: list[str] = []
        self.stubborn = False
        self._nursery = nursery
        self._told = world.events.session_lost
        world.events.session_wanted = self._wanted  # type: ignore[method-assign]
        world.events.session_lost = self._lost  # type: ignore[method-assign]

    def _wanted(self, client_id: str) -> bool:
        self.world.events.wanted.append(client_id)
        if client_id not in self.here:
            return False
        if not self.stubborn:
            ref = self.here.pop(client_id)
            self.ended.append(client_id)
            self._nursery.start_soon(self.world.cluster.detach, ref, 3600, 0, False)
        return True

    def _lost(self, ref: SessionRef) -> None:
        self._told(ref)
        if self.here.get(ref.client_id) is ref:
            del self.here[ref.client_id]
            self.ended.append(ref.client_id)

    async def come(self, client_id: str) -> Attachment:
        """The client connects; an older connection of it on this node ends first."""
        if client_id in self.here:
            await self.world.cluster.detach(self.here.pop(client_id), 3600, 0, False)
        at = await self.world.connect(client_id)
        self.here[client_id] = at.ref
        return at


@contextlib.asynccontextmanager
async def doors(server: Store, count: int, **limits: object) -> AsyncIterator[Sequence[Door]]:
    namespace = f"take{next(_numbers)}"
    chosen = ClusterLimits(**limits)  # type: ignore[arg-type]
    async with contextlib.AsyncExitStack() as stack:
        worlds = [
            await stack.enter_async_context(served(RedisCluster(server.address, f"n{number}", chosen, namespace, 4)))
            for number in range(count)
        ]
        async with trio.open_nursery() as nursery:
            yield [Door(world, nursery) for world in worlds]


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(LIMIT_S):
        while not condition():
            await trio.sleep(0.01)


def hearing(door: Door, kind: str) -> None:
    """Begins or ends to listen to other nodes."""
    cluster = cast(RedisCluster, door.world.cluster)
    link, own = cluster._signals._link, cluster._keys.node(cluster._member.member) + b"k"
    assert link is not None
    link.subscribe(kind, [own])
    door.world.poller.wake()


async def test_g8_many_clients_move_at_once(store: Store) -> None:
    async with doors(store, 2) as (one, two):
        names = [f"c{number}" for number in range(150)]
        at = {name: await one.come(name) for name in names}
        for name in names[:20]:
            await one.world.subscribe(at[name], f"t/{name}")
        for source, destination in ((one, two), (two, one)):
            source.ended.clear()
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(destination.come, name)
            assert sorted(source.ended) == sorted(names)
            assert source.here == {}
            assert sorted(destination.here) == sorted(names)
        again = await two.come("c7")
        assert again.session_present
        assert [each.topic_filter for each in again.subscriptions] == ["t/c7"]


async def test_g8_one_of_those_that_come_at_the_same_moment_stays(store: Store) -> None:
    async with doors(store, 3) as all_doors:
        for turn in range(30):
            name = f"c{turn % 3}"
            arrived: list[Door] = []

            async def come(door: Door, name: str = name, arrived: list[Door] = arrived) -> None:
                await door.come(name)
                arrived.append(door)

            async with trio.open_nursery() as nursery:
                for door in all_doors:
                    nursery.start_soon(come, door)
            assert len(arrived) == 3
            # All but one were told, though some only after they had been let in.
            await until(lambda name=name: sum(name in door.here for door in all_doors) == 1)
            (winner,) = [door for door in all_doors if name in door.here]
            ref = winner.here[name]
            await winner.world.cluster.subscribe(ref, [StoredSubscription(f"turn/{turn}", 1)], True)
            await winner.world.settle(ref)
            assert not winner.world.events.lost or winner.world.events.lost[-1] is not ref


async def test_g8_a_node_that_does_not_let_go_is_robbed(store: Store) -> None:
    async with doors(store, 2) as (one, two):
        old = await one.come("c")
        one.stubborn = True
        new = await two.come("c")
        assert new.session_present
        assert one.world.events.wanted[0] == "c"
        with pytest.raises(SessionLost):
            await one.world.cluster.subscribe(old.ref, [StoredSubscription("a", 1)], True)
        one.stubborn = False
        # It is told until it has no connection for it any more.
        await until(lambda: one.here == {})
        assert "c" in two.here
        await two.world.settle(new.ref)


def _will() -> StoredWill:
    return StoredWill(message("will", b"bye", message_id=b"w" * 16), 0)


async def test_g11_the_will_of_a_session_that_is_robbed_goes_out(store: Store) -> None:
    """What the old connection would have done as it ended, had its node heard in time."""
    async with doors(store, 2) as (one, two):
        one.here["c"] = (await one.world.connect("c", will=_will())).ref
        one.here["d"] = (await one.world.connect("d", will=_will())).ref
        one.stubborn = True
        await two.come("c")
        await until(lambda: one.world.events.wills or two.world.events.wills)
        # Let go as well, it goes out as well; and the end of the one that was robbed adds none.
        one.stubborn = False
        await until(lambda: one.ended == ["c"])
        await one.world.cluster.detach(one.here["d"], 3600, 0, True)
        await until(lambda: len(one.world.events.wills + two.world.events.wills) >= 2)
        assert sorted(name for name, _ in one.world.events.wills + two.world.events.wills) == ["c", "d"]


@pytest.mark.parametrize("mode", ["cancel", "publish"])
async def test_g11_whether_a_reconnect_cancels_the_will_of_a_killed_node(store: Store, mode: str) -> None:
    async with doors(store, 2, will_failover=mode, will_failover_grace_s=1) as (one, two):
        await one.world.connect("c", will=_will())
        cluster = cast(RedisCluster, one.world.cluster)
        cluster._signals.close()
        cluster._link.close()
        await two.come("c")
        last = await two.world.connect("last", will=StoredWill(_will().message, 3))
        await two.world.cluster.detach(last.ref, 3600, 0, True)
        await until(lambda: [name for name, _ in two.world.events.wills][-1:] == ["last"])
        assert [name for name, _ in two.world.events.wills] == ["c"] * (mode == "publish") + ["last"]


async def test_g8_two_that_rob_the_same_node_do_not_both_have_it(store: Store) -> None:
    async with doors(store, 3) as (one, two, three):
        await one.come("c")
        one.stubborn = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.come, "c")
            nursery.start_soon(three.come, "c")
        await until(lambda: ("c" in two.here) != ("c" in three.here))
        winner = two if "c" in two.here else three
        await winner.world.settle(winner.here["c"])


async def test_g8_a_node_that_does_not_hear_learns_it_later(store: Store) -> None:
    async with doors(store, 2) as (one, two):
        await one.come("c")
        hearing(one, "SUNSUBSCRIBE")
        await until(lambda: not _listeners(store, one))
        new = await two.come("c")
        assert "c" in one.here
        hearing(one, "SSUBSCRIBE")
        await until(lambda: one.here == {})
        assert one.ended == ["c"]
        await two.world.settle(new.ref)
        assert "c" in two.here


def _listeners(store: Store, door: Door) -> int:
    cluster = cast(RedisCluster, door.world.cluster)
    own = cluster._keys.node(cluster._member.member) + b"k"
    with (store.owner(own) if isinstance(store, ServerCluster) else store).client() as client:
        reply = client.execute_command("PUBSUB", "SHARDNUMSUB", own)
        return cast("list[int]", reply)[1]


async def test_a_client_that_gives_up_while_it_waits_owns_nothing(store: Store) -> None:
    async with doors(store, 2) as (one, two):
        old = await one.come("c")
        one.stubborn = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.come, "c")
            await until(lambda: one.world.events.wanted)
            nursery.cancel_scope.cancel()
        await one.world.settle(old.ref)
        assert one.world.events.lost == []
        one.stubborn = False
        assert (await two.come("c")).session_present


async def test_g9_the_session_of_a_killed_node_is_free_at_once(store: Store) -> None:
    async with doors(store, 2) as (one, two):
        await one.come("c")
        cluster = cast(RedisCluster, one.world.cluster)
        cluster._signals.close()
        cluster._link.close()
        assert (await two.come("c")).session_present
        assert not two.world.events.gone
