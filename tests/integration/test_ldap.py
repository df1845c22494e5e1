"""Users in a real OpenLDAP: bound to directly, and searched for."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from tests.kit.broker_process import BrokerProcess
from tests.kit.databases import PlainSlapd, Slapd, prepared

DIRECT, SEARCH, STARTTLS, LDAPS, UNTRUSTED, PLAIN_ONLY = "direct", "search", "starttls", "ldaps", "untrusted", "other"


def entry(dn: str, password: str = "", **attributes: str) -> str:
    """One in LDIF, with a salted hash; base64 because names may be anything."""
    lines = [f"dn:: {base64.b64encode(dn.encode()).decode()}"]
    if password:
        digest = hashlib.sha1(password.encode() + b"salt").digest() + b"salt"
        attributes["userPassword"] = "{SSHA}" + base64.b64encode(digest).decode()
    for name, value in attributes.items():
        lines.append(f"{name}:: {base64.b64encode(value.encode()).decode()}")
    return "\n".join(lines) + "\n\n"


def person(name: str, escaped: str, password: str, **attributes: str) -> str:
    """A user below ou=people."""
    dn = f"uid={escaped},ou=people,dc=example,dc=org"
    return entry(dn, password, objectClass="inetOrgPerson", uid=name, cn=name, sn=name, **attributes)


LDIF = (
    entry("dc=example,dc=org", objectClass="domain", dc="example")
    + entry("ou=people,dc=example,dc=org", objectClass="organizationalUnit", ou="people")
    + entry("cn=finder,dc=example,dc=org", "find 'em", objectClass="person", cn="finder", sn="finder")
    + person("ann", "ann", "open, sesame")
    + person("root", "root", "all of it", employeeType="TRUE")
    + person("Smith, J+(*)", "Smith\\, J\\+(*)", "odd")
    + person("Zoë", "Zoë", "ümlaut")
    + person("twin", "twin", "one")
    + entry("cn=twin,ou=people,dc=example,dc=org", "two", objectClass="inetOrgPerson", uid="twin", cn="twin", sn="twin")
)


@pytest.fixture(scope="module")
def server() -> Iterator[Slapd]:
    """One for all tests; those that stop it start it again."""
    with prepared(Slapd) as slapd:
        slapd.load(LDIF)
        slapd.start()
        yield slapd


@pytest.fixture(scope="module")
def node(server: Slapd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A listener for each way to ask."""
    folder = tmp_path_factory.mktemp("ldap")
    common = {"type": "ldap", "timeout": TIMEOUT, "pool": 2, "superuser_attribute": "employeeType"}
    direct = {"bind_dn": "uid=${username},ou=people,dc=example,dc=org", **common}
    search = {"bind_dn": "cn=finder,dc=example,dc=org", "bind_password": "find 'em", **common}
    search["base"] = "ou=people,dc=example,dc=org"
    ca_certs = str(server.chain.ca)
    ldaps = f"ldaps://localhost:{server.tls_port}"
    authentication = [
        {"name": DIRECT, "url": server.url, **direct},
        {"name": SEARCH, "url": server.url, **search},
        {"name": STARTTLS, "url": f"ldap://localhost:{server.port}", "start_tls": True, "ca_certs": ca_certs, **search},
        {"name": LDAPS, "url": ldaps, "ca_certs": ca_certs, **direct},
        {"name": UNTRUSTED, "url": ldaps, **direct},
        {"name": PLAIN_ONLY, "url": f"ldaps://localhost:{server.port}", "ca_certs": ca_certs, **direct},
    ]
    (folder / "acl").write_text("pattern readwrite users/%u/#\n")
    process = node_with(folder, authentication, [{"type": "acl_file", "path": str(folder / "acl")}])
    names = (DIRECT, SEARCH, STARTTLS, LDAPS, UNTRUSTED, PLAIN_ONLY)
    process.listen = tuple(f"tcp://127.0.0.1:0?name={name}&authentication={name}" for name in names)
    process.start()
    yield process
    process.stop()


class Door:
    """One listener of the node, with the face that `login` needs."""

    def __init__(self, node: BrokerProcess, name: str) -> None:
        number = (DIRECT, SEARCH, STARTTLS, LDAPS, UNTRUSTED, PLAIN_ONLY).index(name)
        host, _, port = node.listeners[number].removeprefix("tcp://").partition("?")[0].rpartition(":")
        self.host = host
        self.port = int(port)


@pytest.mark.parametrize("name", [DIRECT, SEARCH, STARTTLS, LDAPS])
async def test_users(node: BrokerProcess, name: str) -> None:
    """Right, wrong, unknown; names with characters that mean something in a DN or a filter."""
    door = Door(node, name)
    assert await login(door, "ann", "open, sesame") == WELCOME
    assert await login(door, "Smith, J+(*)", "odd") == WELCOME
    assert await login(door, "Zoë", "ümlaut") == WELCOME
    assert await login(door, "ann", "wrong") == WRONG
    assert await login(door, "zoe", "open, sesame") == WRONG
    assert await login(door, "finder", "find 'em") == WRONG
    assert await login(door, "ann", b"\xff\xfe") == WRONG
    assert await login(door, None, None) == NOBODY


