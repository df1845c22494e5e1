"""Users and rules in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from broker.auth.api import BackendError
from broker.auth.postgresql import PostgresqlDriver
from broker.auth.sql import PooledDatabase, Query
from tests.integration.sql_cases import TABLES, SqlCases, World, opened, started
from tests.kit.certificates import Chain
from tests.kit.databases import PASSWORD, Postgresql, running
from tests.kit.mqtt_client import DEADLINE_S


@pytest.fixture(scope="module")
def server() -> Iterator[Postgresql]:
    """One for all tests; those that stop it start it again."""
    with running(Postgresql) as postgresql:
        yield postgresql


@pytest.fixture(scope="module")
def world(server: Postgresql, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Users, rules and a node."""
    create = "CREATE USER broker PASSWORD 'let me ''read'''"
    server.execute(*TABLES, create, "GRANT SELECT ON mqtt_user, mqtt_acl, other_user TO broker")
    yield from started("postgresql", server, tmp_path_factory.mktemp("postgresql"))


class TestPostgresql(SqlCases):
    """All that holds for every database."""


def driver(server: Postgresql, parameters: str = "", timeout_s: float = 5.0) -> PostgresqlDriver:
    """As the superuser, whom nobody needs to be."""
    return PostgresqlDriver(server.url + parameters, "postgres", PASSWORD, timeout_s)


async def refused(opened: PooledDatabase, query: Query) -> None:
    with pytest.raises(BackendError):
        await opened.select(query, ())


async def test_values_that_cannot_be_there(server: Postgresql) -> None:
    """A name that is no number is none of the numbers."""
    query = Query("SELECT 1 AS one WHERE 5 = ${username} AND '%s' = '%' || 's'")
    async with opened(driver(server)) as database:
        assert await database.select(query, ("5",)) == [{"one": 1}]
        for value in ("six", "5 OR 1=1", "a\0b", None):
            assert list(await database.select(query, (value,))) == []
        with pytest.raises(BackendError, match="UndefinedTable"):
            await database.select(Query("SELECT 1 FROM nowhere WHERE 1 = ${username}"), ("1",))
        assert len(await database.select(Query("SELECT generate_series(1, 10000)"), ())) == 10_000
        with pytest.raises(BackendError, match="10001 rows"):
            await database.select(Query("SELECT generate_series(1, 10001)"), ())


async def test_questions_that_nobody_waits_for(server: Postgresql) -> None:
    """There, too, they end; and no more connections are made than there may be."""
    slow = Query("SELECT pg_sleep(20)")
    counts = Query("SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'ours' AND state = 'active'")
    ours = driver(server, "?application_name=ours", timeout_s=0.3)
    async with opened(driver(server)) as watch, opened(ours, timeout_s=0.3) as asked:

        async def working(number: int) -> None:
            with trio.fail_after(DEADLINE_S):
                while (await watch.select(counts, ()))[0]["n"] != number:
                    await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(asked.select, slow, ())
            await working(2)
            nursery.cancel_scope.cancel()
        await working(0)
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(refused, asked, slow)
        await working(0)


async def test_tls(server: Postgresql, tmp_path: Path) -> None:
    """With libpq's parameters in the URL."""
    query = Query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    async with opened(driver(server, f"?sslmode=verify-full&sslrootcert={server.chain.ca}")) as database:
        assert await database.select(query, ()) == [{"ssl": True}]
    other = Chain(tmp_path / "other")
    async with opened(driver(server, f"?sslmode=verify-full&sslrootcert={other.ca}")) as database:
        with pytest.raises(BackendError, match="certificate verify failed"):
            await database.select(query, ())
