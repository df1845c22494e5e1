"""The contract of `cluster.api.Cluster`: retained messages and group queues; on every implementation."""

from __future__ import annotations

import pytest

from broker.errors import StateError
from cluster.api import Cluster, GroupEntry, GroupTarget, shared_group_id
from tests.kit.cluster_world import Answer, Maker, WaitingPublication, World, message, served, target


def matches(cluster: Cluster, topic_filter: str) -> list[str]:
    return sorted(topic for topic in cluster.retained_match(topic_filter) if topic is not None)


async def retain(world: World, topic: str, payload: bytes, **other: object) -> None:
    publication = await world.publish(message(topic, payload, **other), retain=True)  # type: ignore[arg-type]
    assert (publication.error, publication.answers) == (None, 1)


async def test_g12_retained_messages_are_set_replaced_and_cleared(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        await retain(world, "a/b", b"1")
        await retain(world, "a/c", b"2", qos=2, properties=b"\x01\x01", publisher=b"p" * 16)
        await retain(world, "a/b", b"3")
        await retain(world, "x", b"4")
        await retain(world, "x", b"")
        assert matches(world.cluster, "a/+") == ["a/b", "a/c"]
        assert matches(world.cluster, "#") == ["a/b", "a/c"]
        one, two, gone, never = await world.cluster.retained_values(["a/b", "a/c", "x", "never"])
        assert one is not None
        assert two is not None
        assert (one.payload, two.payload, two.qos, two.properties, two.publisher) == (
            b"3", b"2", 2, b"\x01\x01", b"p" * 16,
        )  # fmt: skip
        assert gone is never is None


async def test_g12_a_retained_message_is_known_from_publish_on(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        setting = world.start(WaitingPublication(message("t", b"1"), retain=True))
        assert matches(world.cluster, "t") == ["t"]
        await world.finished(setting)
        clearing = world.start(WaitingPublication(message("t", b""), retain=True))
        again = world.start(WaitingPublication(message("t", b"2"), retain=True))
        await world.finished(clearing, again)
        assert matches(world.cluster, "t") == ["t"]
        (value,) = await world.cluster.retained_values(["t"])
        assert value is not None
        assert value.payload == b"2"


async def test_the_last_of_many_writes_of_a_turn_wins(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        sent = [
            world.start(WaitingPublication(message("t", b"" if number % 3 == 0 else b"%d" % number), retain=True))
            for number in range(1, 301)
        ]
        await world.finished(*sent)
        assert matches(world.cluster, "t") == []
        assert await world.cluster.retained_values(["t"]) == [None]
        assert {each.answers for each in sent} == {1}


async def test_an_expired_retained_message_is_none(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        now_ms = world.cluster.now_ms()
        await retain(world, "old", b"1", expiry_s=10, accepted_at_ms=now_ms - 11_000)
        await retain(world, "new", b"2", expiry_s=100, accepted_at_ms=now_ms - 11_000)
        old, new = await world.cluster.retained_values(["old", "new"])
        assert old is None
        assert new is not None
        # A call behind the removal on the same way: then the mirror has forgotten it too.
        await world.cluster.retained_values(["new"])
        assert matches(world.cluster, "+") == ["new"]


async def test_many_retained_values_in_the_order_asked_for(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        topics = [f"t/{number}" for number in range(100)]
        sent = [world.start(WaitingPublication(message(topic, topic.encode()), retain=True)) for topic in topics]
        await world.finished(*sent)
        values = await world.cluster.retained_values(topics[::-1])
        assert [value.payload.decode() for value in values if value is not None] == topics[::-1]
        with pytest.raises(StateError):
            await world.cluster.retained_values([*topics, "more"])


async def test_a_retained_publication_with_targets_is_one(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        publication = await world.publish(message("t", b"1"), [target(at)], retain=True)
        assert (publication.answers, publication.targets[0].seq) == (1, 1)
        assert matches(world.cluster, "t") == ["t"]


G = shared_group_id("$share/g/a")


async def group_queue(world: World) -> list[GroupEntry]:
    result: list[GroupEntry] = []
    while page := await world.cluster.group_page(G, result[-1].entry_id if result else b"", 7):
        assert len(page) <= 7
        result += page
    return result


async def put(world: World, *payloads: bytes) -> list[bytes]:
    sent = [world.start(WaitingPublication(message(payload=each), groups=[GroupTarget(G)])) for each in payloads]
    await world.finished(*sent)
    return [each.groups[0].entry_id for each in sent]


async def test_g14_a_group_queue_keeps_entries_until_acknowledged(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        await world.cluster.declare_group(G, True)
        await world.cluster.declare_group(G, True)
        payloads = [b"%d" % number for number in range(20)]
        ids = await put(world, *payloads)
        assert len(set(ids)) == 20
        entries = await group_queue(world)
        assert [entry.entry_id for entry in entries] == ids
        assert [entry.message.payload for entry in entries] == payloads
        answer = Answer()
        world.cluster.group_acknowledge(G, ids[3], None)
        world.cluster.group_acknowledge(G, ids[0], answer)
        await world.finished(answer)
        assert answer.errors == [None]
        assert [entry.entry_id for entry in await group_queue(world)] == [*ids[1:3], *ids[4:]]


async def test_g14_an_entry_can_belong_to_one_session(make_cluster: Maker) -> None:
    """It stays in the queue, with the name of its owner, until it is acknowledged."""
    async with served(make_cluster()) as world:
        await world.cluster.declare_group(G, True)
        sent = [
            world.start(WaitingPublication(message(payload=b"%d" % n, qos=2), groups=[GroupTarget(G)]))
            for n in range(3)
        ]
        await world.finished(*sent)
        ids = [each.groups[0].entry_id for each in sent]
        kept = Answer()
        world.cluster.group_acknowledge(G, ids[1], kept, b"1" * 16)
        await world.finished(kept)
        assert kept.errors == [None]
        assert [(entry.entry_id, entry.kept_for) for entry in await group_queue(world)] == [
            (ids[0], b""),
            (ids[1], b"1" * 16),
            (ids[2], b""),
        ]
        changed, gone = Answer(), Answer()
        world.cluster.group_acknowledge(G, ids[1], changed, b"2" * 16)
        world.cluster.group_acknowledge(G, ids[0], gone)
        await world.finished(changed, gone)
        assert [entry.kept_for for entry in await group_queue(world)] == [b"2" * 16, b""]
        done = Answer()
        world.cluster.group_acknowledge(G, ids[1], done)
        await world.finished(done)
        assert [entry.entry_id for entry in await group_queue(world)] == [ids[2]]


async def test_g15_a_group_queue_is_bounded(make_cluster: Maker) -> None:
    async with served(make_cluster(max_group_queue=2)) as world:
        await world.cluster.declare_group(G, True)
        one, two, three = await put(world, b"1", b"2", b"3")
        assert one
        assert two
        assert three == b""
        answer = Answer()
        world.cluster.group_acknowledge(G, one, answer)
        await world.finished(answer)
        (four,) = await put(world, b"4")
        assert four
        assert [entry.message.payload for entry in await group_queue(world)] == [b"2", b"4"]


async def test_a_group_without_members_has_no_queue(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        assert await put(world, b"1") == [b""]
        await world.cluster.declare_group(G, True)
        await put(world, b"2")
        await world.cluster.declare_group(G, False)
        await world.cluster.declare_group(G, False)
        assert await put(world, b"3") == [b""]
        await world.cluster.declare_group(G, True)
        assert await group_queue(world) == []


async def test_a_repeated_message_id_adds_no_copy_for_a_group(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        await world.cluster.declare_group(G, True)
        sent = message(qos=2, message_id=b"i" * 16)
        first = await world.publish(sent, [target(at, 2)], [GroupTarget(G)], deduplicate=True)
        again = await world.publish(sent, [target(at, 2)], [GroupTarget(G)], deduplicate=True)
        assert first.groups[0].entry_id
        assert (again.groups[0].entry_id, again.targets[0].seq) == (b"", 0)
        assert len(await group_queue(world)) == 1
