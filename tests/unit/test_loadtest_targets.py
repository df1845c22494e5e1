"""Brokers that a load test starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from loadtest import targets
from loadtest.targets import environment


def test_settings_of_a_node_do_not_reach_the_measured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_LOADTEST_PASSWORD", "secret")
    monkeypatch.setenv("ROOKERY_MAX_CONNECTIONS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert environment()["XDG_CACHE_HOME"] == "/x"
    assert not [name for name in environment() if name.startswith("ROOKERY_")]


def test_a_signal_from_the_terminal_does_not_reach_the_measured_broker(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with targets._process(command, tmp_path, "it", lambda: ("127.0.0.1", 1)) as (_, pid):
        assert os.getpgid(pid) == pid != os.getpgid(0)
