"""Questions to web services: no value of a client becomes anything but a value."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auth.api import ConnectRequest
from broker.auth.template import Lookup, lookup_of
from broker.auth.web_question import Improper, WebQuestion
from broker.errors import ConfigError
from broker.options import Blocks
from broker.options.authentication import HttpAuthentication
from broker.peer import Peer

MORE = frozenset({"password", "topic"})
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


def question(
    url: str = "http://127.0.0.1/auth", method: str = "post", body: str = "", headers: Sequence[str] = ()
) -> WebQuestion:
    return WebQuestion(url, method, body, headers, MORE)


def lookup(username: str | None, password: str | None = None) -> Lookup:
    return lookup_of(ConnectRequest("c1", username, None, Peer("10.0.0.1")), password=password)


@given(TEXT, TEXT)
def test_a_json_body_has_the_values_and_nothing_else(username: str, password: str) -> None:
    made = question(body="user=${username}&pass=${password}&both=<${username}>&fixed=1").render(
        lookup(username, password)
    )
    assert made.content is not None and made.content.isascii()
    assert json.loads(made.content) == {"user": username, "pass": password, "both": f"<{username}>", "fixed": "1"}
    assert made.url == "http://127.0.0.1/auth"


@given(TEXT, TEXT)
def test_a_query_has_the_values_and_nothing_else(username: str, password: str) -> None:
    made = question("http://127.0.0.1/auth?a=1", "get", "user=${username}&pass=${password}").render(
        lookup(username, password)
    )
    parts = urlsplit(made.url)
    assert (parts.scheme, parts.netloc, parts.path, parts.fragment) == ("http", "127.0.0.1", "/auth", "")
    assert parse_qsl(parts.query, keep_blank_values=True) == [("a", "1"), ("user", username), ("pass", password)]
    assert made.content is None


@given(TEXT)
def test_a_path_keeps_its_segments(username: str) -> None:
    try:
        made = question("http://127.0.0.1/users/${username}/x").render(lookup(username))
    except Improper:
        assert not username.strip(".") or set(username) & set("/\\") or not username.isprintable()
        return
    parts = urlsplit(made.url)
    assert parts.netloc == "127.0.0.1" and not parts.query and not parts.fragment
    _, users, name, last = parts.path.split("/")
    assert (users, last) == ("users", "x") and name.strip(".") and "%2F" not in name


@pytest.mark.parametrize("username", [None, "", ".", "..", "...", "a/b", "../admin", "a\\b", "a\nb", "a\r\nHost: b"])
def test_what_cannot_be_in_a_path(username: str | None) -> None:
    with pytest.raises(Improper):
        question("http://127.0.0.1/users/${username}").render(lookup(username))


@given(TEXT)
def test_a_header_stays_one_header(username: str) -> None:
    subject = question(headers=["X-User: <${username}>", "Authorization: Bearer abc"])
    try:
        made = subject.render(lookup(username))
    except Improper:
        assert not username.isascii() or not username.isprintable()
        return
    assert ("X-User", f"<{username}>") in made.headers and ("Authorization", "Bearer abc") in made.headers
    assert len(made.headers) == 4


def test_missing_values_are_empty() -> None:
    made = question(body="user=${username}&pass=${password}&cert=${cert_common_name}").render(lookup(None))
    assert made.content is not None
    assert json.loads(made.content) == {"user": "", "pass": "", "cert": ""}
    assert question(body="user=${username}&x=${client_attrs.site}").names == {"username", "client_attrs.site"}


@pytest.mark.parametrize(
    "url",
    [
        "auth",
        "ftp://host/",
        "http://",
        "http:///x",
        "http://host:0/",
        "http://host:port/",
        "http://${username}/auth",
        "http://host${username}/auth",
        "http://host:${username}/auth",
        "http://ann:secret@host/auth",
        "http://${username}@host/auth",
        "http://host/auth#x",
        "http://host/${nobody}",
        "http://host/${",
        "http://[::1/",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        question(url)


@pytest.mark.parametrize("header", ["Host: other", "Content-Length: 1", "nonsense", "X: ${nobody}", ": x", "a b: c"])
def test_headers_that_are_refused(header: str) -> None:
    with pytest.raises(ConfigError):
        question(headers=[header])


def test_headers_survive_being_text() -> None:
    """Workers get their settings as text."""
    kind = Blocks(HttpAuthentication)
    lines = ["Authorization: Bearer a,b c&d=%41", "X-User:${username}"]
    [read] = kind.parse([{"type": "http", "url": "http://127.0.0.1/a b?x=${username}", "headers": lines}])
    assert isinstance(read, HttpAuthentication)
    assert read.headers == ("Authorization:Bearer a,b c&d=%41", "X-User:${username}")
    assert kind.parse(kind.show((read,))) == (read,)
    assert "Bearer" not in kind.masked((read,))
    for wrong in ("a: b\r\nc: d", "a b: c", ": c", "a: \u00e4", 7):
        with pytest.raises(ValueError, match="headers"):
            kind.parse([{"type": "http", "url": "http://127.0.0.1/", "headers": [wrong]}])
