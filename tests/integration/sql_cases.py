"""What has to hold for users and rules in every database."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
import trio

from broker.auth.scram import make_verifier
from broker.auth.sql import PooledDatabase, SqlDriver, served
from broker.codec.packets import Disconnect
from tests.integration import mosquitto
from tests.integration.logins import (
    NOBODY,
    TIMEOUT,
    UNAVAILABLE,
    WELCOME,
    WRONG,
    connect,
    login,
    login_when_back,
    node_with,
    still_serves,
)
from tests.integration.scram import Scram, scram_connect
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient

C = TypeVar("C")


class Database(Protocol):
    """The server under test."""

    @property
    def url(self) -> str: ...
    def execute(self, *statements: str) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class World:
    """A database with users and rules, and a node that asks it as the user `broker`."""

    def __init__(self, kind: str, database: Database, node: BrokerProcess) -> None:
        self.kind = kind
        self.database = database
        self.node = node


def user(name: str, password: str, salt: str = "pepper", superuser: int = 0, site: str = "") -> str:
    """INSERT of one user."""
    password_hash = hashlib.sha256((salt + password).encode()).hexdigest()
    attribute = f"'{site}'" if site else "NULL"
    return f"INSERT INTO mqtt_user VALUES ('{name}', '{password_hash}', '{salt}', {superuser}, {attribute})"


def rule(name: str, permission: str, action: str, topic: str, qos: str = "NULL", retain: str = "NULL") -> str:
    """INSERT of one rule."""
    return f"INSERT INTO mqtt_acl VALUES ('{name}', '{permission}', '{action}', '{topic}', {qos}, {retain})"


TABLES = (
    """CREATE TABLE mqtt_user (username varchar(100) PRIMARY KEY, password_hash varchar(200), salt varchar(40),
        is_superuser smallint, attr_site varchar(40))""",
    """CREATE TABLE mqtt_acl (username varchar(100), permission varchar(10), action varchar(10), topic varchar(200),
        qos smallint, retain smallint)""",
    "CREATE TABLE other_user (name varchar(100) PRIMARY KEY, verifier varchar(200))",
    user("ann", "open, sesame", site="north"),
    user("o''hara", "it''s mine".replace("''", "'")),
    user("root", "all of it", superuser=1),
    user("broken", "x").replace("'pepper'", "NULL").replace("VALUES ('broken', '", "VALUES ('broken', 'no hash "),
    f"INSERT INTO other_user VALUES ('sam', '{make_verifier('scrambled eggs', 4096)}')",
    rule("ann", "deny", "publish", "own/${username}/closed"),
    rule("ann", "allow", "all", "own/${username}/#"),
    rule("ann", "allow", "all", "site/${client_attrs.site}/#"),
    rule("ann", "allow", "publish", "once/+", qos="1", retain="0"),
    rule("sam", "allow", "all", "sam/#"),
)

_COLUMNS = "username, password_hash, salt, is_superuser, attr_site"


@contextlib.asynccontextmanager
async def opened(driver: SqlDriver[C], timeout_s: float = 5.0) -> AsyncIterator[PooledDatabase]:
    """Without a node: by at most two connections, which are closed in the end."""
    made = PooledDatabase(driver, 2, timeout_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(served, made)
        yield made
        nursery.cancel_scope.cancel()


def started(kind: str, database: Database, folder: Path) -> Iterator[World]:
    """The database has the tables, and its user `broker` may read them."""
    common = {"url": database.url, "username": "broker", "password": "let me 'read'", "timeout": TIMEOUT, "pool": 2}
    node = node_with(
        folder,
        [
            {
                "type": kind,
                "query": f"SELECT {_COLUMNS} FROM mqtt_user WHERE username = ${{username}} AND '%' = '%'",
                "algorithm": "sha256",
                **common,
            },
            {
                "type": kind,
                "name": "others",
                "query": "SELECT name AS username, verifier AS password_hash FROM other_user WHERE name = ${username}",
                **common,
            },
        ],
        [
            {
                "type": kind,
                "query": "SELECT permission, action, topic, qos, retain FROM mqtt_acl WHERE username = ${username}",
                "refresh": "300ms",
                **common,
            }
        ],
    )
    node.start()
    try:
        yield World(kind, database, node)
    finally:
        node.stop()


HOSTILE: Sequence[str] = (
    "' OR '1'='1",
    "ann' -- ",
    "ann'; DROP TABLE mqtt_user; -- ",
    "' UNION SELECT 'ann', '0', '', 1, NULL -- ",
    "\\' OR 1=1 -- ",
    "\\",
    "%s",
    "%(username)s",
    "$1",
    "${username}",
    "ann\u02bc OR 1=1",
    "\u00bf' OR 1=1 -- ",
    "X'616e6e'",
    "ann%",
    "_nn",
    "x" * 5_000,
)


class SqlCases:
    """Subclassed for each database, with a fixture `world`."""

    async def test_users(self, world: World) -> None:
        """Right, wrong, unknown; a name with a quote is a name like any other."""
        node = world.node
        assert await login(node, "ann", "open, sesame") == WELCOME
        assert await login(node, "o'hara", "it's mine") == WELCOME
        assert await login(node, "ann", "wrong") == WRONG
        assert await login(node, "ann", "") == WRONG
        assert await login(node, "ann", None) == WRONG
        assert await login(node, "zoe", "open, sesame") == WRONG
        assert await login(node, "", "open, sesame") in (WRONG, NOBODY)
        assert await login(node, None, None) == NOBODY
        assert await login(node, "ann", b"\xff\xfe") == WRONG
        assert await login(node, "broken", "x") == WRONG  # its hash is none, which the log tells

    async def test_users_of_the_next_in_the_chain(self, world: World) -> None:
        """Whom the first query does not find the second is asked about: with a password, and with SCRAM."""
        assert await login(world.node, "sam", "scrambled eggs") == WELCOME
        assert await login(world.node, "sam", "wrong") == WRONG
        async with await MqttClient.open(world.node.host, world.node.port) as client:
            scram = Scram("sam", "scrambled eggs")
            connack = await scram_connect(client, scram, "c")
            assert connack.reason_code == WELCOME and connack.properties is not None
            scram.check(connack.properties.authentication_data)

    @pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
    async def test_what_a_name_says_is_no_sql(self, world: World, name: str) -> None:
        """Nobody is let in by a name or a client id that tries to be a part of the query, and nothing happens."""
        assert await login(world.node, name, "open, sesame") == WRONG
        assert await login(world.node, name, "") == WRONG
        assert await login(world.node, "zoe", "x", client_id=name[:200]) == WRONG
        assert await login(world.node, "ann", "open, sesame", client_id=name[:200]) == WELCOME

    def test_rules(self, world: World) -> None:
        """The first rule that applies decides; what none is about is refused."""
        node = world.node
        ann = ["-u", "ann", "-P", "open, sesame"]
        root = ["-u", "root", "-P", "all of it"]
        with mosquitto.Subscriber(node, ["own/ann/#"], *ann) as subscriber:
            mosquitto.publish(node, "own/ann/closed", "refused", *ann)
            mosquitto.publish(node, "own/sam/open", "somebody else's", *ann)
            mosquitto.publish(node, "own/ann/open", "hers", *ann)
            mosquitto.publish(node, "own/ann/closed", "superusers may", *root)
            assert subscriber.payloads(2) == ["hers", "superusers may"]

    async def test_reason_codes_of_rules(self, world: World) -> None:
        """With client attributes, QoS and retain."""
        client, connack = await connect(world.node, "ann", "open, sesame")
        assert connack.reason_code == WELCOME

        async def published(topic: str, retain: bool = False) -> int:
            return await client.publish(topic, b"x", qos=1, retain=retain)

        assert await published("site/north/a") in (0, 0x10)
        assert await published("site/south/a") == 0x87
        assert await published("own/ann/closed") == 0x87
        assert await published("once/a") in (0, 0x10)
        assert await published("once/a", retain=True) == 0x87
        codes = (await client.subscribe("own/ann/#", "own/#", "site/north/a", "site/+/a", "#")).reason_codes
        assert [code >= 0x80 for code in codes] == [False, True, False, True, True]
        await client.close()

    async def test_rules_that_change(self, world: World) -> None:
        """They are read again while a client is connected: what it may no longer have it loses."""
        world.database.execute(user("kim", "k"), rule("kim", "allow", "all", "kim/#"))
        client, connack = await connect(world.node, "kim", "k")
        assert connack.reason_code == WELCOME
        assert [code < 0x80 for code in (await client.subscribe("kim/#")).reason_codes] == [True]
        world.database.execute("DELETE FROM mqtt_acl WHERE username = 'kim'")
        gone = await client.expect(Disconnect)
        assert gone.reason_code == 0x87
        await client.close()

    async def test_rules_that_make_no_sense(self, world: World) -> None:
        """One that denies may be among them: the client is not let in without it."""
        world.database.execute(user("odd", "o"), rule("odd", "allow", "all", "o/#"))
        assert await login(world.node, "odd", "o") == WELCOME
        world.database.execute(user("even", "e"), rule("even", "allow", "all", "e/#"), rule("even", "no", "all", "e"))
        assert await login(world.node, "even", "e") == UNAVAILABLE
        assert await login(world.node, "even", "wrong") == WRONG

    async def test_the_spelling_is_that_of_the_database(self, world: World) -> None:
        """Where names are compared without case, the client is still who the database says."""
        code = await login(world.node, "ANN", "open, sesame")
        assert code == (WELCOME if world.kind == "mysql" else WRONG)
        if world.kind == "mysql":
            client, _ = await connect(world.node, "ANN", "open, sesame")
            for topic, right in (("own/ann/a", True), ("own/ANN/a", False)):
                assert (await client.publish(topic, b"x", qos=1) < 0x80) == right
            await client.close()

    async def test_a_database_that_is_down(self, world: World) -> None:
        """Nobody comes in, those who are in stay; when it is back, so are the users."""
        client, _ = await connect(world.node, "ann", "open, sesame")
        world.database.stop()
        assert await login(world.node, "ann", "open, sesame") == UNAVAILABLE
        assert await login(world.node, "zoe", "open, sesame") == UNAVAILABLE
        assert await client.publish("own/ann/a", b"x", qos=1) < 0x80
        world.database.start()
        assert await login_when_back(world.node, "ann", "open, sesame") == WELCOME
        assert await login(world.node, "ann", "wrong") == WRONG
        world.database.stop()
        world.database.start()
        # Connections of before are dead: nobody notices.
        assert await login_when_back(world.node, "ann", "open, sesame") == WELCOME
        await client.close()

    async def test_a_database_that_says_nothing(self, world: World) -> None:
        """The time-out ends it, for more than the pool takes too; meanwhile others are served."""
        client, _ = await connect(world.node, "ann", "open, sesame")
        world.database.pause()
        try:
            await still_serves(world.node, client, "own/ann/a", [("ann", "open, sesame"), ("zoe", "x")] * 3)
        finally:
            world.database.resume()
        assert await login_when_back(world.node, "ann", "open, sesame") == WELCOME
        await client.close()
