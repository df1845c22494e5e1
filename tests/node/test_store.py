"""Publishing while the store is slow, full or away, and in what order acknowledgements leave."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import (
    Connack,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from broker.session.quotas import Quotas
from tests.node.kit import Peer, World, serving


def _p(packet_id: int, qos: int = 1, topic: str = "t") -> Publish:
    return Publish(topic, b"%d" % packet_id, qos, False, False, packet_id)


async def _answers(peer: Peer) -> list[tuple[str, int, int]]:
    packets = await peer.received()
    assert all(isinstance(packet, Puback | Pubrec | Pubcomp) for packet in packets)
    return [
        (type(packet).__name__, packet.packet_id, packet.reason_code)
        for packet in packets
        if isinstance(packet, Puback | Pubrec | Pubcomp)
    ]


async def _release(world: World) -> None:
    world.cluster.held = False
    world.reactor.wake()
    await world.settle()


async def test_acknowledgements_keep_the_order_of_the_messages(autojump_clock: trio.abc.Clock) -> None:
    """[MQTT-4.6.0-2]: those that could leave at once wait for those before them that cannot."""
    async with serving() as world:
        await world.subscriber("slow", "stored", qos=1, expiry_s=100)
        await world.subscriber("quick", "direct", qos=1)
        sender = await world.connect("sender")
        await sender.send(_p(1, topic="direct"))
        assert await _answers(sender) == [("Puback", 1, 0)]
        world.cluster.held = True
        await sender.send(_p(2, topic="direct"), _p(3, topic="stored"), _p(4, topic="direct"), _p(5, topic="nobody"))
        assert await _answers(sender) == [("Puback", 2, 0)]
        await sender.send(_p(6, 2, topic="direct"), _p(7, topic="stored"), _p(8, 2, topic="stored"))
        assert await _answers(sender) == []
        await _release(world)
        assert await _answers(sender) == [
            ("Puback", 3, 0),
            ("Puback", 4, 0),
            ("Puback", 5, 0x10),
            ("Pubrec", 6, 0),
            ("Puback", 7, 0),
            ("Pubrec", 8, 0),
        ]


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_nothing_is_acked_before_the_store_answered(
    autojump_clock: trio.abc.Clock, qos: int, expiry_s: int
) -> None:
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender", expiry_s=expiry_s)
        world.cluster.held = True
        await sender.send(_p(1, qos))
        await sender.nothing()
        await taker.nothing()
        await _release(world)
        assert await _answers(sender) == [("Puback" if qos == 1 else "Pubrec", 1, 0)]
        assert await taker.payloads() == [b"1"]


async def test_qos2_of_a_persistent_publisher_takes_no_tick(autojump_clock: trio.abc.Clock) -> None:
    """Each answer of the store that leads to the next command is followed by a turn at once."""
    async with serving() as world:
        await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender", expiry_s=100)
        before = trio.current_time()
        await sender.send(_p(1, 2))
        assert await _answers(sender) == [("Pubrec", 1, 0)]
        await sender.send(Pubrel(1))
        assert await _answers(sender) == [("Pubcomp", 1, 0)]
        assert trio.current_time() == before


async def test_a_full_store_refuses_version_5(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender", expiry_s=100)
        world.cluster.full = True
        await sender.send(_p(1, 1), _p(2, 2))
        assert await _answers(sender) == [("Puback", 1, 0x97), ("Pubrec", 2, 0x97)]
        world.cluster.full = False
        await sender.send(_p(2, 2), _p(1, 1))
        assert await _answers(sender) == [("Pubrec", 2, 0), ("Puback", 1, 0)]
        assert sorted(await taker.payloads()) == [b"1", b"2"]
        await sender.send(Pubrel(2))
        assert (await _answers(sender))[-1] == ("Pubcomp", 2, 0)
        assert world.cluster.inbound_ids("sender") == set()


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("expiry", [False, True])
async def test_a_full_store_holds_version_3(autojump_clock: trio.abc.Clock, qos: int, expiry: bool) -> None:
    """Not acknowledged, not read beyond a bound, and stored once there is room: in order, one copy for everybody."""
    async with serving(Quotas(receive_maximum=30)) as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        ephemeral = await world.subscriber("ephemeral", "t")
        sender = await world.connect("sender", 4, clean_start=not expiry)
        world.cluster.full = True
        await sender.send(*[_p(n, qos) for n in range(1, 31)])
        await sender.nothing()
        for n in range(31, 40):
            sender.put(_p(n, qos))
        await trio.sleep(10)
        await sender.nothing()
        assert sender.socket.unread() > 0, "it is not read"
        world.cluster.full = False
        answers = await _answers(sender)
        assert [answer[1] for answer in answers] == list(range(1, 40))
        expected = [b"%d" % n for n in range(1, 40)]
        assert [message.payload for message in await taker.consume()] == expected
        assert [message.payload for message in await ephemeral.consume()] == expected
        await sender.send(Pingreq())
        await sender.expect(Pingresp)


async def test_a_publisher_that_left_a_full_store_is_forgotten(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender", 4)
        world.cluster.full = True
        await sender.send(_p(1))
        assert world.cluster.waiting() == 1
        sender.socket.reset()
        await trio.sleep(5)
        assert world.cluster.waiting() == 0
        world.cluster.full = False
        await taker.nothing()


async def test_a_subscribe_of_a_held_publisher_is_read_when_it_is_released(autojump_clock: trio.abc.Clock) -> None:
    async with serving(Quotas(receive_maximum=2)) as world:
        await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender", 4, clean_start=False)
        world.cluster.held = True
        world.cluster.subscribing.shut()
        sender.put(_p(1), _p(2), _p(3), Subscribe(9, [SubscriptionRequest("other")]))
        await sender.nothing()
        assert world.cluster.subscribing.waiting == 0
        await _release(world)
        assert [answer[1] for answer in await _answers(sender)] == [1, 2, 3]
        assert world.cluster.subscribing.waiting == 1
        world.cluster.held = True
        for n in range(4, 9):
            sender.put(_p(n))
        world.cluster.subscribing.open()
        await sender.expect(Suback)
        await sender.nothing()
        assert sender.socket.unread() > 0
        await _release(world)
        assert [answer[1] for answer in await _answers(sender)] == [4, 5, 6, 7, 8]


async def test_what_waits_for_room_goes_before_what_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """Version 3 waits and version 5 is told, in the same store."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        patient = await world.connect("patient", 4)
        told = await world.connect("told")
        world.cluster.full = True
        await patient.send(_p(1))
        await told.send(_p(2))
        await patient.send(_p(3))
        assert await _answers(told) == [("Puback", 2, 0x97)]
        await patient.nothing()
        world.cluster.held = True
        world.cluster.full = False
        await told.send(_p(4))
        await _release(world)
        assert await _answers(patient) == [("Puback", 1, 0), ("Puback", 3, 0)]
        assert await taker.payloads() == [b"1", b"3", b"4"]


