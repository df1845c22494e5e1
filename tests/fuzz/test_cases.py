"""What the fuzzer found once, and what it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import seeds
from tests.fuzz.targets import TARGETS

CASES = sorted(Path(__file__).with_name("cases").glob("*/*"))


def test_findings_stay_mended() -> None:
    for case in CASES:
        TARGETS[case.parent.name](case.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    assert len(list(seeds())) > 50
    for seed in seeds():
        TARGETS[name](seed)
