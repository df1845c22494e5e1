"""What databases have in common: queries whose placeholders become parameters, and users found by one.

A value from a client never becomes a part of the query's text that could mean anything: see the drivers for how.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

import trio

from broker.auth.api import BackendError, ConnectRequest
from broker.auth.pool import Driver, Pool
from broker.auth.template import Lookup, Template, lookup_of
from broker.auth.users import DirectoryAuthenticator, Entry, entry_of
from broker.errors import ConfigError
from broker.log import get_logger
from broker.options.authentication import Sql
from cluster.registry import Registry

#: A row as the driver gives it, by names of columns.
Row = Mapping[str, object]
#: What stands for the placeholders: None (NULL) for one without a value.
Values = tuple[str | None, ...]

MAX_ROWS: Final = 10_000
_ATTRIBUTE = re.compile(r"attr_([A-Za-z][A-Za-z0-9_]{0,63})")
_QUOTED = re.compile(r"""['"`]\$\{[^}]*\}|\$\{[^}]*\}['"`]""")

C = TypeVar("C")

_log = get_logger("authentication")


class Query:
    """A query with placeholders. ConfigError for one that nobody knows, or that stands in quotes: it would be text."""

    __slots__ = ("names", "parts")

    def __init__(self, text: str) -> None:
        quoted = _QUOTED.search(text)
        if quoted is not None:
            raise ConfigError(f"query: {quoted[0]:.60}: placeholders are parameters and stand without quotes")
        if "\0" in text:
            raise ConfigError("query: has a character that nobody can see")
        try:
            template = Template(text)
        except ValueError as error:
            raise ConfigError(f"query: {error}") from None
        self.names = template.names
        #: The text between the placeholders: one more than there are names.
        self.parts: Sequence[str] = template.render(lambda name: name, quote=lambda name: "\0").split("\0")

    def values(self, lookup: Lookup) -> Values:
        """The parameters for a client."""
        return tuple(lookup(name) or None for name in self.names)


class SqlDriver(Driver[C], Protocol[C]):
    """A library for databases."""

    def select(self, connection: C, query: Query, values: Values) -> Sequence[Row]:
        """All rows; none if a value is of no use where it stands (no number, a character that the database has not).
        Blocks."""
        ...


class Database(Protocol):
    """Where queries are asked."""

    async def select(self, query: Query, values: Values) -> Sequence[Row]:
        """All rows; BackendError if there are more than MAX_ROWS, too."""
        ...

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled; then its connections are closed."""
        ...


class PooledDatabase:
    """Implements `Database` over a pool of connections."""

    def __init__(self, driver: SqlDriver[C], size: int, timeout_s: float) -> None:
        pool = Pool(driver, size, timeout_s)

        async def select(query: Query, values: Values) -> Sequence[Row]:
            return await pool.run(lambda connection: driver.select(connection, query, values))

        self._select = select
        self._close = pool.close

    async def select(self, query: Query, values: Values) -> Sequence[Row]:
        """See `Database`."""
        rows = await self._select(query, values)
        if len(rows) > MAX_ROWS:
            raise BackendError(f"a query gave {len(rows)} rows, at most {MAX_ROWS} are taken")
        return rows

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Database`."""
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            await self._close()


class SqlDirectory:
    """Implements `Directory`: users found by a query. `spelled`: it has to say how the name is spelled, as the database
    finds one user by several spellings, and each would be somebody else here."""

    def __init__(self, database: Database, options: Sql, spelled: bool = False) -> None:
        self._database = database
        self._options = options
        self._spelled = spelled
        self.query = Query(options.query)

    async def find(self, request: ConnectRequest, username: str) -> Entry | None:
        """See `Directory`. Two rows are nobody in particular: BackendError. One that cannot be read lets nobody in."""
        known = lookup_of(request)
        values = self.query.values(lambda name: username if name == "username" else known(name))
        rows = await self._database.select(self.query, values)
        if not rows:
            return None
        if len(rows) > 1:
            raise BackendError(f"the query for a user gave {len(rows)} rows")
        if self._spelled and not text_of(rows[0].get("username")):
            raise BackendError("the query for a user gave no column username, which has to tell how it is spelled")
        return self._entry(rows[0], username)

    def _entry(self, row: Row, username: str) -> Entry:
        try:
            return entry_of(
                text_of(row.get("password_hash")) or "",
                (text_of(row.get("salt")) or "").encode(),
                row.get("is_superuser"),
                username=text_of(row.get("username")) or None,
                attributes=attributes_of(row),
                algorithm=self._options.algorithm,
                place=self._options.salt,
            )
        except (ValueError, ConfigError) as error:
            _log.warning("authentication.user_unreadable", username=username, error=str(error))
            return Entry(None, disabled=True)


class SqlUsers(DirectoryAuthenticator):
    """The authenticator."""

    def __init__(self, database: Database, options: Sql, registry: Registry | None, spelled: bool = False) -> None:
        directory = SqlDirectory(database, options, spelled)
        super().__init__(options.label, directory, registry, options.algorithm)
        self.cached = frozenset(directory.query.names) - {"username"}
        self._database = database

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Authenticator`."""
        async with trio.open_nursery() as nursery:
            await nursery.start(served, self._database)
            await nursery.start(served, super())
            task_status.started()


class _Served(Protocol):
    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None: ...


async def served(each: _Served, *, task_status: trio.TaskStatus[None]) -> None:
    """Its background work, as a nursery starts it."""
    await each.serve(task_status=task_status)


def attributes_of(row: Row) -> Mapping[str, str]:
    """Client attributes: the columns attr_NAME that have a value."""
    found: dict[str, str] = {}
    for column, value in row.items():
        named = _ATTRIBUTE.fullmatch(column)
        text = text_of(value)
        if named is not None and text:
            found[named[1]] = text
    return found


def text_of(value: object) -> str | None:
    """A column's value as text; BackendError for bytes that are none."""
    if value is None:
        return None
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise BackendError("a column is neither text nor UTF-8") from None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
