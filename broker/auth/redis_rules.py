"""Rules of a client in a Redis hash, as EMQX has them.

The fields are topic filters; a value is publish, subscribe or all, which allows it, or JSON such as
`{"permission": "deny", "action": "publish", "qos": [0, 1], "retain": false}`. A hash has no order: what denies is asked
before what allows.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import trio

from broker.auth.api import BackendError, Principal, Rule
from broker.auth.base import told_of
from broker.auth.redis_client import RedisClient
from broker.auth.reread import RereadSource
from broker.auth.rules import rule_from
from broker.auth.template import Template, Unresolved, lookup_of
from broker.errors import ConfigError
from broker.options.authorization import RedisRules

MAX_RULES: Final = 10_000

_ACTIONS: Final = frozenset({"publish", "subscribe", "all"})
_KEYS: Final = frozenset({"permission", "action", "qos", "retain"})


class RedisRuleSource(RereadSource):
    """Implements `RuleSource`."""

    def __init__(self, options: RedisRules) -> None:
        super().__init__(options.label, options.refresh_s, max(options.pool // 2, 1))
        with told_of("authorization", options.label):
            try:
                self._key = Template(options.key)
            except ValueError as error:
                raise ConfigError(f"key: {error}") from None
        self._redis = RedisClient(options.url, options.username, options.password, options.timeout_s, options.pool)

    def key(self, principal: Principal) -> Hashable:
        """The key of the hash."""
        try:
            return self._key.render(lookup_of(principal)).encode()
        except Unresolved:
            return None

    async def fetch(self, key: Hashable) -> object:
        """See `RereadSource`."""
        assert isinstance(key, bytes)
        return fields_of(await self._redis.call(b"HGETALL", key))

    def parse(self, written: object) -> Sequence[Rule]:
        """See `RereadSource`."""
        assert isinstance(written, dict)
        return parse(written)

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `RuleSource`."""
        task_status.started()
        try:
            await self.reread()
        finally:
            await self._redis.aclose()


def fields_of(answer: object) -> dict[bytes, bytes]:
    """Fields and values, whichever way the protocol gives them; BackendError for what is none or too much."""
    if isinstance(answer, (list, tuple)):
        pairs = list(zip(answer[::2], answer[1::2], strict=True)) if len(answer) % 2 == 0 else None
    else:
        pairs = list(answer.items()) if isinstance(answer, dict) else None
    if pairs is None or len(pairs) > MAX_RULES:
        raise BackendError("HGETALL gave no fields, or too many")
    found: dict[bytes, bytes] = {}
    for name, value in pairs:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise BackendError("HGETALL gave something else than texts")
        found[name] = value
    return found


def parse(fields: Mapping[bytes, bytes]) -> Sequence[Rule]:
    """The rules of a hash; ValueError for a field that is none."""
    tables = [table_of(name.decode(), value.decode()) for name, value in sorted(fields.items())]
    tables.sort(key=lambda table: table["permission"] != "deny")
    return [rule_from(table) for table in tables]


def table_of(topic: str, value: str) -> dict[str, object]:
    """The table of `rule_from` for a field."""
    word = value.strip().lower()
    if word in _ACTIONS:
        return {"permission": "allow", "action": word, "topics": [topic]}
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found.keys() <= _KEYS:
        raise ValueError(f"the rule for {topic!r:.80} is neither publish, subscribe, all nor JSON with such keys")
    table: dict[str, object] = {"permission": "allow", "action": "all", "topics": [topic], **found}
    if table.get("retain") == "all":
        del table["retain"]
    return table
