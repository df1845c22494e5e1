"""The contract of `cluster.api.Cluster`: queues of shared subscriptions; on every implementation."""

from __future__ import annotations

import pytest

from cluster.api import (
    HASH_CLIENTID,
    HASH_TOPIC,
    LEAST_INFLIGHT,
    LOCAL,
    RANDOM,
    REFUSED_FULL,
    REFUSED_GONE,
    ROUND_ROBIN,
    STICKY,
    Attachment,
    GroupTarget,
)
from tests.kit.cluster_world import (
    Answer,
    GroupHand,
    Maker,
    WaitingPublication,
    World,
    entry_order,
    message,
    served,
    target,
)


async def group_of(
    world: World, names: str = "m", window: int = 100, strategy: str = ROUND_ROBIN
) -> tuple[GroupHand, list[Attachment]]:
    """A group of persistent members, all connected."""
    group = GroupHand(world, strategy=strategy)
    members = [await world.connect(name) for name in names]
    for member in members:
        await world.subscribe(member, group.topic_filter)
    await group.members(*members, window=window)
    return group, members


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last + 1)]


@pytest.mark.parametrize("strategy", [ROUND_ROBIN, RANDOM, LOCAL, LEAST_INFLIGHT])
async def test_g14_entries_are_given_as_far_as_windows_go(make_cluster: Maker, strategy: str) -> None:
    async with served(make_cluster()) as world:
        group, _ = await group_of(world, "mn", 5, strategy)
        targets = await group.put(*numbers(1, 30))
        assert [each.depth for each in targets] == list(range(1, 31))
        assert await group.until(10) == numbers(1, 10)
        ids = [entry.entry_id for entry in group.entries]
        assert ids == sorted(set(ids), key=entry_order)
        assert {(entry.kept_for, entry.member) for entry in group.entries} <= {
            (b"", member.ref.session_id) for member in _
        } | {(b"", b"")}
        await group.settle(*group.entries[3:6])
        assert await group.until(13) == numbers(1, 13)
        await group.settle(*group.entries[:3], *group.entries[6:13])
        assert await group.until(23) == numbers(1, 23)
        await group.settle(*group.entries[13:23])
        assert await group.until(30) == numbers(1, 30)
        await group.settle(*group.entries[23:])
        (last,) = await group.put(b"31")
        assert last.depth == 1


