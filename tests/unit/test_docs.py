"""What the docs say of settings is what the declaration says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.config import SETTINGS, load

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
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))
    if "[[rule]]" not in block and "[project" not in block
]


@pytest.mark.parametrize("block", BLOCKS)
def test_configurations_in_the_docs_are_valid(block: str, tmp_path: Path) -> None:
    """Some show only a part: what other machines can reach is allowed then."""
    path = tmp_path / "rookery.toml"
    path.write_text(block)
    assert load({"allow_anonymous": True}, {}, path).settings.config == path
