"""For all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def logs_as_by_default() -> Iterator[None]:
    """Commands that run in this process configure the logs; the next test, whichever that is, has those of its own."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
