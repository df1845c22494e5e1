"""The load test's counters against histories whose faults are known."""

from __future__ import annotations

import random

import pytest

from loadtest.tally import Flow, Histogram, History


def _model(arrivals: list[int], sent: int) -> tuple[int, int, int]:
    """Lost, duplicated and reordered, the slow and obvious way."""
    seen: list[int] = []
    duplicated = reordered = 0
    for sequence in arrivals:
        if sequence in seen:
            duplicated += 1
            continue
        if any(earlier > sequence for earlier in seen):
            reordered += 1
        seen.append(sequence)
    return sent - len(seen), duplicated, reordered


def _count(arrivals: list[int], sent: int) -> tuple[int, int, int]:
    flow = Flow(0, History(), shared=False)
    for sequence in arrivals:
        flow.arrived(sequence)
    return flow.history.lost(sent), flow.history.duplicated, flow.reordered


@pytest.mark.parametrize(
    "arrivals, sent, faults",
    [
        ([], 0, (0, 0, 0)),
        ([], 3, (3, 0, 0)),
        ([0, 1, 2], 3, (0, 0, 0)),
        ([0, 2], 3, (1, 0, 0)),
        ([0, 1], 3, (1, 0, 0)),
        ([1, 2], 3, (1, 0, 0)),
        ([0, 1, 1, 2], 3, (0, 1, 0)),
        ([0, 1, 2, 2, 2], 3, (0, 2, 0)),
        ([0, 2, 1], 3, (0, 0, 1)),
        ([2, 1, 0], 3, (0, 0, 2)),
        ([1, 0, 0, 3, 3], 5, (2, 2, 1)),
    ],
    ids=str,
)
def test_faults_are_counted(arrivals: list[int], sent: int, faults: tuple[int, int, int]) -> None:
    assert _count(arrivals, sent) == faults


@pytest.mark.parametrize("seed", range(50))
def test_counts_equal_the_model(seed: int) -> None:
    rng = random.Random(seed)
    sent = rng.randrange(1, 60)
    arrivals = [i for i in range(sent) if rng.random() < 0.9]
    for _ in range(rng.randrange(4)):
        arrivals.insert(rng.randrange(len(arrivals) + 1), rng.randrange(sent))
    for _ in range(rng.randrange(4)):
        if arrivals:
            arrivals.insert(rng.randrange(len(arrivals)), arrivals.pop(rng.randrange(len(arrivals))))
    assert _count(arrivals, sent) == _model(arrivals, sent)


def test_members_of_a_group_share_what_arrived_but_not_the_order() -> None:
    group = History()
    first, second = Flow(0, group, shared=True), Flow(0, group, shared=True)
    for flow, sequence in ((first, 0), (second, 2), (first, 1), (first, 4), (second, 3)):
        flow.arrived(sequence)
    assert (group.lost(5), group.duplicated) == (0, 0)
    assert (first.reordered, second.reordered) == (0, 0)
    first.arrived(3)  # the second member had it
    assert (group.duplicated, first.reordered) == (1, 0)
    first.arrived(6)
    first.arrived(5)
    assert (first.reordered, second.reordered) == (1, 0)


@pytest.mark.parametrize("top", [40, 1_000, 3_000_000, 10**11])
@pytest.mark.parametrize("percent", [0, 1, 50, 90, 99, 99.9, 100])
def test_percentiles_are_those_of_the_sorted_values(top: int, percent: float) -> None:
    rng = random.Random(top)
    values = [rng.randrange(top) for _ in range(5_000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = max(percent / 100 * len(values), 1)
    exact = next(value for i, value in enumerate(sorted(values), 1) if i >= rank)
    assert histogram.percentile_ms(percent) == pytest.approx(exact / 1e6, rel=0.0161)


def test_equal_durations_may_be_added_at_once() -> None:
    histogram = Histogram()
    histogram.add(20, 98)
    histogram.add(30, 2)
    assert histogram.count == 100
    assert histogram.percentile_ms(98) == 20e-6
    assert histogram.percentile_ms(99) == 30e-6


def test_nothing_has_no_percentile() -> None:
    assert Histogram().percentile_ms(50) is None


def test_a_negative_duration_counts_as_zero() -> None:
    histogram = Histogram()
    histogram.add(-5)
    assert histogram.percentile_ms(50) == 0
