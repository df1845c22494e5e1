"""Connections that fight for one client id, and clients that leave while they are let in."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import Connack, Disconnect, Pingreq, Pingresp, Puback, Publish, Will
from tests.node.kit import Peer, World, serving


async def _state(peer: Peer) -> str:
    """connected, taken over, closed (without a word) or waiting"""
    packets = await peer.received()
    names = [type(packet).__name__ for packet in packets]
    if peer.closed():
        if packets and isinstance(packets[-1], Disconnect):
            assert packets[-1].reason_code == 0x8E
            return "taken over"
        return "closed"
    return "connected" if "Connack" in names or peer.connack is not None else "waiting"


async def _one_owner(world: World, peers: list[Peer]) -> None:
    """Exactly one is served, and it works."""
    states = [await _state(peer) for peer in peers]
    assert states.count("connected") == 1, states
    assert "waiting" not in states, states
    owner = peers[states.index("connected")]
    await owner.send(Pingreq())
    await owner.expect(Pingresp)
    assert list(world.server.clients) == ["c"]
    assert world.cluster.owned("c") == 1
    assert world.metrics.connections == len(world.server.connections)
    await owner.subscribe("t", qos=1)
    sender = await world.connect("sender")
    await sender.send(Publish("t", b"x", 1, False, False, 1))
    packets = await owner.received()
    assert [packet.payload for packet in packets if isinstance(packet, Publish)] == [b"x"]


async def test_the_older_connection_is_taken_over(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        older = await world.connect("c")
        newer = await world.connect("c")
        assert (await older.expect(Disconnect)).reason_code == 0x8E  # [MQTT-3.1.4-3]
        await _one_owner(world, [older, newer])
        assert world.metrics.disconnects == {"session_taken_over": 1}


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_many_at_once(autojump_clock: trio.abc.Clock, count: int, expiry_s: int) -> None:
    async with serving() as world:
        peers = [world.connecting("c", expiry_s=expiry_s, clean_start=False) for _ in range(count)]
        await _one_owner(world, peers)


@pytest.mark.parametrize("gate", ["attaching", "attached"])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("connected", [False, True])
async def test_many_at_once_with_a_slow_store(
    autojump_clock: trio.abc.Clock, gate: str, count: int, connected: bool
) -> None:
    async with serving(connect_timeout_s=100) as world:
        first = [await world.connect("c", expiry_s=100)] if connected else []
        shut = getattr(world.cluster, gate)
        shut.shut()
        peers = []
        for _ in range(count):
            peers.append(world.connecting("c", expiry_s=100, clean_start=False))
            await world.settle()
        shut.open()
        await _one_owner(world, first + peers)
        # Nobody is attached in the background: the session ends with its last connection.
        assert world.server._ending == 0


@pytest.mark.parametrize("gate", ["attaching", "attached"])
@pytest.mark.parametrize("how", ["finish", "reset"])
async def test_a_client_that_leaves_while_it_is_let_in(autojump_clock: trio.abc.Clock, gate: str, how: str) -> None:
    async with serving() as world:
        shut = getattr(world.cluster, gate)
        shut.shut()
        peer = world.connecting("c", expiry_s=100)
        await world.settle()
        getattr(peer.socket, how)()
        await world.settle()
        assert peer.closed()
        shut.open()
        await world.settle()
        assert not world.server.clients
        assert not world.server.connections
        assert world.cluster.owned("c") == 0
        again = await world.connect("c", clean_start=False)
        await _one_owner(world, [again])


@pytest.mark.parametrize("gate", ["attaching", "attached"])
async def test_the_connect_timeout_ends_a_slow_attach(autojump_clock: trio.abc.Clock, gate: str) -> None:
    async with serving(connect_timeout_s=10) as world:
        shut = getattr(world.cluster, gate)
        shut.shut()
        peer = world.connecting("c", expiry_s=100)
        await trio.sleep(12)
        assert peer.closed()
        shut.open()
        await world.settle()
        assert not world.server.clients
        assert world.cluster.owned("c") == 0


async def test_who_waits_for_the_older_one_and_leaves(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await world.connect("c", expiry_s=100)
        world.cluster.held = True
        second = world.connecting("c", expiry_s=100)
        second.socket.reset()
        world.cluster.held = False
        await world.settle()
        third = await world.connect("c", clean_start=False)
        await _one_owner(world, [third])


@pytest.mark.parametrize("version", [3, 4])
async def test_version_3_is_closed_without_a_word(autojump_clock: trio.abc.Clock, version: int) -> None:
    async with serving() as world:
        older = await world.connect("c", version)
        newer = await world.connect("c", version)
        await older.nothing()
        assert older.closed()
        await _one_owner(world, [older, newer])


async def test_the_will_of_the_older_connection_is_published(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        watcher = await world.subscriber("watcher", "will")
        await world.connect("c", will=Will("will", b"gone", 1, False))
        await world.connect("c", clean_start=True)
        assert await watcher.payloads() == [b"gone"]


async def test_nothing_acked_is_lost_by_takeovers(autojump_clock: trio.abc.Clock) -> None:
    """A persistent session is taken over again and again while messages come in."""
    async with serving() as world:
        taker = await world.subscriber("c", "t", qos=1, expiry_s=100)
        sender = await world.connect("sender")
        seen: list[bytes] = []
        for n in range(1, 41):
            await sender.send(Publish("t", b"%d" % n, 1, False, False, n))
            seen += [message.payload for message in await taker.publishes()]
            if n % 3 == 0:
                older = taker
                taker = world.connecting("c", clean_start=False, expiry_s=100, receive_maximum=1 + n % 7)
                sender.put(Publish("t", b"%d extra" % n, 1, False, False, 1000 + n))
                assert (await taker.expect(Connack)).session_present
                await world.settle()
                assert older.closed()
        taker = await world.connect("c", clean_start=False, expiry_s=100)
        seen += [message.payload for message in await taker.consume()]
        expected = [
            payload for n in range(1, 41) for payload in ([b"%d" % n] + ([b"%d extra" % n] if n % 3 == 0 else []))
        ]
        assert list(dict.fromkeys(seen)) == expected
        assert len([packet for packet in await sender.received() if isinstance(packet, Puback)]) == 40 + 13


async def test_the_older_connection_can_not_ack_any_more(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        older = await world.subscriber("c", "t", qos=1, expiry_s=100)
        sender = await world.connect("sender")
        await sender.send(Publish("t", b"x", 1, False, False, 1))
        [message] = await older.publishes()
        newer = await world.connect("c", clean_start=False, expiry_s=100)
        older.put(Puback(message.packet_id))
        [again] = await newer.publishes()
        assert again.dup
        assert again.packet_id == message.packet_id
        assert world.cluster.queue_length("c") == 1
