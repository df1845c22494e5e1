"""Nodes that die, stop, or are restarted while clients use everything at once (G9, G8, G17)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault import faults
from tests.fault.world import endure
from tests.history import availability
from tests.history.run import require
from tests.history.workload import Mix

pytestmark = pytest.mark.timeout(150)


@pytest.mark.parametrize(
    "fault", [faults.kill_node, faults.kill_node_for_long, faults.kill_all_nodes], ids=lambda fault: str(fault.__name__)
)
async def test_g9_nodes_are_killed(tmp_path: Path, fault: faults.Fault) -> None:
    _, _, problems = await endure(tmp_path, fault)
    require(problems)


@pytest.mark.parametrize("patience_s", [2.0, 20.0], ids=["clients-leave", "clients-wait"])
@pytest.mark.parametrize(
    "fault", [faults.pause_node, faults.pause_node_for_long], ids=lambda fault: str(fault.__name__)
)
async def test_g8_a_node_is_paused_and_wakes(tmp_path: Path, fault: faults.Fault, patience_s: float) -> None:
    _, _, problems = await endure(tmp_path, fault, mix=Mix(patience_s=patience_s))
    require(problems)


async def test_g17_all_nodes_are_restarted_one_after_the_other(tmp_path: Path) -> None:
    made, timeline, problems = await endure(tmp_path, faults.rolling_restart, mix=Mix(churn=0))
    require(problems + availability.disconnections(timeline, made.nodes.names))
