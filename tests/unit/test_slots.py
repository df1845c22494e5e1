"""The slots of a Redis Cluster without the driver, which nodes do not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from cluster.redis.slots import slot_of


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([b"{", b"}", b"a", b"bc", b"\xff"]), max_size=8).map(b"".join))
@example(b"rookery:{0}:x")
@example(b"{}a")
@example(b"}{a}")
def test_slots_are_those_of_the_driver(key: bytes) -> None:
    assert slot_of(key) == key_slot(key)


def test_a_node_starts_without_the_driver() -> None:
    script = "import sys, broker.node; assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
