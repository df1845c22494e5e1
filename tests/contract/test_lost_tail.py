"""A store that comes back without the last writes, and nodes that find it only when others have written on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import cast

import trio

from cluster.api import NodeTarget
from cluster.policy import ClusterLimits
from cluster.redis.address import StoreAddress
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import GroupHand, WaitingPublication, World, message, served
from tests.kit.fault_proxy import FaultProxy
from tests.kit.redis_server import RedisServer, redis_server


def make(port: int, name: str) -> RedisCluster:
    return RedisCluster(StoreAddress(port=port), name, ClusterLimits(), "n", 16)


class Pair:
    """Node a, whose way to the store can be cut, and node b."""

    def __init__(self, store: RedisServer, proxy: FaultProxy, a: World, b: World) -> None:
        self.store = store
        self.proxy = proxy
        self.a = a
        self.b = b
        self.member = cast(RedisCluster, a.cluster)._member.member

    async def push(self, *payloads: bytes, qos: int = 1) -> None:
        """From b to the connected sessions of a; returns when it is stored."""
        sent = [
            self.b.start(WaitingPublication(message(payload=each, qos=qos), nodes=[NodeTarget(self.member, True, [])]))
            for each in payloads
        ]
        await self.b.finished(*sent)
        assert all(each.error is None for each in sent)

    async def push_each(self, *payloads: bytes) -> None:
        """As `push`, with one entry for each."""
        for each in payloads:
            await self.push(each)

    def got(self) -> list[bytes]:
        return [each.payload for each, _, _ in self.a.events.delivered]

    async def until_got(self, *payloads: bytes) -> None:
        await self.a.events.until(lambda: set(payloads) <= set(self.got()))

    def routes(self) -> set[str]:
        """What a knows of the route table."""
        found: set[str] = set()
        for each in self.a.events.changes:
            if each.session is not None:
                name = each.session.subscription.topic_filter
                (found.discard if each.removed else found.add)(name)
        return found

    def save(self) -> None:
        with self.store.client() as client:
            client.save()

    @contextlib.asynccontextmanager
    async def a_is_late(self) -> AsyncIterator[None]:
        """The store is killed and started again; in the block only b has found it."""
        self.proxy.cut()
        ups = len(self.b.events.available)
        await trio.to_thread.run_sync(self.store.restart)
        await self.b.events.until(lambda: self.b.events.available[ups:] == [False, True])
        yield
        self.proxy.resume()
        await self.a.events.until(lambda: self.a.events.available and self.a.events.available[-1])


@contextlib.asynccontextmanager
async def pair(aof: bool = False) -> AsyncIterator[Pair]:
    with redis_server(aof=aof) as store, FaultProxy("127.0.0.1", store.address.port) as proxy:
        async with served(make(proxy.port, "a")) as a, served(make(store.address.port, "b")) as b:
            await a.events.within(lambda: len(cast(RedisCluster, a.cluster)._member.members) == 2)
            yield Pair(store, proxy, a, b)


def numbered(name: str, count: int) -> Sequence[bytes]:
    return [b"%s%d" % (name.encode(), number) for number in range(count)]


async def test_what_was_written_before_a_late_node_came_back_reaches_it() -> None:
    async with pair() as nodes:
        await nodes.push_each(*numbered("early", 5))
        await nodes.until_got(*numbered("early", 5))
        nodes.save()
        await nodes.push_each(*numbered("lost", 8))
        await nodes.until_got(*numbered("lost", 8))
        async with nodes.a_is_late():
            await nodes.push_each(*numbered("new", 20))
        await nodes.until_got(*numbered("new", 20))
        await nodes.push(b"last")
        await nodes.until_got(b"last")
        assert len(nodes.got()) == len(set(nodes.got()))


async def test_a_node_whose_routes_were_lost_loads_the_table_that_is_there() -> None:
    async with pair() as nodes:
        session = await nodes.b.connect("s")
        await nodes.b.subscribe(session, "base")
        await nodes.a.events.until(lambda: nodes.routes() == {"base"})
        nodes.save()
        for number in range(6):
            await nodes.b.subscribe(session, f"lost/{number}")
        await nodes.a.events.until(lambda: len(nodes.routes()) == 7)
        # Node b itself sees to it that its session has again what was lost.
        expected = {*nodes.routes(), *(f"new/{number}" for number in range(20))}
        async with nodes.a_is_late():
            for number in range(20):
                await nodes.b.subscribe(session, f"new/{number}")
        await nodes.a.events.until(lambda: nodes.routes() == expected)
        await nodes.b.subscribe(session, "last")
        await nodes.a.events.until(lambda: nodes.routes() == {*expected, "last"})


async def test_entries_of_groups_given_before_a_late_node_came_back_reach_it() -> None:
    async with pair() as nodes:
        member = await nodes.a.connect("m", expiry_s=3600)
        here, there = GroupHand(nodes.a), GroupHand(nodes.b)
        await nodes.a.subscribe(member, here.topic_filter)
        await here.members(member)
        await there.put(*numbered("early", 3))
        await here.settle(*(await here.until(3) and here.entries))
        nodes.save()
        for each in numbered("lost", 6):
            await there.put(each)
        await here.until(9)
        async with nodes.a_is_late():
            for each in numbered("new", 12):
                await there.put(each)
        await nodes.a.events.until(lambda: set(numbered("new", 12)) <= set(here.payloads()))


async def test_names_of_retained_messages_are_those_that_are_there() -> None:
    async with pair() as nodes:

        def names(start: str) -> set[str | None]:
            return {name for name in nodes.a.cluster.retained_match("#") if name is not None and name.startswith(start)}

        # Few enough names for each shard of them to get the same number of changes before and after.
        topics = [f"{number}" for number in range(40)]
        await nodes.b.publish(message("base"), retain=True)
        await nodes.a.events.within(lambda: names("base"))
        nodes.save()
        for topic in topics:
            await nodes.b.publish(message(f"lost/{topic}"), retain=True)
        await nodes.a.events.within(lambda: len(names("lost")) == len(topics))
        async with nodes.a_is_late():
            for each in range(10):
                for topic in topics:
                    await nodes.b.publish(message(f"new/{topic}/{each}"), retain=True)
        await nodes.a.events.within(lambda: len(names("new")) == 10 * len(topics) and not names("lost"))
        assert names("base")


async def test_a_restart_without_loss_repeats_nothing_and_loads_no_routes_again() -> None:
    async with pair(aof=True) as nodes:
        session = await nodes.b.connect("s")
        await nodes.b.subscribe(session, "base")
        await nodes.push_each(*numbered("early", 7))
        await nodes.until_got(*numbered("early", 7))
        cluster = cast(RedisCluster, nodes.a.cluster)
        reads: list[object] = []
        load = cluster._routes._read

        async def read() -> object:
            reads.append(None)
            return await load()

        cluster._routes._read = read  # type: ignore[method-assign,assignment]
        async with nodes.a_is_late():
            await nodes.push_each(*numbered("new", 7))
            await nodes.b.subscribe(session, "more")
        await nodes.push(b"last")
        await nodes.until_got(b"last")
        await nodes.a.events.until(lambda: nodes.routes() == {"base", "more"})
        assert nodes.got() == [*numbered("early", 7), *numbered("new", 7), b"last"]
        assert not reads
