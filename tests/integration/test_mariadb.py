"""Users and rules in a real MariaDB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.auth.api import BackendError
from broker.auth.mysql import MysqlDriver
from broker.auth.sql import Query
from tests.integration.sql_cases import TABLES, SqlCases, World, opened, started
from tests.kit.certificates import Chain
from tests.kit.databases import Mariadb, running


@pytest.fixture(scope="module")
def server() -> Iterator[Mariadb]:
    """One for all tests; those that stop it start it again."""
    with running(Mariadb) as mariadb:
        create = "CREATE USER broker IDENTIFIED BY 'let me ''read'''"
        mariadb.execute(create, "GRANT SELECT ON mqtt.* TO broker")
        yield mariadb


@pytest.fixture(scope="module")
def world(server: Mariadb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Users, rules and a node."""
    server.execute(*TABLES)
    yield from started("mysql", server, tmp_path_factory.mktemp("mariadb"))


class TestMariadb(SqlCases):
    """All that holds for every database."""


def driver(server: Mariadb, parameters: str = "") -> MysqlDriver:
    """As the node has it."""
    return MysqlDriver(server.url + parameters, "broker", "let me 'read'", 5.0)


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES,ANSI_QUOTES"])
async def test_values_arrive_as_they_are(server: Mariadb, mode: str) -> None:
    """Whatever the server makes of quotes and backslashes."""
    server.execute(f"SET GLOBAL sql_mode = '{mode}'")
    query = Query("SELECT HEX(${username}) AS digits, ${clientid} IS NULL AS nothing, '%' AS percent")
    try:
        async with opened(driver(server)) as database:
            for value in ("ann", "'", "\\'", '"', "\\", "a\0b", "ü", "\U0001f600", "%s", "\u00bf'"):
                [row] = await database.select(query, (value, None))
                assert row == {"digits": value.encode().hex().upper(), "nothing": 1, "percent": "%"}
    finally:
        server.execute("SET GLOBAL sql_mode = DEFAULT")


async def test_tls(server: Mariadb, tmp_path: Path) -> None:
    """Checked as soon as there is an authority to check it with."""
    variables = "information_schema.SESSION_STATUS"
    query = Query(f"SELECT VARIABLE_VALUE AS cipher FROM {variables} WHERE VARIABLE_NAME = 'Ssl_cipher'")
    async with opened(driver(server, f"?ssl_ca={server.chain.ca}")) as database:
        [row] = await database.select(query, ())
        assert str(row["cipher"]).startswith("TLS_")
    async with opened(driver(server, f"?ssl_ca={Chain(tmp_path / 'other').ca}")) as database:
        with pytest.raises(BackendError, match="certificate verify failed"):
            await database.select(query, ())
