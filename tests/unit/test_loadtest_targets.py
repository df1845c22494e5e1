"""Brokers that a load test starts."""

from __future__ import annotations

import pytest

from loadtest.targets import environment


def test_settings_of_a_node_do_not_reach_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_LOADTEST_PASSWORD", "secret")
    monkeypatch.setenv("ROOKERY_MAX_CONNECTIONS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert environment()["XDG_CACHE_HOME"] == "/x"
    assert not [name for name in environment() if name.startswith("ROOKERY_")]
