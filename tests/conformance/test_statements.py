"""The statements and the tests that claim them fit together."""

from __future__ import annotations

import pytest

from tests.conformance.report import untested
from tests.conformance.statements import V5, V311, claims, load

COUNTS = {V5: 251, V311: 141}


@pytest.mark.parametrize("version", [V5, V311])
def test_every_statement_is_listed_once_with_a_bound_party(version: int) -> None:
    statements = load(version)
    assert len(statements) == COUNTS[version]
    for s in statements.values():
        assert s.binds in ("server", "client", "both"), s.id
        assert s.text.strip(), s.id


@pytest.mark.parametrize("version", [V5, V311])
def test_every_statement_that_binds_a_server_is_tested_or_excused(version: int) -> None:
    assert untested(version) == []


def test_no_test_claims_an_unknown_statement() -> None:
    known = {(version, id_) for version in (V5, V311) for id_ in load(version)}
    assert {claim: tests for claim, tests in claims().items() if claim not in known} == {}


def test_no_statement_is_both_tested_and_excused() -> None:
    claimed = claims()
    both = [s.id for v in (V5, V311) for s in load(v).values() if s.not_applicable and (v, s.id) in claimed]
    assert both == []
