"""Documents that neither this program nor a similar version wrote: taken as wrong ones, by nodes and by commands."""

from __future__ import annotations

import json

import pytest

from broker.auth import stored_users
from broker.auth.stored_rules import rules_of, stored_rule
from broker.auth.stored_users import StoredUserAccounts, read_entry
from broker.cli.rules import rule_lines
from broker.cli.users import user_line
from broker.limits.bans import BanError, read_ban
from broker.options.authentication import StoredUsers
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from cluster.redis.registry import decoded, encoded
from cluster.registry import USERS

DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "document", [DEEP, b'{"until": %b}' % (b"9" * 400), b'{"until": NaN}', b'{"until": "nan"}', b'{"reason": %b' % DEEP]
)
def test_bans(document: bytes) -> None:
    with pytest.raises(BanError):
        read_ban("client_id:a", document)


@pytest.mark.parametrize("document", [DEEP, b'{"attributes": %b' % DEEP, b"\xff", b"[]"])
def test_users(document: bytes) -> None:
    entry = read_entry("anna", document)
    assert entry.disabled and entry.credential
    assert user_line("anna", document) == "anna unreadable"


async def test_users_are_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as their documents are the same; the log of a node does not fill with them."""
    told: list[object] = []
    monkeypatch.setattr(stored_users._log, "warning", lambda event, **fields: told.append(fields["username"]))
    registry = MemoryCluster("a", ClusterLimits()).registry
    accounts = StoredUserAccounts(StoredUsers(), registry)
    await registry.change(USERS, {"anna": DEEP, "bob": b"[]"})
    await accounts.refresh()
    await accounts.refresh()
    assert told == ["anna", "bob"]
    await registry.change(USERS, {"bob": b"{"})
    await accounts.refresh()
    assert told == ["anna", "bob", "bob"]


def test_names_of_users() -> None:
    assert read_entry(decoded(b"\xff"), b"{}").credential
    assert user_line(decoded(b"\xff"), b"{}") == r"'\udcff'"


@pytest.mark.parametrize("pattern", ["a{99999999999}", "(" * 5000 + ")" * 5000])
def test_rules(pattern: str) -> None:
    document = json.dumps({"permission": "allow", "topics": ["#"], "username_match": pattern}).encode()
    with pytest.raises(ValueError, match="no regular expression"):
        stored_rule("r", document)
    rules_of({"r": document})
    assert "cannot be understood" in rule_lines({"r": document})[0]


def test_names_of_rules() -> None:
    [line] = rule_lines({decoded(b"\xff"): DEEP})
    assert line.startswith(r"'\udcff': cannot be understood")


@pytest.mark.parametrize("name", [b"plain", "grün".encode(), b"client_id:\xff\xfe", b"\xc3", b"\xed\xa0\x80"])
def test_names(name: bytes) -> None:
    assert encoded(decoded(name)) == name
