"""Rule sources that have to be asked about each topic: answers are kept for a while, equal questions asked once."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from broker.auth.api import ALLOW, IGNORE, READ, SUBSCRIBE, BackendError, Principal
from broker.auth.base import BaseSource
from broker.topics.names import levels_match

#: Answers kept for one client; the oldest go.
MAX_ANSWERS: Final = 500
#: Filters whose messages a client may read, as many as subscriptions it may have by default.
MAX_FILTERS: Final = 1000

#: What is asked: action, topic, QoS, retain.
Question = tuple[int, str, int, bool]


class Momentary(Exception):
    """An answer that counts only once."""

    def __init__(self, decision: int) -> None:
        super().__init__()
        self.decision = decision


class AskingSource(BaseSource):
    """A rule source whose judges ask `question`. `refresh_s` is how long an answer counts."""

    #: Answers are for the judge to remember, as it knows for how long.
    steady = False

    def __init__(self, name: str, refresh_s: float) -> None:
        super().__init__(name)
        self.refresh_s = refresh_s
        #: By the id of the principal, which each holds.
        self._judges: weakref.WeakValueDictionary[int, AskingJudge] = weakref.WeakValueDictionary()

    @abstractmethod
    async def question(self, principal: Principal, asked: Question) -> int:
        """ALLOW, DENY or IGNORE; raises BackendError, or Momentary for an answer that is not to be kept."""

    def asked(self, action: int, topic: str, qos: int, retain: bool) -> Question:
        """What is asked: without that on which no answer depends."""
        return action, topic, qos, retain

    async def open(self, principal: Principal) -> AskingJudge:
        """See `RuleSource`. What an earlier judge of the client had allowed to be read still may be, until somebody
        asks about those filters again: otherwise messages were lost whenever rules change."""
        earlier = self._judges.get(id(principal))
        judge = AskingJudge(self, principal, {} if earlier is None else earlier.allowed)
        self._judges[id(principal)] = judge
        return judge


class AskingJudge:
    """Implements `Judge`. What matches a filter that was allowed may be read, until asking about it says otherwise."""

    __slots__ = ("__weakref__", "_answers", "_principal", "_readable", "_source", "allowed", "changed")

    def __init__(self, source: AskingSource, principal: Principal, allowed: dict[str, list[str]]) -> None:
        self._source = source
        self._principal = principal
        #: Question -> answer and the time until which it counts; in the order of asking.
        self._answers: dict[Question, tuple[int, float]] = {}
        #: Filters that the client may have, and their levels.
        self.allowed = allowed
        #: Topic -> whether one of them matches.
        self._readable: dict[str, int] = {}
        self.changed: Callable[[], None] | None = None

    def decide(self, action: int, topic: str, qos: int, retain: bool) -> int | None:
        """See `Judge`."""
        if action == READ:
            readable = self._readable.get(topic)
            if readable is None:
                levels = topic.split("/")
                found = any(levels_match(allowed, levels) for allowed in self.allowed.values())
                readable = self._readable[topic] = ALLOW if found else IGNORE
                if len(self._readable) > MAX_ANSWERS:
                    del self._readable[next(iter(self._readable))]
            return readable
        known = self._answers.get(self._source.asked(action, topic, qos, retain))
        return None if known is None or known[1] <= trio.current_time() else known[0]

    def covers(self, topic_filter: str) -> bool:
        """See `Judge`."""
        return topic_filter in self.allowed

    async def ask(self, action: int, topic: str, qos: int, retain: bool) -> int:
        """See `Judge`."""
        if action == READ:
            return self.decide(action, topic, qos, retain) or IGNORE
        asked = self._source.asked(action, topic, qos, retain)
        try:
            answer = await self._source.question(self._principal, asked)
        except Momentary as momentary:
            return momentary.decision
        self._answers.pop(asked, None)
        self._answers[asked] = (answer, trio.current_time() + self._source.refresh_s)
        while len(self._answers) > MAX_ANSWERS:
            del self._answers[next(iter(self._answers))]
        if action == SUBSCRIBE:
            self._readable.clear()
            self.allowed.pop(topic, None)
            if answer == ALLOW:
                self.allowed[topic] = topic.split("/")
                while len(self.allowed) > MAX_FILTERS:
                    del self.allowed[next(iter(self.allowed))]
        return answer


class Once:
    """Runs equal work once at a time: who comes meanwhile gets the same result."""

    def __init__(self) -> None:
        self._running: dict[object, _Run] = {}

    async def do(self, key: object, work: Callable[[], Awaitable[int]]) -> int:
        """The result of `work`, or its BackendError. If who does it is cancelled, somebody who waits does it."""
        while (run := self._running.get(key)) is not None:
            await run.over.wait()
            if run.error is not None:
                raise BackendError(str(run.error)) from None
            if run.result is not None:
                return run.result
        run = self._running[key] = _Run()
        try:
            run.result = await work()
            return run.result
        except BackendError as error:
            run.error = error
            raise
        finally:
            del self._running[key]
            run.over.set()


class _Run:
    __slots__ = ("error", "over", "result")

    def __init__(self) -> None:
        self.over = trio.Event()
        self.result: int | None = None
        self.error: BackendError | None = None
