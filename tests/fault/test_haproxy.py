"""A client behind HAProxy that is moved from node to node by killing them (G9)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fault.haproxy import find_haproxy, measure
from tests.history.run import require


@pytest.mark.skipif(
    find_haproxy() is None and not os.environ.get("CI"),
    reason="no haproxy: install the Debian package of that name, as `make packages` does for root",
)
@pytest.mark.timeout(120)
async def test_g9_a_client_behind_a_load_balancer(tmp_path: Path) -> None:
    report = await measure(tmp_path, 15, 1000)
    require(report.problems)
    assert report.kills >= 2 and report.moves >= report.kills
    assert report.lost == 0 and report.duplicated == 0
