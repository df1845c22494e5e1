"""What a node measures of its turns, deliveries, connections and output."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import Disconnect, Publish, Subscribe, SubscriptionRequest
from broker.measuring.census import PORTION, Census
from broker.measuring.life import Measuring
from broker.measuring.store import POLL_S, StoreWatch
from broker.measuring.turns import Turns
from broker.message import Message
from broker.metrics_catalogue import FAMILIES
from cluster.inspection import GroupTotals
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from tests.node.kit import World, serving


def _measured(world: World) -> None:
    world.reactor.turn_done = Turns(world.reactor, world.server.dispatch, world.metrics).done


async def test_a_message_that_passes_at_once_is_one_delivery(autojump_clock: object) -> None:
    async with serving() as world:
        _measured(world)
        receiver = await world.subscriber("r", "t")
        sender = await world.connect("s")
        for qos in (0, 1):
            before = world.metrics.delivered_local.count
            await trio.sleep(1)  # of the clock that jumps: the next sample may be taken
            await sender.send(Publish("t", b"m", qos, False, False, qos))
            assert await receiver.payloads() == [b"m"]
            assert world.metrics.delivered_local.count == before + 1
            await sender.received()


async def test_messages_that_nobody_gets_are_no_delivery(autojump_clock: object) -> None:
    async with serving() as world:
        _measured(world)
        sender = await world.connect("s")
        for qos in (0, 1):
            for _ in range(2):  # at first, and by the way of topics that are known
                await sender.send(Publish("t", b"m", qos, False, False, qos))
        assert world.metrics.delivered_local.count == 0
        assert world.metrics.turn_packets.sum == 5


async def test_a_stored_message_is_as_old_as_its_acceptance(autojump_clock: object) -> None:
    async with serving() as world:
        _measured(world)
        receiver = await world.subscriber("r", "t", expiry_s=100, clean_start=False)
        sender = await world.connect("s")
        await sender.send(Publish("t", b"m", 1, False, False, 1))
        assert await receiver.payloads() == [b"m"]
        assert world.metrics.delivered_local.count == 1


async def test_a_message_of_another_node_is_as_old_as_its_acceptance_there(autojump_clock: object) -> None:
    async with serving() as world:
        _measured(world)
        receiver = await world.subscriber("r", "t")
        message = Message(b"t", b"m", 1, False)
        message.accepted_at_ms = world.cluster.now_ms() - 700
        world.server.deliver(message, True, ())
        world.reactor.wake()
        assert await receiver.payloads() == [b"m"]
        assert world.metrics.delivered_remote.count == 1
        assert 0.7 <= world.metrics.delivered_remote.sum < 5
        assert world.metrics.delivered_local.count == 0


async def test_samples_keep_a_distance(autojump_clock: object) -> None:
    async with serving() as world:
        turns = Turns(world.reactor, world.server.dispatch, world.metrics)
        dispatch = world.server.dispatch
        for at, count in ((100.0, 1), (100.005, 1), (100.011, 2)):
            world.reactor.now = at
            dispatch.passed = True
            turns.done(0.001)
            assert not dispatch.passed
            assert world.metrics.delivered_local.count == count


async def test_a_census_counts_connections_sessions_and_what_waits(autojump_clock: object) -> None:
    async with serving() as world:
        census = Census(world.server)
        await census.take()
        assert not census.connections
        receiver = await world.subscriber("r", "t", receive_maximum=2)
        await world.subscriber("p", "u", expiry_s=100, version=5)
        await world.connect("old", 4)
        world.accept()
        sender = await world.connect("s")
        for number in range(5):
            await sender.send(Publish("t", b"%d" % number, 1, False, False, number + 1))
        await census.take()
        url = world.listener.url
        assert census.connections == {f"{url},5": 3, f"{url},3.1.1": 1, f"{url},none": 1}
        assert census.sessions == {"ephemeral": 3, "persistent": 1}
        assert (census.in_flight, census.queued) == (2, 3)
        assert len(await receiver.payloads()) == 2


async def test_a_census_of_many_lets_others_work_and_is_good_for_a_while(autojump_clock: object) -> None:
    async with serving() as world:
        for number in range(PORTION + 1):
            await world.connect(f"c{number}")
        census = Census(world.server)
        await census.take()
        assert sum(census.connections.values()) == PORTION + 1


async def test_subscriptions_are_counted_as_they_come_and_go(autojump_clock: object) -> None:
    async with serving() as world:
        counts = world.server.dispatch.counts
        before = list(counts)
        client = await world.connect("c")
        await client.send(Subscribe(1, [SubscriptionRequest(name, 0) for name in ("a", "b", "$share/g/a", "a")]))
        assert counts == [before[0] + 3, 0]
        await client.send(Disconnect())
        await world.settle()
        assert counts == before
        client = await world.subscriber("p", "a", "b", expiry_s=100)
        assert counts == [before[0], 2]
        await client.send(Disconnect())
        await world.settle()
        assert counts == [before[0], 2]
        client = await world.connect("p", clean_start=False)  # its session ends with this connection
        assert sum(counts) == before[0] + 2
        await client.send(Disconnect())
        await world.settle()
        assert counts == before


async def test_output_that_is_not_taken_is_counted_until_it_is(autojump_clock: object) -> None:
    async with serving(bound=1000) as world:
        receiver = await world.subscriber("r", "t", qos=0)
        other = await world.subscriber("o", "t", qos=0)
        sender = await world.connect("s")
        for peer in (receiver, other):
            peer.socket.set_room(100)
        for _ in range(2):
            await sender.send(Publish("t", b"x" * 2000, 0, False))
        pending = [peer.stream.pending_bytes() for peer in (receiver, other)]
        assert world.reactor.unsent_bytes == sum(pending) > 2000
        assert world.metrics.slow_consumers == {"congested": 2}
        receiver.socket.set_room(None)
        await world.settle()
        assert world.reactor.unsent_bytes == pending[1]
        other.socket.reset()
        await world.settle()
        assert world.reactor.unsent_bytes == 0


async def test_all_that_a_life_tells_is_declared(autojump_clock: object) -> None:
    async with serving() as world:
        await world.subscriber("r", "t")
        measuring = Measuring(world.server)
        await measuring.refresh()
        samples = measuring.samples()
        assert samples.keys() <= FAMILIES.keys()
        for name, values in samples.items():
            family = FAMILIES[name]
            for key, value in values.items():
                assert key.count(",") == max(0, len(family.labels) - 1), (name, key)
                assert isinstance(value, list) == bool(family.bounds)
                if isinstance(value, list):
                    assert len(value) == len(family.bounds) + 2


async def test_a_shared_subscription_without_connected_members_is_told_of(autojump_clock: object) -> None:
    async with serving() as world:
        member = await world.subscriber("m", "$share/g/t", expiry_s=1000)
        await member.send(Disconnect())
        await world.settle()
        sender = await world.connect("s")
        for number in range(3):
            await sender.send(Publish("t", b"m", 1, False, False, number + 1))
        await world.settle()
        store = StoreWatch(world.cluster)
        assert "mqtt_cluster_shared_groups" not in store.samples()  # nobody looked yet
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.serve)
            await trio.sleep(POLL_S / 2)
            first = store.samples()
            await trio.sleep(3 * POLL_S)
            later = store.samples()
            nursery.cancel_scope.cancel()
        for samples in (first, later):
            assert samples["mqtt_cluster_shared_groups"] == {"": 1}
            assert samples["mqtt_cluster_shared_group_lag"] == {"": 3}
            assert samples["mqtt_cluster_shared_group_lag_max"] == {"": 3}
            assert samples["mqtt_cluster_shared_group_pending"] == {"": 0}
        oldest = later["mqtt_cluster_shared_group_oldest_seconds"][""]
        assert isinstance(oldest, float) and 3 * POLL_S <= oldest < 5 * POLL_S


def test_an_old_message_gets_older_until_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreWatch(MemoryCluster("a", ClusterLimits()))
    now = [1000.0]
    monkeypatch.setattr("broker.measuring.store.time.monotonic", lambda: now[0])
    store._groups_at_s = 1000.0
    for age_ms, then_s in ((20_000, 24.0), (50, 0.05)):  # one that stays, and one that was on its way
        store.groups = GroupTotals(1, 1, 1, 0, age_ms)
        now[0] = 1004.0
        assert store.samples()["mqtt_cluster_shared_group_oldest_seconds"] == {"": then_s}
