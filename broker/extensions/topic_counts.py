"""Messages counted for a few topic filters that operators chose, the same ones on all nodes (documents in the store).

Only topics that a chosen filter matches pay for it: their messages do not take the direct way from socket to socket.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from broker.metrics_catalogue import Samples
from broker.session.counted import TopicCount
from broker.topics.names import matches
from cluster.registry import TOPICS

if TYPE_CHECKING:
    from broker.server import Server

#: Filters in the cluster.
FILTERS_MAX: Final = 50

#: How often the documents are looked at, and rates taken.
LOOK_S: Final = 1.0
RATE_S: Final = 5.0

_log = get_logger("topics")


class Counted:
    """One filter. Rates are of the last seconds: received, sent, dropped."""

    def __init__(self, created_at_ms: int) -> None:
        self.count = TopicCount()
        self.created_at_ms = created_at_ms
        self.rates = [0.0, 0.0, 0.0]
        self._before = [0, 0, 0]

    def totals(self) -> list[int]:
        """Received, sent, dropped."""
        return [sum(self.count.received), sum(self.count.sent), self.count.dropped]

    def tick(self, passed_s: float) -> None:
        """So much time has passed."""
        now = self.totals()
        self.rates = [(new - old) / passed_s for new, old in zip(now, self._before, strict=True)]
        self._before = now

    def shown(self, topic_filter: str) -> dict[str, Any]:
        """For JSON."""
        return {
            "topic_filter": topic_filter,
            "created_at_ms": self.created_at_ms,
            "received": list(self.count.received),
            "sent": list(self.count.sent),
            "dropped": self.count.dropped,
            "rates": list(self.rates),
        }


class TopicCounts:
    """Those of one node."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._counted: dict[str, Counted] = {}
        self._version: int | None = None
        self._ticked_s = 0.0

    def items(self) -> dict[str, Counted]:
        """By filter."""
        return dict(self._counted)

    def samples(self) -> Samples:
        """For the metric."""
        names = ("received", "sent", "dropped")
        return {
            "mqtt_topic_messages_total": {
                f"{topic_filter},{name}": total
                for topic_filter, counted in self._counted.items()
                for name, total in zip(names, counted.totals(), strict=True)
            }
        }

    async def serve(self) -> None:
        """Keep up with the documents, until cancelled."""
        while True:
            with suppress(ClusterError):  # then the filters stay as they are
                await self.refresh()
            now = trio.current_time()
            if self._counted and now - self._ticked_s >= RATE_S:
                for counted in self._counted.values():
                    counted.tick(now - self._ticked_s)
                self._ticked_s = now
            await trio.sleep(LOOK_S)

    async def refresh(self) -> None:
        """Count for the filters that there are now. Raises ClusterError."""
        registry = self._server.cluster.registry
        version = await registry.version()
        if version == self._version:
            return
        self.take(await registry.documents(TOPICS))
        self._version = version

    def take(self, documents: dict[str, bytes]) -> None:
        """These are the filters, each with its document."""
        wanted = sorted(documents)[:FILTERS_MAX]
        if set(wanted) == set(self._counted):
            return
        if not self._counted:
            self._ticked_s = trio.current_time()
        self._counted = {each: self._counted.get(each) or Counted(_created(documents[each])) for each in wanted}
        self._server.dispatch.count_by(self._counts if self._counted else None)
        _log.info("topics.counted", filters=len(self._counted))

    def _counts(self, topic_name: str) -> Sequence[TopicCount]:
        return [counted.count for topic_filter, counted in self._counted.items() if matches(topic_filter, topic_name)]


def _created(document: bytes) -> int:
    try:
        return int(json.loads(document)["created_at_ms"])
    except (ValueError, KeyError, TypeError):
        return 0
