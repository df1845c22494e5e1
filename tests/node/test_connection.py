"""A connection from accept to close: timeouts, framing, fairness and limits."""

from __future__ import annotations

import pytest
import trio

from broker.codec.encode import encode
from broker.codec.packets import Connack, Connect, Disconnect, Pingreq, Pingresp, Puback, Publish, Pubrec
from broker.session.quotas import Quotas
from tests.node.kit import serving


@pytest.mark.parametrize("first", [b"", b"\x10", b"\x10\x80", encode(Connect(5, "c"), 5)[:-1]])
async def test_who_does_not_connect_in_time_is_closed(autojump_clock: trio.abc.Clock, first: bytes) -> None:
    async with serving(connect_timeout_s=10.0) as world:
        peer = world.accept()
        peer.socket.feed(first)
        await trio.sleep(9.9)
        assert not peer.closed()
        await trio.sleep(1.2)
        assert peer.closed()
        assert bytes(peer.socket.sent) == b""
        assert world.metrics.disconnects == {"connect_timeout": 1}
        assert world.metrics.connections == 0
        assert not world.server.connections


async def test_the_connect_timeout_ends_with_connack(autojump_clock: trio.abc.Clock) -> None:
    async with serving(connect_timeout_s=10.0) as world:
        peer = await world.connect("c")
        await trio.sleep(100)
        assert not peer.closed()


@pytest.mark.parametrize("version", [3, 4, 5])
async def test_keep_alive_is_one_and_a_half_times_the_interval(autojump_clock: trio.abc.Clock, version: int) -> None:
    async with serving() as world:
        peer = await world.connect("c", version, keep_alive_s=20)
        for _ in range(3):
            await trio.sleep(29.5)
            assert not peer.closed()
            await peer.send(Pingreq())
            await peer.expect(Pingresp)
        await trio.sleep(29.5)
        assert not peer.closed()
        await trio.sleep(1.6)
        assert peer.closed()  # [MQTT-3.1.2-22]
        if version == 5:
            assert (await peer.expect(Disconnect)).reason_code == 0x8D
        await peer.nothing()
        assert world.metrics.disconnects == {"keep_alive_timeout": 1}


