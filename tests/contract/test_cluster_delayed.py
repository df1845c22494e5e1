"""The contract of `cluster.api.Cluster`: delayed messages; on every implementation."""

from __future__ import annotations

from broker.errors import StoreFull
from broker.message import Message
from tests.kit.cluster_world import Maker, WaitingPublication, World, message, served, target
from tests.kit.packet_data import attributes


def delayed(number: int, delay_s: int = 1, **other: object) -> WaitingPublication:
    sent = message(payload=b"%d" % number, message_id=b"%016d" % number, **other)  # type: ignore[arg-type]
    return WaitingPublication(sent, deduplicate=True, delay_s=delay_s)


async def kept(world: World, *publications: WaitingPublication) -> list[Exception | None]:
    await world.finished(*[world.start(publication) for publication in publications])
    assert {publication.answers for publication in publications} == {1}
    return [publication.error for publication in publications]


def payloads(world: World) -> list[bytes]:
    return [due.payload for due in world.events.delayed]


async def test_g13_a_delayed_message_comes_back_in_its_time(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        began_ms = world.cluster.now_ms()
        sent = delayed(
            1, topic="a/ü", qos=2, properties=b"\x01\x01", expiry_s=9, accepted_at_ms=1_700_000_000_123, retain=True,
            publisher=b"p" * 16,
        )  # fmt: skip
        assert await kept(world, delayed(3, 3), delayed(2, 2), sent) == [None] * 3
        assert world.events.delayed == []
        await world.events.until(lambda: world.events.delayed)
        assert world.cluster.now_ms() - began_ms >= 990
        (due,) = world.events.delayed
        for name in attributes(Message):
            assert getattr(due, name) == getattr(sent.message, name), name
        await world.events.until(lambda: len(world.events.delayed) == 3)
        assert payloads(world) == [b"1", b"2", b"3"]


async def test_g13_nothing_of_it_happens_before(make_cluster: Maker) -> None:
    """It neither goes into queues nor becomes the retained message of its topic."""
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        publication = delayed(1, retain=True)
        publication.targets = [target(at)]
        publication.retain = False
        assert await kept(world, publication) == [None]
        assert await world.queue(at.ref) == []
        assert list(world.cluster.retained_match("#")) == []


async def test_g13_a_repeated_message_id_is_kept_once(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        assert await kept(world, delayed(1), delayed(1), delayed(2, 3)) == [None] * 3
        assert await kept(world, delayed(1)) == [None]
        await world.events.until(lambda: b"2" in payloads(world))
        assert payloads(world) == [b"1", b"2"]


async def test_those_that_are_due_at_the_same_time_come_in_order(make_cluster: Maker) -> None:
    """Of one delay; and each without waiting for those before it."""
    async with served(make_cluster()) as world:
        world.events.delayed_held = []
        sent = [delayed(number, accepted_at_ms=1000 + number // 10) for number in range(90)]
        assert await kept(world, *sent) == [None] * 90
        await world.events.until(lambda: len(world.events.delayed) == 90)
        assert payloads(world) == [b"%d" % number for number in range(90)]


async def test_delayed_messages_without_an_answer_hold_up_nobody(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        world.events.delayed_held = []
        assert await kept(world, delayed(1)) == [None]
        await world.events.until(lambda: world.events.delayed)
        at = await world.connect("c", expiry_s=1)
        await world.cluster.detach(at.ref, 1, 0, False)
        assert await kept(world, delayed(2)) == [None]
        await world.events.until(lambda: world.events.ended and len(world.events.delayed) == 2)
        for then in world.events.delayed_held:
            then(None)


async def test_g15_delayed_messages_are_bounded(make_cluster: Maker) -> None:
    """The bound may be kept by parts of the store: it is that of the whole, or somewhat less."""
    async with served(make_cluster(max_delayed=64)) as world:
        errors = await kept(world, *[delayed(number, 1000) for number in range(200)])
        refused = [error for error in errors if error is not None]
        assert {type(error) for error in refused} == {StoreFull}
        assert 200 - 64 <= len(refused) < 200
        # What is there already is no new one.
        again = errors.index(None)
        assert await kept(world, delayed(again, 1000)) == [None]


async def test_a_refused_delayed_message_leaves_no_trace(make_cluster: Maker) -> None:
    async with served(make_cluster(max_delayed=0)) as world:
        (error,) = await kept(world, delayed(1))
        assert isinstance(error, StoreFull)
        assert await world.send(await world.connect("c"), b"other") == [1]
