"""Whose address it is behind proxies: only what a trusted one says counts."""

from __future__ import annotations

import pytest

from broker.transport.forwarded import Trusted, client_address

TRUSTED = Trusted(("10.0.0.0/8", "2001:db8:ffff::/48", "127.0.0.1"))


@pytest.mark.parametrize(
    "host, values, expected",
    [
        ("10.0.0.1", [], ("10.0.0.1", 7)),
        ("10.0.0.1", ["192.0.2.1"], ("192.0.2.1", 0)),
        ("192.0.2.9", ["192.0.2.1"], ("192.0.2.9", 7)),  # anybody can send the header
        ("10.0.0.1", ["6.6.6.6, 192.0.2.1"], ("192.0.2.1", 0)),
        ("10.0.0.1", ["6.6.6.6", "192.0.2.1, 10.2.2.2"], ("192.0.2.1", 0)),
        ("10.0.0.1", ["10.9.9.9, 10.2.2.2"], ("10.9.9.9", 0)),
        ("10.0.0.1", ["192.0.2.1:5000"], ("192.0.2.1", 5000)),
        ("10.0.0.1", ["192.0.2.1:99999"], ("192.0.2.1", 0)),
        ("10.0.0.1", ["[2001:db8::1]:5000"], ("2001:db8::1", 5000)),
        ("10.0.0.1", ["2001:DB8:0::1"], ("2001:db8::1", 0)),
        ("10.0.0.1", ["::ffff:192.0.2.1"], ("192.0.2.1", 0)),
        ("2001:db8:ffff::1", ["192.0.2.1"], ("192.0.2.1", 0)),
        ("::ffff:10.0.0.1", ["192.0.2.1"], ("192.0.2.1", 0)),
        ("10.0.0.1", ["192.0.2.1, unknown"], ("10.0.0.1", 7)),
        ("10.0.0.1", ["192.0.2.1, nonsense, 10.2.2.2"], ("10.2.2.2", 0)),
        ("10.0.0.1", [""], ("10.0.0.1", 7)),
        ("10.0.0.1", [100 * "10.1.1.1,"], ("10.0.0.1", 7)),
        ("10.0.0.1", [1000 * "192.0.2.1," + "10.1.1.1"], ("192.0.2.1", 0)),
        ("", ["192.0.2.1"], ("", 7)),  # a Unix socket
    ],
)
def test_x_forwarded_for(host: str, values: list[str], expected: tuple[str, int]) -> None:
    assert client_address(host, 7, "x-forwarded-for", values, TRUSTED) == expected


@pytest.mark.parametrize(
    "value, expected",
    [
        ("for=192.0.2.1", ("192.0.2.1", 0)),
        ('for=6.6.6.6, For="[2001:db8::1]:4711";proto=https;by=10.0.0.1', ("2001:db8::1", 4711)),
        ("proto=http; for=192.0.2.1:80 ,for=10.3.3.3", ("192.0.2.1", 80)),
        ("for=_hidden", ("10.0.0.1", 7)),
        ('for="unknown"', ("10.0.0.1", 7)),
        ("by=192.0.2.1", ("10.0.0.1", 7)),
        ("before=192.0.2.1", ("10.0.0.1", 7)),
    ],
)
def test_forwarded(value: str, expected: tuple[str, int]) -> None:
    assert client_address("10.0.0.1", 7, "forwarded", [value], TRUSTED) == expected


def test_nobody_is_trusted_by_default() -> None:
    nobody = Trusted(())
    assert "127.0.0.1" not in nobody and None not in nobody
    assert client_address("127.0.0.1", 7, "x-forwarded-for", ["192.0.2.1"], nobody) == ("127.0.0.1", 7)
