"""A client behind HAProxy that is moved from node to node by killing them (G9)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault.haproxy import measure
from tests.history.run import require


@pytest.mark.timeout(120)
async def test_g9_a_client_behind_a_load_balancer(tmp_path: Path) -> None:
    report = await measure(tmp_path, 15, 1000)
    require(report.problems)
    assert report.kills >= 2 and report.moves >= report.kills
    assert report.lost == 0 and report.duplicated == 0
