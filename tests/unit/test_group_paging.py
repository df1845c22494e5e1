"""A shared group that reads its backlog while new messages are stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import trio

from broker.dispatch import Dispatch
from broker.groups import Group, GroupMember
from broker.message import Message
from broker.metrics import Metrics
from broker.routes import Subscriber, Subscription
from broker.session.encoding import Encoding
from broker.session.session import GroupDelivery
from cluster.api import PAGE_LIMIT, GroupEntry


class _Session:
    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.hungry = False

    def idle(self) -> bool:
        return True

    def deliver_group(self, encoding: Encoding, qos: int, delivery: GroupDelivery) -> bool:
        self.got.append(encoding.message.payload)
        return True


class _Cluster:
    """A queue whose pages are answered when the test says so."""

    def __init__(self) -> None:
        self.entries: list[GroupEntry] = []
        self.asked = trio.Event()
        self.go_on = trio.Event()

    def now_ms(self) -> int:
        return 0

    async def group_page(self, group_id: bytes, after: bytes, limit: int) -> list[GroupEntry]:
        page = [entry for entry in self.entries if _number(entry.entry_id) > _number(after)][:limit]
        self.asked.set()
        await self.go_on.wait()
        return page


def _number(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0] or b"0")


def _message(number: int) -> Message:
    return Message(b"t", b"%d" % number, 1, False)


def _group(nursery: trio.Nursery, cluster: _Cluster) -> tuple[Group, _Session]:
    dispatch = Dispatch(cast(Any, cluster), Metrics(), lambda: b"")

    def spawn(work: Callable[[], Awaitable[None]]) -> None:
        nursery.start_soon(work)

    dispatch.spawn = spawn
    subscriber = Subscriber(b"s", "s", 1, True)
    session = _Session()
    subscriber.session = cast(Any, session)
    subscriber.connection = cast(Any, object())
    group = Group(b"g", dispatch, "g", "t")
    group.join(GroupMember(subscriber, Subscription(subscriber, 1, 0)))
    return group, session


async def _offered_during_a_page(stored: Sequence[int], late: Sequence[int]) -> list[bytes]:
    cluster = _Cluster()
    cluster.entries = [GroupEntry(b"%d-0" % number, _message(number)) for number in stored]
    async with trio.open_nursery() as nursery:
        group, session = _group(nursery, cluster)
        group.backlog()
        group.feed()
        await cluster.asked.wait()
        for number in late:  # stored after the page was read, told before its reader runs
            entry = GroupEntry(b"%d-0" % number, _message(number))
            cluster.entries.append(entry)
            group.offer(entry.entry_id, entry.message, Encoding(entry.message))
        cluster.go_on.set()
    return session.got


async def test_a_message_stored_while_a_page_is_under_way_is_not_passed_over() -> None:
    got = await _offered_during_a_page(range(1, 4), range(4, 6))
    assert got == [b"1", b"2", b"3", b"4", b"5"]


async def test_full_pages_are_followed_by_the_rest() -> None:
    last = 2 * PAGE_LIMIT + 7
    got = await _offered_during_a_page(range(1, last), [last])
    assert got == [b"%d" % number for number in range(1, last + 1)]
