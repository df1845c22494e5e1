"""The direct ways of QoS 1 and 2: when messages take them, and whatever bars them. What they do is compared with the
general way in `tests.property.test_direct_wire`."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

import pytest
import trio

from broker.codec.packets import (
    Disconnect,
    Packet,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from broker.options.listener import ListenerOptions
from broker.routes import TO_CLIENTS, TO_QUEUES
from broker.session.quotas import Quotas
from tests.node.access_kit import Rules, ruled
from tests.node.kit import Peer, World, count_general, serving
from tests.node.test_trace import begin, texts


def _publish(qos: int, packet_id: int, topic: str = "t", payload: bytes = b"x") -> Publish:
    return Publish(topic, payload, qos, packet_id=packet_id)


async def _warm(client: Peer, qos: int, topic: str = "t") -> None:
    """The route of the topic is known from here on."""
    await client.send(_publish(qos, 1000, topic), *([Pubrel(1000)] if qos == 2 else []))
    await client.received()


@pytest.mark.parametrize("version", [3, 4, 5])
async def test_qos1(autojump_clock: trio.abc.Clock, version: int) -> None:
    async with serving() as world:
        subscriber = await world.subscriber("s", "t", version=version)
        client = await world.connect("c", version)
        await _warm(client, 1)
        general = count_general(world)
        await subscriber.consume()
        sends = subscriber.socket.sends, client.socket.sends
        await client.send(*(_publish(1, n, payload=b"%02d" % n) for n in range(1, 11)))
        assert [packet.packet_id for packet in await client.received() if isinstance(packet, Puback)] == [*range(1, 11)]
        messages = await subscriber.publishes()
        assert [(each.payload, each.qos, each.packet_id) for each in messages] == [
            (b"%02d" % n, 1, n + 1) for n in range(1, 11)
        ]
        assert (subscriber.socket.sends, client.socket.sends) == (sends[0] + 1, sends[1] + 1)
        session = world.server.clients["s"].session
        assert session is not None and session.owed() == 10
        await subscriber.send(*(Puback(each.packet_id) for each in messages))
        assert session.owed() == 0
        assert general == [0]
        metrics = world.metrics
        assert metrics.messages_received == [0, 11, 0]
        assert metrics.messages_sent == [0, 11, 0]
        assert metrics.packets_received[3:5] == [11, 11]
        assert metrics.packets_sent[4] == 11
        assert world.server.dispatch.passed


@pytest.mark.parametrize("version", [3, 4, 5])
async def test_qos2(autojump_clock: trio.abc.Clock, version: int) -> None:
    async with serving() as world:
        subscriber = await world.subscriber("s", "t", version=version)
        client = await world.connect("c", version)
        await _warm(client, 2)
        general = count_general(world)
        await subscriber.consume()
        await client.send(*(_publish(2, n) for n in range(1, 11)))
        assert [packet.packet_id for packet in await client.received() if isinstance(packet, Pubrec)] == [*range(1, 11)]
        await client.send(_publish(2, 3))  # [MQTT-4.3.3-10]
        assert (await client.expect(Pubrec)).packet_id == 3
        await client.send(*(Pubrel(n) for n in (1, 2, 4, 3, *range(5, 11))))
        answers = await client.received()
        assert [each.packet_id for each in answers if isinstance(each, Pubcomp)] == [1, 2, 4, 3, *range(5, 11)]
        await client.send(Pubrel(3))  # [MQTT-4.3.3-11]
        assert (await client.expect(Pubcomp)).reason_code == (0x92 if version == 5 else 0)
        ids = [each.packet_id for each in await subscriber.publishes()]
        assert len(ids) == 10
        await subscriber.send(*map(Pubrec, ids))
        assert [each.packet_id for each in await subscriber.received() if isinstance(each, Pubrel)] == ids
        await subscriber.send(Pubrec(ids[0]))  # again
        assert (await subscriber.expect(Pubrel)).packet_id == ids[0]
        await subscriber.send(*map(Pubcomp, ids))
        session = world.server.clients["s"].session
        assert session is not None and session.owed() == 0
        assert general == [0]
        # A packet id that was released is that of a new message [MQTT-4.3.3-12].
        await client.send(_publish(2, 3))
        assert len(await subscriber.publishes()) == 1


async def test_the_window_of_a_receiver(autojump_clock: trio.abc.Clock) -> None:
    """[MQTT-3.3.4-9], [MQTT-4.6.0-6]: what does not fit waits, in order."""
    async with serving() as world:
        subscriber = await world.subscriber("s", "t", receive_maximum=3)
        client = await world.connect("c")
        await _warm(client, 1)
        await subscriber.consume()
        general = count_general(world)
        await client.send(*(_publish(1, n, payload=b"%d" % n) for n in range(1, 9)))
        first = await subscriber.publishes()
        assert [each.payload for each in first] == [b"1", b"2", b"3"]
        await client.send(_publish(1, 9, payload=b"9"))
        await subscriber.send(*(Puback(each.packet_id) for each in first))
        assert [each.payload for each in await subscriber.consume()] == [b"%d" % n for n in range(4, 10)]
        assert general == [0], "one packet alone has a direct way, too"


async def test_the_window_of_a_publisher(autojump_clock: trio.abc.Clock) -> None:
    """[MQTT-3.3.4-7]"""
    async with serving(Quotas(receive_maximum=5)) as world:
        await world.subscriber("s", "t")
        client = await world.connect("c")
        await _warm(client, 2)
        await client.send(*(_publish(2, n) for n in range(1, 7)))
        *answers, last = await client.received()
        assert [each.packet_id for each in answers if isinstance(each, Pubrec)] == [*range(1, 6)]
        assert isinstance(last, Disconnect)
        assert last.reason_code == 0x93


async def _identifier(world: World) -> None:
    await (await world.connect("other")).subscribe_with_identifier("t", 7)


async def _topic_trace(world: World) -> None:
    begin(world, topic_filter="t")


async def _client_trace(world: World) -> None:
    begin(world, client_id="c")


async def _other_nodes(world: World) -> None:
    world.cluster.single = False


def _filtered(*filters: str, **options: object) -> Callable[[World], Awaitable[None]]:
    async def then(world: World) -> None:
        await world.subscriber("other", *filters, **options)  # type: ignore[arg-type]

    return then


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize(
    "then",
    [
        pytest.param(_filtered("t", expiry_s=100), id="persistent"),
        pytest.param(_filtered("$share/g/t"), id="group"),
        pytest.param(_filtered("+", qos=0), id="qos 0"),
        pytest.param(_identifier, id="identifier"),
        pytest.param(_topic_trace, id="trace of the topic"),
        pytest.param(_client_trace, id="trace of the client"),
        pytest.param(_other_nodes, id="not alone"),
    ],
)
async def test_what_bars_the_way(
    autojump_clock: trio.abc.Clock, then: Callable[[World], Awaitable[None]], qos: int
) -> None:
    """It may begin at any time."""
    async with serving() as world:
        subscriber = await world.subscriber("s", "t")
        client = await world.connect("c")
        await _warm(client, qos)
        general = count_general(world)
        await client.send(_publish(qos, 1), _publish(qos, 2))
        assert general == [0]
        await then(world)
        await world.settle()
        general = count_general(world)
        await client.send(_publish(qos, 3), _publish(qos, 4))
        assert general == [2]
        await client.send(_publish(qos, 5), _publish(qos, 6))
        assert general == [4]
        assert len(await subscriber.consume()) == 7
        kind = Puback if qos == 1 else Pubrec
        answers = await client.received()
        assert [each.packet_id for each in answers if isinstance(each, kind)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("qos", [1, 2])
async def test_packets_that_are_not_plain(autojump_clock: trio.abc.Clock, qos: int) -> None:
    async with serving() as world:
        subscriber = await world.subscriber("s", "t")
        client = await world.connect("c")
        await _warm(client, qos)
        general = count_general(world)
        packets: list[Packet] = []
        for n, name in enumerate(("dup", "retain", "properties")):
            packet = _publish(qos, n + 1)
            setattr(packet, name, Properties() if name == "properties" else True)
            if packet.properties is not None:
                packet.properties.content_type = "x"
            packets.append(packet)
        await client.send(*packets)
        assert general == [3]
        await client.send(_publish(qos, 4), _publish(qos, 5))
        assert general == [3]
        assert len(await subscriber.consume()) == 6


async def test_a_trace_tells_of_every_packet(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        subscriber = await world.subscriber("s", "t")
        client = await world.connect("c")
        await _warm(client, 1)
        await subscriber.consume()
        trace = begin(world, client_id="s")
        await client.send(_publish(1, 1), _publish(1, 2))
        await subscriber.consume()
        assert [text.partition(" ")[0] for text in texts(trace, "packet")] == ["PUBLISH", "PUBLISH", "PUBACK", "PUBACK"]


async def test_a_session_that_becomes_persistent(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await world.subscriber("s", "t")
        route = world.server.dispatch.route(b"t")
        assert (route.run_way, route.run_qos) == (TO_CLIENTS, 2)
        assert route.live0 is not None
        subscriber = route.live0[0]
        world.server.dispatch.set_persistent(subscriber, True)
        assert world.server.dispatch.route(b"t").run_way == TO_QUEUES
        world.server.dispatch.set_persistent(subscriber, False)
        assert world.server.dispatch.route(b"t").run_way == TO_CLIENTS


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_qos_that_is_not_supported(autojump_clock: trio.abc.Clock, qos: int) -> None:
    """[MQTT-3.2.2-11]"""
    async with serving() as world:
        await world.subscriber("s", "t")
        client = await world.connect("c")
        await _warm(client, qos)
        world.server.quotas = dataclasses.replace(world.server.quotas, maximum_qos=qos - 1)
        await client.send(_publish(qos, 1))
        assert (await client.expect(Disconnect)).reason_code == 0x9B


async def test_a_mountpoint(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await world.subscriber("s", "t", "m/t")
        await _warm(await world.connect("d"), 1)
        mounted = ListenerOptions(mountpoint="m/")
        world.listener = dataclasses.replace(world.listener, options=mounted)
        client = await world.connect("c")
        subscriber = await world.subscriber("mounted", "t")
        await _warm(client, 1)
        await client.send(_publish(1, 1))
        assert [each.topic_name for each in await subscriber.consume()] == ["t", "t"]


@pytest.mark.parametrize("qos", [1, 2])
async def test_g18_the_direct_way_is_for_allowed_topics(autojump_clock: trio.abc.Clock, qos: int) -> None:
    rules = Rules(publish=lambda topic, _, retain: topic == b"yes" and not retain)
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "yes", "no")
        client = await world.connect("c")
        await _warm(client, qos, "yes")
        await subscriber.consume()
        general = count_general(world)
        await client.send(*(_publish(qos, n, ("yes", "no")[n % 2]) for n in range(1, 7)), _publish(qos, 8, "yes"))
        kind = Puback if qos == 1 else Pubrec
        answers = [packet for packet in await client.received() if isinstance(packet, kind)]
        assert [(each.packet_id, each.reason_code) for each in answers] == [
            (n, 0x87 * (n % 2)) for n in (1, 2, 3, 4, 5, 6, 8)
        ]
        await client.send(_publish(qos, 9, "yes"), _publish(qos, 10, "yes"))
        assert general[0] < 5
        assert len(await subscriber.consume()) == 6
        rules.publish = lambda topic, _, retain: False
        await rules.renew()
        await client.received()
        await client.send(_publish(qos, 11, "yes"))
        assert (await client.expect(kind)).reason_code == 0x87
        await subscriber.nothing()
