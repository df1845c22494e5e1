"""Rule sources that have to be asked about each topic: answers are kept for a while, equal questions asked once.

Who may have a filter may read what matches it, for as long as it is subscribed to. When the answer is too old the
source is asked again, a few questions at a time; where it says no then, the client's subscriptions are looked at.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import trio

from broker.auth.api import ALLOW, IGNORE, READ, SUBSCRIBE, BackendError, Principal
from broker.auth.base import BaseSource
from broker.auth.memory import Memory
from broker.topics.names import levels_match

#: Answers kept for one client; the oldest go.
MAX_ANSWERS: Final = 500

#: Questions about subscriptions whose answers are too old: so many at a time, each that asks pausing after each, and
#: longer where there was no answer. So a node asks a source about at most a hundred of them a second.
ASKERS: Final = 4
PAUSE_S: Final = 0.04
ERROR_PAUSE_S: Final = 1.0
#: How often it is looked whether there are any.
LOOK_S: Final = 1.0

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
        """See `RuleSource`. The client's judge stays the same: what it was told counts for its time, whatever else
        changes."""
        judge = self._judges.get(id(principal))
        if judge is None:
            judge = self._judges[id(principal)] = AskingJudge(self, principal)
        return judge

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `RuleSource`: ask again about subscriptions."""
        task_status.started()
        while True:
            await trio.sleep(min(self.refresh_s, LOOK_S))
            old = self._old()
            async with trio.open_nursery() as nursery:
                for _ in range(ASKERS):
                    nursery.start_soon(self._ask_again, old)

    def _old(self) -> Iterator[tuple[AskingJudge, str]]:
        """Filters whose answers are too old; judges of clients that leave meanwhile are not held."""
        for reference in self._judges.valuerefs():
            judge = reference()
            names = [] if judge is None else judge.old()
            del judge
            for name in names:
                judge = reference()
                if judge is None:
                    break
                yield judge, name
                del judge

    async def _ask_again(self, old: Iterator[tuple[AskingJudge, str]]) -> None:
        for judge, name in old:
            try:
                await judge.ask_again(name)
            except BackendError:  # what was allowed stays so, and is asked about in the next round
                await trio.sleep(ERROR_PAUSE_S)
            else:
                await trio.sleep(PAUSE_S)


class _Allowed:
    """A filter that the client may have: its levels, what was asked, and the time until which the answer counts."""

    __slots__ = ("asked", "levels", "until")

    def __init__(self, topic_filter: str, asked: Question, until: float) -> None:
        self.levels = topic_filter.split("/")
        self.asked = asked
        self.until = until


class AskingJudge:
    """Implements `Judge`. What matches a filter that was allowed may be read, until asking about it says otherwise."""

    __slots__ = ("__weakref__", "_allowed", "_answers", "_principal", "_readable", "_source", "changed")

    def __init__(self, source: AskingSource, principal: Principal) -> None:
        self._source = source
        self._principal = principal
        #: Question -> answer and the time until which it counts; in the order of asking.
        self._answers: Memory[Question, tuple[int, float]] = Memory(_size, MAX_ANSWERS)
        #: Filters that the client may have. As many as it subscribes to: who unsubscribes calls `forget`.
        self._allowed: dict[str, _Allowed] = {}
        #: Topic -> whether one of them matches.
        self._readable: Memory[str, int] = Memory(len, MAX_ANSWERS)
        self.changed: Callable[[], None] | None = None

    def decide(self, action: int, topic: str, qos: int, retain: bool) -> int | None:
        """See `Judge`."""
        if action == READ:
            readable = self._readable.known.get(topic)
            if readable is None:
                levels = topic.split("/")
                found = any(levels_match(allowed.levels, levels) for allowed in self._allowed.values())
                readable = ALLOW if found else IGNORE
                self._readable.put(topic, readable)
            return readable
        asked = self._source.asked(action, topic, qos, retain)
        now = trio.current_time()
        if action == SUBSCRIBE:
            allowed = self._allowed.get(topic)
            if allowed is not None and allowed.asked == asked and allowed.until > now:
                return ALLOW
        known = self._answers.known.get(asked)
        return None if known is None or known[1] <= now else known[0]

    def covers(self, topic_filter: str) -> bool:
        """See `Judge`."""
        return topic_filter in self._allowed

    async def ask(self, action: int, topic: str, qos: int, retain: bool) -> int:
        """See `Judge`."""
        if action == READ:
            return self.decide(action, topic, qos, retain) or IGNORE
        asked = self._source.asked(action, topic, qos, retain)
        try:
            answer = await self._source.question(self._principal, asked)
        except Momentary as momentary:
            return momentary.decision
        self._told(asked, answer)
        return answer

    def _told(self, asked: Question, answer: int) -> None:
        until = trio.current_time() + self._source.refresh_s
        if asked[0] != SUBSCRIBE:
            self._answers.put(asked, (answer, until))
            return
        topic_filter = asked[1]
        if answer == ALLOW:
            self._answers.drop(asked)
            known = self._allowed.get(topic_filter)
            if known is None:
                self._allowed[topic_filter] = _Allowed(topic_filter, asked, until)
                self._readable.clear()
            else:
                known.asked, known.until = asked, until
        else:
            self._answers.put(asked, (answer, until))
            self.forget(topic_filter)

    def forget(self, topic_filter: str) -> None:
        """The client has no subscription of this filter any more."""
        if self._allowed.pop(topic_filter, None) is not None:
            self._readable.clear()

    def old(self) -> list[str]:
        """Filters to ask about again; none while nobody would be told."""
        now = trio.current_time()
        return [] if self.changed is None else [name for name, known in self._allowed.items() if known.until <= now]

    async def ask_again(self, topic_filter: str) -> None:
        """Ask about one of `old`, and tell if it is not allowed any more. Raises BackendError."""
        known = self._allowed.get(topic_filter)
        if known is None:
            return
        asked = known.asked
        try:
            answer = await self._source.question(self._principal, asked)
        except Momentary:
            return
        if self._allowed.get(topic_filter) is known:
            self._told(asked, answer)
            if answer != ALLOW and self.changed is not None:
                self.changed()


def _size(asked: Question) -> int:
    return len(asked[1])


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