async def test_a_repeated_message_is_not_refused(autojump_clock: trio.abc.Clock) -> None:
    """It may be stored already: also version 5 waits, and there is one copy."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender", expiry_s=100)
        world.cluster.held = True
        await sender.send(_p(1, 2))
        sender.socket.reset()
        await _release(world)
        assert world.cluster.inbound_ids("sender") == {1}
        sender = await world.connect("sender", expiry_s=100, clean_start=False)
        world.cluster.full = True
        await sender.send(Publish("t", b"1", 2, False, True, 1))
        await sender.nothing()
        world.cluster.full = False
        assert await _answers(sender) == [("Pubrec", 1, 0)]
        assert await taker.payloads() == [b"1"]


async def test_nothing_is_published_for_a_connection_that_is_gone(autojump_clock: trio.abc.Clock) -> None:
    """A QoS 2 message whose packet id is being kept then: its client sends it again, and those before it first."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender", 4, clean_start=False)
        world.cluster.full = True
        await sender.send(_p(1, 2))
        world.cluster.held = True
        await sender.send(_p(2, 2))
        sender.socket.reset()
        await world.settle()
        world.cluster.held = False
        world.reactor.wake()
        await world.settle()
        world.cluster.full = False
        await taker.nothing()
        sender = await world.connect("sender", 4, clean_start=False)
        again = [Publish("t", b"%d" % n, 2, False, True, n) for n in (1, 2)]
        await sender.send(*again)
        assert await _answers(sender) == [("Pubrec", 1, 0), ("Pubrec", 2, 0)]
        assert await taker.payloads() == [b"1", b"2"]