async def test_any_byte_keeps_a_connection_alive(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.connect("c", keep_alive_s=2)
        packet = encode(Publish("t", b"x" * 20), 5)
        for at in range(len(packet)):
            peer.socket.feed(packet[at : at + 1])
            await trio.sleep(2.4)
        assert not peer.closed()


async def test_without_keep_alive_a_silent_client_stays(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.connect("c", keep_alive_s=0)
        await trio.sleep(2_000)
        assert not peer.closed()
        await peer.send(Pingreq())
        await peer.expect(Pingresp)


CHUNKS = [1, 2, 3, 5, 7, 64, 1000, 65_535, 65_536]


@pytest.mark.parametrize("size", CHUNKS)
async def test_packets_may_be_cut_anywhere(autojump_clock: trio.abc.Clock, size: int) -> None:
    """Small and large packets, more than a turn handles, in chunks of any size."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t/#", qos=0)
        sender = await world.connect("sender")
        payloads = [b"%d" % n for n in range(600)]
        if size >= 64:
            payloads += [b"large" * 20_000, b"small", b"larger" * 30_000]
        payloads += [b"%d" % n for n in range(300)]
        data = b"".join(bytes(encode(Publish("t/1", payload), 5)) for payload in payloads)
        sender.socket.feed(*(data[at : at + size] for at in range(0, len(data), size)))
        await world.settle()
        assert sender.socket.unread() == 0
        assert await taker.payloads() == payloads


@pytest.mark.parametrize("small", [255, 256, 257, 511, 512, 513, 1024])
@pytest.mark.parametrize("missing", [1, 100, 16_384, 16_385, 100_000])
async def test_a_cut_packet_after_many_others(autojump_clock: trio.abc.Clock, small: int, missing: int) -> None:
    """A turn's share is used up while the chunk ends within a packet: reading has to go on."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", qos=0)
        sender = await world.connect("sender")
        data = bytes(encode(Publish("t", b"s"), 5)) * small
        last = bytes(encode(Publish("t", b"x" * (missing + 20)), 5))
        sender.socket.feed(data + last[:-missing])
        await world.settle()
        assert len(await taker.payloads()) == small
        sender.socket.feed(last[-missing:])
        assert await taker.payloads() == [b"x" * (missing + 20)]
        await sender.send(Pingreq())
        await sender.expect(Pingresp)


async def test_every_connection_gets_its_share_of_a_turn(autojump_clock: trio.abc.Clock) -> None:
    """256 packets of a connection, then the others."""
    async with serving() as world:
        taker = await world.subscriber("taker", "t", qos=0)
        greedy = await world.connect("greedy")
        modest = await world.connect("modest")
        greedy.put(*[Publish("t", b"g%d" % n) for n in range(1000)])
        modest.put(Publish("t", b"m"))
        order = await taker.payloads()
        assert order.index(b"m") == 256
        assert [payload for payload in order if payload != b"m"] == [b"g%d" % n for n in range(1000)]


async def test_what_follows_a_slow_packet_waits_in_order(autojump_clock: trio.abc.Clock) -> None:
    """CONNECT and SUBSCRIBE take time; what the client sends after them comes after them."""
    async with serving() as world:
        world.cluster.attaching.shut()
        peer = world.accept()
        connect = encode(Connect(5, "c"), 5)
        peer.socket.feed(connect + encode(Pingreq(), 5))
        for _ in range(3):
            peer.socket.feed(bytes(encode(Publish("t", b"x", 1, False, False, 1), 5)))
        await world.settle()
        await peer.nothing()
        world.cluster.attaching.open()
        await peer.expect(Connack)
        await peer.expect(Pingresp)
        assert [packet.kind for packet in await peer.received()] == [4, 4, 4]


async def test_a_busy_connection_is_not_read(autojump_clock: trio.abc.Clock) -> None:
    """What a client sends while it is waiting for CONNACK stays in the kernel, but for one chunk."""
    async with serving() as world:
        world.cluster.attaching.shut()
        peer = world.accept()
        peer.socket.feed(bytes(encode(Connect(5, "c"), 5)))
        await world.settle()
        ping = bytes(encode(Pingreq(), 5)) * 1000
        for _ in range(10):
            peer.socket.feed(ping)
        await world.settle()
        assert peer.socket.unread() == 9 * len(ping)
        world.cluster.attaching.open()
        await peer.expect(Connack)
        assert len(await peer.received()) == 10_000


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("over", [0, 1])
async def test_the_packet_bound_after_authentication(autojump_clock: trio.abc.Clock, version: int, over: int) -> None:
    async with serving(Quotas(max_packet_size=2000)) as world:
        peer = await world.connect("c", version)
        rest = 2000 - len(encode(Publish("t", b"x" * 1000, 1, False, False, 1), version)) + over
        packet = Publish("t", b"x" * (1000 + rest), 1, False, False, 1)
        assert len(encode(packet, version)) == 2000 + over
        await peer.send(packet)
        if not over:
            await peer.expect(Puback)
            return
        if version == 5:
            assert (await peer.expect(Disconnect)).reason_code == 0x95
        await peer.nothing()
        assert peer.closed()
        assert world.metrics.packet_errors == {"packet_too_large": 1}


@pytest.mark.parametrize("over", [0, 1])
async def test_the_packet_bound_before_authentication(autojump_clock: trio.abc.Clock, over: int) -> None:
    async with serving(Quotas(max_packet_size_before_auth=200, max_packet_size=1000)) as world:
        peer = world.accept()
        client_id = "c" * (200 - len(encode(Connect(5, "c" * 150), 5)) + 150 + over)
        packet = bytes(encode(Connect(5, client_id), 5))
        assert len(packet) == 200 + over
        peer.socket.feed(packet[:10])  # the length is known before the packet is whole
        await world.settle()
        assert peer.closed() == bool(over)
        if not over:
            # The bound of what follows CONNECT in the same chunk is the one after it.
            peer.socket.feed(packet[10:] + encode(Publish("t", b"x" * 900, 1, False, False, 7), 5))
            await peer.expect(Connack)
            assert (await peer.expect(Puback)).packet_id == 7


async def test_a_remaining_length_of_five_bytes_is_malformed(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.connect("c")
        peer.socket.feed(b"\x30\xff\xff\xff\xff")
        assert (await peer.expect(Disconnect)).reason_code == 0x81


async def test_nothing_after_the_end_is_handled(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        taker = await world.subscriber("taker", "t", qos=0)
        peer = await world.connect("c")
        peer.put(Publish("t", b"before"), Disconnect(), Publish("t", b"after"))
        peer.put(Publish("t", b"much later"))
        assert await taker.payloads() == [b"before"]
        assert peer.closed()
        assert world.metrics.disconnects == {"normal": 1}


async def test_a_defect_ends_the_connection_and_no_other(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an unexpected error the bytes of a packet are lost: going on would misread what follows."""
    async with serving() as world:
        peer = await world.connect("c")
        other = await world.connect("other")

        def broken(topic: bytes) -> object:
            raise RuntimeError("a defect")

        monkeypatch.setattr(world.server.dispatch, "route", broken)
        await peer.send(Publish("t", b"x", 1, False, False, 1))
        assert peer.closed()
        assert world.metrics.connections == 1
        await other.send(Pingreq())
        await other.expect(Pingresp)


async def test_peers_that_vanish(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        polite, crashed = await world.connect("a"), await world.connect("b")
        polite.socket.finish()
        crashed.socket.reset()
        await world.settle()
        assert polite.closed()
        assert crashed.closed()
        assert world.metrics.disconnects == {"connection_lost": 2}
        assert not world.server.clients


async def test_a_full_server_turns_clients_away(autojump_clock: trio.abc.Clock) -> None:
    async with serving(max_connections=1) as world:
        await world.connect("a")
        second = world.accept()
        await world.settle()
        assert second.closed()
        assert world.metrics.rejected == {"max_connections": 1}
        assert world.metrics.connections == 1


async def test_topic_alias_beyond_the_maximum(autojump_clock: trio.abc.Clock) -> None:
    async with serving(Quotas(topic_alias_maximum=0)) as world:
        peer = await world.connect("c")
        peer.socket.feed(b"\x32\x0a\x00\x01t\x00\x01\x03\x23\x00\x01x"[:12])
        await world.settle()
        assert (await peer.expect(Disconnect)).reason_code == 0x94


async def test_qos2_publishes_up_to_the_receive_maximum(autojump_clock: trio.abc.Clock) -> None:
    """All of them in one chunk, before the store has answered any: each counts once."""
    async with serving(Quotas(receive_maximum=10)) as world:
        peer = await world.connect("c", expiry_s=100)
        world.cluster.held = True
        peer.put(*[Publish("t", b"x", 2, False, False, n) for n in range(1, 11)])
        await peer.nothing()
        assert not peer.closed()
        world.cluster.held = False
        world.reactor.wake()
        assert [packet.kind for packet in await peer.received()] == [Pubrec.kind] * 10
        await peer.send(Publish("t", b"x", 2, False, False, 11))
        assert (await peer.expect(Disconnect)).reason_code == 0x93
