"""What the docs say of settings is what the declaration says."""

from __future__ import annotations

import re
from pathlib import Path

from broker.config import SETTINGS

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def test_defaults_with_reasons_are_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \| (.+) \|$", SECURITY.read_text(), re.MULTILINE)
    known = {setting.name: setting for setting in SETTINGS}
    assert len(rows) > 20
    for name, default, reason in rows:
        assert default == known[name].default, name
        assert reason.endswith("."), name
