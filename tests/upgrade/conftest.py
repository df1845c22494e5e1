"""The release before this one, once for all tests of the folder."""

from __future__ import annotations

import pytest

from tests.upgrade.previous import Release, unpacked


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """What nodes are upgraded from, and rolled back to."""
    return unpacked(tmp_path_factory.mktemp("previous"))