async def test_g14_messages_wait_while_no_member_is_connected(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        group, (member,) = await group_of(world)
        await group.members()
        await group.put(*numbers(1, 20))
        assert group.entries == []
        await group.members(member, window=7)
        assert await group.until(7) == numbers(1, 7)
        await group.members(member, window=9)
        assert await group.until(9) == numbers(1, 9)
        await group.members(member, window=4)
        await group.settle(*group.entries[:5])
        await group.settle(group.entries[5])
        assert await group.until(10) == numbers(1, 10)


async def test_g14_what_is_given_back_goes_before_anything_newer(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        group, _ = await group_of(world, window=5)
        await group.put(*numbers(1, 20))
        first = list(group.entries)
        await group.settle(first[1], first[4], first[2], again=True)
        assert (await group.until(8))[5:] == [b"2", b"3", b"5"]
        assert {entry.entry_id for entry in group.entries[5:]} == {first[n].entry_id for n in (1, 2, 4)}
        # Twice is once: nothing is given that is in other hands or gone.
        await group.settle(first[0])
        assert (await group.until(9))[8:] == [b"6"]
        await group.settle(first[0], again=True)
        await group.settle(first[0])
        (after,) = await group.put(b"last")
        assert after.depth == 20
        assert len(group.entries) == 9


async def test_g14_what_is_given_back_waits_for_a_member(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        group, (member, other) = await group_of(world, "mn", 5)
        await group.put(*numbers(1, 10))
        await group.members()
        await group.settle(*group.entries, again=True)
        await group.put(b"11")
        assert len(group.entries) == 10
        await group.members(other, window=11)
        assert sorted((await group.until(21))[10:], key=int) == numbers(1, 11)
        assert group.entries[-1].message.payload == b"11"
        assert member.session_present is False


async def test_g14_an_entry_can_belong_to_one_session(make_cluster: Maker) -> None:
    """It stays in the queue, with the name of its owner, until it is acknowledged."""
    async with served(make_cluster()) as world:
        group, (member,) = await group_of(world)
        await group.put(b"1", b"2", b"3", qos=2)
        one, two, three = group.entries
        await group.settle(two, keep_for=b"1" * 16)
        await group.settle(two, keep_for=b"2" * 16)
        await group.settle(one, two, three, again=True)
        await group.until(6)
        again = {entry.message.payload: entry.kept_for for entry in group.entries[3:]}
        assert again == {b"1": b"", b"2": b"2" * 16, b"3": b""}
        await group.settle(two)
        (four,) = await group.put(b"4")
        assert four.depth == 3
        assert member.ref.client_id == "m"


async def test_g14_a_kept_entry_needs_no_window(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        group, (member,) = await group_of(world, window=2)
        await group.put(*numbers(1, 4), qos=2)
        (first, second) = group.entries
        await group.settle(first, keep_for=member.ref.session_id)
        await group.members()
        await group.settle(first, again=True)
        await group.members(member, window=1)
        await group.until(3)
        assert (group.entries[2].message.payload, group.entries[2].kept_for) == (b"1", member.ref.session_id)
        await group.settle(group.entries[2], second)
        assert (await group.until(4))[3:] == [b"3"]


async def test_g15_a_group_queue_is_bounded(make_cluster: Maker) -> None:
    async with served(make_cluster(max_group_queue=2)) as world:
        group, _ = await group_of(world)
        assert [each.depth for each in await group.put(b"1", b"2", b"3")] == [1, 2, REFUSED_FULL]
        assert group.payloads() == [b"1", b"2"]
        await group.settle(group.entries[0])
        assert [each.depth for each in await group.put(b"4", b"5")] == [2, REFUSED_FULL]


async def test_the_length_of_a_long_queue_is_told(make_cluster: Maker) -> None:
    """Publishers that are held up learn when there is room again."""
    async with served(make_cluster(max_group_queue=20)) as world:
        group, _ = await group_of(world, window=20)
        await group.put(*numbers(1, 15))
        await group.settle(*group.entries[:4])
        await world.events.until(lambda: world.events.depths.get(group.group_id) == 11)
        await group.settle(*group.entries[4:15])
        await world.events.until(lambda: world.events.depths.get(group.group_id, 20) <= 10)


async def test_a_group_without_members_has_no_queue(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        group = GroupHand(world)
        assert [each.depth for each in await group.put(b"1")] == [REFUSED_GONE]
        visitor = await world.connect("v", expiry_s=0)
        await group.members(visitor, persistent=False)
        assert [each.depth for each in await group.put(b"2", b"3")] == [1, 2]
        await group.members()
        await group.members()
        assert [each.depth for each in await group.put(b"4")] == [REFUSED_GONE]
        await group.members(visitor, persistent=False)
        assert [each.depth for each in await group.put(b"5")] == [1]
        assert group.payloads() == [b"2", b"3", b"5"]


async def run_of(group: GroupHand, first: int, last: int) -> GroupTarget:
    """Publishes these as one."""
    run = WaitingPublication(message("a", b""), groups=[GroupTarget(group.group_id)])
    run.payloads = [b"%03d" % number for number in range(first, last + 1)]
    group.world.start(run)
    await group.world.finished(run)
    assert run.error is None
    return run.groups[0]


async def test_g14_a_run_is_stored_as_its_messages_would_be(make_cluster: Maker) -> None:
    async with served(make_cluster(max_group_queue=12)) as world:
        group, _ = await group_of(world, "mn", 3)
        target = await run_of(group, 1, 4)
        assert list(target.depths) == [1, 2, 3, 4]
        assert all(target.entry_ids)
        assert not any(target.chosen)
        ids = list(target.entry_ids)
        target = await run_of(group, 5, 14)
        assert list(target.depths) == [*range(5, 13), REFUSED_FULL, REFUSED_FULL]
        assert [bool(each) for each in target.entry_ids] == [True] * 2 + [False] * 8
        ids += target.entry_ids[:2]
        assert ids == sorted(set(ids), key=entry_order)
        world.cluster.group_done(group.group_id, ids[:4])
        world.cluster.group_done(group.group_id, ids[5:])
        world.poller.wake()
        assert await group.until(5) == [b"%03d" % number for number in range(7, 12)]
        world.cluster.group_done(group.group_id, (ids[4], *(entry.entry_id for entry in group.entries)))
        world.poller.wake()
        assert await group.until(6) == [b"%03d" % number for number in range(7, 13)]
        await group.settle(group.entries[5])
        (last,) = await group.put(b"13")
        assert last.depth == 1


async def test_g14_runs_of_an_unknown_group_and_of_one_that_names_members(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        assert list((await run_of(GroupHand(world), 1, 3)).depths) == [REFUSED_GONE] * 3
        group, members = await group_of(world, "mn", strategy=STICKY)
        target = await run_of(group, 1, 3)
        assert len(set(target.chosen)) == 1
        assert target.chosen[0] in [member.ref.session_id for member in members]


async def test_g14_runs_and_messages_between_them_keep_their_order(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        group, _ = await group_of(world, "m")
        first = await run_of(group, 1, 3)
        await group.put(b"004")
        second = await run_of(group, 5, 7)
        ids = [*first.entry_ids, group.entries[0].entry_id, *second.entry_ids]
        assert ids == sorted(set(ids), key=entry_order)
        for entry_id in ids:
            world.cluster.group_acknowledge(group.group_id, entry_id, None, again=True)
        world.poller.wake()
        assert await group.until(8) == [b"004", *(b"%03d" % number for number in range(1, 8))]


@pytest.mark.parametrize("how", ["unsubscribe", "end", "clean start"])
async def test_a_group_ends_with_its_last_persistent_member(make_cluster: Maker, how: str) -> None:
    async with served(make_cluster()) as world:
        group, (one, two) = await group_of(world, "mn")
        await group.members()
        await world.cluster.detach(one.ref, 0, 0, False)
        assert [each.depth for each in await group.put(b"1")] == [1]
        if how == "unsubscribe":
            await world.cluster.unsubscribe(two.ref, [group.topic_filter], True)
        elif how == "end":
            await world.cluster.detach(two.ref, 0, 0, False)
        else:
            await world.connect("n", clean_start=True)
        assert [each.depth for each in await group.put(b"2")] == [REFUSED_GONE]


async def test_a_subscription_alone_makes_a_queue(make_cluster: Maker) -> None:
    """A persistent member need not be connected, nor ever have been told as such."""
    async with served(make_cluster()) as world:
        member = await world.connect("m")
        group = GroupHand(world)
        await world.subscribe(member, group.topic_filter, "plain")
        await world.cluster.detach(member.ref, 3600, 0, False)
        assert [each.depth for each in await group.put(b"1", b"2")] == [1, 2]
        back = await world.connect("m")
        await group.members(back)
        assert await group.until(2) == [b"1", b"2"]


async def test_g14_a_repeated_message_id_adds_no_copy_for_a_group(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        group, (member,) = await group_of(world)
        sent = message(qos=2, message_id=b"i" * 16)
        first = await world.publish(sent, [target(member, 2)], [GroupTarget(group.group_id)], deduplicate=True)
        again = await world.publish(sent, [target(member, 2)], [GroupTarget(group.group_id)], deduplicate=True)
        assert first.groups[0].entry is not None
        assert first.groups[0].depth == 1
        assert (again.groups[0].entry, again.groups[0].depth, again.targets[0].seq) == (None, 0, 0)


async def test_an_entry_of_an_unknown_group_is_settled_all_the_same(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        answers = [Answer() for _ in range(3)]
        world.cluster.group_acknowledge(b"g" * 16, b"1-1", answers[0])
        world.cluster.group_acknowledge(b"g" * 16, b"1-1", answers[1], b"s" * 16)
        world.cluster.group_acknowledge(b"g" * 16, b"1-1", answers[2], again=True)
        await world.finished(*answers)
        assert [each.errors for each in answers] == [[None]] * 3


async def test_sticky_keeps_to_one_member_until_that_leaves(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        group, members = await group_of(world, "mno", 2, STICKY)
        await group.put(*numbers(1, 10))
        (chosen,) = {entry.member for entry in group.entries}
        assert await group.until(10) == numbers(1, 10)
        left = [member for member in members if member.ref.session_id != chosen]
        assert len(left) == 2
        await group.members(*left, window=2)
        await group.settle(*group.entries[5:], again=True)
        await group.until(15)
        (new,) = {entry.member for entry in group.entries[10:]}
        assert new in {member.ref.session_id for member in left}
        await group.members(*members, window=2)
        await group.put(*numbers(11, 15))
        await group.until(20)
        assert {entry.member for entry in group.entries[15:]} == {new}


@pytest.mark.parametrize("strategy", [HASH_TOPIC, HASH_CLIENTID])
async def test_hash_strategies_name_a_member(make_cluster: Maker, strategy: str) -> None:
    async with served(make_cluster()) as world:
        group, members = await group_of(world, "mnop", 1000, strategy)

        async def spread() -> dict[bytes, bytes]:
            before = len(group.entries)
            for number in range(60):
                key = b"%d" % number
                if strategy == HASH_TOPIC:
                    await group.put(key, topic=f"a/{number}")
                else:
                    await group.put(key, publisher=key.rjust(16, b"p"))
            await group.until(before + 60)
            given = group.entries[before:]
            await group.settle(*given)
            return {entry.message.payload: entry.member for entry in given}

        first = await spread()
        assert await spread() == first
        ids = {member.ref.session_id for member in members}
        assert set(first.values()) == ids
        await group.members(*members[1:], window=1000)
        moved = await spread()
        gone = members[0].ref.session_id
        assert {key: member for key, member in moved.items() if first[key] != gone} == {
            key: member for key, member in first.items() if member != gone
        }
        assert gone not in moved.values()