@pytest.mark.parametrize("version", [4, 5])
async def test_unanswered_publishes_are_bounded(autojump_clock: trio.abc.Clock, version: int) -> None:
    """Version 5 knows the bound (0x93); version 3 does not, and is not read instead."""
    async with serving(Quotas(receive_maximum=10)) as world:
        await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender", version)
        world.cluster.held = True
        for n in range(1, 31):
            sender.put(_p(n))
        packets = await sender.received()
        if version == 5:
            [packet] = packets
            assert isinstance(packet, Disconnect)
            assert packet.reason_code == 0x93
            return
        assert packets == []
        assert sender.socket.unread() >= 18 * len(b"\x32\x07\x00\x01t\x00\x01xx")
        await _release(world)
        assert [answer[1] for answer in await _answers(sender)] == list(range(1, 31))


async def test_the_bound_counts_what_is_open_on_this_connection(autojump_clock: trio.abc.Clock) -> None:
    """What an older connection left to be released does not use up the Receive Maximum of a new one."""
    async with serving(Quotas(receive_maximum=5)) as world:
        sender = await world.connect("sender", expiry_s=100)
        await sender.send(*[_p(n, 2) for n in range(1, 6)])
        assert len(await _answers(sender)) == 5
        again = await world.connect("sender", expiry_s=100, clean_start=False)
        again.put(*[Pubrel(n) for n in range(1, 6)])
        again.put(*[_p(n, 2) for n in range(6, 11)])
        assert len(await _answers(again)) == 10
        for n in range(11, 40):
            again.put(Pubrel(n - 5))
            assert await _answers(again) == [("Pubcomp", n - 5, 0)]
            again.put(_p(n, 2))
            assert await _answers(again) == [("Pubrec", n, 0x10)]


async def test_a_store_that_is_away(autojump_clock: trio.abc.Clock) -> None:
    async with serving(store_grace_s=15.0) as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender")
        world.cluster.fail()
        await sender.send(_p(1))
        await sender.nothing()
        refused = world.connecting("late")
        connack = await refused.expect(Connack)
        assert connack.reason_code == 0x88
        await world.settle()
        assert refused.closed()
        taker.put(Subscribe(7, [SubscriptionRequest("u", 1)]))
        await taker.nothing()
        await trio.sleep(10)
        world.cluster.recover()
        await trio.sleep(1)
        assert await _answers(sender) == [("Puback", 1, 0)]
        assert {type(packet) for packet in await taker.received()} == {Suback, Publish}
        await trio.sleep(60)
        assert not sender.closed()
        assert not taker.closed()


async def test_a_store_that_stays_away(autojump_clock: trio.abc.Clock) -> None:
    async with serving(store_grace_s=15.0) as world:
        peers = [await world.connect(f"c{n}") for n in range(5)]
        world.cluster.fail()
        await trio.sleep(14)
        assert not any(peer.closed() for peer in peers)
        await trio.sleep(12)
        for peer in peers:
            assert (await peer.expect(Disconnect)).reason_code == 0x89
            assert peer.closed()
        world.cluster.recover()
        await trio.sleep(5)
        assert not world.server.clients
        assert not world.cluster.owned("c0")


async def test_pages_that_failed_are_asked_for_again(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100, receive_maximum=1)
        sender = await world.connect("sender")
        await sender.send(*[_p(n) for n in range(1, 6)])
        [first] = await taker.publishes()
        world.cluster.fail()
        await taker.send(Puback(first.packet_id))
        await taker.nothing()
        world.cluster.recover()
        assert [message.payload for message in await taker.consume()] == [b"2", b"3", b"4", b"5"]


