"""MySQL and MariaDB, with PyMySQL in threads.

PyMySQL has no parameters that travel apart from the query. So a value becomes a literal of hexadecimal digits with
its character set before it (`_utf8mb4 X'616c696365'`): whatever the value, the server's modes or character set, the
text around it means the same. (A user variable could carry it too, but compares with columns of its own collation
only.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from broker.auth.base import told_of
from broker.auth.sql import PooledDatabase, Query, Row, SqlUsers, Values
from broker.auth.sql_rules import SqlRuleSource
from broker.errors import ConfigError
from broker.options.authentication import MysqlUsers
from broker.options.authorization import MysqlRules
from cluster.registry import Registry

try:
    import pymysql
    from pymysql.cursors import DictCursor
except ImportError as error:
    raise ConfigError("MySQL and MariaDB need the extra mysql: pip install 'rookery[mysql]'") from error

#: What may stand behind the question mark of a URL; a TLS connection is checked against ssl_ca, host name included.
PARAMETERS: Final = ("ssl_ca", "ssl_cert", "ssl_key", "unix_socket")

#: What servers say where a character of a value is none of the column's character set.
_NOT_CONVERTED: Final = frozenset({1267, 1270, 1271, 1366, 3854, 3988})


class MysqlDriver:
    """Implements `SqlDriver`."""

    #: What it says of an answer that makes no sense can be anything.
    errors = (Exception,)

    def __init__(self, url: str, username: str, password: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._parameters: dict[str, Any] = {**parse_url(url), "user": username or None, "password": password.encode()}

    def connect(self, timeout_s: float) -> Any:
        """See `Driver`."""
        return pymysql.connect(
            **self._parameters,
            charset="utf8mb4",
            cursorclass=DictCursor,
            autocommit=True,
            connect_timeout=max(timeout_s, 0.01),
            read_timeout=self._timeout_s,
            write_timeout=self._timeout_s,
            local_infile=False,
        )

    def usable(self, connection: Any) -> bool:
        """See `Driver`. PyMySQL closes by itself what is broken, but not what it lost count of."""
        try:
            connection.ping(reconnect=False)
        except self.errors:
            return False
        return bool(connection.open)

    def fileno(self, connection: Any) -> int:
        """See `Driver`."""
        sock = connection._sock
        return -1 if sock is None else int(sock.fileno())

    def close(self, connection: Any) -> None:
        """See `Driver`."""
        if connection.open:
            connection.close()

    def select(self, connection: Any, query: Query, values: Values) -> Sequence[Row]:
        """See `SqlDriver`."""
        text = [query.parts[0]]
        for value, part in zip(values, query.parts[1:], strict=True):
            text += [literal(value), part]
        try:
            with connection.cursor() as cursor:
                cursor.execute("".join(text))
                rows: Sequence[Row] = cursor.fetchall()
        except pymysql.err.DataError:
            return ()
        except pymysql.err.MySQLError as error:
            foreign = any(value is not None and not value.isascii() for value in values)
            if foreign and error.args and error.args[0] in _NOT_CONVERTED:
                return ()
            raise
        return rows


def literal(value: str | None) -> str:
    """SQL text for a value, of digits alone."""
    return "NULL" if value is None else f"_utf8mb4 X'{value.encode().hex()}'"


def parse_url(url: str) -> dict[str, Any]:
    """The parameters of `pymysql.connect` in mysql://HOST:PORT/DATABASE; ConfigError for any other form."""
    try:
        parts = urlsplit(url)
        port = parts.port or 3306
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise ConfigError(f"url: {error}") from None
    if parts.scheme not in ("mysql", "mariadb") or not parts.hostname or not parts.path.strip("/"):
        raise ConfigError("url: must be mysql://HOST:PORT/DATABASE")
    if parts.username is not None:
        raise ConfigError("url: name and password stand in the options username and password")
    unknown = query.keys() - set(PARAMETERS)
    if unknown:
        raise ConfigError(f"url: unknown parameter {min(unknown)!r:.60}; there are {', '.join(PARAMETERS)}")
    found: dict[str, Any] = {"host": parts.hostname, "port": port, "database": unquote(parts.path.strip("/")), **query}
    if "ssl_ca" not in query and query.keys() & {"ssl_cert", "ssl_key"}:
        raise ConfigError("url: ssl_cert and ssl_key need ssl_ca")
    if "ssl_ca" in query:
        found |= {"ssl_verify_cert": True, "ssl_verify_identity": True}
    return found


def _database(options: MysqlUsers | MysqlRules) -> PooledDatabase:
    driver = MysqlDriver(options.url, options.username, options.password, options.timeout_s)
    return PooledDatabase(driver, options.pool, options.timeout_s)


def make_users(options: MysqlUsers, registry: Registry | None) -> SqlUsers:
    """The authenticator."""
    with told_of("authentication", options.label):
        return SqlUsers(_database(options), options, registry, spelled=True)


def make_rules(options: MysqlRules) -> SqlRuleSource:
    """The rule source."""
    with told_of("authorization", options.label):
        return SqlRuleSource(_database(options), options)
