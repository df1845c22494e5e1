"""Rules that somebody else keeps: shared, read again, and forgotten with the last client that they are about."""

from __future__ import annotations

import gc
from collections.abc import Hashable, Sequence

import pytest
import trio
import trio.testing

from broker.auth.api import ALLOW, IGNORE, PUBLISH, BackendError, Principal, Rule
from broker.auth.reread import RETRY_S, RereadSource
from broker.auth.rules import rule_from
from broker.peer import Peer

REFRESH_S = 60.0


class Kept(RereadSource):
    """Topics by user name."""

    def __init__(self) -> None:
        super().__init__("kept", REFRESH_S, 2)
        self.topics: dict[Hashable, list[str]] = {}
        self.asked: list[Hashable] = []
        self.down = False
        self.takes_s = 0.0

    def key(self, principal: Principal) -> Hashable:
        return principal.username

    async def fetch(self, key: Hashable) -> object:
        self.asked.append(key)
        await trio.sleep(self.takes_s)
        if self.down:
            raise BackendError("down")
        return list(self.topics.get(key, []))

    def parse(self, written: object) -> Sequence[Rule]:
        assert isinstance(written, list)
        return [rule_from({"permission": "allow", "topics": [topic]}) for topic in written]


class Asker:
    """As `Permissions`: holds a judge and is told."""

    def __init__(self) -> None:
        self.told = 0

    def changed(self) -> None:
        self.told += 1


def of(username: str | None) -> Principal:
    return Principal(username or "", "c", Peer(), username)


@pytest.fixture
def source() -> Kept:
    made = Kept()
    made.topics["ann"] = ["a/#"]
    return made


@pytest.fixture
async def rereading(source: Kept, nursery: trio.Nursery) -> Kept:
    nursery.start_soon(source.reread)
    return source


async def test_clients_share_what_was_read(source: Kept, autojump_clock: trio.testing.MockClock) -> None:
    source.takes_s = 1
    opened = 0

    async def open_one() -> None:
        nonlocal opened
        judge = await source.open(of("ann"))
        assert judge.decide(PUBLISH, "a/b", 0, False) == ALLOW
        assert judge.decide(PUBLISH, "b", 0, False) == IGNORE
        assert judge.covers("a/b/#")
        assert await judge.ask(PUBLISH, "a/b", 0, False) == ALLOW
        opened += 1
        await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(open_one)
    assert opened == 10
    assert source.asked == ["ann"]


async def test_who_shares_a_question_shares_its_failure(source: Kept, autojump_clock: trio.testing.MockClock) -> None:
    source.takes_s = 1
    source.down = True
    failed = 0

    async def open_one() -> None:
        nonlocal failed
        with pytest.raises(BackendError, match="down"):
            await source.open(of("ann"))
        failed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(open_one)
    assert failed == 10
    assert source.asked == ["ann"]
    source.down = False
    assert (await source.open(of("ann"))).decide(PUBLISH, "a", 0, False) == ALLOW


async def test_who_asks_for_others_and_goes_away(source: Kept, autojump_clock: trio.testing.MockClock) -> None:
    source.takes_s = 1
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.open, of("ann"))
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as others:
                others.start_soon(source.open, of("ann"))
                await trio.sleep(0.5)
                nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    assert (await source.open(of("ann"))).decide(PUBLISH, "a", 0, False) == ALLOW


async def test_rules_are_read_again(rereading: Kept, autojump_clock: trio.testing.MockClock) -> None:
    asker = Asker()
    judge = await rereading.open(of("ann"))
    judge.changed = asker.changed
    await trio.sleep(REFRESH_S + 1)
    assert rereading.asked == ["ann"] * 2
    assert asker.told == 0  # nothing is new
    rereading.topics["ann"] = ["b"]
    await trio.sleep(REFRESH_S)
    assert asker.told == 1
    assert judge.decide(PUBLISH, "a", 0, False) == IGNORE
    assert judge.decide(PUBLISH, "b", 0, False) == ALLOW


async def test_the_old_ones_stay_where_reading_fails(rereading: Kept, autojump_clock: trio.testing.MockClock) -> None:
    judge = await rereading.open(of("ann"))
    for wrong in ("down", "no filter"):
        rereading.down = wrong == "down"
        rereading.topics["ann"] = ["a/#/b"]
        await trio.sleep(REFRESH_S * 2)
        assert judge.decide(PUBLISH, "a", 0, False) == ALLOW
        with pytest.raises(BackendError):
            await rereading.open(of("ann"))
    rereading.topics["ann"] = ["b"]
    await trio.sleep(RETRY_S + 1)
    assert judge.decide(PUBLISH, "a", 0, False) == IGNORE


async def test_what_nobody_needs_is_not_read(rereading: Kept, autojump_clock: trio.testing.MockClock) -> None:
    asker = Asker()
    judge = await rereading.open(of("ann"))
    judge.changed = asker.changed
    del judge
    await trio.sleep(REFRESH_S * 5)
    assert rereading.asked == ["ann"]
    # The last one is forgotten, too, though it is the one that was read again last.
    judge = await rereading.open(of("ann"))
    await trio.sleep(REFRESH_S * 2.5)
    assert len(rereading.asked) == 4
    del judge
    await trio.sleep(REFRESH_S * 5)
    assert len(rereading.asked) == 4


async def test_a_judge_keeps_nobody_alive(source: Kept) -> None:
    gc.disable()
    try:
        asker = Asker()
        judge = await source.open(of("ann"))
        judge.changed = asker.changed
        assert judge.changed is not None
        del asker
        assert judge.changed is None
    finally:
        gc.enable()


async def test_clients_that_cannot_be_asked_about(source: Kept) -> None:
    judge = await source.open(of(None))
    assert judge.decide(PUBLISH, "a", 0, False) == IGNORE
    assert source.asked == []
