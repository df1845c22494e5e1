"""The order of sources, what is remembered, and what happens when a source cannot be asked."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import trio

from broker.auth.api import ALLOW, DENY, IGNORE, PUBLISH, READ, SUBSCRIBE, BackendError, Judge, Principal
from broker.auth.base import BaseSource
from broker.auth.memory import LONGEST, REMEMBERED, REMEMBERED_BYTES
from broker.auth.permissions import Authorization, Permissions
from broker.auth.rules import judge_of, rule_from
from broker.metrics import Metrics
from broker.peer import Peer


class Steady(BaseSource):
    """Rules that can be exchanged."""

    steady = True

    def __init__(self, name: str, *rules: tuple[str, str, str]) -> None:
        super().__init__(name)
        self.rules = rules
        self.error = False
        self.opened: list[Judge] = []

    def change(self, *rules: tuple[str, str, str]) -> None:
        self.rules = rules
        self.generation += 1

    async def open(self, principal: Principal) -> Judge:
        if self.error:
            raise BackendError("gone")
        made = judge_of(
            [rule_from({"permission": rule[0], "action": rule[1], "topics": rule[2]}) for rule in self.rules], principal
        )
        self.opened.append(made)
        return made


class Service(BaseSource):
    """Somebody who has to be waited for, and forgets at once."""

    def __init__(self) -> None:
        super().__init__("service")
        self.asked: list[tuple[int, str]] = []
        self.answer = ALLOW
        self.error = False

    async def open(self, principal: Principal) -> Judge:
        return ServiceJudge(self)


class ServiceJudge:
    changed: Callable[[], None] | None = None

    def __init__(self, service: Service) -> None:
        self._service = service

    def decide(self, action: int, topic: str, qos: int, retain: bool) -> int | None:
        return DENY if action == READ else None

    def covers(self, topic_filter: str) -> bool:
        return False

    async def ask(self, action: int, topic: str, qos: int, retain: bool) -> int:
        await trio.lowlevel.checkpoint()
        self._service.asked.append((action, topic))
        if self._service.error:
            raise BackendError("gone")
        return self._service.answer


def client(
    *, superuser: bool = False, listener: str = "main", own: list[tuple[str, str, str]] | None = None
) -> Principal:
    rules = None
    if own is not None:
        rules = [rule_from({"permission": rule[0], "action": rule[1], "topics": rule[2]}) for rule in own]
    return Principal("ann", "c1", Peer("10.0.0.1", 1, listener), "ann", superuser=superuser, rules=rules)


async def opened(
    principal: Principal, *sources: BaseSource, no_match: bool = False, metrics: Metrics | None = None
) -> Permissions:
    return await Authorization([(each, ()) for each in sources], no_match, metrics).permissions(principal)


async def test_without_rules_nothing_is_asked() -> None:
    permissions = await opened(client())
    assert permissions.unrestricted
    assert permissions.may_publish(b"a", 0, False) is True
    assert permissions.may_read(b"a")
    assert permissions.covers("#")
    assert await permissions.may_subscribe("#", 0)


async def test_a_superuser_is_not_asked_about() -> None:
    source = Steady("file", ("deny", "all", "#"))
    permissions = await opened(client(superuser=True, own=[("deny", "all", "#")]), source)
    assert permissions.unrestricted
    assert not source.opened
    assert permissions.may_publish(b"a", 0, False) is True


async def test_the_first_that_says_something_decides() -> None:
    one = Steady("one", ("deny", "all", "a/secret"))
    two = Steady("two", ("allow", "all", "a/#"), ("deny", "all", "b"))
    permissions = await opened(client(own=[("allow", "publish", "a/secret")]), one, two)
    assert permissions.may_publish(b"a/secret", 1, True) is True
    assert not permissions.may_read(b"a/secret")
    assert permissions.may_read(b"a/x")
    assert permissions.may_publish(b"b", 0, False) is False
    assert permissions.may_publish(b"c", 0, False) is False
    assert await permissions.may_subscribe("a/#", 0)
    assert not await permissions.may_subscribe("a/secret", 0)
    assert not await permissions.may_subscribe("#", 0)
    assert not permissions.covers("a/#")


async def test_what_need_not_be_asked() -> None:
    one = Steady("one", ("deny", "all", "a/secret"), ("allow", "publish", "#"), ("deny", "subscribe", "eq #"))
    two = Steady("two", ("allow", "all", "b/#"))
    permissions = await opened(client(), one, two)
    assert permissions.covers("b/+")
    assert not permissions.covers("a/#")
    assert not permissions.covers("c")
    permissions = await opened(client(), one, two, no_match=True)
    assert permissions.covers("b/+")
    assert not permissions.covers("a/#")
    assert permissions.covers("c")
    service = Service()
    assert not (await opened(client(), service, two)).covers("b")
    assert not (await opened(client(), one, service)).covers("c")


async def test_where_no_rule_applies() -> None:
    source = Steady("one", ("deny", "all", "b"))
    for allowed in (True, False):
        permissions = await opened(client(), source, no_match=allowed)
        assert permissions.may_publish(b"c", 0, False) is allowed
        assert permissions.may_read(b"c") is allowed
        assert await permissions.may_subscribe("c", 0) is allowed
        assert permissions.may_publish(b"b", 0, False) is False


async def test_rules_of_the_credentials_alone_close_the_rest() -> None:
    permissions = await opened(client(own=[]))
    assert not permissions.unrestricted
    assert permissions.may_publish(b"a", 0, False) is False


@pytest.mark.parametrize("no_match", [False, True])
async def test_sources_of_other_listeners(no_match: bool) -> None:
    authorization = Authorization([(Steady("one", ("allow", "all", "a")), ("main",))], no_match)
    permissions = await authorization.permissions(client())
    assert permissions.may_publish(b"a", 0, False) is True
    others = await authorization.permissions(client(listener="other"))
    assert not others.unrestricted
    assert others.may_publish(b"a", 0, False) is no_match
    assert others.may_read(b"a") is no_match
    assert others.covers("a") is no_match
    assert await others.may_subscribe("a", 0) is no_match


async def test_what_is_remembered_is_bounded_and_forgotten() -> None:
    source = Steady("one", ("allow", "all", "a/#"))
    permissions = await opened(client(), source)
    cleared = permissions.cleared
    for number in range(3 * REMEMBERED):
        topic = b"a/%d" % number
        assert permissions.may_publish(topic, 0, False) is True
        assert permissions.may_publish(topic, 1, True) is True
        assert permissions.may_read(topic)
    assert len(cleared) == len(permissions._read.known) == REMEMBERED
    assert topic in cleared
    source.change(("deny", "all", "a/#"))
    await permissions.renew()
    assert permissions.cleared is cleared
    assert not cleared
    assert permissions.may_publish(topic, 0, False) is False
    assert permissions.may_publish(topic, 1, True) is False
    assert not permissions.may_read(topic)
    assert not cleared


def _bytes(permissions: Permissions) -> list[int]:
    kept = (permissions.cleared, permissions._read.known)
    return [sum(map(len, topics)) for topics in kept]


async def test_what_is_remembered_is_bounded_in_bytes() -> None:
    permissions = await opened(client(), Steady("one", ("allow", "all", "a/#")))
    for number in range(1000):
        topic = b"a/%d/" % number + b"t" * (LONGEST - 10)
        assert permissions.may_publish(topic, 0, False) and permissions.may_read(topic)
    assert all(REMEMBERED_BYTES - LONGEST < kept <= REMEMBERED_BYTES for kept in _bytes(permissions))
    permissions.close()
    assert _bytes(permissions) == [0, 0]
    assert permissions.may_publish(topic, 0, False)
    permissions.close()
    for number in range(100):
        topic = b"a/%d/" % number + b"t" * LONGEST
        assert permissions.may_publish(topic, 0, False) and permissions.may_read(topic)
        assert permissions.may_publish(b"b/%d" % number, 0, False) is False  # its publisher chooses how many
    assert _bytes(permissions) == [0, 0]


async def test_permissions_of_an_ended_connection_wait_for_no_collection() -> None:
    source = Changing("one", ("allow", "all", "a"))
    permissions = await opened(client(), source)
    assert permissions.may_publish(b"a", 0, False)
    permissions.close()
    assert source.opened[-1].changed is None
    gone = weakref.ref(permissions)
    gc.disable()
    try:
        del permissions
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
async def test_answers_are_remembered_for_each_qos_and_retain(qos: int, retain: bool) -> None:
    rule = rule_from({"permission": "allow", "topics": "a", "qos": qos, "retain": retain})
    principal = Principal("ann", "c1", Peer(), "ann", rules=[rule])
    permissions = await opened(principal)
    for _ in range(2):
        for asked in (0, 1, 2):
            for flag in (False, True):
                expected = asked == qos and flag == retain
                assert permissions.may_publish(b"a", asked, flag) is expected
    assert permissions.cleared.get(b"a", 0) == 1 << (2 * qos + retain)


class Changing(Steady):
    """Its judges learn of other rules by themselves."""

    async def open(self, principal: Principal) -> Judge:
        made = ChangingJudge(await super().open(principal))
        self.opened.append(made)
        return made


class ChangingJudge:
    def __init__(self, judge: Judge) -> None:
        self.changed: Callable[[], None] | None = None
        self.judge = judge

    def decide(self, action: int, topic: str, qos: int, retain: bool) -> int | None:
        return self.judge.decide(action, topic, qos, retain)

    def covers(self, topic_filter: str) -> bool:
        return self.judge.covers(topic_filter)

    async def ask(self, action: int, topic: str, qos: int, retain: bool) -> int:
        return await self.judge.ask(action, topic, qos, retain)


async def test_a_judge_that_changed_is_asked_again() -> None:
    source = Changing("one", ("allow", "all", "a"))
    permissions = await opened(client(), source)
    told: list[None] = []
    permissions.changed = lambda: told.append(None)
    assert permissions.may_publish(b"a", 0, False) is True
    judge = source.opened[-1]
    assert isinstance(judge, ChangingJudge)
    judge.judge = judge_of([], permissions.principal)
    assert judge.changed is not None
    judge.changed()
    assert told == [None]
    assert permissions.may_publish(b"a", 0, False) is False
    source.change()
    await permissions.renew()
    assert judge.changed is None


async def test_permissions_go_with_their_connection() -> None:
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(await opened(client(own=[("allow", "all", "b")]), Steady("one", ("allow", "all", "a"))))
        assert gone() is None
    finally:
        gc.enable()


async def test_a_service_is_waited_for_and_not_remembered() -> None:
    service = Service()
    metrics = Metrics()
    permissions = await opened(client(), Steady("one", ("allow", "publish", "a")), service, metrics=metrics)
    assert permissions.may_publish(b"a", 0, False) is True
    assert permissions.may_publish(b"b", 0, False) is None
    assert await permissions.ask_publish(b"b", 0, False)
    assert permissions.may_publish(b"b", 0, False) is None
    assert b"b" not in permissions.cleared
    service.answer = IGNORE
    assert not await permissions.ask_publish(b"b", 0, False)
    service.answer = ALLOW
    service.error = True
    with pytest.raises(BackendError):
        await permissions.ask_publish(b"b", 0, False)
    with pytest.raises(BackendError):
        await permissions.may_subscribe("b", 1)
    service.error = False
    assert await permissions.may_subscribe("b", 1)
    assert service.asked == [(PUBLISH, "b")] * 3 + [(SUBSCRIBE, "b")] * 2
    assert not permissions.may_read(b"a")
    assert metrics.authorization == {
        "publish,allow": 2,
        "publish,deny": 1,
        "publish,error": 1,
        "subscribe,error": 1,
        "subscribe,allow": 1,
        "read,deny": 1,
    }


async def test_every_denial_is_counted() -> None:
    metrics = Metrics()
    permissions = await opened(client(), Steady("one", ("allow", "all", "a")), metrics=metrics)
    for _ in range(3):
        permissions.may_publish(b"a", 0, False)
        permissions.may_publish(b"b", 0, False)
        permissions.may_read(b"a")
        permissions.may_read(b"b")
    assert metrics.authorization == {"publish,allow": 1, "publish,deny": 3, "read,allow": 1, "read,deny": 3}


async def test_a_source_that_cannot_be_opened() -> None:
    source = Steady("one", ("allow", "all", "a"))
    source.error = True
    with pytest.raises(BackendError):
        await opened(client(), source)
    source.error = False
    permissions = await opened(client(), source)
    source.change(("deny", "all", "#"))
    source.error = True
    await permissions.renew()
    assert permissions.may_publish(b"a", 0, False) is True
    assert permissions.may_publish(b"b", 0, False) is False
    # It is tried again, whatever the occasion.
    source.error = False
    await permissions.renew()
    assert permissions.may_publish(b"a", 0, False) is False
    await permissions.renew()


async def test_rules_that_are_the_same_are_not_opened_again() -> None:
    source = Steady("one", ("allow", "all", "a"))
    authorization = Authorization([(source, ())])
    permissions = await authorization.permissions(client())
    assert permissions.may_publish(b"a", 0, False) is True
    await permissions.renew()
    assert b"a" in permissions.cleared
    assert len(source.opened) == 1
    authorization.no_match_allows = True
    await permissions.renew()
    assert permissions.may_publish(b"b", 0, False) is True
    assert len(source.opened) == 1


async def test_a_change_of_rules_opens_the_source_that_has_them() -> None:
    """What others keep of their answers counts on: a service need not be asked again because of a file."""

    class Kept(Service):
        def __init__(self) -> None:
            super().__init__()
            self.opened = 0

        async def open(self, principal: Principal) -> Judge:
            self.opened += 1
            return await super().open(principal)

    service, source = Kept(), Steady("one", ("deny", "all", "no"))
    permissions = await opened(client(own=[("allow", "publish", "own")]), source, service)
    assert permissions.subscribable("no", 0) is False
    assert permissions.subscribable("a", 0) is None
    assert not await permissions.renew()
    source.change(("deny", "all", "a"))
    assert await permissions.renew()
    assert permissions.subscribable("a", 0) is False
    assert permissions.subscribable("no", 0) is None
    assert permissions.may_publish(b"own", 0, False) is True
    assert (len(source.opened), service.opened) == (2, 1)
    assert service.asked == []
