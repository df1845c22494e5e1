"""Order on Redis: parts of a publication are told as the store answers, whatever else it waits for (GUARANTEES G4)."""

from __future__ import annotations

import itertools
from typing import cast

import trio
import trio.testing

from cluster.api import GroupEntry, GroupTarget, Publication, Target
from cluster.policy import ClusterLimits
from cluster.redis.publish import Item
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import LIMIT_S, GroupHand, WaitingPublication, World, message, served, target
from tests.kit.redis_server import RedisServer

_numbers = itertools.count(1)


class Noted(WaitingPublication):
    """Says in a list what it is told."""

    __slots__ = ("log",)

    log: list[str]

    @property
    def _name(self) -> str:
        return self.message.payload.decode()

    def reached(self, target: Target) -> None:
        self.log.append(f"session {self._name}")

    def given(self, target: GroupTarget) -> None:
        self.log.append(f"group {self._name}" if target.entry is not None else f"{self._name} waits")

    def stored(self) -> None:
        self.log.append(f"stored {self._name}")
        super().stored()


class Place:
    """A node, of which a test says whether it is sure to be alone, and whether it hears of the version."""

    def __init__(self, server: RedisServer) -> None:
        self.cluster = RedisCluster(server.address, "a", ClusterLimits(), f"or{next(_numbers)}", 4)
        self.log: list[str] = []
        self.alone = True
        self._flush = self.cluster._versions.flush
        self.cluster._member.alone = lambda: self.alone  # type: ignore[method-assign]

    def be_deaf(self) -> None:
        self.cluster._versions.flush = lambda: None  # type: ignore[method-assign]

    def hear(self) -> None:
        self.cluster._versions.flush = self._flush  # type: ignore[method-assign]

    def publish(self, world: World, name: str, *targets: Target | GroupTarget) -> Noted:
        sessions = [each for each in targets if isinstance(each, Target)]
        groups = [each for each in targets if isinstance(each, GroupTarget)]
        publication = Noted(message(payload=name.encode()), sessions, groups)
        publication.log = self.log
        world.start(publication)
        return publication

    async def said(self, count: int) -> list[str]:
        with trio.fail_after(LIMIT_S):
            while len(self.log) < count:
                await trio.sleep(0.01)
        said, self.log[:] = self.log[:], []
        assert len(said) == count
        return said


async def test_g4_a_session_is_told_in_the_order_of_its_queue(single: RedisServer) -> None:
    place = Place(single)
    async with served(place.cluster) as world:
        at = await world.connect("m")
        place.be_deaf()
        place.alone = False
        first = place.publish(world, "1", target(at))
        assert await place.said(1) == ["session 1"]
        place.alone = True
        place.publish(world, "2", target(at))
        assert await place.said(2) == ["session 2", "stored 2"]
        place.hear()
        await world.finished(first)
        assert await place.said(1) == ["stored 1"]


async def test_g4_a_group_is_given_in_the_order_of_its_queue(single: RedisServer) -> None:
    place = Place(single)
    async with served(place.cluster) as world:
        at = await world.connect("m")
        group = GroupHand(world)
        await world.subscribe(at, group.topic_filter)
        await group.members(at, window=3)
        (earlier,) = await group.put(b"0")

        def given(_: bytes, entries: list[GroupEntry], __: int) -> None:
            place.log.extend(f"group {entry.message.payload.decode()} by an answer" for entry in entries)

        world.events.group_entries = given  # type: ignore[assignment,method-assign]
        place.be_deaf()
        place.alone = False
        first = place.publish(world, "1", GroupTarget(group.group_id))
        assert await place.said(1) == ["group 1"]
        place.alone = True
        place.publish(world, "2", GroupTarget(group.group_id))
        place.publish(world, "3", GroupTarget(group.group_id))
        assert await place.said(4) == ["group 2", "stored 2", "3 waits", "stored 3"]
        assert earlier.entry is not None
        await group.settle(earlier.entry)
        assert await place.said(1) == ["group 3 by an answer"]
        place.hear()
        await world.finished(first)
        assert await place.said(1) == ["stored 1"]


async def test_g4_a_part_that_waits_longer_holds_up_no_other(single: RedisServer) -> None:
    """A retained message waits for the retained set as well, and the next one of its topic, not retained, does not."""
    place = Place(single)
    async with served(place.cluster) as world:
        at = await world.connect("m")
        add = place.cluster._retained.add
        held: list[Item] = []
        first = Noted(message(payload=b"1", retain=True), [target(at)], retain=True)
        first.log = place.log

        def hold(item: Item) -> None:
            item.waiting += 1
            held.append(item)

        place.cluster._retained.add = hold  # type: ignore[method-assign]
        world.start(first)
        assert await place.said(1) == ["session 1"]
        place.publish(world, "2", target(at))
        assert await place.said(2) == ["session 2", "stored 2"]
        (item,) = held
        item.waiting -= 1
        add(item)
        await world.finished(first)


async def test_g5_what_needs_nothing_but_to_be_alone_is_not_overtaken(single: RedisServer) -> None:
    """The lease gets old between the publications, or another node comes: both are matched again, in their order."""
    place = Place(single)
    matched: list[str] = []

    class Matched(Noted):
        __slots__ = ()

        def rematch(self) -> None:
            matched.append(self._name)

    async with served(place.cluster) as world:
        publications: list[Publication] = []
        for name, alone in (("1", True), ("2", False)):
            place.alone = alone
            publication = Matched(message(payload=name.encode()))
            publication.log = place.log
            place.cluster.publish(publication)
            place.alone = False
            publications.append(publication)
            world.poller.wake()
            await trio.testing.wait_all_tasks_blocked()
        await world.finished(*cast("list[WaitingPublication]", publications))
        assert await place.said(2) == ["stored 1", "stored 2"]
        assert matched[0] == "1"
