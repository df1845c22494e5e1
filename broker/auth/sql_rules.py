"""Rules found by a query: a row each, with the columns permission, action, topic, and maybe qos and retain."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence

import trio

from broker.auth.api import Principal, Rule
from broker.auth.reread import RereadSource
from broker.auth.rules import rule_from
from broker.auth.sql import Database, Query, Row, served, text_of
from broker.auth.template import lookup_of
from broker.options.authorization import SqlRules

COLUMNS = ("permission", "action", "topic", "qos", "retain")

_FLAGS = {"1": True, "t": True, "true": True, "yes": True, "0": False, "f": False, "false": False, "no": False}


class SqlRuleSource(RereadSource):
    """Implements `RuleSource`."""

    def __init__(self, database: Database, options: SqlRules) -> None:
        super().__init__(options.label, options.refresh_s, max(options.pool // 2, 1))
        self._database = database
        self._query = Query(options.query)

    def key(self, principal: Principal) -> Hashable:
        """The parameters of the query; None if it has some, and the client none of them."""
        values = self._query.values(lookup_of(principal))
        return values if not values or any(values) else None

    async def fetch(self, key: Hashable) -> object:
        """See `RereadSource`."""
        assert isinstance(key, tuple)
        rows = await self._database.select(self._query, key)
        return [tuple(text_of(row.get(column)) for column in COLUMNS) for row in rows]

    def parse(self, written: object) -> Sequence[Rule]:
        """See `RereadSource`."""
        assert isinstance(written, list)
        return [rule_from(table_of(dict(zip(COLUMNS, row, strict=True)))) for row in written]

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `RuleSource`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(served, self._database)
            nursery.start_soon(self.reread)
            task_status.started()


def table_of(row: Row) -> Mapping[str, object]:
    """The table of `rule_from` for a row; ValueError for a value that makes no sense."""
    table: dict[str, object] = {
        "permission": (text_of(row.get("permission")) or "").strip().lower(),
        "action": (text_of(row.get("action")) or "").strip().lower(),
    }
    topic = text_of(row.get("topic"))
    if not topic:
        raise ValueError("a row has no topic")
    table["topics"] = [topic]
    qos = (text_of(row.get("qos")) or "").strip("[]{} ")
    if qos:
        words = re.split(r"[,\s]+", qos)
        if any(word not in ("0", "1", "2") for word in words):
            raise ValueError(f"qos is {qos!r:.60}, not some of 0, 1 and 2")
        table["qos"] = [int(word) for word in words]
    retain = (text_of(row.get("retain")) or "").strip().lower()
    if retain and retain != "all":
        if retain not in _FLAGS:
            raise ValueError(f"retain is {retain!r:.60}, neither true nor false")
        table["retain"] = _FLAGS[retain]
    return table
