"""How long bans may be told to last, and what is shown of them."""

from __future__ import annotations

import click
import pytest

from broker.cli.bans import shown, until_of


@pytest.mark.parametrize("text", ["9999999999h", "36501d", "0s", "-5s"])
def test_how_long_is_no_time(text: str) -> None:
    with pytest.raises(click.UsageError):
        until_of(text, None)


def test_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert until_of("36500d", None) == 36500 * 86400 + 1000
    assert until_of(None, None) is None


@pytest.mark.parametrize(
    ("until_s", "text"),
    [
        (None, "for ever"),
        (0.0, "1970-01-01T00:00:00+00:00"),
        (3.6e13, "for ever"),
        (float("inf"), "for ever"),
    ],
)
def test_until_when(until_s: float | None, text: str) -> None:
    assert shown(until_s) == text
