"""Operators manage bans, users and rules, the same documents as `rookery ctl` does."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from broker.access import Access
from broker.auth.stored_rules import stored_rule
from broker.auth.stored_users import read_entry
from broker.config import Settings, load
from cluster.registry import BANS, RULES, USERS
from tests.node.admin_kit import desk


async def test_bans_are_made_listed_and_removed(autojump_clock: object) -> None:
    async with desk() as ask:
        made = await ask("bans.add", kind="ip", value="10.1.2.3/16", reason="noise", for_s=60)
        assert made["value"] == "10.1.0.0/16" and made["by"] == "somebody"
        assert abs(made["until_at_ms"] - 1000 * time.time() - 60_000) < 10_000
        await ask("bans.add", kind="client_id", value="a/b", new_only=True)
        await ask("bans.add", kind="username_prefix", value="x")
        found = await ask.all("bans.list", limit=1)
        assert [(each["kind"], each["value"], each["until_at_ms"] is None, each["new_only"]) for each in found] == [
            ("client_id", "a/b", True, True),
            ("ip", "10.1.0.0/16", False, False),
            ("username_prefix", "x", True, False),
        ]
        assert [each["value"] for each in await ask.items("bans.list", kind="ip")] == ["10.1.0.0/16"]
        await ask("bans.remove", kind="ip", value="10.1.0.0/16")
        assert (await ask.refused("bans.remove", kind="ip", value="10.1.0.0/16"))[0] == 404
        assert (await ask.refused("bans.remove", kind="client_id", value=""))[0] == 404
        assert set(await ask.office.registry.documents(BANS)) == {"client_id:a/b", "username_prefix:x"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "ip", "value": "nowhere"},
        {"kind": "shoe_size", "value": "42"},
        {"kind": "client_id", "value": ""},
        {"kind": "client_id", "value": "a", "for_s": 0},
        {"kind": "client_id", "value": "a", "for_s": 1, "until_at_ms": 32503680000000},
        {"kind": "client_id", "value": "a", "until_at_ms": 1},
        {"kind": "client_id"},
    ],
)
async def test_bans_that_cannot_be(arguments: dict[str, Any], autojump_clock: object) -> None:
    async with desk() as ask:
        assert (await ask.refused("bans.add", **arguments))[0] == 400
        assert await ask.office.registry.documents(BANS) == {}


async def test_broken_bans_are_left_out(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.office.registry.change(
            BANS, {"ip:1.2.3.4": b"{", "odd:x": b"{}", "client_id:x": b'{"until": 1e300}', "client_id:y": b"{}"}
        )
        assert [each["value"] for each in await ask.items("bans.list")] == ["y"]


async def test_users_are_made_and_changed(autojump_clock: object) -> None:
    async with desk() as ask:
        made = await ask(
            "users.put", username="ann", password="secret", superuser=True, scram=True, attributes={"site": "b"}
        )
        assert made["password"].startswith("pbkdf2_sha512") and len(made["scram"]) == 2
        entry = read_entry("ann", await _raw(ask, "ann"))
        assert entry.superuser and not entry.disabled and entry.attributes == {"site": "b"}
        before = json.loads(await _raw(ask, "ann"))
        changed = await ask("users.put", username="ann", disabled=True)
        assert changed["disabled"] and changed["superuser"] and changed["attributes"] == {"site": "b"}
        assert json.loads(await _raw(ask, "ann"))["password"] == before["password"]
        await ask("users.put", username="bob", password="other", hash="scram-sha-256")
        found = await ask.all("users.list", limit=1)
        assert [(each["username"], each["password"]) for each in found] == [("ann", made["password"]), ("bob", None)]
        assert await ask("users.show", username="bob") == found[1]
        for shown in (found, made, changed):
            assert "$" not in json.dumps(shown)
        await ask("users.delete", username="ann")
        assert (await ask.refused("users.delete", username="ann"))[0] == 404
        assert (await ask.refused("users.show", username="ann"))[0] == 404


async def _raw(ask: Any, name: str) -> bytes:
    found = await ask.office.registry.document(USERS, name)
    assert isinstance(found, bytes)
    return found


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"username": "new"}, 400),
        ({"username": "", "password": "x"}, 400),
        ({"username": "#x", "password": "x"}, 400),
        ({"username": "x" * 70000, "password": "x"}, 400),
        ({"username": "new", "password": ""}, 400),
        ({"username": "new", "password": "x", "hash": "md5"}, 400),
        ({"username": "new", "password": "x", "attributes": {"not a name": "x"}}, 400),
        ({"username": "new", "password": "x", "more": 1}, 400),
        ({"username": "broken", "password": "x"}, 409),
    ],
)
async def test_users_that_cannot_be(arguments: dict[str, Any], status: int, autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.office.registry.change(USERS, {"broken": b"["})
        assert (await ask.refused("users.put", **arguments))[0] == status
        [shown] = await ask.items("users.list")
        assert shown["username"] == "broken" and shown["readable"] is False


async def test_rules_are_made_listed_and_removed(autojump_clock: object) -> None:
    async with desk() as ask:
        table = {"permission": "allow", "action": "publish", "topics": ["up/${clientid}"]}
        assert await ask("rules.put", name="20-up", rule=table) == {"name": "20-up", "rule": table, "error": None}
        await ask("rules.put", name="10-down", rule={"permission": "deny", "topics": "down/#"})
        await ask.office.registry.change(RULES, {"30-odd": b'{"permission": "perhaps", "topics": "x"}', "40": b"["})
        found = await ask.all("rules.list", limit=1)
        assert [(each["name"], each["error"] is None) for each in found] == [
            ("10-down", True),
            ("20-up", True),
            ("30-odd", False),
            ("40", False),
        ]
        document = await ask.office.registry.document(RULES, "20-up")
        assert document is not None and stored_rule("20-up", document).actions
        await ask("rules.delete", name="40")
        assert (await ask.refused("rules.show", name="40"))[0] == 404
        assert (await ask.refused("rules.delete", name="40"))[0] == 404
        for name, wrong in (
            ("a", {"permission": "allow"}),
            ("a", {"permission": "allow", "topics": ["a/#/b"]}),
            ("a", {"permission": "allow", "topics": ["a"], "unknown": 1}),
            (" ", table),
            ("a\n", table),
        ):
            status, text = await ask.refused("rules.put", name=name, rule=wrong)
            assert status == 400 and text


async def test_rules_are_asked(tmp_path: Any, autojump_clock: object) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\npermission = "deny"\nusername = "ann"\naction = "publish"\ntopics = ["secret/#"]\n')
    config = tmp_path / "rookery.toml"
    config.write_text(f'no_match = "allow"\n[[authorization]]\ntype = "rules_file"\npath = "{rules}"\n')
    settings: Settings = load({}, {}, config).settings
    async with desk(access=Access(settings, None)) as ask:
        asked = {"action": "publish", "topic": "secret/x", "username": "ann"}
        found = await ask("rules.test", **asked)
        assert found["allowed"] is False and "rules.toml" in found["reason"]
        assert (await ask("rules.test", **{**asked, "username": "bob"}))["allowed"]
        assert (await ask("rules.test", **{**asked, "action": "subscribe", "topic": "$share/g/secret/#"}))["allowed"]
        assert (await ask("rules.test", **{**asked, "superuser": True}))["allowed"]
        assert (await ask.refused("rules.test", action="publish", topic="a/#"))[0] == 400
        assert (await ask.refused("rules.test", action="fly", topic="a"))[0] == 400
