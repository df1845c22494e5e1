"""A subscriber that does not read: what is dropped, what is held, and when it is let go."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import Disconnect, Pingreq, Pingresp, Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.session.quotas import Quotas
from tests.node.kit import Peer, World, serving

BOUND = 10_000
FULL = b"f" * 20_000


async def _stuffed(world: World, qos: int = 2, **options: int) -> tuple[Peer, Peer]:
    """A subscriber whose output is over its bound, and a publisher."""
    taker = await world.subscriber("taker", "t", qos=qos, **options)
    sender = await world.connect("sender")
    taker.socket.set_room(5)
    await sender.send(Publish("t", FULL))
    return taker, sender


async def test_qos0_is_dropped_and_counted(autojump_clock: trio.abc.Clock) -> None:
    async with serving(bound=BOUND) as world:
        taker, sender = await _stuffed(world)
        await sender.send(*[Publish("t", b"%d" % n) for n in range(10)])
        assert world.metrics.dropped == {"output_full": 10}
        taker.socket.set_room(None)
        assert await taker.payloads() == [FULL]
        await sender.send(Publish("t", b"again"))
        assert await taker.payloads() == [b"again"]
        assert world.metrics.dropped == {"output_full": 10}


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_qos_above_0_is_held_and_sent_later(autojump_clock: trio.abc.Clock, qos: int, expiry_s: int) -> None:
    async with serving(bound=BOUND) as world:
        taker, sender = await _stuffed(world, expiry_s=expiry_s)
        for n in range(1, 31):
            await sender.send(Publish("t", b"%d" % n, qos, False, False, n))
        answers = await sender.received()
        assert [answer.kind for answer in answers] == [Puback.kind if qos == 1 else Pubrec.kind] * 30
        assert not world.metrics.dropped
        pending = taker.stream.pending_bytes()
        assert pending <= len(FULL) + 100, "held in the session, not in the output"
        taker.socket.set_room(None)
        assert [message.payload for message in await taker.consume()] == [FULL] + [b"%d" % n for n in range(1, 31)]


@pytest.mark.parametrize("steps", [1, 10, 4_999, 10_000, 15_000])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_output_that_flows_again_in_steps(autojump_clock: trio.abc.Clock, steps: int, expiry_s: int) -> None:
    """However the peer takes it, the session hears of the room: nothing else would wake it up."""
    async with serving(bound=BOUND) as world:
        taker, sender = await _stuffed(world, expiry_s=expiry_s)
        await sender.send(Publish("t", b"held", 1, False, False, 1))
        await sender.expect(Puback)
        if steps == 1:
            taker.socket.set_room(20_000 - BOUND + 100)
            await world.settle()
            steps = BOUND
        for _ in range(40_000 // steps + 2):
            taker.socket.set_room(steps)
            await world.settle()
        assert [message.payload for message in await taker.publishes()] == [FULL, b"held"]
        await sender.send(Publish("t", b"direct"))
        taker.socket.set_room(None)
        assert await taker.payloads() == [b"direct"]


async def test_pieces_that_follow_the_unsent_rest(autojump_clock: trio.abc.Clock) -> None:
    """The rest leaves, and what came after it is cut again below the bound: that is room too."""
    async with serving(bound=BOUND) as world:
        taker = await world.subscriber("taker", "t")
        sender = await world.connect("sender")
        taker.socket.set_room(5)
        await sender.send(Publish("t", b"a" * 6_000))
        await sender.send(Publish("t", b"b" * 6_000))
        await sender.send(Publish("t", b"held", 1, False, False, 1))
        assert taker.congested()
        taker.socket.set_room(9_000)
        await world.settle()
        assert not taker.congested()
        taker.socket.set_room(None)
        assert await taker.payloads() == [b"a" * 6_000, b"b" * 6_000, b"held"]
        await sender.send(Publish("t", b"direct"))
        assert await taker.payloads() == [b"direct"]


async def test_a_stalled_peer_is_closed(autojump_clock: trio.abc.Clock) -> None:
    async with serving(bound=BOUND, stall_timeout_s=30.0) as world:
        taker, _ = await _stuffed(world)
        await trio.sleep(29)
        assert not taker.closed()
        await trio.sleep(13)
        assert taker.closed()
        assert world.metrics.disconnects == {"output_stalled": 1}


async def test_a_slow_peer_is_not_stalled(autojump_clock: trio.abc.Clock) -> None:
    async with serving(bound=BOUND, stall_timeout_s=30.0) as world:
        taker, _ = await _stuffed(world)
        for _ in range(20):
            await trio.sleep(25)
            taker.socket.set_room(1)
        await trio.sleep(1)
        assert not taker.closed()


async def test_a_disconnect_waits_for_the_output_before_it(autojump_clock: trio.abc.Clock) -> None:
    async with serving(bound=BOUND) as world:
        taker, sender = await _stuffed(world)
        taker.socket.feed(b"\x00\x00")
        await world.settle()
        assert not taker.closed()
        await sender.send(Publish("t", b"late"))
        taker.socket.set_room(None)
        assert await taker.payloads_then_disconnect() == ([FULL], 0x81)
        assert taker.closed()


async def test_who_never_takes_the_disconnect_is_closed(autojump_clock: trio.abc.Clock) -> None:
    async with serving(bound=BOUND, stall_timeout_s=30.0) as world:
        taker, _ = await _stuffed(world)
        taker.socket.feed(b"\x00\x00")
        await trio.sleep(45)
        assert taker.closed()
        assert world.metrics.connections == 1


@pytest.mark.parametrize("expiry_s", [0, 100])
@pytest.mark.parametrize("window", [1, 3])
async def test_the_window_holds_and_the_order_stays(autojump_clock: trio.abc.Clock, window: int, expiry_s: int) -> None:
    async with serving() as world:
        taker = await world.subscriber("taker", "t", receive_maximum=window, expiry_s=expiry_s)
        sender = await world.connect("sender")
        for n in range(1, 21):
            await sender.send(Publish("t", b"%d" % n, 1 + n % 2, False, False, n))
        first = await taker.publishes()
        assert len(first) == window
        taker.put(*[Puback(item.packet_id) if item.qos == 1 else Pubrec(item.packet_id) for item in first])
        packets = await taker.received()
        later = [packet for packet in packets if isinstance(packet, Publish)]
        # A PUBREC gives no room [MQTT-4.9.0-3], a PUBACK does.
        # (A persistent session is fed by pages, and those wait for half a window.)
        assert len(later) == sum(item.qos == 1 for item in first) or (expiry_s and window == 3 and not later)
        for packet in packets:
            if isinstance(packet, Pubrel):
                taker.put(Pubcomp(packet.packet_id))
        taker.put(*[Puback(item.packet_id) if item.qos == 1 else Pubrec(item.packet_id) for item in later])
        rest = await taker.consume()
        assert [item.payload for item in [*first, *later, *rest]] == [b"%d" % n for n in range(1, 21)]


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_messages_too_large_for_the_client(autojump_clock: trio.abc.Clock, expiry_s: int) -> None:
    """They are dropped [MQTT-3.1.2-25], and nothing waits for them."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", maximum_packet_size=100, receive_maximum=1, expiry_s=expiry_s)
        sender = await world.connect("sender")
        await sender.send(
            Publish("t", b"small", 1, False, False, 1),
            Publish("t", b"x" * 100, 1, False, False, 2),
            Publish("t", b"x" * 100, 2, False, False, 3),
            Publish("t", b"x" * 100),
            Publish("t", b"small too", 1, False, False, 4),
        )
        assert [message.payload for message in await taker.consume()] == [b"small", b"small too"]
        assert world.metrics.dropped == {"packet_too_large": 3}
        assert world.cluster.queue_length("taker") == 0


