"""The arithmetic of load tests: medians, spreads, ratios and what disturbed them."""

from __future__ import annotations

import pytest

from loadtest.report import ratios
from loadtest.summary import CONNECTS, CPU, RECEIVED, Row, brokers, by_scenario, median, ratio, rows, spread
from tests.kit.load_results import result


@pytest.mark.parametrize(
    "values, middle, apart",
    [
        ([], None, None),
        ([3.0], 3.0, None),
        ([900.0, 300.0, 600.0], 600.0, 1.0),
        ([1.0, 3.0], 2.0, 1.0),
        ([0.0, 0.0], 0.0, None),
    ],
)
def test_median_and_spread(values: list[float], middle: float | None, apart: float | None) -> None:
    assert (median(values), spread(values)) == (middle, apart)


@pytest.mark.parametrize(
    "value, base, expected", [(6.0, 3.0, 2.0), (None, 3.0, None), (6.0, None, None), (6.0, 0.0, None), (0.0, 2.0, 0.0)]
)
def test_ratio(value: float | None, base: float | None, expected: float | None) -> None:
    assert ratio(value, base) == expected


def test_runs_of_a_scenario_and_broker_are_one_row() -> None:
    found = rows([result("a", "x", 1), result("a", "y", 2), result("b", "x", 3), result("a", "x", 5)])
    assert [(row.name, row.broker, row.values(RECEIVED)) for row in found] == [
        ("a", "x", [1, 5]),
        ("a", "y", [2]),
        ("b", "x", [3]),
    ]
    assert brokers(found) == ["x", "y"]
    assert [[row.broker for row in each] for each in by_scenario(found).values()] == [["x", "y"], ["x"]]


def test_failed_runs_do_not_count() -> None:
    [row] = rows([result(rate=10), result(rate=1, failure="refused"), result(rate=30)])
    assert row.median(RECEIVED) == 20
    assert row.failure == ""
    assert row.remarks == "1 of 3 runs failed"
    [row] = rows([result(rate=None, failure="refused")])
    assert (row.failure, row.remarks, row.median(RECEIVED)) == ("refused", "failed: refused", None)


def test_faults_are_summed_and_allowed_ones_are_none() -> None:
    lost = [result(lost=1000), result(lost=234, reordered=2)]
    [row] = rows(lost)
    assert row.faults == {"lost": 1234, "reordered": 2}
    assert row.remarks == "1,234 lost, 2 reordered"
    lost[0].allowed = lost[1].allowed = ["lost"]
    assert row.faults == {"reordered": 2}


def test_disturbed_runs_are_marked() -> None:
    [row] = rows([result(others=41.0), result(others=40.0), result(others=None)])
    assert row.disturbed == 1
    assert row.remarks == "none; 1 of 3 runs disturbed"


def test_the_drawn_run_is_one_of_median_rate() -> None:
    [row] = rows([result(rate=rate) for rate in (30, 10, 20, 40)])
    assert row.typical.received_per_s == 20


def test_connect_storms_count_connections() -> None:
    storm = result(rate=None, cpu=None)
    storm.connects_per_s, storm.cpu_us_per_connect = 8000.0, 100.0
    twice = result(broker="other", rate=None, cpu=None)
    twice.connects_per_s, twice.cpu_us_per_connect = 16000.0, 25.0
    first, second = rows([storm, twice])
    assert first.rate is CONNECTS
    assert ratios(second, first) == (2.0, 0.25)


def test_a_given_rate_is_not_compared() -> None:
    first, second = rows(
        [result(broker=name, cpu=cpu, settings={"rate": 2000}) for name, cpu in (("a", 4.0), ("b", 8.0))]
    )
    assert ratios(second, first) == (None, 2.0)
    assert Row("a", "a", "a").median(CPU) is None
