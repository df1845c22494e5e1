"""Rules in a TOML file: `[[rule]]` tables, the first that applies decides."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker.auth.api import Principal
from broker.auth.base import BaseSource
from broker.auth.judging import EntriesJudge
from broker.auth.rules import RuleSet, rule_from
from broker.errors import ConfigError
from broker.options.authorization import RulesFile

MAX_FILE_BYTES: Final = 64 * 1024 * 1024


class RulesFileRules(BaseSource):
    """Implements `RuleSource`; reads the file when made (ConfigError)."""

    steady = True

    def __init__(self, options: RulesFile) -> None:
        super().__init__(options.label)
        self._path = options.path
        self._rules = read_rules(options.path)

    async def open(self, principal: Principal) -> EntriesJudge:
        """See `RuleSource`."""
        return self._rules.judge(principal)

    def files(self) -> Sequence[Path]:
        """See `RuleSource`."""
        return (self._path,)

    def reload(self) -> None:
        """See `RuleSource`."""
        self._rules = read_rules(self._path)
        self.generation += 1


def read_rules(path: Path) -> RuleSet:
    """The rules of a file; ConfigError names the file, and the number of the rule and its key."""
    where = f"rules file {str(path)!r}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{where}: more than {MAX_FILE_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}") from None
    for key in document:
        if key != "rule":
            raise ConfigError(f"{where}: unknown key {key!r:.60}; rules are tables [[rule]]")
    tables = document.get("rule", [])
    if not isinstance(tables, list):
        raise ConfigError(f"{where}: rules are tables [[rule]], in two brackets")
    rules = []
    for number, table in enumerate(tables, start=1):
        try:
            if not isinstance(table, dict):
                raise ValueError("is no table")
            rules.append(rule_from(table, f"{path.name} rule {number}"))
        except ValueError as error:
            raise ConfigError(f"{where}, rule {number}: {error}") from None
    return RuleSet(rules)
