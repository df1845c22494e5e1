"""The contract of `cluster.api.Cluster`: retained messages; on every implementation."""

from __future__ import annotations

import pytest

from broker.errors import StateError
from cluster.api import Cluster
from tests.kit.cluster_world import Maker, WaitingPublication, World, message, served, target


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
