"""Rules, attributes and ends that come with credentials; and that docs/tokens.md tells of them truly."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from broker.auth.api import ALLOW, DENY, IGNORE, PUBLISH, READ, SUBSCRIBE, Principal
from broker.auth.claims import MAX_RULES, attributes_of, expiry_of, json_object, name_of, rules_of, text_of, truth_of
from broker.auth.rules import judge_of
from broker.config import load
from broker.peer import Peer

PAGE = (Path(__file__).parents[2] / "docs" / "tokens.md").read_text("utf-8")
ANN = Principal("ann", "c1", Peer("10.0.0.1"), "ann", attributes={"site": "north"})


def decide(acl: object, action: int, topic: str, qos: int = 0, retain: bool = False) -> int | None:
    return judge_of(rules_of(acl), ANN).decide(action, topic, qos, retain)


def test_lists_by_action() -> None:
    acl = {"pub": ["${username}/up"], "sub": ["${clientid}/#"], "all": ["eq a/+", "${client_attrs.site}/chat"]}
    assert decide(acl, PUBLISH, "ann/up", 2, True) == ALLOW
    assert decide(acl, PUBLISH, "bob/up") == IGNORE
    assert decide(acl, SUBSCRIBE, "ann/up") == IGNORE
    assert decide(acl, SUBSCRIBE, "c1/x") == decide(acl, READ, "c1/x") == ALLOW
    assert decide(acl, SUBSCRIBE, "a/+") == ALLOW and decide(acl, SUBSCRIBE, "a/b") == IGNORE
    assert decide(acl, PUBLISH, "north/chat") == decide(acl, SUBSCRIBE, "north/chat") == ALLOW
    assert decide({"pub": "one"}, PUBLISH, "one") == ALLOW
    assert decide({}, PUBLISH, "one") == decide([], PUBLISH, "one") == IGNORE


def test_tables_in_order() -> None:
    acl = [
        {"permission": "deny", "action": "publish", "topic": "a/secret"},
        {"permission": "allow", "action": "all", "topics": ["a/#", "b"], "qos": "0,1", "retain": 0},
        {"permission": "allow", "action": "subscribe", "topic": "c", "qos": 2, "retain": "all"},
    ]
    assert decide(acl, PUBLISH, "a/secret") == DENY
    assert decide(acl, PUBLISH, "a/b", 1) == ALLOW
    assert decide(acl, PUBLISH, "a/b", 2) == IGNORE
    assert decide(acl, PUBLISH, "a/b", 1, True) == IGNORE
    assert decide(acl, SUBSCRIBE, "c", 2) == ALLOW and decide(acl, PUBLISH, "c", 2) == IGNORE


@pytest.mark.parametrize(
    "acl",
    [
        "a",
        7,
        {"pub": [7]},
        {"pub": [""]},
        {"pub": ["a\ud800"]},
        {"publish": ["a"]},
        {"pub": {"a": "b"}},
        ["a"],
        [{"permission": "allow", "topic": "a", "qos": 3}],
        [{"permission": "allow", "topic": "a", "qos": []}],
        [{"permission": "allow", "topic": "a", "qos": True}],
        [{"permission": "allow", "topic": "a", "qos": "x"}],
        [{"permission": "allow", "topic": "a", "retain": "maybe"}],
        [{"permission": "allow", "topic": "a", "retain": None}],
        [{"permission": "allow", "topic": "a", "action": "everything"}],
        [{"permission": "allow", "topic": "a", "action": ["publish"]}],
        [{"topic": "a", "permission": True}],
        [{"topic": "a"}],
        [{"permission": "allow", "topic": "$share/g/a"}],
        {"pub": ["a"] * 1, "sub": ["a"], "all": None, "x": []},
        [{"permission": "allow", "topic": "a"}] * (MAX_RULES + 1),
    ],
)
def test_rules_that_are_refused(acl: object) -> None:
    with pytest.raises(ValueError, match=r"acl|share|permission|action|text|true or false|topic"):
        rules_of(acl)


def test_scalars() -> None:
    assert [truth_of(value) for value in (True, 1, "true", None, False, 0, "false")] == [True] * 3 + [False] * 4
    assert text_of(True) == "true" and text_of(7) == "7" and text_of("x") == "x"
    assert expiry_of(None, 0) is None and expiry_of(100, 0) == 100.0 and expiry_of(1e15, 0) is None
    assert attributes_of(None) == {} and attributes_of({"a": 1}) == {"a": "1"}
    assert name_of("ann") == "ann"
    for wrong in (float("nan"), "100", True, [1]):
        with pytest.raises(ValueError, match="no time"):
            expiry_of(wrong, 0)
    for name in (None, "", 7, "a\0", "\udc00", "x" * 65536):
        with pytest.raises(ValueError, match="no name"):
            name_of(name)
    with pytest.raises(ValueError, match="deep"):
        json_object(b'{"a":' * 100_000)


def test_the_examples_of_the_page() -> None:
    tokens = [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
    assert len(tokens) == 2
    for token in tokens:
        assert rules_of(token["acl"])
    tables = [tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
    assert [list(table) for table in tables] == [
        ["listen", "authentication"],
        ["authentication"],
        ["authentication", "authorization"],
    ]


def test_the_configurations_of_the_page(tmp_path: Path) -> None:
    for number, text in enumerate(re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert load({}, {}, path).settings.authentication
