"""PostgreSQL, with psycopg in threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker.auth.base import told_of
from broker.auth.sql import PooledDatabase, Query, Row, SqlUsers, Values
from broker.auth.sql_rules import SqlRuleSource
from broker.errors import ConfigError
from broker.options.authentication import PostgresqlUsers
from broker.options.authorization import PostgresqlRules
from cluster.registry import Registry

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import TransactionStatus
    from psycopg.rows import dict_row
except ImportError as error:
    raise ConfigError("PostgreSQL needs the extra postgres: pip install 'rookery[postgres]'") from error

Connection = psycopg.Connection[dict[str, Any]]

#: libpq takes whole seconds, and no fewer.
_LEAST_CONNECT_S = 2


class PostgresqlDriver:
    """Implements `SqlDriver`. Parameters travel apart from the query; nothing is prepared, so that poolers between
    here and the database do no harm."""

    errors = (psycopg.Error, OSError)

    def __init__(self, url: str, username: str, password: str, timeout_s: float) -> None:
        try:
            given = conninfo_to_dict(url)
            if given.get("password"):
                raise ConfigError("url: the password stands in the option password")
            more = {"user": username, "password": password}
            self._conninfo = make_conninfo(
                url,
                **{name: value for name, value in more.items() if value},
                client_encoding="utf8",
                application_name=given.get("application_name") or "rookery",
            )
        except psycopg.Error as error:
            raise ConfigError(f"url: {' '.join(str(error).split())}") from None
        self._statement_ms = max(int(timeout_s * 1000), 1)

    def connect(self, timeout_s: float) -> Connection:
        """See `Driver`."""
        connection = psycopg.connect(
            self._conninfo,
            connect_timeout=max(round(timeout_s), _LEAST_CONNECT_S),
            autocommit=True,
            prepare_threshold=None,
            row_factory=dict_row,
        )
        try:
            # So that the database, too, does not work for nobody.
            connection.execute("SELECT set_config('statement_timeout', %s, false)", (str(self._statement_ms),))
        except BaseException:
            connection.close()
            raise
        return connection

    def usable(self, connection: Connection) -> bool:
        """See `Driver`."""
        return not connection.closed and connection.info.transaction_status == TransactionStatus.IDLE

    def fileno(self, connection: Connection) -> int:
        """See `Driver`."""
        try:
            return connection.fileno()
        except psycopg.Error:
            return -1

    def close(self, connection: Connection) -> None:
        """See `Driver`."""
        connection.close()

    def select(self, connection: Connection, query: Query, values: Values) -> Sequence[Row]:
        """See `SqlDriver`."""
        text = "%s".join(part.replace("%", "%%") for part in query.parts)
        try:
            # Bytes: the text is the operator's, as it stands in the configuration.
            return connection.execute(text.encode(), values).fetchall()
        except psycopg.DataError:
            return ()


def _database(options: PostgresqlUsers | PostgresqlRules) -> PooledDatabase:
    driver = PostgresqlDriver(options.url, options.username, options.password, options.timeout_s)
    return PooledDatabase(driver, options.pool, options.timeout_s)


def make_users(options: PostgresqlUsers, registry: Registry | None) -> SqlUsers:
    """The authenticator."""
    with told_of("authentication", options.label):
        return SqlUsers(_database(options), options, registry)


def make_rules(options: PostgresqlRules) -> SqlRuleSource:
    """The rule source."""
    with told_of("authorization", options.label):
        return SqlRuleSource(_database(options), options)
