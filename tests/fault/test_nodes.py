"""Nodes that die, stop, or are restarted while clients use everything at once (G9, G8, G17)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault import faults
from tests.fault.world import endure, together
from tests.history import availability
from tests.history.run import require
from tests.history.workload import Mix

pytestmark = pytest.mark.timeout(150)


async def test_g9_nodes_are_killed(tmp_path: Path) -> None:
    async def situation(folder: Path, fault: str) -> list[str]:
        _, _, problems = await endure(folder, getattr(faults, fault))
        return problems

    require(await together(tmp_path, ["kill_node", "kill_node_for_long", "kill_all_nodes"], situation))


@pytest.mark.parametrize("patience_s", [2.0, 20.0], ids=["clients-leave", "clients-wait"])
async def test_g8_a_node_is_paused_and_wakes(tmp_path: Path, patience_s: float) -> None:
    async def situation(folder: Path, fault: str) -> list[str]:
        _, _, problems = await endure(folder, getattr(faults, fault), mix=Mix(patience_s=patience_s))
        return problems

    require(await together(tmp_path, ["pause_node", "pause_node_for_long"], situation))


async def test_g17_all_nodes_are_restarted_one_after_the_other(tmp_path: Path) -> None:
    made, timeline, problems = await endure(tmp_path, faults.rolling_restart, mix=Mix(churn=0))
    require(problems + availability.disconnections(timeline, made.nodes.names))
