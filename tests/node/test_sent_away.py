"""Clients that an operator sends away, and the node that stays."""

from __future__ import annotations

import trio

from broker.codec.packets import Disconnect, Publish, Will
from tests.node.kit import serving

WILL = Will("will", b"gone", 1, False)


async def test_clients_are_sent_away_and_let_in_again(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peers = [await world.connect(f"c{number}") for number in range(3)]
        world.server.send_away(100, "other:1883")
        await trio.sleep(1)
        for peer in peers:
            [goodbye] = await peer.received()
            assert isinstance(goodbye, Disconnect)
            assert goodbye.reason_code == 0x8B
            assert goodbye.properties is not None
            assert goodbye.properties.server_reference == "other:1883"
        late = world.accept()
        await world.settle()
        assert late.closed()
        world.server.welcome()
        again = await world.connect("c1")
        await again.nothing()


async def test_the_end_of_it_keeps_those_who_are_left(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peers = [await world.connect(f"c{number}") for number in range(10)]
        world.server.send_away(1)
        await trio.sleep(3.5)
        world.server.welcome()
        await trio.sleep(20)
        left = [peer for peer in peers if not await peer.received()]
        assert 5 <= len(left) <= 8


async def test_a_client_that_is_back_in_time_has_no_will(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        watcher = world.cluster.elsewhere("watcher", "will")
        assert watcher
        await world.connect("c", expiry_s=100, will=WILL)
        world.server.send_away(100)
        await trio.sleep(1)
        assert world.cluster.queue_length("watcher") == 0
        assert world.server.session_wanted("c"), "another node asks for the session"
        await world.settle()
        assert not world.server.clients
        await trio.sleep(60)
        assert world.cluster.queue_length("watcher") == 0


async def test_the_will_of_one_that_stays_away_goes_out(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.elsewhere("watcher", "will")
        await world.connect("c", expiry_s=100, will=WILL)
        world.server.send_away(100)
        await trio.sleep(9)
        assert world.cluster.queue_length("watcher") == 0
        await trio.sleep(2)
        assert world.cluster.queue_length("watcher") == 1
        assert not world.server.clients


async def test_one_that_comes_back_here_after_the_drain(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.elsewhere("watcher", "will")
        await world.connect("c", expiry_s=100, will=WILL)
        world.server.send_away(100)
        await trio.sleep(1)
        world.server.welcome()
        peer = await world.connect("c", clean_start=False, expiry_s=100)
        await peer.send(Publish("x", b"", 0))
        await trio.sleep(60)
        assert world.cluster.queue_length("watcher") == 0


async def test_the_end_of_the_node_does_not_wait_for_them(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        await world.connect("c", expiry_s=100, will=WILL)
        world.server.send_away(100)
        await trio.sleep(1)
        before = trio.current_time()
        await world.server.drain(100, 30)
        assert trio.current_time() - before < 1
