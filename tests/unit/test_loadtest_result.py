"""What a result says of itself."""

from __future__ import annotations

import pytest

from loadtest.result import Counts, Result


def _result() -> Result:
    return Result("p2p0", "pairs", "rookery", [], {}, "2026-01-01T00:00:00+00:00")


def test_what_is_permitted_is_told_apart_from_faults() -> None:
    result = _result()
    result.counts, result.allowed = Counts(lost=5, duplicated=2), ["lost", "reordered"]
    assert (result.permitted, result.faults) == ({"lost": 5}, {"duplicated": 2})


@pytest.mark.parametrize(
    "asked, sent, missed",
    [
        *((None, 5.0, False), (100.0, 100.0, False), (100.0, 99.0, False), (100.0, 90.0, True), (100.0, None, False)),
        *((1.0, 0.9, False), (1.0, 0.7, True), (100.0, 0.0, True)),
    ],
)
def test_a_rate_that_was_not_kept(asked: float | None, sent: float | None, missed: bool) -> None:
    result = _result()
    result.asked_per_s, result.sent_per_s, result.seconds = asked, sent, 10.0
    assert result.rate_missed is missed


@pytest.mark.parametrize(
    "own, busy, bound",
    [(None, None, False), (30.0, 99.0, False), (50.0, 70.0, False), (50.0, 95.0, True), (85.0, 50.0, True)],
)
def test_the_generator_as_the_limit(own: float | None, busy: float | None, bound: bool) -> None:
    result = _result()
    result.generator_cpu_percent, result.busy_percent = own, busy
    assert result.generator_bound is bound
    assert Result.from_dict(result.as_dict()) == result
