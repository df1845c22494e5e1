"""The normative statements as data, and the mark by which a test says which of them it proves."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import pytest

V311 = 4
V5 = 5
VERSION_NAMES = {V5: "MQTT 5.0", V311: "MQTT 3.1.1"}

_HERE = Path(__file__).parent
_FILES = {V5: "statements_v5.toml", V311: "statements_v311.toml"}

Test = TypeVar("Test", bound=Callable[..., object])


@dataclass(frozen=True)
class Statement:
    """One numbered statement: whom it binds, and why no test shows it where none can."""

    id: str
    text: str
    binds: str
    not_applicable: str | None

    @property
    def binds_server(self) -> bool:
        """Whether a server has to keep it, or to refuse a client that does not."""
        return self.binds in ("server", "both")


EVERY_STORE = ("memory", "embedded")

# (version, id) -> the tests that claim it; filled when the test modules are imported.
_claims: dict[tuple[int, str], set[str]] = {}


def load(version: int) -> dict[str, Statement]:
    """Return the statements of a version, in the standard's order."""
    table = tomllib.loads((_HERE / _FILES[version]).read_text())
    return {
        id_: Statement(id_, entry["text"], entry["binds"], entry.get("not_applicable")) for id_, entry in table.items()
    }


def statement(*, v5: str = "", v311: str = "", stores: tuple[str, ...] = ("memory",)) -> Callable[[Test], Test]:
    """Mark a test with the statements it proves: ids separated by spaces, per version.

    A test that takes the argument `version` runs once for each version it names statements of, and once on
    each of `stores`.
    """

    def mark(test: Test) -> Test:
        versions = []
        for version, ids in ((V5, v5), (V311, v311)):
            for id_ in ids.split():
                _claims.setdefault((version, id_), set()).add(f"{test.__module__.rpartition('.')[2]}.{test.__name__}")
            if ids:
                versions.append(version)
        marked: Test = pytest.mark.statement(versions=versions, stores=stores)(test)
        return marked

    return mark


def claims() -> dict[tuple[int, str], set[str]]:
    """Return which tests claim which statement, over all test modules of this folder."""
    for path in sorted(_HERE.glob("test_*.py")):
        import_module(f"tests.conformance.{path.stem}")
    return _claims
