"""Packets for shared subscriptions that come as a run are handled as one: members cannot tell."""

from __future__ import annotations

import random

import pytest
import trio

from broker.codec.packets import V5, Disconnect, Packet, Puback, Publish
from broker.reasons import QUOTA_EXCEEDED
from broker.stored_run import RunDelivery
from cluster.api import HASH_TOPIC, LEAST_INFLIGHT, LOCAL, ROUND_ROBIN, STICKY, Publication
from cluster.policy import ClusterLimits
from tests.node.kit import Peer, World, serving
from tests.node.test_stored_runs import burst, codes, counted, told

V311 = 4
SHARED = "$share/g/t"


def noting(world: World) -> list[Publication]:
    """The runs that are stored as one from now on."""
    runs: list[Publication] = []
    publish = world.cluster.publish

    def noted(publication: Publication) -> None:
        if isinstance(publication, RunDelivery):
            runs.append(publication)
        publish(publication)

    world.cluster.publish = noted  # type: ignore[method-assign]
    return runs


async def play(seed: int) -> tuple[list[object], int]:
    """Random packets for groups, and what everybody saw of it."""
    rng = random.Random(seed)
    strategy = rng.choice((ROUND_ROBIN, ROUND_ROBIN, LEAST_INFLIGHT, LOCAL, HASH_TOPIC))
    log: list[object] = []
    limits = ClusterLimits(max_group_queue=rng.choice((20, 1000)))
    async with serving(limits=limits, strategy_of=lambda _: strategy) as world:
        runs = noting(world)
        members: list[Peer] = []
        for number in range(rng.randint(1, 4)):
            version = rng.choice((V5, V5, V311))
            window = rng.choice((2, 5, 100)) if version == V5 else 0
            alias = rng.choice((0, 0, 0, 3)) if version == V5 else 0
            options = {"receive_maximum": window, "topic_alias_maximum": alias} if version == V5 else {}
            peer = await world.connect(f"m{number}", version=version, expiry_s=rng.choice((0, 600)), **options)
            # Of several groups it is open which comes first, and so takes the room of a window.
            for share in (
                "gh" if strategy in (ROUND_ROBIN, LOCAL) and window in (0, 100) and rng.random() < 0.5 else "g"
            ):
                await peer.subscribe(f"$share/{share}/t", qos=rng.choice((1, 1, 1, 2, 0)))
            await peer.received()
            members.append(peer)
        sender = await world.connect("sender", version=rng.choice((V5, V311)))
        packet_id = 0
        for _ in range(rng.randint(1, 5)):
            packets: list[Publish] = []
            for _ in range(rng.randint(1, 4)):
                size, qos, topic = rng.choice((0, 3, 200)), rng.choice((0, 1, 1, 1)), rng.choice(("t", "t", "t", "u"))
                for _ in range(rng.choice((1, 2, 7, 20))):
                    packet_id += 1
                    retain, dup = rng.random() < 0.02, qos == 1 and rng.random() < 0.02
                    payload = (b"%d." % packet_id).ljust(size, b"x")
                    packets.append(Publish(topic, payload, qos, retain, dup, packet_id if qos else 0))
            await sender.send(*packets)
            log += told(await sender.received())
            leaves = members.pop() if len(members) > 1 and rng.random() < 0.2 else None
            acks = rng.random() < 0.7
            for number, peer in enumerate(members):
                got = await peer.received()
                log.append(
                    (number, sorted(str(each[:-1]) for each in told(got)), len({each[-1] for each in told(got)}))
                )
                if acks:
                    peer.put(*(Puback(each.packet_id) for each in got if isinstance(each, Publish) and each.qos))
            if leaves is not None:
                leaves.socket.reset()
            await world.settle()
            for peer in members:
                await peer.consume()
        log.append(counted(world)[:2])
        log.append(sorted(map(len, world.cluster._groups._queues.values())))
    return log, len(runs)


