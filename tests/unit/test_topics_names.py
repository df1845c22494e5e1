"""Valid names and filters, share names and the examples of the standard's section 4.7."""

from __future__ import annotations

import pytest

from broker.errors import PeerError
from broker.topics.names import check_topic_filter, check_topic_name, has_wildcard, matches, split_shared
from broker.topics.retained import RetainedIndex
from broker.topics.trie import TopicTrie

LONGEST = "é" * 32767 + "a"  # 65535 bytes

VALID_NAMES = [
    "a",
    "/",
    "//",
    "/a",
    "a/",
    " ",
    "a b/c.d",
    "*/>",
    "$SYS/x",
    "$share",
    "$share/a",
    "$queue/a",
    "Accounts payable",
    "温度/é/😀",
    LONGEST,
]
BAD_NAMES = ["", "+", "#", "a/+", "a/#", "a+b", "a#", "a\x00b", LONGEST + "b", "😀" * 16384]

VALID_FILTERS = [
    *[name for name in VALID_NAMES if name != "$share/a"],
    "+",
    "#",
    "+/#",
    "/+",
    "+/+",
    "sport/tennis/player1/#",
    "sport/tennis/#",
    "+/tennis/#",
    "sport/+/player1",
    "$SYS/#",
    "$queue/+",
    "$share/g/#",
    "$share/g/a",
    "$share/g//",
    "$share/g/$SYS/#",
    "$share/g h*>.$/+/a",
]
BAD_FILTERS = [
    "",
    "a\x00",
    "sport/tennis#",
    "sport/tennis/#/ranking",
    "#/",
    "##",
    "+#",
    "sport+",
    "+a",
    "a/++/b",
    LONGEST + "b",
    "$share/",
    "$share/g",
    "$share/g/",
    "$share//a",
    "$share/+/a",
    "$share/a#/a",
    "$share/a+b/a",
    "$share/g\x00/a",
    "$share/g/a#",
    "$share/g/+a/b",
    "$share/g/" + LONGEST,
]


@pytest.mark.parametrize("topic", VALID_NAMES, ids=lambda text: repr(text[:24]))
def test_valid_name(topic: str) -> None:
    check_topic_name(topic)


@pytest.mark.parametrize("topic", BAD_NAMES, ids=lambda text: repr(text[:24]))
def test_bad_name(topic: str) -> None:
    with pytest.raises(PeerError, match="topic name") as caught:
        check_topic_name(topic)
    assert caught.value.reason_code == 0x90
    assert len(caught.value.text) < 400


@pytest.mark.parametrize("topic_filter", VALID_FILTERS, ids=lambda text: repr(text[:24]))
def test_valid_filter(topic_filter: str) -> None:
    check_topic_filter(topic_filter)


@pytest.mark.parametrize("topic_filter", BAD_FILTERS, ids=lambda text: repr(text[:24]))
def test_bad_filter(topic_filter: str) -> None:
    with pytest.raises(PeerError, match="topic filter") as caught:
        check_topic_filter(topic_filter)
    assert caught.value.reason_code == 0x8F
    assert len(caught.value.text) < 400


@pytest.mark.parametrize(
    "topic_filter, expected",
    [
        ("a/b", ("", "a/b")),
        ("$share", ("", "$share")),
        ("$shared/g/a", ("", "$shared/g/a")),
        ("$queue/a", ("", "$queue/a")),
        ("a/$share/g/b", ("", "a/$share/g/b")),
        ("$share/g/a/b", ("g", "a/b")),
        ("$share/g//", ("g", "/")),
        ("$share/g/$share/h/a", ("g", "$share/h/a")),
    ],
)
def test_split_shared(topic_filter: str, expected: tuple[str, str]) -> None:
    assert split_shared(topic_filter) == expected


@pytest.mark.parametrize("topic_filter", ["$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a"])
def test_split_shared_refuses_what_is_incomplete(topic_filter: str) -> None:
    with pytest.raises(PeerError) as caught:
        split_shared(topic_filter)
    assert caught.value.reason_code == 0x8F


@pytest.mark.parametrize("topic_filter, expected", [("a/b", False), ("$SYS", False), ("+/a", True), ("a/#", True)])
def test_has_wildcard(topic_filter: str, expected: bool) -> None:
    assert has_wildcard(topic_filter) is expected


MATCHES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/tennis/player1/#", "sport/tennis/player10", False),
    ("sport/#", "sport", True),
    ("sport/#", "sport/", True),
    ("sport/#", "sports", False),
    ("#", "sport", True),
    ("#", "/", True),
    ("/#", "/", True),
    ("/#", "a", False),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("+/+/#", "a/b", True),
    ("+/+/#", "a", False),
    ("+/tennis/#", "sport/tennis", True),
    ("#", "$SYS/monitor/Clients", False),
    ("+/monitor/Clients", "$SYS/monitor/Clients", False),
    ("+/#", "$SYS", False),
    ("$SYS/#", "$SYS/monitor/Clients", True),
    ("$SYS/#", "$SYS", True),
    ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
    ("a/+/c", "a/$b/c", True),
    ("a/#", "a/$b", True),
    ("/+/c", "/$b/c", True),
    ("ACCOUNTS", "Accounts", False),
    ("a/b", "a/b", True),
    ("a/b", "a/b/", False),
    ("a//b", "a/b", False),
    ("a/+/b", "a//b", True),
    ("a/*/c", "a/b/c", False),
    ("a/*/c", "a/*/c", True),
    ("a/>", "a/b", False),
    ("a.b", "a.b", True),
    ("a/ ", "a/ ", True),
    ("a/", "a/ ", False),
]


@pytest.mark.parametrize("topic_filter, topic_name, expected", MATCHES)
def test_example(topic_filter: str, topic_name: str, expected: bool) -> None:
    assert matches(topic_filter, topic_name) is expected
    trie: TopicTrie[str, str] = TopicTrie()
    trie.set(topic_filter, "key", "value")
    assert trie.match(topic_name) == (["value"] if expected else [])
    index = RetainedIndex()
    index.add(topic_name)
    assert list(index.match(topic_filter)) == ([topic_name] if expected else [])
