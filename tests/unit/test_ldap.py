"""Values in DNs and filters, and what is refused in the configuration of LDAP."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldap3.utils.dn import parse_dn

from broker.auth.ldap import LdapUsers, escape_dn, escape_filter, spelling
from broker.errors import ConfigError
from broker.options import read_options
from broker.options.authentication import Ldap


@pytest.mark.parametrize(
    "value, escaped",
    [
        ("ann", "ann"),
        ("Smith, J+(*)", "Smith\\, J\\+(*)"),
        ("#1 a#b", "\\#1 a\\#b"),
        (" a b ", "\\ a b\\ "),
        (" ", "\\ "),
        ('"<>;=\\', '\\"\\<\\>\\;\\=\\\\'),
        ("a\0b\nc", "a\\00b\\0ac"),
        ("Zoë", "Zoë"),
    ],
)
def test_dn(value: str, escaped: str) -> None:
    assert escape_dn(value) == escaped


@pytest.mark.parametrize(
    "value, escaped", [("*)(uid=*", "\\2a\\29\\28uid=\\2a"), ("\\2a", "\\5c2a"), ("a\0", "a\\00"), ("Zoë", "Zoë")]
)
def test_filter(value: str, escaped: str) -> None:
    assert escape_filter(value) == escaped


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_value_stays_one_value(value: str) -> None:
    parsed = parse_dn(f"uid={escape_dn(value)},dc=org", escape=False)
    assert [name for name, _, _ in parsed] == ["uid", "dc"]
    assert not set(escape_filter(value)) & set("*()\0")


def test_spelling() -> None:
    assert spelling("ANN  b ", ["x", "Ann B"]) == "Ann B"
    assert spelling("ann", ["annex"]) == "ann"
    assert spelling("ann", []) == "ann"


@pytest.mark.parametrize(
    "options, part",
    [
        ({"bind_dn": "cn=admin"}, "bind_dn: must contain"),
        ({"bind_dn": "uid=${username}", "base": "dc=org"}, "may contain no placeholder"),
        ({"bind_dn": "cn=admin", "base": "dc=org"}, "needs both"),
        ({"base": "dc=org", "filter": "(objectClass=*)"}, "filter: must contain"),
        ({"bind_dn": "uid=${password}"}, "unknown placeholder"),
        ({"bind_dn": "uid=${username}", "url": "http://h"}, "url: must be"),
        ({"bind_dn": "uid=${username}", "url": "ldap://h/dc=org"}, "url: must be"),
        ({"bind_dn": "uid=${username}", "url": "ldap://ann:secret@h"}, "url: "),
        ({"bind_dn": "uid=${username}", "url": "ldaps://h", "start_tls": True}, "start_tls: "),
        ({"bind_dn": "uid=${username}", "url": "ldaps://h", "ca_certs": "/nowhere"}, "ca_certs: "),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, options: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        LdapUsers(read_options(Ldap, {"url": "ldap://localhost", **options}))
    assert "secret" not in str(caught.value)