@pytest.mark.parametrize("seed", range(60))
async def test_a_run_is_what_its_packets_are(
    seed: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    all_, _ = await play(seed)
    monkeypatch.setattr("broker.inbound_runs.RUN_MAX", 0)
    one, no_runs = await play(seed)
    assert not no_runs
    assert all_ == one


async def test_each_member_gets_its_share_in_order(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        members = [await world.subscriber(f"m{number}", SHARED) for number in range(3)]
        sender = await world.connect("sender")
        runs = noting(world)
        await burst(sender, 1)
        await burst(sender, 30, 2)
        assert len(runs) == 1
        assert codes(await sender.received()) == [(number, 0) for number in range(1, 32)]  # [MQTT-4.6.0-2]
        got = [await member.consume() for member in members]
        for each in got:
            payloads = [message.payload for message in each[1:]]
            assert payloads == sorted(payloads)
        assert sorted(len(each) for each in got) == [10, 10, 11]  # [MQTT-4.8.2-4]
        assert not sum(map(len, world.cluster._groups._queues.values()))
        assert not world.metrics.dropped


async def test_what_a_leaving_member_had_of_a_run(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        leaving = await world.subscriber("leaving", SHARED, receive_maximum=20)
        sender = await world.connect("sender")
        await burst(sender, 1)
        await burst(sender, 19, 2)
        assert world.cluster.publications == 2
        first = await leaving.publishes()
        assert len(first) == 20
        done = [first[at] for at in (1, 2, 3, 7, 9)]
        await leaving.send(*(Puback(each.packet_id) for each in done))
        staying = await world.subscriber("staying", SHARED, receive_maximum=4)
        await leaving.send(Disconnect())
        got = [each.payload for each in await staying.consume()]
        assert got == [each.payload for each in first if each not in done]
        assert not sum(map(len, world.cluster._groups._queues.values()))


async def test_a_run_waits_for_windows(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        member = await world.subscriber("member", SHARED, receive_maximum=5)
        sender = await world.connect("sender")
        await burst(sender, 1)
        await burst(sender, 30, 2)
        assert [each.payload for each in await member.consume()] == [b"0000", *(b"%04d" % n for n in range(30))]


async def test_a_sticky_member_gets_a_run(autojump_clock: trio.abc.Clock) -> None:
    async with serving(strategy_of=lambda _: STICKY) as world:
        members = [await world.subscriber(f"m{number}", SHARED) for number in range(3)]
        sender = await world.connect("sender")
        await burst(sender, 1)
        await burst(sender, 12, 2)
        assert sorted([len(await member.consume()) for member in members]) == [0, 0, 13]


async def test_a_full_queue_of_a_group_within_a_run(autojump_clock: trio.abc.Clock) -> None:
    async with serving(limits=ClusterLimits(max_group_queue=8)) as world:
        member = await world.subscriber("member", SHARED, receive_maximum=3, expiry_s=600)
        await member.send(Disconnect())
        sender = await world.connect("sender")
        await burst(sender, 1)
        await burst(sender, 10, 2)
        assert len(await sender.received()) == 11
        assert world.metrics.dropped["group_queue_full"] == 3
        again = await world.connect("member", clean_start=False, expiry_s=600)
        assert [each.payload for each in await again.consume()] == [b"0000", *(b"%04d" % n for n in range(7))]


async def test_publishers_of_runs_slow_down_to_the_pace_of_members(autojump_clock: trio.abc.Clock) -> None:
    """docs/adr/0010: as many more may come as members are done with."""
    async with serving(max_group_queue=20) as world:
        member = await world.subscriber("member", SHARED)
        sender = await world.connect("sender")
        await burst(sender, 1)
        await burst(sender, 9, 2)
        assert len(await sender.received()) == 10
        await burst(sender, 5, 11)
        await burst(sender, 2, 16)
        await sender.nothing()
        messages = await member.publishes()
        assert len(messages) == 17
        await member.send(*(Puback(each.packet_id) for each in messages[:4]))
        await sender.nothing()
        await member.send(Puback(messages[4].packet_id))
        assert codes(await sender.received()) == [(number, 0) for number in range(11, 16)]
        await member.send(*(Puback(each.packet_id) for each in messages[5:]))
        assert codes(await sender.received()) == [(16, 0), (17, 0)]


async def test_a_full_store_refuses_each_message_of_a_run(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        member = await world.subscriber("member", SHARED)
        sender = await world.connect("sender")
        await burst(sender, 1)
        await sender.received()
        assert len(await member.consume()) == 1
        world.cluster.full = True
        await burst(sender, 3)
        assert codes(await sender.received()) == [(number, QUOTA_EXCEEDED) for number in (1, 2, 3)]
        await member.nothing()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
async def test_acknowledgements_in_any_order(order: tuple[int, ...], autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        member = await world.subscriber("member", SHARED)
        sender = await world.connect("sender")
        await burst(sender, 1)
        await member.consume()
        await burst(sender, 4, 2)
        messages = await member.publishes()
        packets: list[Packet] = [Puback(messages[at].packet_id) for at in order]
        await member.send(*packets[:2], packets[0], Puback(65_535), *packets[2:])
        assert not member.closed()
        assert not sum(map(len, world.cluster._groups._queues.values()))
        assert world.metrics.packets_received[4] == 7
