"""Rules from tables: who, what, which topics; and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from broker.auth.acl_file import read_acl
from broker.auth.api import ALLOW, ANONYMOUS, DENY, IGNORE, PUBLISH, READ, SUBSCRIBE, Principal
from broker.auth.rules import MATCHED, RuleSet, judge_of, rule_from
from broker.auth.rules_file import read_rules
from broker.auth.stored_rules import rules_of
from broker.errors import ConfigError
from broker.peer import Certificate, Peer

FINGERPRINT = "ab" * 32


def client(
    client_id: str = "c1",
    username: str | None = "ann",
    *,
    proved: bool = True,
    ip: str = "10.0.0.1",
    listener: str = "main",
    certificate: Certificate | None = None,
    **attributes: str,
) -> Principal:
    peer = Peer(ip, 1000, listener, certificate=certificate)
    identity = username if proved and username is not None else ANONYMOUS
    return Principal(identity, client_id, peer, username, attributes=attributes)


def answer(table: dict[str, Any], principal: Principal, topic: str = "t", action: int = PUBLISH, **more: Any) -> int:
    rule = rule_from({"permission": "allow", "topics": "#", **table})
    return judge_of([rule], principal).decide(action, topic, more.get("qos", 0), more.get("retain", False))


CERTIFICATE = Certificate("device", "CN=device,O=Example", fingerprint=FINGERPRINT)


@pytest.mark.parametrize(
    "who",
    [
        {},
        {"username": "ann"},
        {"username": ["bob", "ann"]},
        {"username_match": "a.n"},
        {"client_id": "c1"},
        {"client_id_match": ["d.*", "c[0-9]"]},
        {"ip": "10.0.0.0/8"},
        {"ip": ["192.168.0.1", "10.0.0.1"]},
        {"listener": "main"},
        {"cert_common_name": "device"},
        {"cert_subject": "CN=device,O=Example"},
        {"cert_fingerprint": ":".join(["AB"] * 32)},
        {"client_attrs": {"tenant": "acme"}},
        {"client_attrs": {"tenant": ["other", "acme"], "site": "north"}},
        {"anonymous": False},
        {"username": "ann", "client_id": "c1", "ip": "10.0.0.1"},
    ],
)
def test_who_it_is_about(who: dict[str, Any]) -> None:
    assert answer(who, client(certificate=CERTIFICATE, tenant="acme", site="north")) == ALLOW


@pytest.mark.parametrize(
    "who",
    [
        {"username": "an"},
        {"username_match": "an"},
        {"username_match": "nn"},
        {"client_id": "C1"},
        {"client_id_match": "c"},
        {"ip": "10.0.0.0/31", "username": "bob"},
        {"ip": "10.0.1.0/24"},
        {"ip": "::/0"},
        {"listener": "other"},
        {"cert_common_name": "device"},
        {"client_attrs": {"tenant": "acme", "site": "north"}},
        {"anonymous": True},
        {"username": "ann", "client_id": "c2"},
    ],
)
def test_whom_it_is_not_about(who: dict[str, Any]) -> None:
    assert answer(who, client(tenant="acme")) == IGNORE


@pytest.mark.parametrize("key", ["username_match", "client_id_match"])
def test_names_that_are_too_long_to_be_matched(key: str) -> None:
    """They gain nothing by it: what is denied stays denied, and nothing is allowed."""
    long = client(username="a" * (MATCHED + 1), client_id="a" * (MATCHED + 1))
    short = client(username="a" * MATCHED, client_id="a" * MATCHED)
    for pattern, found in ("a*", True), ("b", False):
        assert answer({key: pattern}, long) == IGNORE
        assert answer({key: pattern, "permission": "deny"}, long) == DENY
        assert answer({key: pattern}, short) == (ALLOW if found else IGNORE)
        assert answer({key: pattern, "permission": "deny"}, short) == (DENY if found else IGNORE)


def test_a_claimed_name_is_not_proved() -> None:
    assert answer({"anonymous": True}, client(proved=False)) == ALLOW
    assert answer({"anonymous": False}, client(proved=False)) == IGNORE
    assert answer({"username_match": ".*"}, client(username=None)) == IGNORE


@pytest.mark.parametrize(
    ("ip", "network", "decision"),
    [
        ("::ffff:10.0.0.1", "10.0.0.0/8", ALLOW),
        ("10.0.0.1", "::ffff:10.0.0.1", ALLOW),
        ("10.0.0.1", "::ffff:10.0.0.0/104", ALLOW),
        ("fe80::1%eth0", "fe80::/10", ALLOW),
        ("2001:db8::1", "2001:db8::/32", ALLOW),
        ("", "0.0.0.0/0", IGNORE),
    ],
)
def test_addresses(ip: str, network: str, decision: int) -> None:
    assert answer({"ip": network}, client(ip=ip)) == decision


@pytest.mark.parametrize(
    ("topic", "name", "decision"),
    [
        ("d/c1/up", "c1", ALLOW),
        ("d/c2/up", "c1", IGNORE),
        ("d/a/b/up", "a/b", IGNORE),
        ("d/x/up", "+", IGNORE),
        ("d/+/up", "+", IGNORE),
        ("d/x/up", "#", IGNORE),
        ("d//up", "", IGNORE),
    ],
)
def test_values_stay_within_their_level(topic: str, name: str, decision: int) -> None:
    assert answer({"topics": "d/${clientid}/up"}, client(name), topic) == decision
    assert answer({"topics": "eq d/${clientid}/up"}, client(name), topic) == decision


def test_no_value_leads_to_the_topics_of_the_broker() -> None:
    assert answer({"topics": "${clientid}/#"}, client("$SYS"), "$SYS/brokers") == IGNORE
    assert answer({"topics": "${clientid}/#"}, client("mine"), "mine/x") == ALLOW
    assert answer({"topics": "x/${clientid}"}, client("$SYS"), "x/$SYS") == ALLOW
    assert answer({"topics": "#"}, client(), "$SYS/brokers") == IGNORE


def test_placeholders() -> None:
    topics = ["u/${username}", "n/${cert_common_name}", "t/${client_attrs.tenant}/#", "p-${clientid}-x"]
    principal = client(certificate=CERTIFICATE, tenant="acme")
    for topic in ("u/ann", "n/device", "t/acme", "t/acme/x", "p-c1-x"):
        assert answer({"topics": topics}, principal, topic) == ALLOW
    for topic in ("u/bob", "n/", "t/other", "u/${username}"):
        assert answer({"topics": topics}, principal, topic) == IGNORE
    assert answer({"topics": topics}, client(username=None), "u/") == IGNORE


def test_qos_and_retain() -> None:
    principal = client()
    assert answer({"qos": [0, 1]}, principal, qos=1) == ALLOW
    assert answer({"qos": [0, 1]}, principal, qos=2) == IGNORE
    assert answer({"qos": 1}, principal, "f/#", SUBSCRIBE, qos=1) == ALLOW
    assert answer({"qos": 1}, principal, "f/#", SUBSCRIBE, qos=0) == IGNORE
    assert answer({"qos": 1}, principal, "f/x", READ) == ALLOW
    assert answer({"qos": 1, "permission": "deny"}, principal, "f/x", READ) == IGNORE
    assert answer({"retain": True}, principal, retain=True) == ALLOW
    assert answer({"retain": True}, principal, retain=False) == IGNORE
    assert answer({"retain": True}, principal, "f/#", SUBSCRIBE) == ALLOW


def test_actions() -> None:
    principal = client()
    assert [answer({"action": "publish"}, principal, action=each) for each in (PUBLISH, SUBSCRIBE, READ)] == [1, 0, 0]
    assert [answer({"action": "subscribe"}, principal, action=each) for each in (PUBLISH, SUBSCRIBE, READ)] == [0, 1, 1]
    assert [answer({}, principal, action=each) for each in (PUBLISH, SUBSCRIBE, READ)] == [1, 1, 1]


def test_filters_as_they_are_written() -> None:
    denied = {"permission": "deny", "action": "subscribe", "topics": ["eq #", "eq +/#"]}
    principal = client()
    judge = judge_of([rule_from(denied), rule_from({"permission": "allow", "topics": "#"})], principal)
    assert judge.decide(SUBSCRIBE, "#", 0, False) == DENY
    assert judge.decide(SUBSCRIBE, "a/#", 0, False) == ALLOW
    assert judge.decide(READ, "a/b", 0, False) == ALLOW
    assert judge.covers("a/#")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({}, "permission is missing"),
        ({"permission": "allow"}, "topics is missing"),
        ({"permission": "maybe", "topics": "a"}, "permission: must be one of allow, deny, not 'maybe'"),
        ({"permission": 1, "topics": "a"}, "permission: must be one of"),
        ({"permission": "allow", "topics": []}, "topics: must be text"),
        ({"permission": "allow", "topics": [1]}, "topics: must be text"),
        ({"permission": "allow", "topics": ["a/#/b"]}, "topics: topic filter 'a/#/b' has a #"),
        ({"permission": "allow", "topics": ["a${clientid}+"]}, "topics: "),
        ({"permission": "allow", "topics": ["${nobody}"]}, "topics: unknown placeholder ${nobody}"),
        ({"permission": "allow", "topics": ["$share/g/a"]}, "topics: "),
        ({"permission": "allow", "topics": "a", "action": "read"}, "action: must be one of publish, subscribe, all"),
        ({"permission": "allow", "topics": "a", "qos": 3}, "qos: must be 0, 1, 2"),
        ({"permission": "allow", "topics": "a", "qos": []}, "qos: must be"),
        ({"permission": "allow", "topics": "a", "qos": True}, "qos: must be"),
        ({"permission": "allow", "topics": "a", "retain": "yes"}, "retain: must be true or false"),
        ({"permission": "allow", "topics": "a", "ip": "10.0.0.300"}, "ip: "),
        ({"permission": "allow", "topics": "a", "client_id_match": "("}, "client_id_match: '(' is no regular"),
        ({"permission": "allow", "topics": "a", "cert_fingerprint": "ab"}, "cert_fingerprint: "),
        ({"permission": "allow", "topics": "a", "client_attrs": "x"}, "client_attrs: must be a table"),
        ({"permission": "allow", "topics": "a", "usrname": "x"}, "unknown key 'usrname'; did you mean username?"),
        ({"permission": "allow", "topics": "a", "username": []}, "username: must be text"),
        ({"permission": "allow", "topics": "a", "username": ""}, "username: must be text"),
    ],
)
def test_refused_tables(table: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        rule_from(table)


def test_many_rules_keep_their_order() -> None:
    tables: list[dict[str, Any]] = [
        {"permission": "deny", "topics": "x/1", "username": "ann"},
        {"permission": "allow", "topics": "x/#"},
        {"permission": "deny", "topics": "x/2", "username": "ann"},
        {"permission": "deny", "topics": "y/#", "client_id": ["c1", "c2"]},
        {"permission": "allow", "topics": "y/#", "username": "ann", "client_id": "c1"},
    ]
    rules = RuleSet(rule_from(each) for each in tables)
    judge = rules.judge(client())
    answers = [judge.decide(PUBLISH, topic, 0, False) for topic in ("x/1", "x/2", "y/1", "z")]
    assert answers == [DENY, ALLOW, DENY, IGNORE]
    assert rules.judge(client("c9", "bob")).decide(PUBLISH, "y/1", 0, False) == IGNORE


# -- files


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_of_rules(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rules.toml",
        """
        [[rule]]
        permission = "deny"
        topics = "secret/#"
        [[rule]]
        permission = "allow"
        username = "ann"
        topics = ["#"]
        """,
    )
    judge = read_rules(path).judge(client())
    assert judge.decide(PUBLISH, "secret/x", 0, False) == DENY
    assert judge.decide(PUBLISH, "x", 0, False) == ALLOW
    entry = judge.find(PUBLISH, "x", 0, False)
    assert entry is not None
    assert entry.origin == "rules.toml rule 2"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[rule]]\npermission="allow"\ntopics="a"\n[[rule]]\npermission="x"\ntopics="a"\n', ", rule 2: permission: "),
        ("[[rules]]\n", "unknown key 'rules'"),
        ("rule = 1\n", "in two brackets"),
        ("rule = [1]\n", "rule 1: is no table"),
        ("[[rule]\n", "line 1"),
    ],
)
def test_wrong_files_of_rules(tmp_path: Path, text: str, told: str) -> None:
    path = write(tmp_path / "rules.toml", text)
    with pytest.raises(ConfigError) as caught:
        read_rules(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_stored_rules_count_in_the_order_of_their_names() -> None:
    documents = {
        "20": b'{"permission": "allow", "topics": "#"}',
        "10": b'{"permission": "deny", "topics": "secret"}',
    }
    judge = rules_of(documents).judge(client())
    assert judge.decide(PUBLISH, "secret", 0, False) == DENY
    assert judge.decide(PUBLISH, "other", 0, False) == ALLOW


def test_a_stored_rule_that_cannot_be_understood_closes_the_rest() -> None:
    documents = {
        "10": b'{"permission": "allow", "topics": "a"}',
        "20": b'{"permission": "deny", "topics": "b", "a key of the future": 1}',
        "30": b'{"permission": "allow", "topics": "#"}',
    }
    judge = rules_of(documents).judge(client())
    assert judge.decide(PUBLISH, "a", 0, False) == ALLOW
    assert judge.decide(PUBLISH, "c", 0, False) == DENY
    assert judge.decide(PUBLISH, "$SYS/c", 0, False) == DENY
    assert not judge.covers("c")


# -- Mosquitto's

ACL = """\
# everybody without a name
topic read news/#
topic anyone

