"""Histograms of plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.histogram import Histogram

VALUES = st.lists(st.floats(0, 1e6, allow_nan=False))


@given(VALUES)
def test_each_bucket_has_the_values_up_to_its_bound(values: list[float]) -> None:
    histogram = Histogram([1.0, 10.0, 100.0])
    for value in values:
        histogram.observe(value)
    for index, bound in enumerate(histogram.bounds):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(sum(values))


@given(VALUES, VALUES)
def test_the_sum_of_two_is_that_of_all_values(ones: list[float], twos: list[float]) -> None:
    one, two, both = Histogram([5.0]), Histogram([5.0]), Histogram([5.0])
    for value in ones:
        one.observe(value)
        both.observe(value)
    for value in twos:
        two.observe(value)
        both.observe(value)
    packed = [left + right for left, right in zip(one.packed(), two.packed(), strict=True)]
    one.add(two)
    assert one.packed() == packed
    assert one.counts == both.counts


def test_histograms_of_other_bounds_are_not_added() -> None:
    with pytest.raises(ValueError, match="bounds differ"):
        Histogram([1.0]).add(Histogram([2.0]))