@pytest.mark.parametrize("name", [DIRECT, SEARCH])
async def test_an_empty_password_is_none(node: BrokerProcess, name: str) -> None:
    """The server would take it for an anonymous bind, and say yes."""
    door = Door(node, name)
    for username in ("ann", "root", "zoe"):
        assert await login(door, username, "") == WRONG
        assert await login(door, username, None) == WRONG


HOSTILE = (
    "*",
    "a*",
    "*)(uid=*",
    "*)(uid=*))(|(uid=*",
    "ann)(|(objectClass=*",
    "ann)(&",
    "\\2a",
    "ann\\",
    "ann,ou=people,dc=example,dc=org",
    "ann+cn=x",
    "ann,dc=example",
    "#616e6e",
    "x" * 5_000,
)


@pytest.mark.parametrize("name", [DIRECT, SEARCH])
@pytest.mark.parametrize("username", HOSTILE, ids=range(len(HOSTILE)))
async def test_what_a_name_says_is_no_filter(node: BrokerProcess, name: str, username: str) -> None:
    """Nor a part of a DN."""
    assert await login(Door(node, name), username, "open, sesame") == WRONG


async def test_two_entries_are_nobody(node: BrokerProcess) -> None:
    """Whose password should count?"""
    assert await login(Door(node, SEARCH), "twin", "one") == UNAVAILABLE
    assert "more than one entry" in node.log()


@pytest.mark.parametrize("name", [DIRECT, SEARCH])
async def test_the_spelling_is_that_of_the_directory(node: BrokerProcess, name: str) -> None:
    """It compares without case and spaces around; rules do not."""
    for username in ("ANN", "ann ", " Ann"):
        client, connack = await connect(Door(node, name), username, "open, sesame")
        assert connack.reason_code == WELCOME
        assert await client.publish("users/ann/a", b"x", qos=1) < 0x80
        assert await client.publish(f"users/{username}/a", b"x", qos=1) == 0x87
        await client.close()


@pytest.mark.parametrize("name", [DIRECT, SEARCH])
async def test_superusers(node: BrokerProcess, name: str) -> None:
    """An attribute says who is one."""
    for username, password, code in (("root", "all of it", 0x10), ("ann", "open, sesame", 0x87)):
        client, _ = await connect(Door(node, name), username, password)
        assert await client.publish("anything", b"x", qos=1) in (0, code)
        assert (await client.publish("anything", b"x", qos=1) < 0x80) == (username == "root")
        await client.close()


@pytest.mark.parametrize("name", [UNTRUSTED, PLAIN_ONLY])
async def test_certificates_are_checked(node: BrokerProcess, name: str) -> None:
    """Signed by somebody unknown; no TLS at all."""
    assert await login(Door(node, name), "ann", "open, sesame") == UNAVAILABLE


@pytest.mark.parametrize("name", [DIRECT, STARTTLS])
async def test_a_directory_that_is_down(node: BrokerProcess, server: Slapd, name: str) -> None:
    """Nobody comes in until it is back; STARTTLS is not forgotten then."""
    door = Door(node, name)
    assert await login(door, "ann", "open, sesame") == WELCOME
    server.stop()
    assert await login(door, "ann", "open, sesame") == UNAVAILABLE
    server.start()
    assert await login_when_back(door, "ann", "open, sesame") == WELCOME
    server.stop()
    server.start()
    assert await login_when_back(door, "ann", "open, sesame") == WELCOME


async def test_a_directory_that_says_nothing(node: BrokerProcess, server: Slapd) -> None:
    """The time-out ends it, for more than the pool takes too; meanwhile others are served."""
    door = Door(node, SEARCH)
    client, _ = await connect(door, "ann", "open, sesame")
    server.pause()
    try:
        await still_serves(door, client, "users/ann/a", [("ann", "open, sesame"), ("zoe", "x")] * 3)
    finally:
        server.resume()
    assert await login_when_back(door, "ann", "open, sesame") == WELCOME
    await client.close()


async def test_no_password_without_the_tls_that_was_asked_for(tmp_path: Path) -> None:
    """A server (or somebody in between) that has no STARTTLS gets none."""
    with prepared(PlainSlapd) as server:
        server.load(LDIF)
        server.start()
        options: dict[str, object] = {"type": "ldap", "url": server.url, "timeout": TIMEOUT}
        options["bind_dn"] = "uid=${username},ou=people,dc=example,dc=org"
        for start_tls, code in ((False, WELCOME), (True, UNAVAILABLE)):
            node = node_with(tmp_path / f"{start_tls}", [{**options, "start_tls": start_tls}])
            node.start()
            try:
                assert await login(node, "ann", "open, sesame") == code
            finally:
                node.stop()
