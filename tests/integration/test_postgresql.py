"""Users and rules in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.sql_cases import TABLES, SqlCases, World, started
from tests.kit.databases import Postgresql, running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all tests; those that stop it start it again."""
    with running(Postgresql) as server:
        server.execute(
            *TABLES,
            "CREATE USER broker PASSWORD 'let me ''read'''",
            "GRANT SELECT ON mqtt_user, mqtt_acl, other_user TO broker",
        )
        yield from started("postgresql", server, tmp_path_factory.mktemp("postgresql"))


class TestPostgresql(SqlCases):
    """All that holds for every database."""
