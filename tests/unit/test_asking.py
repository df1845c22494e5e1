"""Rule sources that have to be asked: what is kept of their answers, and when they are asked again."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio
import trio.testing

from broker.auth.api import ALLOW, DENY, IGNORE, PUBLISH, READ, BackendError, Principal
from broker.auth.asking import ASKERS, PAUSE_S, AskingJudge, AskingSource, Momentary, Question
from broker.auth.memory import REMEMBERED_BYTES
from broker.auth.permissions import Authorization, Permissions
from broker.gate import Gate
from broker.peer import Peer


class Service(AskingSource):
    """Answers by topic; ALLOW for those that it has no answer for."""

    def __init__(self, refresh_s: float = 10.0) -> None:
        super().__init__("service", refresh_s)
        self.answers: dict[str, int | Exception] = {}
        self.asked_about: list[str] = []

    async def question(self, principal: Principal, asked: Question) -> int:
        await trio.lowlevel.checkpoint()
        self.asked_about.append(asked[1])
        answer = self.answers.get(asked[1], ALLOW)
        if isinstance(answer, Exception):
            raise answer
        return answer


def client() -> Principal:
    return Principal("ann", "c1", Peer(), "ann")


async def opened(service: Service) -> tuple[Permissions, AskingJudge, list[str]]:
    """Permissions, their judge, and a list that grows when they changed."""
    permissions = await Authorization([(service, ())]).permissions(client())
    changes: list[str] = []
    permissions.changed = lambda: changes.append("changed")
    [(_, judge)] = permissions.judges()
    assert isinstance(judge, AskingJudge)
    return permissions, judge, changes


async def test_all_that_is_subscribed_to_may_be_read() -> None:
    permissions, _, _ = await opened(Service())
    for number in range(3000):
        assert await permissions.may_subscribe(f"t/{number}/#", 0)
    assert all(permissions.may_read(b"t/%d/x" % number) for number in range(3000))
    assert not permissions.may_read(b"t/3000/x")


async def test_what_is_unsubscribed_is_forgotten() -> None:
    service = Service()
    permissions, judge, _ = await opened(service)
    gate = Gate(permissions, None)
    for topic_filter in ("a/#", "$share/g/a/#", "$share/h/a/#", "b"):
        assert await permissions.may_subscribe(topic_filter.rpartition("g/")[2].rpartition("h/")[2], 0)
        gate.watch(topic_filter)
        gate.watch(topic_filter)
    assert gate.lets(b"a/1") and gate.lets(b"b")
    for topic_filter in ("a/#", "$share/h/a/#", "b"):
        gate.forget(topic_filter)
    assert gate.lets(b"a/1") and not gate.lets(b"b")
    gate.forget("$share/g/a/#")
    assert not gate.lets(b"a/1") and gate.open()
    for number in range(5000):
        await permissions.may_subscribe(f"t/{number}", 0)
        permissions.unsubscribed(f"t/{number}")
    assert not judge._allowed


async def test_answers_are_bounded_in_bytes() -> None:
    _, judge, _ = await opened(Service())
    for number in range(1000):
        topic = f"{number}/" + "t" * 900
        await judge.ask(PUBLISH, topic, 0, False)
        judge.decide(READ, topic, 0, False)
        await judge.ask(PUBLISH, topic + "t" * 60_000, 0, False)
        judge.decide(READ, topic + "t" * 60_000, 0, False)
    assert sum(len(asked[1]) for asked in judge._answers.known) <= REMEMBERED_BYTES
    assert sum(map(len, judge._readable.known)) <= REMEMBERED_BYTES


async def test_an_answer_counts_whatever_else_changes(autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    permissions, judge, changes = await opened(service)
    for _ in range(3):
        assert await permissions.may_subscribe("a", 0) and await permissions.ask_publish(b"p", 0, False)
        await permissions.renew()
        assert permissions.judges() == [("service", judge)]
    assert service.asked_about == ["a", "p"] and judge.changed is not None and not changes
    await trio.sleep(11)
    assert await permissions.may_subscribe("a", 0) and await permissions.ask_publish(b"p", 0, False)
    assert service.asked_about == ["a", "p"] * 2


@pytest.mark.parametrize("answer", [DENY, IGNORE])
async def test_a_filter_that_is_withdrawn(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, answer: int
) -> None:
    service = Service()
    await nursery.start(service.serve)
    permissions, _, changes = await opened(service)
    assert await permissions.may_subscribe("a", 1) and await permissions.may_subscribe("b", 0)
    await trio.sleep(9)
    assert service.asked_about == ["a", "b"]
    service.answers["a"] = answer
    await trio.sleep(4)
    assert changes == ["changed"] and not permissions.may_read(b"a") and permissions.may_read(b"b")
    assert sorted(service.asked_about) == ["a", "a", "b", "b"]
    assert not await permissions.may_subscribe("a", 1) and await permissions.may_subscribe("b", 0)
    assert len(service.asked_about) == 4  # what was heard a moment ago is not asked again
    permissions.close()
    await trio.sleep(100)
    assert len(service.asked_about) == 4


@pytest.mark.parametrize("answer", [BackendError("away"), Momentary(IGNORE)])
async def test_who_cannot_say_withdraws_nothing(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, answer: Exception
) -> None:
    service = Service()
    await nursery.start(service.serve)
    permissions, _, changes = await opened(service)
    assert await permissions.may_subscribe("a", 1)
    service.answers["a"] = answer
    await trio.sleep(30)
    assert permissions.may_read(b"a") and not changes
    service.answers["a"] = DENY
    await trio.sleep(4)
    assert not permissions.may_read(b"a") and changes == ["changed"]


async def test_a_service_is_not_overrun(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    service = Service(refresh_s=0.1)
    await nursery.start(service.serve)
    permissions, _, _ = await opened(service)
    for number in range(1000):
        await permissions.may_subscribe(f"t/{number}", 0)
    for _ in range(3):
        before = len(service.asked_about)
        await trio.sleep(1)
        assert 10 <= len(service.asked_about) - before <= ASKERS / PAUSE_S + ASKERS


async def test_nobody_is_asked_about_who_left(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery) -> None:
    service = Service()
    await nursery.start(service.serve)
    permissions, judge, _ = await opened(service)
    assert await permissions.may_subscribe("a", 1)
    permissions.close()
    gone = weakref.ref(judge)
    gc.disable()
    try:
        del permissions, judge
        assert gone() is None
    finally:
        gc.enable()
    await trio.sleep(100)
    assert service.asked_about == ["a"]
