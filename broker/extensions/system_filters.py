"""Who wants to know what nodes tell of themselves: the filters below `$SYS/`, so that nothing is made for nobody."""

from __future__ import annotations

from typing import Final

from broker.topics.relations import common

PREFIX: Final = "$SYS/"

_CLIENTS: Final = ("$SYS", "brokers", "+", "clients", "+", "+")


def is_system(topic_filter: str) -> bool:
    """Whether a filter, without `$share/NAME/`, is about topics below `$SYS/`: no wildcard stands for that level."""
    return topic_filter.startswith(PREFIX) or topic_filter == "$SYS"


class SystemFilters:
    """Filters that begin with `$SYS/`, with the keys of whoever has them (sessions, groups, nodes)."""

    __slots__ = ("_known", "clients")

    def __init__(self) -> None:
        self._known: set[tuple[str, bytes]] = set()
        #: How many of them may match what is told of clients that come and go.
        self.clients = 0

    def __len__(self) -> int:
        return len(self._known)

    def add(self, topic_filter: str, key: bytes) -> None:
        """There is such a subscription. Idempotent."""
        if (topic_filter, key) not in self._known:
            self._known.add((topic_filter, key))
            self.clients += _about_clients(topic_filter)

    def discard(self, topic_filter: str, key: bytes) -> None:
        """There is none any more. Idempotent."""
        if (topic_filter, key) in self._known:
            self._known.remove((topic_filter, key))
            self.clients -= _about_clients(topic_filter)


def _about_clients(topic_filter: str) -> bool:
    return common(topic_filter.split("/"), _CLIENTS) is not None
