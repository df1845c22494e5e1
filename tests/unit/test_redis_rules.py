"""Rules in Redis hashes."""

from __future__ import annotations

import pytest

from broker.auth.api import ALLOW, DENY, IGNORE, PUBLISH, READ, BackendError, Principal
from broker.auth.redis_rules import MAX_RULES, fields_of, parse, table_of
from broker.auth.rules import judge_of
from broker.peer import Peer


def test_words_and_json() -> None:
    assert table_of("a/#", "publish") == {"permission": "allow", "action": "publish", "topics": ["a/#"]}
    written = '{"permission": "deny", "action": "subscribe", "qos": [0, 1], "retain": false}'
    expected = {"permission": "deny", "action": "subscribe", "qos": [0, 1], "retain": False, "topics": ["eq a/#"]}
    assert table_of("eq a/#", written) == expected
    assert table_of("a", '{"qos": 1, "retain": "all"}') == {
        "permission": "allow",
        "action": "all",
        "qos": 1,
        "topics": ["a"],
    }


def test_what_denies_comes_first() -> None:
    rules = parse({b"a/#": b"all", b"a/z": b'{"permission": "deny"}', b"b": b"publish"})
    judge = judge_of(rules, Principal("ann", "c", Peer(), "ann"))
    assert judge.decide(PUBLISH, "a/y", 0, False) == ALLOW
    assert judge.decide(PUBLISH, "a/z", 0, False) == judge.decide(READ, "a/z", 0, False) == DENY
    assert judge.decide(READ, "b", 0, False) == IGNORE


@pytest.mark.parametrize(
    "topic, value, part",
    [
        (b"a", b"write", "neither publish"),
        (b"a", b"", "neither publish"),
        (b"a", b"[]", "neither publish"),
        (b"a", b'{"topics": ["b"]}', "neither publish"),
        (b"a", b'{"qos": 3}', "qos"),
        (b"a", b"[" * 100_000, "neither publish"),
        (b"a/#/b", b"all", "topics"),
        (b"\xff", b"all", "codec"),
    ],
)
def test_what_makes_no_sense(topic: bytes, value: bytes, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        parse({topic: value})


def test_replies_of_both_protocols() -> None:
    assert fields_of([b"a", b"1", b"b", b"2"]) == fields_of({b"a": b"1", b"b": b"2"}) == {b"a": b"1", b"b": b"2"}
    assert fields_of([]) == {}
    for wrong in (None, 1, [b"a"], [b"a", 1], {b"a": None}, [b"x", b"y"] * (MAX_RULES + 1)):
        with pytest.raises(BackendError):
            fields_of(wrong)
