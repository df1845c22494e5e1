"""Rules bound to one client, and the answers they give: the first entry that applies decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from broker.auth.api import ALLOW, DENY, IGNORE, PUBLISH, READ, SUBSCRIBE
from broker.topics.names import levels_match
from broker.topics.relations import common, covers

ANY_QOS: Final = 0b111


class Entry:
    """One topic filter of one rule, placeholders filled in.

    `actions` are bits of PUBLISH, SUBSCRIBE and READ. `literal`: the filter is compared with what is asked for as it
    is written. `qos` has a bit for each QoS that it is about, `retain` is None for both. `origin` says where it stands.
    """

    __slots__ = ("actions", "decision", "levels", "literal", "origin", "qos", "retain", "wild")

    def __init__(
        self,
        decision: int,
        actions: int,
        topic_filter: str,
        origin: str = "",
        *,
        literal: bool = False,
        qos: int = ANY_QOS,
        retain: bool | None = None,
    ) -> None:
        self.decision = decision
        self.actions = actions
        self.levels = topic_filter.split("/")
        self.origin = origin
        self.literal = literal
        self.qos = qos
        self.retain = retain
        self.wild = "+" in self.levels or self.levels[-1] == "#"

    @property
    def topic_filter(self) -> str:
        return "/".join(self.levels)

    @property
    def denies_reading(self) -> bool:
        """Whether it keeps deliveries from the client. One that is about some QoS of a SUBSCRIBE, or about a filter
        with wildcards as it is written, does not: the same messages may come by another subscription."""
        return self.decision == DENY and bool(self.actions & READ) and self.qos == ANY_QOS

    def may_be_published(self, levels: list[str], qos: int, retain: bool) -> bool:
        """Whether it applies to a PUBLISH."""
        return (
            bool(self.actions & PUBLISH and self.qos >> qos & 1)
            and (self.retain is None or self.retain == retain)
            and self._matches(levels)
        )

    def may_be_subscribed(self, levels: list[str], qos: int) -> bool:
        """Whether it applies to a SUBSCRIBE: it is about all that the filter matches."""
        if not (self.actions & SUBSCRIBE and self.qos >> qos & 1):
            return False
        return self.levels == levels if self.literal else covers(self.levels, levels)

    def may_be_read(self, levels: list[str]) -> bool:
        """Whether it applies to a delivery. What a subscription that is allowed matches may be read, so an allowed
        filter matches here even if it is literal, and whatever its QoS."""
        if self.decision == ALLOW:
            return bool(self.actions & READ) and levels_match(self.levels, levels)
        return self.denies_reading and self._matches(levels)

    def _matches(self, levels: list[str]) -> bool:
        return self.levels == levels if self.literal else levels_match(self.levels, levels)

    def overlaps(self, levels: list[str]) -> bool:
        """Whether it could apply to a delivery of a filter."""
        if self.literal and self.wild and self.decision == DENY:
            return False
        return common(self.levels, levels) is not None


class EntriesJudge:
    """Implements `Judge` over entries in order; `otherwise` is the answer where none applies."""

    __slots__ = ("entries", "otherwise")

    def __init__(self, entries: Sequence[Entry], otherwise: int = IGNORE) -> None:
        self.entries = entries
        self.otherwise = otherwise

    @property
    def changed(self) -> Callable[[], None] | None:
        """See `Judge`. The entries stay as they are, so there is nobody to be told: kept, it would make a circle."""
        return None

    @changed.setter
    def changed(self, told: Callable[[], None] | None) -> None:
        pass

    def find(self, action: int, topic: str, qos: int, retain: bool) -> Entry | None:
        """The entry that decides."""
        levels = topic.split("/")
        if action == PUBLISH:
            for entry in self.entries:
                if entry.may_be_published(levels, qos, retain):
                    return entry
        elif action == READ:
            for entry in self.entries:
                if entry.may_be_read(levels):
                    return entry
        else:
            return self.find_for_filter(levels, qos)
        return None

    def find_for_filter(self, levels: list[str], qos: int) -> Entry | None:
        """The entry that decides about a SUBSCRIBE."""
        for entry in self.entries:
            if entry.may_be_subscribed(levels, qos):
                return entry
        return None

    def decide(self, action: int, topic: str, qos: int, retain: bool) -> int:
        """See `Judge`; never None."""
        entry = self.find(action, topic, qos, retain)
        return self.otherwise if entry is None else entry.decision

    def covers(self, topic_filter: str) -> bool:
        """See `Judge`."""
        levels = topic_filter.split("/")
        for entry in self.entries:
            if entry.decision == ALLOW:
                if entry.actions & READ and covers(entry.levels, levels):
                    return True
            elif entry.denies_reading and entry.overlaps(levels):
                return False
        return False

    def silent(self, topic_filter: str) -> bool:
        """Whether no topic that matches the filter is decided about for READ."""
        levels = topic_filter.split("/")
        return self.otherwise == IGNORE and not any(
            (entry.actions & READ if entry.decision == ALLOW else entry.denies_reading) and entry.overlaps(levels)
            for entry in self.entries
        )

    async def ask(self, action: int, topic: str, qos: int, retain: bool) -> int:
        """See `Judge`; nothing has to be waited for."""
        return self.decide(action, topic, qos, retain)
