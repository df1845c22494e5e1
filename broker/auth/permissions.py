"""What one client may do: the rule sources asked in order, and the answers remembered.

The rules that came with the credentials are asked first, then the sources in the order of the configuration; the
first that does not ignore the question decides, and where none does, the setting `no_match`. A superuser is never
asked about, nor is anybody where there are no rules at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from broker.auth.api import ALLOW, IGNORE, PUBLISH, READ, SUBSCRIBE, BackendError, Judge, Principal, RuleSource
from broker.auth.asking import AskingJudge
from broker.auth.judging import EntriesJudge
from broker.auth.memory import Memory
from broker.auth.rules import judge_of
from broker.extensions.system_filters import is_system
from broker.log import get_logger
from broker.metrics import Metrics

_ACTION_NAMES: Final = {PUBLISH: "publish", SUBSCRIBE: "subscribe", READ: "read"}

_log = get_logger("authorization")


class Authorization:
    """The rule sources of a node, each with the listeners whose clients it is about (empty: all)."""

    def __init__(
        self,
        sources: Sequence[tuple[RuleSource, Sequence[str]]] = (),
        no_match_allows: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self.sources = sources
        #: The answer where no rule applies; and whether that is so below `$SYS/` too, which else needs a rule.
        self.no_match_allows = no_match_allows
        self.system_open = True
        metrics = Metrics() if metrics is None else metrics
        self._counted, self._seconds = metrics.authorization, metrics.authorization_seconds
        self._unavailable: set[str] = set()

    def no_match(self, topic: str) -> bool:
        """The answer about a topic or filter that no rule applies to."""
        return self.no_match_allows and (self.system_open or not is_system(topic))

    def unrestricted(self, principal: Principal) -> bool:
        """Whether it is known at once that nothing need be asked about a client: `Permissions.unrestricted`."""
        return principal.superuser or not (self.sources or principal.rules is not None)

    async def permissions(self, principal: Principal) -> Permissions:
        """What a client may do. Raises BackendError if a source has to be asked and cannot be."""
        made = Permissions(self, principal)
        await made.open()
        return made

    def asked(self, principal: Principal) -> list[RuleSource]:
        """The sources that are about a client."""
        listener = principal.peer.listener
        return [source for source, listeners in self.sources if not listeners or listener in listeners]

    def state(self, principal: Principal) -> dict[str, int | None]:
        """The sources that are about a client, by name, with another number when the rules of one may be others; ""
        stands for `no_match`."""
        found: dict[str, int | None] = {"": int(self.no_match_allows)}
        found.update((source.name, source.generation) for source in self.asked(principal))
        return found

    def count(self, action: int, answer: str) -> None:
        """Count an answer: allow, deny or error."""
        self._counted[f"{_ACTION_NAMES[action]},{answer}"] += 1

    def took(self, source: str, seconds: float) -> None:
        """A source that had to be asked answered, or failed, after so long."""
        self._seconds[source].observe(seconds)

    def failed(self, source: str, error: BackendError) -> None:
        """A source could not be asked: logged when it begins."""
        if source not in self._unavailable:
            self._unavailable.add(source)
            _log.warning("authorization.unavailable", source=source, error=str(error))

    def answered(self, source: str) -> None:
        """A source could be asked."""
        if source in self._unavailable:
            self._unavailable.discard(source)
            _log.info("authorization.available", source=source)


class Permissions:
    """What one client may do; topics are UTF-8. What is remembered is bounded.

    `changed` is called when answers may be others from now on: a source read new rules for this client.
    """

    __slots__ = (
        "__weakref__",  # judges hold it weakly
        "_authorization",
        "_judges",
        "_opened",
        "_published",
        "_read",
        "changed",
        "cleared",
        "principal",
        "unrestricted",
    )

    def __init__(self, authorization: Authorization, principal: Principal) -> None:
        self.principal = principal
        #: Nothing need be asked.
        self.unrestricted = True
        self.changed: Callable[[], None] | None = None
        self._authorization = authorization
        #: The state of the sources when they were opened; None for one that is to be opened again at the next occasion.
        self._opened: Mapping[str, int | None] = {}
        #: The name of the source, its judge, and whether its answers may be remembered.
        self._judges: list[tuple[str, Judge, bool]] = []
        #: Per topic a bit for each QoS and retain that is known to be allowed; nothing is kept of what is not.
        self._published: Memory[bytes, int] = Memory(len)
        self.cleared = self._published.known
        #: Here it is others who choose the topics, so refusals are kept too.
        self._read: Memory[bytes, bool] = Memory(len)

    async def open(self) -> None:
        """Open the sources that may have other rules; those that cannot be opened keep their judge of before. Raises
        BackendError without one."""
        before = {name: judge for name, judge, _ in self._judges}
        principal = self.principal
        opened: dict[str, int | None] = {"": int(self._authorization.no_match_allows)}
        judges: list[tuple[str, Judge, bool]] = []
        if principal.rules is not None:
            judges.append(("", before[""] if "" in before else judge_of(principal.rules, principal), True))
        if not principal.superuser:
            for source in self._authorization.asked(principal):
                judge = before.get(source.name)
                generation: int | None = source.generation  # of before: what changes meanwhile is read again
                if judge is None or self._opened.get(source.name) != generation:
                    try:
                        judge = await source.open(principal)
                    except BackendError as error:
                        self._authorization.failed(source.name, error)
                        if judge is None:
                            raise
                        generation = None
                    else:
                        self._authorization.answered(source.name)
                opened[source.name] = generation
                judges.append((source.name, judge, source.steady))
        for _, judge, _ in self._judges:
            judge.changed = None
        for _, judge, _ in judges:
            judge.changed = self._judge_changed
        self._judges = judges
        self._opened = opened
        # Where a source is about others only, the client has no rules, and still is under them.
        self.unrestricted = principal.superuser or not (judges or self._authorization.sources)
        self._forget()

    async def renew(self) -> bool:
        """Users, rules or bans changed: where it may have been these rules, nothing of what was known counts, and True
        is returned. Whoever has to be asked each time is not concerned: those answers have an end of their own."""
        if self.principal.superuser or self._opened == self._authorization.state(self.principal):
            return False
        await self.open()
        return True

    def _judge_changed(self) -> None:
        self._forget()
        if self.changed is not None:
            self.changed()

    def _forget(self) -> None:
        # In place: others hold it.
        self._published.clear()
        self._read.clear()

    def close(self) -> None:
        """The connection has ended: nobody is told of anything any more, and nothing is kept."""
        self.changed = None
        for _, judge, _ in self._judges:
            judge.changed = None
        self._forget()

    # -- questions

    def may_publish(self, topic: bytes, qos: int, retain: bool) -> bool | None:
        """Whether a message may be published; None if `ask_publish` has to be awaited."""
        if self.unrestricted:
            return True
        bit = 1 << (2 * qos + retain)
        known = self._published.known.get(topic, 0)
        if known & bit:
            return True
        answer, steady = self._decide(PUBLISH, topic.decode(), qos, retain)
        if answer is None:
            return None
        if steady and answer:
            self._published.put(topic, known | bit)
        self._authorization.count(PUBLISH, "allow" if answer else "deny")
        return answer

    async def ask_publish(self, topic: bytes, qos: int, retain: bool) -> bool:
        """The same, of sources that have to be waited for. Raises BackendError if one cannot be asked."""
        return self.unrestricted or await self._ask(PUBLISH, topic.decode(), qos, retain)

    def may_read(self, topic: bytes) -> bool:
        """Whether a message may be delivered."""
        if self.unrestricted:
            return True
        allowed = self._read.known.get(topic)
        if allowed is None:
            answer, steady = self._decide(READ, topic.decode(), 0, False)
            allowed = answer is True
            if steady:
                self._read.put(topic, allowed)
            if allowed:
                self._authorization.count(READ, "allow")
        if not allowed:
            self._authorization.count(READ, "deny")
        return allowed

    async def may_subscribe(self, topic_filter: str, qos: int) -> bool:
        """Whether a filter, without `$share/NAME/`, may be subscribed to. Raises BackendError if a source cannot be
        asked."""
        return self.unrestricted or await self._ask(SUBSCRIBE, topic_filter, qos, False)

    def unsubscribed(self, topic_filter: str) -> None:
        """The client has no subscription of this filter, without `$share/NAME/`, any more."""
        for _, judge, _ in self._judges:
            if isinstance(judge, AskingJudge):
                judge.forget(topic_filter)

    def subscribable(self, topic_filter: str, qos: int) -> bool | None:
        """As `may_subscribe`, as far as it is known; None if that has to be awaited."""
        return self.unrestricted or self._decide(SUBSCRIBE, topic_filter, qos, False)[0]

    def covers(self, topic_filter: str) -> bool:
        """Whether no delivery of a filter need be asked about, as long as the rules stay as they are."""
        if self.unrestricted:
            return True
        for _, judge, steady in self._judges:
            if not steady:
                return False
            if judge.covers(topic_filter):
                return True
            # What a later source says counts only where this one is silent.
            if not (isinstance(judge, EntriesJudge) and judge.silent(topic_filter)):
                return False
        return self._authorization.no_match(topic_filter)

    # -- answers

    def _decide(self, action: int, topic: str, qos: int, retain: bool) -> tuple[bool | None, bool]:
        """The answer, None if somebody has to be waited for; and whether it may be remembered."""
        all_steady = True
        for _, judge, steady in self._judges:
            all_steady = all_steady and steady
            decision = judge.decide(action, topic, qos, retain)
            if decision is None:
                return None, False
            if decision != IGNORE:
                return decision == ALLOW, all_steady
        return self._authorization.no_match(topic), all_steady

    async def _ask(self, action: int, topic: str, qos: int, retain: bool) -> bool:
        allowed = self._authorization.no_match(topic)
        for name, judge, _ in self._judges:
            decision = judge.decide(action, topic, qos, retain)
            if decision is None:
                began = time.perf_counter()
                try:
                    decision = await judge.ask(action, topic, qos, retain)
                except BackendError as error:
                    self._authorization.failed(name, error)
                    self._authorization.count(action, "error")
                    raise
                finally:
                    self._authorization.took(name, time.perf_counter() - began)
                self._authorization.answered(name)
            if decision != IGNORE:
                allowed = decision == ALLOW
                break
        self._authorization.count(action, "allow" if allowed else "deny")
        return allowed

    def judges(self) -> Sequence[tuple[str, Judge]]:
        """Who is asked, in order; "" are the rules that came with the credentials."""
        return [(name, judge) for name, judge, _ in self._judges]
