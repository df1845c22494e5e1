"""Random bytes, mutated packet streams and random cuts: no traceback, no bad answer, nobody else notices (G15)."""

from __future__ import annotations

import os

import pytest

from broker.codec.packets import V5
from tests.abuse.fuzz import Campaign, Nonsense
from tests.abuse.world import AbusedNode

#: ROOKERY_TEST_SEED repeats a run with another seed than the usual ones.
SEEDS = [int(seed) for seed in os.environ.get("ROOKERY_TEST_SEED", "1 2 3").split()]
CONNECTIONS = 700


@pytest.mark.parametrize("seed", SEEDS)
async def test_g15_nonsense_disturbs_nobody(node: AbusedNode, seed: int) -> None:
    before = node.counter("mqtt_connections")
    descriptors = node.descriptors()
    campaign = Campaign(node.host, node.port, seed)
    assert await campaign.run(range(CONNECTIONS)) == CONNECTIONS
    await node.until_gauge("mqtt_connections", before)
    await node.until(lambda: node.descriptors() <= descriptors, "the closing of all descriptors")


async def test_the_generator_repeats_itself_and_varies() -> None:
    streams = [Nonsense(f"1/{number}").stream() for number in range(50)]
    assert streams == [Nonsense(f"1/{number}").stream() for number in range(50)]
    assert len(set(streams)) > 45
    assert {Nonsense(f"1/{number}").version for number in range(50)} == {3, 4, V5}


async def test_the_pieces_are_the_stream() -> None:
    for number in range(50):
        nonsense = Nonsense(f"2/{number}")
        stream = nonsense.stream()
        assert b"".join(nonsense.pieces(stream)) == stream
