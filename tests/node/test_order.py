"""What a receiver gets of one publisher keeps its order, also where an older message waits for the version of the route
table and a newer one does not."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import Puback, Publish
from tests.node.kit import Peer, World, serving
from tests.node.test_stored_runs import codes

SHARED = "$share/g/t"


async def burst(sender: Peer, count: int, first: int = 1) -> None:
    """Messages in one piece: several are a run. The payload is the packet id."""
    numbers = range(first, first + count)
    await sender.send(*(Publish("t", b"%04d" % number, 1, False, False, number) for number in numbers))


async def doubted(world: World, sender: Peer, count: int) -> None:
    """The first messages, whose publications wait for the version."""
    world.cluster.doubtful = True
    await burst(sender, count)
    world.cluster.doubtful = False


@pytest.mark.parametrize("counts", [(1, 1), (1, 5), (5, 1), (5, 5)])
@pytest.mark.parametrize("expiry_s", [0, 100])
@pytest.mark.parametrize("topic_filter", ["t", SHARED])
async def test_a_message_that_waits_for_the_version_is_not_overtaken(
    topic_filter: str, expiry_s: int, counts: tuple[int, int], autojump_clock: trio.abc.Clock
) -> None:
    first, second = counts
    async with serving() as world:
        receiver = await world.subscriber("receiver", topic_filter, expiry_s=expiry_s)
        sender = await world.connect("sender")
        await doubted(world, sender, first)
        await burst(sender, second, first + 1)
        got = await receiver.payloads()
        assert len(got) == first + second
        assert got == sorted(got)
        waits = bool(expiry_s) or topic_filter == SHARED
        acked = await sender.received()
        assert not waits or not acked  # G5
        world.cluster.prove()
        assert codes(acked or await sender.received()) == [(number, 0) for number in range(1, first + second + 1)]


async def test_nor_by_what_the_store_gives_when_a_member_has_room(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        member = await world.subscriber("member", SHARED, receive_maximum=2)
        sender = await world.connect("sender")
        other = await world.connect("other")
        await burst(other, 1, 9)
        (earlier,) = await member.publishes()
        await doubted(world, sender, 1)
        await burst(sender, 1, 2)
        await member.send(Puback(earlier.packet_id))
        assert [int(each.payload) for each in await member.publishes()] == [1, 2]
        world.cluster.prove()
        assert codes(await sender.received()) == [(1, 0), (2, 0)]


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_nor_at_qos_2_in_a_group(expiry_s: int, autojump_clock: trio.abc.Clock) -> None:
    """A persistent member gets it in its queue, by a publication that waits, too [MQTT-4.8.2-5]."""
    async with serving() as world:
        member = await world.subscriber("member", SHARED, expiry_s=expiry_s)
        sender = await world.connect("sender")
        world.cluster.doubtful = True
        await sender.send(Publish("t", b"1", 2, False, False, 1))
        world.cluster.doubtful = False
        await sender.send(Publish("t", b"2", 2, False, False, 2))
        assert [(each.payload, each.qos) for each in await member.publishes()] == [(b"1", 2), (b"2", 2)]
        world.cluster.prove()
