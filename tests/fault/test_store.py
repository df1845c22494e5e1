"""A store that dies, hangs, or cannot be reached while clients use everything at once (G16)."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from tests.fault import faults
from tests.fault.world import endure, together
from tests.history import availability
from tests.history.run import require

pytestmark = pytest.mark.timeout(150)


async def test_g16_the_store_is_away(tmp_path: Path) -> None:
    async def situation(folder: Path, fault: str) -> list[str]:
        made, timeline, problems = await endure(folder, getattr(faults, fault))
        return problems + availability.nothing_acked(timeline, made.begun, made.undone)

    require(await together(tmp_path, ["kill_store", "pause_store"], situation))


async def test_g16_no_node_reaches_the_store(tmp_path: Path) -> None:
    async def situation(folder: Path, fault: str) -> list[str]:
        made, timeline, problems = await endure(folder, getattr(faults, fault), proxied=True)
        # (Where the store is only slow, there is no such time.)
        return problems + availability.nothing_acked(timeline, made.begun, made.undone)

    require(await together(tmp_path, ["cut_all", "stall_all_for_long", "slow_store"], situation))


async def test_g16_one_node_does_not_reach_the_store(tmp_path: Path) -> None:
    async def situation(folder: Path, fault: str) -> list[str]:
        made, timeline, problems = await endure(folder, getattr(faults, fault), proxied=True)
        [name] = {event.node for event in timeline.history.of("fault") if event.node}
        problems += availability.nothing_acked(timeline, made.begun, made.undone, nodes=[name])
        # The others did not notice, as far as anybody asked them.
        asked = {
            event.node for event in timeline.history.of("publish") if event.qos and made.begun < event.at < made.undone
        }
        others = {node: inf for node in made.nodes.names if node != name and node in asked}
        for event in timeline.history.of("ack"):
            if event.node in others and event.at > made.begun:
                others[event.node] = min(others[event.node], event.at)
        return problems + [f"nothing was acked by {node}" for node, at in others.items() if at > made.ended]

    require(await together(tmp_path, ["cut_one", "cut_one_for_long", "lose_answers", "lose_requests"], situation))
