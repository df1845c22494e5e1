"""Queries with placeholders, and what is read of rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from broker.auth.api import ALLOW, BackendError, ConnectRequest
from broker.auth.mysql import literal, parse_url
from broker.auth.postgresql import PostgresqlDriver
from broker.auth.sql import Query, Row, SqlUsers, Values, attributes_of, text_of
from broker.auth.sql_rules import table_of
from broker.errors import ConfigError
from broker.options import read_options
from broker.options.authentication import MysqlUsers, PostgresqlUsers
from broker.peer import Peer


def test_placeholders_are_parameters() -> None:
    query = Query("SELECT 1 FROM t WHERE a = ${username} AND b LIKE '%' AND c = ${clientid} OR d = ${username}")
    assert query.names == ("username", "clientid", "username")
    assert query.parts == ["SELECT 1 FROM t WHERE a = ", " AND b LIKE '%' AND c = ", " OR d = ", ""]
    values = {"username": "ann' --", "clientid": ""}
    assert query.values(values.get) == ("ann' --", None, "ann' --")


@pytest.mark.parametrize(
    "text, part",
    [
        ("SELECT '${username}'", "without quotes"),
        ('SELECT "${username}"', "without quotes"),
        ("SELECT `${username}`", "without quotes"),
        ("SELECT '%${username}'", "without quotes"),
        ("SELECT ${password}", "unknown placeholder"),
        ("SELECT ${username", "not of the form"),
        ("SELECT \0", "nobody can see"),
    ],
)
def test_queries_that_are_refused(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        Query(text)


@pytest.mark.parametrize("value", ["ann", "' OR 1=1 --", "\\", "\0", "\u00bf'", "ü", "\U0001f600", ""])
def test_mysql_values_are_digits(value: str) -> None:
    text = literal(value)
    assert text.startswith("_utf8mb4 X'") and text.endswith("'")
    digits = text.removeprefix("_utf8mb4 X'").removesuffix("'")
    assert set(digits) <= set("0123456789abcdef")
    assert bytes.fromhex(digits).decode() == value


def test_mysql_no_value() -> None:
    assert literal(None) == "NULL"


def test_mysql_urls() -> None:
    assert parse_url("mysql://db/mqtt") == {"host": "db", "port": 3306, "database": "mqtt"}
    assert parse_url("mariadb://[::1]:3307/m%20q") == {"host": "::1", "port": 3307, "database": "m q"}
    secure = parse_url("mysql://db/mqtt?ssl_ca=/ca.pem")
    assert secure["ssl_ca"] == "/ca.pem" and secure["ssl_verify_cert"] and secure["ssl_verify_identity"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://db",
        "mysql:///mqtt",
        "postgresql://db/mqtt",
        "mysql://db:x/mqtt",
        "mysql://db:99999/mqtt",
        "mysql://db/mqtt?nothing",
        "mysql://db/mqtt?passwd=x",
        "mysql://db/mqtt?ssl_key=/k",
        "mysql://ann:secret@db/mqtt",
    ],
)
def test_mysql_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url: ") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://db:5432/mqtt?what=1", "mqtt host", "postgresql://ann:secret@db/mqtt"])
def test_postgresql_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url: ") as caught:
        PostgresqlDriver(url, "ann", "p", 5.0)
    assert "secret" not in str(caught.value)


def test_client_attributes() -> None:
    row = {"attr_site": "north", "attr_floor": 3, "attr_none": None, "attr_": "x", "attr_1": "x", "other": "x"}
    assert attributes_of(row) == {"site": "north", "floor": "3"}


def test_text_of_columns() -> None:
    values = [None, "a", b"a", bytearray(b"a"), memoryview(b"a"), 1, True, False]
    assert [text_of(value) for value in values] == [None, "a", "a", "a", "a", "1", "true", "false"]
    with pytest.raises(BackendError):
        text_of(b"\xff")


def test_rows_of_rules() -> None:
    row: dict[str, object] = {"permission": "ALLOW", "action": "Publish", "topic": "a/#"}
    table = {"permission": "allow", "action": "publish", "topics": ["a/#"]}
    assert table_of(row) == table
    assert table_of({**row, "qos": None, "retain": "all"}) == table
    assert table_of({**row, "qos": 1, "retain": False}) == {**table, "qos": [1], "retain": False}
    assert table_of({**row, "qos": "{0,2}", "retain": "1"}) == {**table, "qos": [0, 2], "retain": True}


@pytest.mark.parametrize("wrong", [{"topic": None}, {"topic": ""}, {"qos": "3"}, {"qos": "x"}, {"retain": "maybe"}])
def test_rows_that_are_no_rules(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        table_of({"permission": "deny", "action": "all", "topic": "a", **wrong})


class OneUser:
    """A database that finds one user by any spelling, as MySQL does."""

    def __init__(self, row: dict[str, object]) -> None:
        self.row = row

    async def select(self, query: Query, values: Values) -> Sequence[Row]:
        return [self.row] if values == ("ANN",) else []

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()


@pytest.mark.parametrize("kind", [PostgresqlUsers, MysqlUsers])
def test_default_queries_tell_how_a_user_is_spelled(kind: type[PostgresqlUsers | MysqlUsers]) -> None:
    options = read_options(kind, {"url": f"{kind.TYPE}://localhost/mqtt"})
    assert options.query.partition(" FROM ")[0] == "SELECT username, password_hash, salt, is_superuser"


async def test_a_user_is_one_however_it_is_spelled() -> None:
    options = read_options(MysqlUsers, {"url": "mysql://localhost/mqtt", "algorithm": "plain"})
    request = ConnectRequest("c1", "ANN", b"sesame", Peer())
    row: dict[str, object] = {"password_hash": "sesame", "username": "ann"}
    subject = SqlUsers(OneUser(row), options, None, spelled=True)
    verdict = await subject.authenticate(request)
    assert (verdict.decision, verdict.username) == (ALLOW, "ann")
    for wrong in (None, "", b""):
        with pytest.raises(BackendError, match="username"):
            await SqlUsers(OneUser({**row, "username": wrong}), options, None, spelled=True).authenticate(request)
    del row["username"]
    with pytest.raises(BackendError, match="username"):
        await subject.authenticate(request)
    assert (await SqlUsers(OneUser(row), options, None).authenticate(request)).decision == ALLOW
