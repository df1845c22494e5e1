"""When wills are published."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import Disconnect, Properties, Publish, Will
from tests.node.kit import serving


def _will(qos: int = 1, delay_s: int = 0) -> Will:
    properties = Properties()
    properties.will_delay_interval = delay_s
    return Will("will", b"gone", qos, False, properties)


@pytest.mark.parametrize("how", ["reset", "finish", "reason 4", "garbage", "disconnect"])
async def test_how_a_connection_ends(autojump_clock: trio.abc.Clock, how: str) -> None:
    async with serving() as world:
        watcher = await world.subscriber("watcher", "will", expiry_s=100)
        peer = await world.connect("c", will=_will(2))
        if how == "reset":
            peer.socket.reset()
        elif how == "finish":
            peer.socket.finish()
        elif how == "reason 4":
            peer.put(Disconnect(4))
        elif how == "garbage":
            peer.socket.feed(b"\x00\x00")
        else:
            peer.put(Disconnect())
        assert await watcher.payloads() == ([] if how == "disconnect" else [b"gone"])


@pytest.mark.parametrize("back_after, published_at", [(None, 10), (5, None), (20, 10)])
async def test_a_delayed_will(autojump_clock: trio.abc.Clock, back_after: int | None, published_at: int | None) -> None:
    async with serving() as world:
        watcher = await world.subscriber("watcher", "will")
        peer = await world.connect("c", expiry_s=100, will=_will(1, 10))
        peer.socket.reset()
        await world.settle()
        for second in range(30):
            messages = await watcher.payloads()
            assert messages == ([b"gone"] if second == published_at else []), second
            if second == back_after:
                await world.connect("c", expiry_s=100, clean_start=False)
            await trio.sleep(1)


async def test_a_will_goes_out_when_the_session_ends_before_its_delay(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        watcher = await world.subscriber("watcher", "will")
        peer = await world.connect("c", expiry_s=5, will=_will(1, 100))
        peer.socket.reset()
        await trio.sleep(4)
        await watcher.nothing()
        await trio.sleep(2)
        assert await watcher.payloads() == [b"gone"]


async def test_a_will_that_the_store_does_not_take_is_not_forgotten(autojump_clock: trio.abc.Clock) -> None:
    """A delayed will is marked as published once it is stored, not before."""
    async with serving() as world:
        watcher = await world.subscriber("watcher", "will", expiry_s=1000)
        peer = await world.connect("c", expiry_s=100, will=_will(1, 5))
        peer.socket.reset()
        await world.settle()
        world.cluster.full = True
        await trio.sleep(8)
        world.cluster.full = False
        await trio.sleep(60)
        messages = await watcher.consume()
        assert [message.payload for message in messages] == [b"gone"]
        assert all(isinstance(message, Publish) for message in messages)
