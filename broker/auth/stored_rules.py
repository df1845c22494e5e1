"""Rules in the cluster's store: every node has a copy in memory, and reads them again after a change.

Each is a document of the kind `rules`, JSON with the keys of a [[rule]] table; they count in the order of their names.
Where one makes no sense to this node (a newer one may have written it), everything is denied that none before it
decides, until it is mended: leaving it out could open what it was to close.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import trio

from broker.auth.api import DENY, BackendError, Principal
from broker.auth.base import BaseSource
from broker.auth.judging import EntriesJudge
from broker.auth.rules import Rule, RuleSet, rule_from
from broker.errors import ClusterError
from broker.log import get_logger
from broker.options.authorization import StoredRules
from cluster.registry import RULES, Registry

_log = get_logger("authorization")


class StoredRuleSource(BaseSource):
    """Implements `RuleSource`."""

    steady = True

    def __init__(self, options: StoredRules, registry: Registry | None) -> None:
        super().__init__(options.label)
        self._registry = registry
        self._documents: Mapping[str, bytes] = {}
        #: None until they could be read.
        self._rules: RuleSet | None = None

    async def open(self, principal: Principal) -> EntriesJudge:
        """See `RuleSource`."""
        if self._rules is None:
            raise BackendError("the rules could not be read from the store yet")
        return self._rules.judge(principal)

    async def refresh(self) -> None:
        """See `RuleSource`."""
        if self._registry is None:
            return
        documents = await self._registry.documents(RULES)
        if self._rules is None or documents != self._documents:
            self._rules = rules_of(documents)
            self._documents = documents
            self.generation += 1

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `RuleSource`. Where the store cannot be read now, `refresh` is called again."""
        try:
            await self.refresh()
        except ClusterError as error:
            _log.warning("authorization.not_read", source=self.name, error=str(error))
        await super().serve(task_status=task_status)


def rules_of(documents: Mapping[str, bytes]) -> RuleSet:
    """The rules that documents describe, in the order of their names."""
    rules: list[Rule] = []
    for name in sorted(documents):
        try:
            rules.append(stored_rule(name, documents[name]))
        except ValueError as error:
            _log.error("authorization.rule_not_understood", rule=name, error=str(error))
            return RuleSet(rules, DENY)
    return RuleSet(rules)


def stored_rule(name: str, document: bytes) -> Rule:
    """The rule of one document; ValueError says what is wrong with it."""
    try:
        table = json.loads(document)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    if not isinstance(table, dict):
        raise ValueError("JSON that is no object")
    return rule_from(table, f"stored rule {name!r:.80}")


def rule_document(name: str, table: Mapping[str, object]) -> bytes:
    """The document of a rule; ValueError for a name or a table that can be none."""
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise ValueError(f"rule name {name!r:.80}: 1 to 200 printable characters")
    rule_from(table)
    return json.dumps(table, ensure_ascii=False).encode()