async def test_a_message_that_only_its_alias_makes_too_large(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        size = 2 + 2 + 1 + 1 + 50
        taker = await world.subscriber("taker", "t", maximum_packet_size=size, topic_alias_maximum=5)
        sender = await world.connect("sender")
        await sender.send(Publish("t", b"x" * 50))
        assert await taker.payloads() == [b"x" * 50]


async def test_the_bounds_of_an_ephemeral_queue(autojump_clock: trio.abc.Clock) -> None:
    async with serving(Quotas(max_queued_messages=5, max_queued_bytes=1000)) as world:
        taker = await world.subscriber("taker", "t", receive_maximum=1)
        sender = await world.connect("sender")
        await sender.send(*[Publish("t", b"%d" % n, 1, False, False, n) for n in range(1, 11)])
        assert world.metrics.dropped == {"queue_full": 4}
        assert [message.payload for message in await taker.consume()] == [b"1", b"2", b"3", b"4", b"5", b"6"]
        await sender.send(*[Publish("t", b"x" * 300, 1, False, False, n) for n in range(11, 21)])
        assert world.metrics.dropped == {"queue_full": 4 + 6}
        assert len(await taker.consume()) == 4


async def test_waiting_messages_expire(autojump_clock: trio.abc.Clock) -> None:
    """Those that expired in the queue are not sent, and what comes after them is not stuck."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", receive_maximum=1)
        sender = await world.connect("sender")
        await sender.send(Publish("t", b"first", 1, False, False, 1))
        expiring = b"\x32\x0c\x00\x01t\x00\x02\x05\x02\x00\x00\x00\x05x"
        sender.socket.feed(expiring)
        await world.settle()
        [first] = await taker.publishes()
        await trio.sleep(6)
        await taker.send(Puback(first.packet_id))
        await taker.nothing()
        assert world.metrics.dropped == {"expired": 1}
        await sender.send(Publish("t", b"next", 1, False, False, 3))
        assert await taker.payloads() == [b"next"]


async def test_other_connections_go_on(autojump_clock: trio.abc.Clock) -> None:
    async with serving(bound=BOUND) as world:
        _, sender = await _stuffed(world)
        other = await world.subscriber("other", "t", qos=0)
        await sender.send(Publish("t", b"x"))
        assert await other.payloads() == [b"x"]
        await other.send(Pingreq())
        await other.expect(Pingresp)
        await other.send(Disconnect())
        assert other.closed()
