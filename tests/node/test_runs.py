"""Packets that a client sends in a row are handled as one: what becomes of each is the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio

from broker.codec.packets import (
    Disconnect,
    Packet,
    Properties,
    Puback,
    Publish,
    Suback,
    SubscriptionRequest,
)
from broker.session.quotas import Quotas
from broker.session.run import Run
from cluster import keys
from tests.node.faulty_cluster import node_route
from tests.node.kit import Peer, World, serving

B = b"b:1"
C = b"c:7"
SHARED = "$share/g/t"


def publish(payload: bytes, packet_id: int = 0, topic: str = "t", dup: bool = False) -> Publish:
    return Publish(topic, payload, 1 if packet_id else 0, False, dup, packet_id)


def run(family: int, *payloads: bytes, first: int = 1) -> Run:
    """QoS 1 packets of a client of another node."""
    data = b""
    for number, payload in enumerate(payloads):
        body = b"\0\1t" + (first + number).to_bytes(2, "big") + b"\0" * (family - 4) + payload
        data += bytes((0x32, len(body))) + body
    return Run(family, data, len(payloads), 0, keys.session_id("away"))


async def elsewhere(world: World) -> Peer:
    """A client, and a node whose sessions want its messages."""
    world.cluster.single = False
    world.cluster.relaying = True
    world.cluster.change_routes(node_route(B, "t"), node_route(B, "t2"))
    sender = await world.connect("sender")
    await sender.send(publish(b"", topic="t"), publish(b"", topic="t2"))  # so that the routes are known
    world.cluster.pushed.clear()
    world.cluster.forwarded.clear()
    world.cluster.publications = 0
    return sender


async def test_qos0_to_all_that_are_here(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peers = [
            await world.subscriber("five", "t"),
            await world.subscriber("four", "t", version=4),
            await world.subscriber("small", "t", maximum_packet_size=2000),
            await world.subscriber("short", "t", topic_alias_maximum=3),
        ]
        for version in (4, 5):
            sender = await world.connect(f"sender{version}", version)
            await sender.send(publish(b"-"))
            await sender.send(*(publish(b"%d" % number) for number in range(8)), publish(b"long"), publish(b"8"))
            for peer in peers:
                assert await peer.payloads() == [b"-", *(b"%d" % number for number in range(8)), b"long", b"8"]
        assert world.metrics.messages_received[0] == 22
        for peer in peers:
            await peer.send(Disconnect())
        assert world.metrics.messages_sent[0] == 88


async def test_qos0_to_other_nodes(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await elsewhere(world)
        session_id = world.cluster.elsewhere("kept", "t", options=0)
        await sender.send(publish(b"-"))
        world.cluster.passed_on.clear()
        world.cluster.forwarded.clear()
        await sender.send(publish(b"1"), publish(b"2"), publish(b"3", topic="t2"), publish(b"4"))
        assert [frame[-1:] for _, _, frame in world.cluster.forwarded] == [b"1", b"2", b"3", b"4"]
        assert world.cluster.passed_on == [(session_id, b"1"), (session_id, b"2"), (session_id, b"4")]


@pytest.mark.parametrize("version", [4, 5])
async def test_qos1_to_other_nodes(autojump_clock: trio.abc.Clock, version: int) -> None:
    async with serving() as world:
        await elsewhere(world)
        sender = await world.connect("other", version)
        await sender.send(*(publish(b"%d" % number, 7 + number) for number in range(5)))
        assert world.cluster.publications == 1
        assert world.cluster.pushed == [(B, True, [], b"%d" % number) for number in range(5)]
        acks = await sender.received()
        assert [(type(ack), ack.packet_id, ack.reason_code) for ack in acks if isinstance(ack, Puback)] == [
            (Puback, 7 + number, 0) for number in range(5)
        ]
        assert world.metrics.messages_received[1] == 5
        assert world.metrics.packets_sent[4] == 5


@pytest.mark.parametrize("seed", range(5))
async def test_qos1_is_as_one_by_one(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """[MQTT-4.6.0-2], [MQTT-4.6.0-5]: any mixture of packets leaves and is acknowledged as if each came alone."""
    choose = random.Random(seed)
    for _ in range(5):
        packets = [
            publish(choose.choice([b"a", b"b", b"cc"]), number, choose.choice(["t", "t", "t2"]), choose.random() < 0.1)
            for number in range(1, choose.randrange(2, 30))
        ]
        results = []
        for together in (False, True):
            async with serving() as world:
                sender = await elsewhere(world)
                if together:
                    await sender.send(*packets)
                else:
                    for packet in packets:
                        await sender.send(packet)
                answers = [
                    (ack.packet_id, ack.reason_code) for ack in await sender.received() if isinstance(ack, Puback)
                ]
                results.append((world.cluster.pushed, answers, world.metrics.messages_received))
        assert results[0] == results[1]


async def test_no_run_of_qos1_where_nodes_may_not_know_of_it(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await elsewhere(world)
        world.cluster.relaying = False
        await sender.send(publish(b"1", 1), publish(b"2", 2))
        assert world.cluster.publications == 2
        assert [payload for *_, payload in world.cluster.pushed] == [b"1", b"2"]
        assert [ack.packet_id for ack in await sender.received() if isinstance(ack, Puback)] == [1, 2]


async def test_a_packet_id_of_zero_in_a_run_ends_the_connection(autojump_clock: trio.abc.Clock) -> None:
    """[MQTT-2.2.1-3], after what came before it."""
    async with serving() as world:
        sender = await elsewhere(world)
        one, zero = b"\x32\x07\x00\x01t\x00\x01\x00a", b"\x32\x07\x00\x01t\x00\x00\x00b"
        sender.socket.feed(one + zero)
        packets = await sender.received()
        [last] = [packet for packet in packets if isinstance(packet, Disconnect)]
        assert last.reason_code == 0x82
        assert [payload for *_, payload in world.cluster.pushed] == [b"a"]


async def test_more_than_the_receive_maximum_ends_the_connection(autojump_clock: trio.abc.Clock) -> None:
    """[MQTT-3.3.4-7]"""
    async with serving(Quotas(receive_maximum=4)) as world:
        sender = await elsewhere(world)
        world.cluster.held = True
        await sender.send(*(publish(b"x", number) for number in range(1, 5)))
        await sender.nothing()
        await sender.send(publish(b"x", 5))
        [last] = await sender.received()
        assert isinstance(last, Disconnect)
        assert last.reason_code == 0x93


async def test_version_3_is_not_read_while_too_much_waits(autojump_clock: trio.abc.Clock) -> None:
    async with serving(Quotas(receive_maximum=4)) as world:
        await elsewhere(world)
        sender = await world.connect("three", 4)
        world.cluster.held = True
        await sender.send(*(publish(b"x", number) for number in range(1, 4)))
        for number in range(4, 8):
            await sender.send(publish(b"x", number))
        assert sender.socket.unread()
        world.cluster.held = False
        world.reactor.wake()
        assert [ack.packet_id for ack in await sender.received() if isinstance(ack, Puback)] == list(range(1, 8))


async def test_a_full_store_refuses_a_run_or_lets_it_wait(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await elsewhere(world)
        four = await world.connect("four", 4)
        world.cluster.full = True
        for each in (sender, four):
            await each.send(publish(b"1", 1), publish(b"2", 2))
        acks = [(ack.packet_id, ack.reason_code) for ack in await sender.received() if isinstance(ack, Puback)]
        assert acks == [(1, 0x97), (2, 0x97)]
        await four.nothing()
        world.cluster.full = False
        assert [ack.packet_id for ack in await four.received() if isinstance(ack, Puback)] == [1, 2]


async def test_g5_routes_found_while_a_run_is_on_its_way(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await elsewhere(world)
        world.cluster.held = True
        await sender.send(publish(b"1", 1), publish(b"2", 2))
        assert world.cluster.change_routes(node_route(B, "#"), node_route(B, "u")) == [None]
        assert world.cluster.publications == 1
        world.cluster.elsewhere("kept", "t")
        world.cluster.change_routes(node_route(C, "+"))
        assert world.cluster.publications == 3, "each by itself, for those that are new"
        world.cluster.elsewhere("later", "t")
        world.cluster.change_routes()
        assert world.cluster.publications == 3
        await sender.nothing()
        world.cluster.held = False
        world.reactor.wake()
        assert [(ack.packet_id, ack.reason_code) for ack in await sender.received() if isinstance(ack, Puback)] == [
            (1, 0),
            (2, 0),
        ]
        assert world.cluster.queue_length("kept") == 2
        assert world.cluster.queue_length("later") == 2
        pushed = [(node, payload) for node, _, _, payload in world.cluster.pushed]
        assert sorted(pushed) == [(B, b"1"), (B, b"2"), (C, b"1"), (C, b"2")]


async def test_a_run_of_which_a_part_is_refused_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """Who came late did not get it: no PUBACK says that it did."""
    async with serving() as world:
        sender = await elsewhere(world)
        world.cluster.held = True
        await sender.send(publish(b"1", 1), publish(b"2", 2))
        world.cluster.elsewhere("kept", "t")
        world.cluster.full = True
        world.cluster.held = False
        world.reactor.wake()
        acks = [(ack.packet_id, ack.reason_code) for ack in await sender.received() if isinstance(ack, Puback)]
        assert acks == [(1, 0x97), (2, 0x97)]


# -- what comes from other nodes


async def _receivers(world: World) -> list[Peer]:
    peers = [
        await world.subscriber("five", "t"),
        await world.subscriber("four", "t", version=4),
        await world.subscriber("zero", "t", qos=0),
        await world.subscriber("narrow", "t", receive_maximum=3),
        await world.subscriber("small", "t", maximum_packet_size=1000),
        await world.subscriber("short", "t", topic_alias_maximum=3),
        await world.subscriber("kept", "t", expiry_s=100),
        await world.connect("numbered"),
        await world.connect("away"),
    ]
    await peers[-2].subscribe_with_identifier("t", 7)
    await peers[-1].subscribe(SubscriptionRequest("t", 1, no_local=True))
    await peers[-1].expect(Suback)
    return peers


def _seen(packets: Sequence[Packet]) -> list[tuple[object, ...]]:
    seen: list[tuple[object, ...]] = []
    for packet in packets:
        assert isinstance(packet, Publish)
        properties = packet.properties or Properties()
        alias, numbers = properties.topic_alias, properties.subscription_identifiers
        seen.append((packet.topic_name, packet.payload, packet.qos, packet.packet_id, packet.dup, alias, numbers))
    return seen


@pytest.mark.parametrize("family", [4, 5])
async def test_a_run_is_delivered_as_its_messages_would_be(autojump_clock: trio.abc.Clock, family: int) -> None:
    results = []
    for together in (False, True):
        async with serving() as world:
            peers = await _receivers(world)
            seen: list[list[tuple[object, ...]]] = []
            for round_number in range(3):
                payloads = [b"%d%d" % (round_number, number) for number in range(1 + 2 * round_number)]
                packets = run(family, *payloads)
                if together:
                    world.cluster.events.deliver_packets(packets)
                else:
                    for message in packets.messages():
                        world.cluster.events.deliver(message, True, [])
                world.reactor.wake()
                for peer in peers:
                    got = await peer.received()
                    seen.append(_seen(got))
                    peer.put(*(Puback(each.packet_id) for each in got if isinstance(each, Publish) and each.qos))
            for peer in peers:
                seen.append(_seen(await peer.received()))
            results.append((seen, world.metrics.messages_sent, world.metrics.dropped))
    assert results[0] == results[1]
    assert [len(seen) for seen in results[0][0][18:27]] == [5, 5, 5, 3, 5, 5, 0, 5, 0]


async def test_packet_ids_of_runs_go_round_and_leave_out_those_in_flight(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.subscriber("c", "t")
        session = world.server.clients["c"].session
        assert session is not None
        session._next_packet_id = 57342
        world.cluster.events.deliver_packets(run(5, b"1"))
        world.cluster.events.deliver_packets(run(5, b"2", b"3"))
        world.reactor.wake()
        assert [(each.payload, each.packet_id) for each in await peer.publishes()] == [
            (b"1", 57343),
            (b"2", 57344),
            (b"3", 1),
        ]
        session._next_packet_id = 0
        world.cluster.events.deliver_packets(run(5, b"4", b"5"))
        world.reactor.wake()
        assert [(each.payload, each.packet_id) for each in await peer.publishes()] == [(b"4", 2), (b"5", 3)]
