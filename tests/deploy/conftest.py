"""What the tests of this folder share: the composed cluster as processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.deploy.composed import World, composed


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three nodes and their store; tests leave them running."""
    with composed(tmp_path_factory.mktemp("composed")) as found:
        yield found
