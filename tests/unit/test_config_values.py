"""Kinds of values: text to value and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.options.listener import Listeners
from broker.values import (
    NEVER_S,
    Assignments,
    Choice,
    Duration,
    Endpoint,
    FilePath,
    Flag,
    HttpAddress,
    Integer,
    Kind,
    Lifetime,
    Name,
    Size,
    Store,
    Text,
    WholeSeconds,
    hide_password,
)

KINDS: list[Kind] = [
    Text(), Name(), Flag(), Integer(), Size(), Duration(), WholeSeconds(), Lifetime(), Choice("a", "b"), FilePath(),
    Listeners(), HttpAddress(), Store(), Assignments("x", "y"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1500", 1500), ("64KiB", 65536), ("1 MiB", 1 << 20), ("1.5kib", 1536), ("2GB", 2_000_000_000)],
)
def test_size(text: str, value: int) -> None:
    assert Size().parse(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("10", 10), ("10s", 10), ("250ms", 0.25), ("1.5m", 90), ("2h", 7200), ("7d", 604800)]
)
def test_duration(text: str, value: float) -> None:
    assert Duration().parse(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1e3", "s", "10 s s", "ten", "1,5s", "\u0661s", "9" * 40])
def test_no_number(text: str) -> None:
    for kind in (Size(), Duration(), Lifetime()):
        with pytest.raises(ValueError, match="must be"):
            kind.parse(text)


@pytest.mark.parametrize("word", ["true", "YES", "on", "1"])
def test_true(word: str) -> None:
    assert Flag().parse(word) is True


@pytest.mark.parametrize("word", ["false", "No", "off", "0"])
def test_false(word: str) -> None:
    assert Flag().parse(word) is False


def test_never() -> None:
    assert Lifetime().parse("Never") == NEVER_S
    assert Lifetime().show(NEVER_S) == "never"


@given(st.integers(min_value=0, max_value=1 << 52))
@settings(max_examples=50)
def test_shown_sizes_and_lifetimes_read_back(value: int) -> None:
    assert Size().parse(Size().show(value)) == value
    assert Lifetime().parse(Lifetime().show(value)) == value
    assert Duration().parse(Duration().show(value / 1024)) == pytest.approx(value / 1024)


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("tcp://127.0.0.1:1883", [("127.0.0.1", 1883)]),
        ("TCP://h", [("h", 1883)]),
        ("tcp://h:0,tcp://h:0", [("h", 0), ("h", 0)]),
        ("tcp://:1884", [("0.0.0.0", 1884)]),
        ("tcp://[fe80::1%eth0]:1/", [("fe80::1%eth0", 1)]),
        ("tcp://a:1 tcp://[::1]", [("a", 1), ("::1", 1883)]),
    ],
)
def test_listeners(text: str, endpoints: list[tuple[str, int]]) -> None:
    parsed = Listeners().parse(text)
    assert [(endpoint.host, endpoint.port) for endpoint in parsed] == endpoints
    assert Listeners().parse(Listeners().show(parsed)) == parsed


@pytest.mark.parametrize(
    ("raw", "pairs"),
    [
        ("", ()),
        ([], ()),
        ("n=x", (("n", "x"),)),
        ("n=x, m=Y", (("n", "x"), ("m", "y"))),
        (("n=x", "a=b=y"), (("n", "x"), ("a=b", "y"))),
    ],
)
def test_assignments(raw: object, pairs: tuple[tuple[str, str], ...]) -> None:
    kind = Assignments("x", "y")
    assert kind.parse(raw) == pairs
    assert kind.parse(kind.show(pairs)) == pairs


@pytest.mark.parametrize("raw", ["n", "n=z", "=x", "n=x,n=y", "a/b=x", ["n = x"], [1], {"n": "x"}, "n=+,=x"])
def test_no_assignments(raw: object) -> None:
    with pytest.raises(ValueError, match=r"has|must be"):
        Assignments("x", "y").parse(raw)


@pytest.mark.parametrize("text", ["off", "OFF", "127.0.0.1:18083", "[::1]:1", ":80", "http://h:1/"])
def test_http_address_reads_back(text: str) -> None:
    kind = HttpAddress()
    value = kind.parse(text)
    assert (value is None) == (text.lower() == "off")
    assert kind.parse(kind.show(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "embedded",
        "memory",
        "redis://h",
        "rediss://h:1/5",
        "redis://u:p@[::1]:1",
        "unix:///run/x?db=2",
        "rediss://h?ssl_ca_certs=/a.pem&db=1",
        "redis+sentinel://a,b:1,[::1]:2/main",
        "rediss+sentinel://u:p@a,b/main?db=1&sentinel_password=x&ssl_ca_certs=/a.pem",
        "redis+cluster://a:1,b:2",
    ],
)
def test_stores(text: str) -> None:
    assert Store().parse(text) == text


def test_endpoint_text() -> None:
    assert str(Endpoint("tcp", "::1", 5)) == "tcp://[::1]:5"
    assert Endpoint("http", "h", 5).authority == "h:5"


def test_password_is_hidden() -> None:
    assert hide_password("redis://u:p@h:1/0") == "redis://***@h:1/0"
    assert hide_password("redis://h:1/0") == "redis://h:1/0"
    assert hide_password("redis+sentinel://h/m?sentinel_password=x&db=1").endswith("/m?sentinel_password=***&db=1")


_RAW = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30),
    st.lists(st.text(max_size=20), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.from_regex(r"(tcp|redis|unix)://[a-z\[\]:@/0-9%?=]{0,20}", fullmatch=True),
)  # fmt: skip


@given(raw=_RAW)
@settings(max_examples=150)
def test_anything_else_is_a_value_error(raw: object) -> None:
    for kind in KINDS:
        try:
            value = kind.parse(raw)
        except ValueError:
            continue
        assert isinstance(kind.show(value), str)


def test_truth_values_of_toml_are_words_of_a_choice() -> None:
    assert [Choice("off", "on").parse(each) for each in (True, False)] == ["on", "off"]
    assert [Choice("default", "true", "false").parse(each) for each in (True, False)] == ["true", "false"]
    with pytest.raises(ValueError, match="one of a, b"):
        Choice("a", "b").parse(True)
