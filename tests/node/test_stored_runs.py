"""Packets that come as a run are handled as one: nobody can tell, but by the time that it takes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio

from broker.codec.encode import encode
from broker.codec.packets import V5, Disconnect, Packet, Puback, Publish
from broker.reasons import QUOTA_EXCEEDED
from broker.session.run import Run
from broker.stored_run import RunDelivery
from cluster.api import Publication
from cluster.policy import ClusterLimits
from tests.node.faulty_cluster import node_route
from tests.node.kit import Peer, World, serving

V311 = 4
B = b"b:1"


def told(packets: Sequence[Packet]) -> list[tuple[object, ...]]:
    """What a client sees of them."""
    result: list[tuple[object, ...]] = []
    for packet in packets:
        if isinstance(packet, Publish):
            result.append((packet.topic_name, packet.payload, packet.qos, packet.retain, packet.dup, packet.packet_id))
        elif isinstance(packet, Puback):
            result.append(("ack", packet.packet_id, packet.reason_code))
        else:
            result.append((type(packet).__name__,))
    return result


def codes(packets: Sequence[Packet]) -> list[tuple[int, int]]:
    """Packet ids and reason codes of PUBACKs."""
    return [(each.packet_id, each.reason_code) for each in packets if isinstance(each, Puback)]


def counted(world: World) -> tuple[object, ...]:
    metrics = world.server.metrics
    return (
        list(metrics.messages_received),
        list(metrics.messages_sent),
        list(metrics.packets_received),
        list(metrics.packets_sent),
        {name: count for name, count in metrics.dropped.items() if count},
    )


async def play(seed: int, together: bool) -> tuple[list[tuple[object, ...]], list[Publication]]:
    """Random packets, in chunks or one after the other; what everybody saw, and the runs that were stored as one."""
    rng = random.Random(seed)
    log: list[tuple[object, ...]] = []
    runs: list[Publication] = []
    async with serving(limits=ClusterLimits(max_queued_messages=rng.choice((8, 1000)))) as world:
        publish = world.cluster.publish

        def noted(publication: Publication) -> None:
            if isinstance(publication, RunDelivery):
                runs.append(publication)
            publish(publication)

        world.cluster.publish = noted  # type: ignore[method-assign]
        subscribers: list[Peer] = []
        for number in range(rng.randint(1, 3)):
            version = rng.choice((V5, V5, V311))
            window = rng.choice((5, 100)) if version == V5 else 0
            peer = await world.connect(f"s{number}", version=version, expiry_s=600, receive_maximum=window)
            if rng.random() < 0.2:
                await peer.subscribe_with_identifier("t", 7)
            else:
                await peer.subscribe("t", qos=rng.choice((1, 1, 1, 2, 0)))
            await peer.received()
            subscribers.append(peer)
        if rng.random() < 0.3:
            await subscribers[-1].send(Disconnect())
            await subscribers.pop().received()
        version = rng.choice((V5, V311))
        sender = await world.connect("sender", version=version)
        packet_id = 0
        for _ in range(rng.randint(1, 4)):
            packets: list[Publish] = []
            for _ in range(rng.randint(1, 5)):
                size, qos, topic = rng.choice((0, 3, 200)), rng.choice((0, 1, 1, 1)), rng.choice(("t", "t", "t", "u"))
                for _ in range(rng.choice((1, 2, 7))):
                    packet_id += 1
                    payload = (b"%d." % packet_id).ljust(size, b"x")
                    retain, dup = rng.random() < 0.03, qos == 1 and rng.random() < 0.03
                    packets.append(Publish(topic, payload, qos, retain, dup, packet_id if qos else 0))
            if together:
                await sender.send(*packets)
            else:
                for packet in packets:
                    await sender.send(packet)
            log += told(await sender.received())
            for peer in subscribers:
                log += told(await peer.consume())
        for number in range(3):  # what is left, also for who was away
            peer = await world.connect(f"s{number}", clean_start=False, expiry_s=600)
            log += [(each.payload, each.qos) for each in await peer.consume()]
        log.append(counted(world)[:2])
    return log, runs


@pytest.mark.parametrize("seed", range(40))
async def test_a_run_is_what_its_packets_are(seed: int, autojump_clock: trio.abc.Clock) -> None:
    one, no_runs = await play(seed, False)
    all_, _ = await play(seed, True)
    assert not no_runs
    assert sorted(map(repr, all_)) == sorted(map(repr, one))  # acks and messages of one chunk come in another order


async def burst(peer: Peer, count: int, first_id: int = 1, size: int = 4) -> None:
    """Messages that are a run."""
    await peer.send(
        *(
            Publish("t", b"%04d" % number + bytes(size - 4), 1, False, False, first_id + number)
            for number in range(count)
        )
    )


async def test_order_and_packet_ids(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        receiver = await world.connect("c", expiry_s=600)
        await receiver.subscribe("t")
        await receiver.received()
        sender = await world.connect("sender")
        await burst(sender, 50)
        assert world.cluster.publications == 2  # the first one finds the route
        assert codes(await sender.received()) == [(number, 0) for number in range(1, 51)]  # [MQTT-4.6.0-2]
        messages = await receiver.publishes()
        assert [each.payload for each in messages] == [b"%04d" % number for number in range(50)]  # [MQTT-4.6.0-6]
        assert [each.packet_id for each in messages] == list(range(2, 52))
        await receiver.send(*(Puback(each.packet_id) for each in messages))
        await receiver.send(Disconnect())
        again = await world.connect("c", clean_start=False, expiry_s=600)
        await again.nothing()


async def test_a_queue_that_is_full_within_a_run(autojump_clock: trio.abc.Clock) -> None:
    async with serving(limits=ClusterLimits(max_queued_messages=7)) as world:
        receiver = await world.connect("c", expiry_s=600)
        await receiver.subscribe("t")
        await receiver.send(Disconnect())
        sender = await world.connect("sender")
        await burst(sender, 10)
        assert len(await sender.received()) == 10
        assert world.server.metrics.dropped["queue_full"] == 3
        again = await world.connect("c", clean_start=False, expiry_s=600)
        assert await again.payloads() == [b"%04d" % number for number in range(7)]


@pytest.mark.parametrize("version", [V311, V5])
async def test_a_packet_id_0_in_a_run_is_an_error(version: int, autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        receiver = await world.connect("c", expiry_s=600)
        await receiver.subscribe("t")
        await receiver.received()
        sender = await world.connect("sender", version=version)
        good = encode(Publish("t", b"x", 1, False, False, 5), version)
        bad = good.replace(b"\0\x05", b"\0\0")
        sender.socket.feed(good + bad + good)
        await world.settle()
        assert sender.closed()  # [MQTT-2.2.1-3]
        assert await receiver.payloads() == [b"x"]


def test_the_payloads_of_a_run() -> None:
    for family, version in ((5, V5), (4, V311)):
        packets = b"".join(encode(Publish("t/u", b"%03d" % at, 1, False, False, 9), version) for at in range(5))
        assert Run(family, packets, 5, 0, b"").payloads() == [b"%03d" % at for at in range(5)]
        empty = encode(Publish("t/u", b"", 1, False, False, 9), version) * 2
        assert Run(family, empty, 2, 0, b"").payloads() == [b"", b""]


async def test_a_full_store_refuses_each_message_of_a_run(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        receiver = await world.connect("c", expiry_s=600)
        await receiver.subscribe("t")
        await receiver.received()
        sender = await world.connect("sender")
        world.cluster.full = True
        await burst(sender, 3)
        assert codes(await sender.received()) == [(number, QUOTA_EXCEEDED) for number in (1, 2, 3)]
        await receiver.nothing()


async def test_g5_who_was_not_known_gets_a_run_too(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.single = False
        receiver = await world.connect("c", expiry_s=600)
        await receiver.subscribe("t")
        member = await world.connect("m", expiry_s=600)
        await receiver.received()
        sender = await world.connect("sender")
        await burst(sender, 1, 1)
        world.cluster.held = True
        await burst(sender, 3, 2)
        [run] = world.cluster.under_way()
        assert len(run.payloads) == 3
        other = world.cluster.elsewhere("other", "t")
        await member.subscribe("$share/g/t")
        world.cluster.change_routes(node_route(B, "t"))
        world.cluster.change_routes(node_route(B, "+"))
        assert len(world.cluster.under_way()) > 1
        await sender.received()
        world.cluster.held = False
        world.reactor.wake()
        assert codes(await sender.received()) == [(number, 0) for number in (2, 3, 4)]
        payloads = [b"0000", b"0001", b"0002"]
        assert await receiver.payloads() == [b"0000", *payloads]
        assert [each.payload for each in await member.received() if isinstance(each, Publish)] == payloads
        assert world.cluster.pushed == [(B, True, [], payload) for payload in payloads]
        session = world.cluster._sessions[other]
        assert [each.message.payload for each in session.queue.values()] == payloads
