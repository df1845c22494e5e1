"""Users and rules in a real MariaDB."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.sql_cases import TABLES, SqlCases, World, started
from tests.kit.databases import Mariadb, running


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all tests; those that stop it start it again."""
    with running(Mariadb) as server:
        server.execute(
            *TABLES,
            "CREATE USER broker IDENTIFIED BY 'let me ''read'''",
            "GRANT SELECT ON mqtt.* TO broker",
        )
        yield from started("mysql", server, tmp_path_factory.mktemp("mariadb"))


class TestMariadb(SqlCases):
    """All that holds for every database."""
