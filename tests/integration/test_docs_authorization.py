"""The examples of docs/authorization.md are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from broker.auth.rules import KEYS
from broker.cli import main

DOCUMENT = Path(__file__).parents[2] / "docs" / "authorization.md"


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def test_which_rule_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _, text in blocks():
        name = re.match(r"# ([\w.]+)\n", text)
        if name is not None:
            (tmp_path / name[1]).write_text(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acl", "rookery.toml", "rules.toml"]
    count = 0
    for kind, text in blocks():
        if kind != "console":
            continue
        for command, expected in re.findall(r"^\$ rookery (.*)\n((?:(?!\$).*\n)*)", text, re.MULTILINE):
            status = main(shlex.split(command))
            assert capsys.readouterr().out == expected, command
            assert status == (0 if expected.startswith("allow") else 1)
            count += 1
    assert count == 5


def test_every_key_is_explained() -> None:
    explained = re.findall(r"^\| (`.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(explained))) >= set(KEYS)
