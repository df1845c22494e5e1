"""Delayed messages: PUBLISH to `$delayed/<seconds>/<topic>`."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import (
    Connack,
    Connect,
    Packet,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrel,
    SubscriptionRequest,
    Will,
)
from cluster.policy import ClusterLimits
from tests.node.kit import Peer, serving


def _p(topic: str, payload: bytes = b"x", qos: int = 1, packet_id: int = 1, **other: object) -> Publish:
    properties: Properties | None = None
    if "expiry_s" in other:
        properties = Properties()
        properties.message_expiry_interval = other["expiry_s"]  # type: ignore[assignment]
    return Publish(
        topic, payload, qos, bool(other.get("retain")), bool(other.get("dup")), packet_id if qos else 0, properties
    )


def _shown(packets: list[Packet]) -> list[tuple[str, int]]:
    return [(type(packet).__name__, getattr(packet, "reason_code", -1)) for packet in packets]


async def _at(peer: Peer, *expected: list[bytes]) -> None:
    """What comes from second to second."""
    for second, payloads in enumerate(expected):
        assert await peer.payloads() == payloads, second
        await trio.sleep(1)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_g13_it_is_published_in_its_time(autojump_clock: trio.abc.Clock, qos: int, version: int) -> None:
    async with serving() as world:
        live = await world.subscriber("live", "t/#", version=version)
        await world.subscriber("queue", "t/#", qos=1, expiry_s=100)
        sender = await world.connect("sender", version)
        await sender.send(_p("$delayed/3/t/a", b"later", qos))
        answers = {0: [], 1: [("Puback", 0)], 2: [("Pubrec", 0)]}[qos]
        assert _shown(await sender.received()) == answers
        await sender.send(_p("t/a", b"now", 0))
        await trio.sleep(0.5)
        assert await live.payloads() == [b"now"]
        await _at(live, [], [])
        await trio.sleep(1)
        (message,) = await live.publishes()
        assert (message.topic_name, message.payload, message.qos, message.retain) == ("t/a", b"later", qos, False)
        assert world.cluster.queue_length("queue") == (1 if qos else 0)


async def test_g13_it_is_acknowledged_when_it_is_stored(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        world.cluster.held = True
        await sender.send(_p("$delayed/3/t", packet_id=1), _p("t", packet_id=2), _p("$delayed/3/t", qos=2, packet_id=3))
        await sender.nothing()
        world.cluster.held = False
        world.reactor.wake()
        assert _shown(await sender.received()) == [("Puback", 0), ("Puback", 0x10), ("Pubrec", 0)]


async def test_a_delay_of_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        live = await world.subscriber("live", "t")
        sender = await world.connect("sender")
        await sender.send(_p("$delayed/0/t", b"0", 0), _p("$delayed/0/t", b"1"), _p("$delayed/0/t", b"2", 2))
        assert _shown(await sender.received()) == [("Puback", 0), ("Pubrec", 0)]
        messages = await live.publishes()
        assert [(each.topic_name, each.payload, each.qos) for each in messages] == [
            ("t", b"0", 0),
            ("t", b"1", 1),
            ("t", b"2", 2),
        ]


async def test_g6_the_expiry_counts_from_the_acceptance(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        live = await world.subscriber("live", "t")
        sender = await world.connect("sender")
        for qos in (0, 1):
            await sender.send(
                _p("$delayed/5/t", b"gone", qos, expiry_s=4), _p("$delayed/5/t", b"left", qos, expiry_s=9)
            )
        await sender.received()
        await trio.sleep(6)
        messages = await live.publishes()
        assert [message.payload for message in messages] == [b"left", b"left"]
        for message in messages:
            assert message.properties is not None
            assert message.properties.message_expiry_interval == 4
        assert world.metrics.dropped["expired"] == 2


@pytest.mark.parametrize("qos", [0, 1])
async def test_it_becomes_the_retained_message_in_its_time(autojump_clock: trio.abc.Clock, qos: int) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        await sender.send(_p("$delayed/2/t", b"kept", qos, retain=True))
        await sender.received()
        early = await world.subscriber("early", "t")
        await early.nothing()
        await trio.sleep(3)
        (live,) = await early.publishes()
        assert (live.payload, live.retain) == (b"kept", False)
        late = await world.subscriber("late", "t")
        (retained,) = await late.publishes()
        assert (retained.payload, retained.retain, retained.topic_name) == (b"kept", True, "t")


async def test_no_local_holds_for_it(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        other = await world.subscriber("other", "t")
        peer = await world.connect("c")
        await peer.subscribe(SubscriptionRequest("t", 2, no_local=True))
        await peer.send(_p("$delayed/2/t", b"1"), _p("$delayed/2/t", b"0", 0))
        await peer.received()
        await trio.sleep(3)
        assert await other.payloads() == [b"1", b"0"]
        await peer.nothing()


@pytest.mark.parametrize(
    "topic", ["$delayed/x/t", "$delayed/5", "$delayed/5/", "$delayed/42949671/t", "$delayed/1/$delayed/1/t"]
)
async def test_a_topic_that_is_no_delay_is_refused(autojump_clock: trio.abc.Clock, topic: str) -> None:
    async with serving() as world:
        peer = await world.connect("c")
        await peer.send(_p(topic, qos=1), _p(topic, qos=2, packet_id=2))
        assert _shown(await peer.received()) == [("Puback", 0x90), ("Pubrec", 0x90)]
        await peer.send(_p(topic, qos=0))
        assert _shown(await peer.received()) == [("Disconnect", 0x90)]
        for qos in (0, 1, 2):
            older = await world.connect("older", 4)
            await older.send(_p(topic, qos=qos))
            await older.nothing()
            assert older.closed()


async def test_a_delayed_topic_with_a_wildcard(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.connect("c")
        await peer.send(_p("$delayed/5/a/+", qos=1))
        assert _shown(await peer.received()) == [("Disconnect", 0x90)]


async def test_delayed_messages_may_be_switched_off(autojump_clock: trio.abc.Clock) -> None:
    async with serving(delayed_available=False) as world:
        peer = await world.connect("c")
        await peer.send(_p("$delayed/5/t"))
        assert _shown(await peer.received()) == [("Puback", 0x90)]


async def test_g15_one_that_is_too_many_is_refused(autojump_clock: trio.abc.Clock) -> None:
    async with serving(limits=ClusterLimits(max_delayed=2)) as world:
        live = await world.subscriber("live", "t")
        peer = await world.connect("c")
        for number in (1, 2, 3):
            await peer.send(_p("$delayed/5/t", b"%d" % number, 2, number))
        assert _shown(await peer.received()) == [("Pubrec", 0), ("Pubrec", 0), ("Pubrec", 0x97)]
        await peer.send(_p("$delayed/5/t", b"4", 1, 4), _p("$delayed/5/t", b"5", 0))
        assert _shown(await peer.received()) == [("Puback", 0x97)]
        assert world.metrics.dropped["store_full"] == 1
        await trio.sleep(6)
        assert await live.payloads() == [b"1", b"2"]
        await peer.send(_p("$delayed/5/t", b"6", 1, 6))
        assert _shown(await peer.received()) == [("Puback", 0)]


async def test_g3_a_repeated_qos_2_message_is_kept_once(autojump_clock: trio.abc.Clock) -> None:
    """The answer is lost with the connection; the message comes again, before it is due and after it was published."""
    async with serving() as world:
        queue = await world.subscriber("queue", "t", expiry_s=1000)
        peer = await world.connect("c", expiry_s=1000)
        await peer.send(_p("$delayed/5/t", b"once", 2, 7))
        assert _shown(await peer.received()) == [("Pubrec", 0)]
        for pause in (1, 9):
            peer.socket.reset()
            await world.settle()
            peer = await world.connect("c", expiry_s=1000, clean_start=False)
            await peer.send(_p("$delayed/5/t", b"once", 2, 7, dup=True))
            assert _shown(await peer.received()) == [("Pubrec", 0)]
            await trio.sleep(pause)
        await peer.send(Pubrel(7))
        (complete,) = await peer.received()
        assert isinstance(complete, Pubcomp)
        await trio.sleep(100)
        messages = await queue.consume()
        assert [message.payload for message in messages] == [b"once"]


async def test_g13_a_message_that_the_store_did_not_take_comes_again(autojump_clock: trio.abc.Clock) -> None:
    """It is done when it is stored; who got it at the first time does not get it twice."""
    async with serving() as world:
        live = await world.subscriber("live", "t", qos=2)
        queue = await world.subscriber("queue", "t", qos=2, expiry_s=1000)
        peer = await world.connect("c")
        await peer.send(_p("$delayed/5/t", b"m", 2))
        await peer.received()
        world.cluster.full = True
        await trio.sleep(8)
        world.cluster.full = False
        await trio.sleep(60)
        assert [message.payload for message in await queue.consume()] == [b"m"]
        assert [message.payload for message in await live.consume()] == [b"m"]


async def test_a_will_may_be_delayed(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        live = await world.subscriber("live", "t")
        peer = await world.connect("c", will=Will("$delayed/3/t", b"gone", 1, False, Properties()))
        peer.socket.reset()
        await trio.sleep(0.5)
        await _at(live, [], [], [])
        assert await live.payloads() == [b"gone"]


async def test_a_will_with_a_delay_that_is_none(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = world.accept()
        peer.put(Connect(5, "c", True, 0, None, None, Will("$delayed/x/t", b"", 1, False, Properties()), Properties()))
        connack = await peer.expect(Connack)
        assert connack.reason_code == 0x90
        assert peer.closed()


async def test_many_at_the_same_time_hold_up_nobody(autojump_clock: trio.abc.Clock) -> None:
    """They come in the order of their acceptance, a bounded number at once; a will does not wait for them."""
    async with serving() as world:
        live = await world.subscriber("live", "t", "will", qos=0)
        peer = await world.connect("c", will=Will("will", b"gone", 0, False, Properties()))
        for number in range(6000):
            peer.put(_p("$delayed/5/t", b"%d" % number, min(number % 3, 1)))
        await peer.received()
        await trio.sleep(4.5)
        world.cluster.single = False
        world.cluster.held = True
        await trio.sleep(1)
        before = await live.payloads()
        assert 0 < len(before) < 6000
        peer.socket.reset()
        await trio.sleep(1)
        assert await live.payloads() == [b"gone"]
        world.cluster.held = False
        world.reactor.wake()
        assert before + await live.payloads() == [b"%d" % number for number in range(6000)]


async def test_many_come_in_the_order_of_their_times(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        live = await world.subscriber("live", "t", qos=0)
        peer = await world.connect("c")
        for number in range(300):
            await peer.send(_p(f"$delayed/{300 - number}/t", b"%d" % number, number % 2))
        assert {type(packet) for packet in await peer.received()} == {Puback}
        await trio.sleep(301)
        assert await live.payloads() == [b"%d" % number for number in reversed(range(300))]
