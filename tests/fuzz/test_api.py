"""A short run of `tests.fuzz.api`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.api import fuzz


@pytest.mark.timeout(400)
def test_document_is_kept(tmp_path: Path) -> None:
    status, told = fuzz(tmp_path, 90, 2, 1)
    assert status == 0, told[-20_000:]