user ann
topic write   up
 topic readwrite both/#
topic deny both/not
topic both/not/this

user Ben O. Smith
topic $SYS/#

pattern read dev/%c/in
pattern write dev/%c/out/%u
pattern deny dev/%c/out/never
"""


@pytest.mark.parametrize(
    ("principal", "topic", "reads", "writes"),
    [
        (client(username=None), "news/x", ALLOW, IGNORE),
        (client(username=None), "anyone", ALLOW, ALLOW),
        (client(), "news/x", IGNORE, IGNORE),
        (client(), "up", IGNORE, ALLOW),
        (client(), "both", ALLOW, ALLOW),
        (client(), "both/not", DENY, DENY),
        (client(), "both/not/this", ALLOW, ALLOW),
        (client(username="Ben O. Smith"), "$SYS/x", ALLOW, ALLOW),
        (client(), "dev/c1/in", ALLOW, IGNORE),
        (client(), "dev/c2/in", IGNORE, IGNORE),
        (client(), "dev/c1/out/ann", IGNORE, ALLOW),
        (client(username="never"), "dev/c1/out/never", DENY, DENY),
        (client(username=None), "dev/c1/out/", IGNORE, IGNORE),
        (client("+"), "dev/c1/in", DENY, DENY),
        (client("a/b"), "dev/a/b/in", DENY, DENY),
        (client("+"), "up", IGNORE, ALLOW),
        (client("+"), "both", ALLOW, ALLOW),
    ],
)
def test_an_acl_file(tmp_path: Path, principal: Principal, topic: str, reads: int, writes: int) -> None:
    judge = read_acl(write(tmp_path / "acl", ACL)).judge(principal)
    # A name that is refused is denied whatever no other line decides.
    refused = DENY if set("+#/") & set(principal.client_id) else IGNORE
    assert judge.decide(READ, topic, 0, False) == (reads or refused)
    assert judge.decide(PUBLISH, topic, 0, False) == (writes or refused)


@pytest.mark.parametrize(
    ("topic_filter", "decision"),
    [("#", ALLOW), ("both/+", ALLOW), ("both/not", DENY), ("up", IGNORE), ("$SYS/#", IGNORE), ("dev/+/in", ALLOW)],
)
def test_what_may_be_subscribed_to_with_an_acl_file(tmp_path: Path, topic_filter: str, decision: int) -> None:
    judge = read_acl(write(tmp_path / "acl", ACL)).judge(client())
    assert judge.decide(SUBSCRIBE, topic_filter, 0, False) == decision


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("topic", "topic filter '' is empty"),
        ("topic maybe a/b", "'maybe' is none of read, write, readwrite and deny"),
        ("topic read a/#/b", "has a #"),
        ("user", "the user name is missing"),
        ("user  ", "the user name is missing"),
        ("topics a", "'topics' is none of topic, pattern and user"),
        ("topic\tread\ta", "is none of topic, pattern and user"),
        (" # no comment", "is none of topic, pattern and user"),
    ],
)
def test_wrong_lines_of_an_acl_file(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_acl(write(tmp_path / "acl", f"topic a\n{line}\n"))
    assert ", line 2: " in str(caught.value)
    assert told in str(caught.value)
