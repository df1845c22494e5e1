"""A store that dies, hangs, or cannot be reached while clients use everything at once (G16)."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from tests.fault import faults
from tests.fault.world import endure
from tests.history import availability
from tests.history.run import require

pytestmark = pytest.mark.timeout(150)


@pytest.mark.parametrize("fault", [faults.kill_store, faults.pause_store], ids=lambda fault: str(fault.__name__))
async def test_g16_the_store_is_away(tmp_path: Path, fault: faults.Fault) -> None:
    made, timeline, problems = await endure(tmp_path, fault)
    require(problems + availability.nothing_acked(timeline, made.begun, made.undone))


@pytest.mark.parametrize("fault", [faults.cut_all, faults.stall_all_for_long], ids=lambda fault: str(fault.__name__))
async def test_g16_no_node_reaches_the_store(tmp_path: Path, fault: faults.Fault) -> None:
    made, timeline, problems = await endure(tmp_path, fault, proxied=True)
    require(problems + availability.nothing_acked(timeline, made.begun, made.undone))


@pytest.mark.parametrize(
    "fault",
    [faults.cut_one, faults.cut_one_for_long, faults.lose_answers, faults.lose_requests],
    ids=lambda fault: str(fault.__name__),
)
async def test_g16_one_node_does_not_reach_the_store(tmp_path: Path, fault: faults.Fault) -> None:
    made, timeline, problems = await endure(tmp_path, fault, proxied=True)
    [name] = {event.node for event in timeline.history.of("fault") if event.node}
    require(problems + availability.nothing_acked(timeline, made.begun, made.undone, nodes=[name]))
    # The others did not notice.
    others = {node: inf for node in made.nodes.names if node != name}
    for event in timeline.history.of("ack"):
        if event.node in others and event.at > made.begun:
            others[event.node] = min(others[event.node], event.at)
    assert all(at < made.ended for at in others.values()), others


async def test_g16_a_slow_store(tmp_path: Path) -> None:
    _, _, problems = await endure(tmp_path, faults.slow_store, proxied=True)
    require(problems)
