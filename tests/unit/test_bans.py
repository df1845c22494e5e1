"""Bans: how they are kept, and whom they are about."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.limits.bans import (
    CLIENT_ID,
    CLIENT_ID_PREFIX,
    IP,
    USERNAME,
    USERNAME_PREFIX,
    Ban,
    BanError,
    Bans,
    read_ban,
    read_bans,
)

NOW = 1000.0


def test_a_ban_is_read_as_it_was_written() -> None:
    ban = Ban(CLIENT_ID, "a:b*", 5.5, "why", "anna", True)
    assert ban.name == "client_id:a:b*"
    again = read_ban(ban.name, ban.document())
    assert [getattr(again, name) for name in Ban.__slots__] == [getattr(ban, name) for name in Ban.__slots__]
    assert json.loads(Ban(IP, "10.0.0.1").document()) == {"until": None, "reason": "", "by": ""}


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("client_id:a", b""),
        ("client_id:a", b"[]"),
        ("client_id:a", b'{"until": "never"}'),
        ("client_id:a", b'{"until": []}'),
        ("client_id:", b"{}"),
        ("ip:300.1.1.1", b"{}"),
        ("ip:", b"{}"),
        ("country:x", b"{}"),
        ("nothing", b"{}"),
        ("client_id:a", b"\xff"),
    ],
)
def test_what_is_no_ban(name: str, document: bytes) -> None:
    with pytest.raises(BanError):
        read_ban(name, document)


@pytest.mark.parametrize(
    ("given_", "name"),
    [
        ("10.0.0.1", "ip:10.0.0.1"),
        ("10.0.0.1/32", "ip:10.0.0.1"),
        ("10.0.0.77/24", "ip:10.0.0.0/24"),
        ("2001:DB8:0::1", "ip:2001:db8::1"),
        ("2001:db8::1/64", "ip:2001:db8::/64"),
        ("0.0.0.0/0", "ip:0.0.0.0/0"),
    ],
)
def test_addresses_have_one_form(given_: str, name: str) -> None:
    assert Ban(IP, given_).name == name


def test_whom_they_are_about() -> None:
    found = [Ban(CLIENT_ID, "a*"), Ban(CLIENT_ID_PREFIX, "sensor-"), Ban(USERNAME, "anna"), Ban(USERNAME_PREFIX, "x")]
    bans = Bans(found)
    assert [each for each in ("a*", "ab", "a", "sensor-", "sensor-7", "Sensor-7") if bans.of_client_id(each, NOW)] == [
        "a*",
        "sensor-",
        "sensor-7",
    ]
    assert bans.of_username("anna", NOW) is not None
    assert bans.of_username("xaver", NOW) is not None
    assert bans.of_username("a*", NOW) is None
    assert bans.of_username("", NOW) is None
    assert bans.of_username(None, NOW) is None
    assert bans.of_client_id("anna", NOW) is None
    assert len(bans) == 4


def test_networks() -> None:
    bans = Bans([Ban(IP, "10.1.0.0/16"), Ban(IP, "192.0.2.7"), Ban(IP, "2001:db8::/32")])
    for host, banned in (
        ("10.1.255.1", True),
        ("10.2.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8:1::1", True),
        ("2001:db9::1", False),
        ("::ffff:192.0.2.7", True),
        ("fe80::1%eth0", False),
        ("", False),
        ("local", False),
    ):
        assert (bans.of_host(host, NOW) is not None) == banned, host
    for mapped, host in (("::ffff:192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.64/122", "192.0.2.77")):
        bans = Bans([Ban(IP, mapped)])  # clients are known by their IPv4 addresses
        assert bans.of_host(host, NOW) is not None and bans.of_host("192.0.2.200", NOW) is None
    assert Ban(IP, "::ffff:192.0.2.7").name == "ip:192.0.2.7"
    everybody = Bans([Ban(IP, "0.0.0.0/0")])
    assert everybody.of_host("1.2.3.4", NOW) is not None
    assert everybody.of_host("::1", NOW) is None


@given(
    st.lists(st.ip_addresses(v=4).flatmap(lambda a: st.integers(0, 32).map(lambda n: f"{a}/{n}"))), st.ip_addresses()
)
def test_networks_as_the_library_has_them(
    networks: list[str], host: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    bans = Bans([Ban(IP, each) for each in networks])
    expected = any(host in ipaddress.ip_network(each, strict=False) for each in networks)
    mapped = getattr(host, "ipv4_mapped", None)
    if mapped is None:
        assert (bans.of_host(str(host), NOW) is not None) == expected


def test_they_end() -> None:
    bans = Bans([Ban(CLIENT_ID, "a", NOW), Ban(IP, "10.0.0.0/8", NOW), Ban(IP, "10.0.0.1", NOW + 5)])
    assert bans.of_client_id("a", NOW - 1) is not None
    assert bans.of_client_id("a", NOW) is None
    assert bans.of_host("10.0.0.2", NOW - 1) is not None
    assert bans.of_host("10.0.0.2", NOW) is None
    assert bans.of_host("10.0.0.1", NOW + 4) is not None


def test_documents_are_told_apart() -> None:
    documents = {ban.name: ban.document() for ban in (Ban(CLIENT_ID, "a"), Ban(USERNAME, "b", NOW - 1))} | {
        "x:y": b"{}"
    }
    bans, over, wrong = read_bans(documents, NOW)
    assert [ban.name for ban in bans] == ["client_id:a"]
    assert list(over) == ["username:b"]
    assert len(wrong) == 1
