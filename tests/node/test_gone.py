"""Clients that leave while they are not read because they sent faster than they may."""

from __future__ import annotations

import trio

from broker.codec.encode import encode
from broker.codec.packets import Disconnect, Puback, Publish, Will
from broker.limits.meter import Meter
from broker.paced import EAGER_BYTES
from tests.node.kit import Peer, World, serving
from tests.node.test_websocket import Web, WebPeer

RATE = 2


async def slowed(world: World, version: int = 5, *, keep_alive_s: int = 10, expiry_s: int = 0) -> Peer:
    """A client with a rate and a will."""
    peer = await world.connect(
        "slow", version, keep_alive_s=keep_alive_s, expiry_s=expiry_s, will=Will("will", b"dead", 0, False)
    )
    meter(world)
    return peer


def meter(world: World, client_id: str = "slow") -> None:
    world.server.clients[client_id].meter = Meter(RATE, 0, world.reactor.now, counters=world.metrics.limits)


def numbers(first: int, last: int, qos: int = 0) -> list[Publish]:
    return [Publish("t", b"%d" % n, qos, False, False, n + 1 if qos else 0) for n in range(first, last)]


def payloads(first: int, last: int) -> list[bytes]:
    return [b"%d" % n for n in range(first, last)]


async def test_what_was_read_is_handled_at_once_and_the_will_follows(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        reader = await world.subscriber("reader", "#")
        peer = await slowed(world)
        await peer.send(*numbers(0, 1000))
        assert await reader.payloads() == payloads(0, RATE)
        await trio.sleep(1.1)  # the rate holds as long as it is there
        assert len(await reader.payloads()) <= 2 * RATE
        before = trio.current_time()
        peer.socket.finish()
        got = [each.payload for each in await reader.consume()]
        assert got[-1] == b"dead" and got[:-1] == payloads(1000 - len(got) + 1, 1000)
        assert trio.current_time() == before
        assert world.metrics.connections == len(world.server.connections) == 1
        assert world.metrics.disconnects == {"connection_lost": 1}
        assert not world.metrics.dropped
        assert peer.closed()


async def test_a_disconnect_among_it_counts(autojump_clock: trio.abc.Clock) -> None:
    for version in (4, 5):
        async with serving() as world:
            reader = await world.subscriber("reader", "#")
            peer = await slowed(world, version)
            await peer.send(*numbers(0, 100), Disconnect())
            peer.socket.finish()
            assert [each.payload for each in await reader.consume()] == payloads(0, 100)
            assert world.metrics.disconnects == {"normal": 1}
            assert not world.metrics.dropped


async def test_a_reset_connection(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        reader = await world.subscriber("reader", "#")
        peer = await slowed(world)
        await peer.send(*numbers(0, 100))
        peer.socket.reset()
        assert [each.payload for each in await reader.consume()] == [*payloads(0, 100), b"dead"]
        peer = await slowed(world)
        await peer.send(*numbers(0, 100), Disconnect())
        peer.socket.reset()
        assert [each.payload for each in await reader.consume()] == payloads(0, 100)
        assert world.metrics.disconnects == {"connection_lost": 1, "normal": 1}


async def test_what_the_kernel_has_goes_on_at_the_rate_for_keep_alive(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        reader = await world.subscriber("reader", "#")
        peer = await slowed(world, keep_alive_s=10)
        chunk = b"".join(bytes(encode(Publish("t", bytes(1000)), 5)) for _ in range(60))
        peer.socket.feed(*[chunk] * 10)
        peer.socket.finish()
        got = await reader.payloads()
        assert EAGER_BYTES / 1000 - 2 <= len(got) <= EAGER_BYTES / 1000 + 65
        before = trio.current_time()
        assert peer.socket.unread() > 3 * len(chunk)
        while not peer.closed():
            await trio.sleep(0.5)
        assert 15 <= trio.current_time() - before <= 16.5
        got += [each for each in await reader.payloads() if each != b"dead"]
        assert len(got) < 250  # what was read once more, and no more of the kernel's
        assert world.metrics.connections == 1


async def test_nothing_may_be_waited_for_longer_without_keep_alive(autojump_clock: trio.abc.Clock) -> None:
    async with serving(stall_timeout_s=20) as world:
        peer = await slowed(world, keep_alive_s=0)
        chunk = b"".join(bytes(encode(Publish("t", bytes(1000)), 5)) for _ in range(60))
        peer.socket.feed(*[chunk] * 10)
        peer.socket.finish()
        await world.settle()
        assert not peer.closed()
        await trio.sleep(22)
        assert peer.closed()


async def test_dropped_messages_are_counted(autojump_clock: trio.abc.Clock) -> None:
    """Those behind a packet that takes longer than the connection lasts."""
    async with serving() as world:
        peer = await slowed(world, expiry_s=100)
        connection = world.server.clients["slow"]
        connection._working = connection._busy = True
        await peer.send(*numbers(0, 7), *numbers(7, 9, 1), Disconnect())
        peer.socket.reset()
        await world.settle()
        assert world.metrics.dropped == {"sender_gone": 7}
        assert world.metrics.disconnects == {"normal": 1}


async def test_acknowledged_is_what_was_handled(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        reader = await world.subscriber("reader", "t")
        peer = await slowed(world)
        await peer.send(*numbers(0, 50, 1))
        acked = [each for each in await peer.received() if isinstance(each, Puback)]
        assert len(acked) == RATE
        peer.socket.finish()
        assert [each.payload for each in await reader.consume()] == payloads(0, 50)


async def test_the_same_over_a_websocket(autojump_clock: trio.abc.Clock) -> None:
    for count, size, goodbye in ((100, 0, False), (100, 0, True), (120, 1000, True), (120, 1000, False)):
        async with serving() as world:
            web = Web(world)
            reader = await world.subscriber("reader", "t")
            peer: WebPeer = await web.connect("slow", keep_alive_s=10)
            meter(world)
            sent = [Publish("t", each.payload + bytes(size)) for each in numbers(0, count)]
            for each in sent:
                peer.put(each)
            if goodbye:
                peer.put(Disconnect())
            await world.settle()
            before = trio.current_time()
            peer.socket.finish()
            got = [each.payload for each in await reader.consume()]
            assert got[-(count - RATE) :] == [each.payload for each in sent][RATE:]
            assert trio.current_time() == before
            assert world.metrics.disconnects == {"normal" if goodbye else "connection_lost": 1}
            assert world.metrics.connections == 1
            assert not world.metrics.dropped
