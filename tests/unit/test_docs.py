"""What the docs say of settings is what the declaration says."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from broker.cli import cli
from broker.config import SETTINGS, load
from loadtest import scenario

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def test_defaults_with_reasons_are_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \| (.+) \|$", SECURITY.read_text(), re.MULTILINE)
    known = {setting.name: setting for setting in SETTINGS}
    assert len(rows) > 20
    for name, default, reason in rows:
        assert default == known[name].default, name
        assert reason.endswith("."), name


BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in sorted(SECURITY.parent.glob("*.md"))
    if path.name != "loadtest.md"  # those are scenarios, below
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))
    if not any(sign in block for sign in ("[[rule]]", "[project", "[[also]]"))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_configurations_in_the_docs_are_valid(block: str, tmp_path: Path) -> None:
    """Some show only a part: what other machines can reach is allowed then."""
    path = tmp_path / "rookery.toml"
    path.write_text(block)
    assert load({"allow_anonymous": True}, {}, path).settings.config == path


def test_scenarios_in_the_docs_can_be_run() -> None:
    text = (SECURITY.parent / "loadtest.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert scenario.parse(tomllib.loads(block), "mine", "mine.toml").clients


COMMANDS = [
    pytest.param(line.strip(), id=f"{path.name}-{line.strip():.60}")
    for path in sorted(SECURITY.parent.glob("*.md"))
    if path.name != "ctl.md"
    for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("rookery ctl ") and "\\" not in line
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_in_the_docs_can_be_given(line: str) -> None:
    """As far as their options and arguments go; nothing is asked."""
    words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)[1:]
    command: click.Command = cli
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=command.name)
        command.parse_args(context, list(words))
        _, found, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command = found
    with command.make_context(command.name, list(words)):
        pass