async def test_a_page_that_comes_late(autojump_clock: trio.abc.Clock) -> None:
    """Messages are stored after it was read and before it came."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        sender = await world.connect("sender")
        await sender.send(_p(1, 2))
        [first] = await taker.publishes()
        await taker.send(Pubrec(first.packet_id))
        await taker.expect(Pubrel)
        taker.socket.reset()
        await world.settle()
        world.cluster.paged.shut()
        taker = await world.connect("taker", expiry_s=100, clean_start=False)
        await taker.expect(Pubrel)
        assert world.cluster.paged.waiting == 1
        await sender.send(_p(2), _p(3))
        await taker.nothing()
        world.cluster.paged.open()
        assert await taker.payloads() == [b"2", b"3"]


async def test_drain(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        persistent = await world.connect("p", expiry_s=100)
        old = await world.connect("o", 4)
        world.cluster.attaching.shut()
        waiting = world.connecting("w")
        await world.settle()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.server.drain, 1000.0, 30.0)
            await world.settle()
            late = world.accept()
            await world.settle()
            assert late.closed()
            assert world.metrics.rejected == {"draining": 1}
            world.cluster.attaching.open()
        assert (await persistent.expect(Disconnect)).reason_code == 0x8B
        for peer in (persistent, old, waiting):
            await world.settle()
            assert peer.closed()
        assert world.metrics.connections == 0
        assert world.cluster.owned("p") == 0


async def test_drain_ends_in_time(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await world.connect("p", expiry_s=100)
        world.cluster.down = True
        before = trio.current_time()
        await world.server.drain(1000.0, 20.0)
        assert trio.current_time() - before <= 20.0


@pytest.mark.parametrize(("since_s", "left_s"), [(0, 20), (12, 8), (20, 5), (3600, 5)])
async def test_a_drain_goes_on_with_what_is_left_of_the_time(
    autojump_clock: trio.abc.Clock, since_s: float, left_s: float
) -> None:
    """A pod's hook has waited already; sessions that still wait for the store have a moment more."""
    async with serving() as world:
        await world.connect("p", expiry_s=100)
        world.cluster.down = True
        world.server.send_away(1000.0)
        await trio.sleep(since_s)
        before = trio.current_time()
        await world.server.drain(1000.0, 20.0)
        assert trio.current_time() - before == pytest.approx(left_s, abs=0.1)


async def test_a_drain_after_another_was_taken_back_has_all_its_time(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.server.send_away(1000.0)
        await trio.sleep(60)
        world.server.welcome()
        await world.connect("p", expiry_s=100)
        world.cluster.down = True
        before = trio.current_time()
        await world.server.drain(1000.0, 20.0)
        assert trio.current_time() - before == pytest.approx(20.0, abs=0.1)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("persistent", [False, True])
async def test_qos2_packets_that_are_repeated_on_one_connection(
    autojump_clock: trio.abc.Clock, version: int, persistent: bool
) -> None:
    """Each is answered again, but while its first answer is under way; one copy in all."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", expiry_s=100)
        if version == 5:
            sender = await world.connect("sender", expiry_s=100 * persistent)
        else:
            sender = await world.connect("sender", 4, clean_start=not persistent)
        again = Publish("t", b"1", 2, False, True, 1)
        world.cluster.held = True
        await sender.send(_p(1, 2), again)
        assert await _answers(sender) == []
        await _release(world)
        assert await _answers(sender) == [("Pubrec", 1, 0)]
        await sender.send(again)
        assert await _answers(sender) == [("Pubrec", 1, 0)]
        await sender.send(Pubrel(1))
        assert await _answers(sender) == [("Pubcomp", 1, 0)]
        await sender.send(Pubrel(1))
        assert await _answers(sender) == [("Pubcomp", 1, 0x92 if version == 5 else 0)]
        assert await taker.payloads() == [b"1"]
        await sender.send(_p(1, 2))
        assert await _answers(sender) == [("Pubrec", 1, 0)]
        assert await taker.payloads() == [b"1"], "the packet id is free for another message"
