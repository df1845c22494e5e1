"""Plots: round ticks, numbers to be read, and SVG that is well formed whatever is plotted."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.html import columns, cumulative, page
from loadtest.plots import Bars, Plot, Series, as_table, bars_svg, log_ticks, number, standalone, svg, ticks
from loadtest.report import cells
from tests.kit.load_results import drawn, report, result

HOSTILE = "</title><script>alert(1)</script>\"'&"


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "-"),
        (0, "0"),
        (0.0451, "0.0451"),
        (0.2, "0.2"),
        (12.34, "12.3"),
        (999.6, "1,000"),
        (1500, "1,500"),
        (10_000, "10 k"),
        (123_456, "123 k"),
        (1_411_706, "1.41 M"),
        (2.5e9, "2.5 G"),
        (math.nan, "-"),
    ],
)
def test_numbers_for_reading(value: float | None, text: str) -> None:
    assert number(value) == text


def test_ticks_are_round() -> None:
    assert ticks(0, 97) == [0, 20, 40, 60, 80, 100]
    assert ticks(0, 0.3) == [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
    assert log_ticks(0.03, 4.1) == [0.01, 0.1, 1, 10]
    assert log_ticks(2, 4) == [1, 2, 5]


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_ticks_enclose(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high)
    assert found[0] <= low * (1 + 1e-6) + 1e-9
    assert found[-1] >= high * (1 - 1e-6) - 1e-9
    assert 2 <= len(found) <= 9


@given(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
def test_log_ticks_enclose(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = log_ticks(low, high)
    assert found == sorted(found)
    assert found[0] <= low * (1 + 1e-6)
    assert found[-1] >= high * (1 - 1e-6)
    assert 2 <= len(found) <= 12


_VALUES = st.none() | st.floats(0, 1e9)


@given(st.lists(st.tuples(st.floats(0, 1e6), _VALUES)), st.booleans(), st.booleans(), st.booleans(), st.text("ab<&\"'"))
def test_any_plot_is_well_formed(
    points: list[tuple[float, float | None]], log_x: bool, log_y: bool, filled: bool, title: str
) -> None:
    for drawing in (
        svg(Plot(title, "x", "y", [Series(title, points), Series("b", [])], log_x, log_y, filled)),
        bars_svg(Bars(title, title, [(title, value, title) for _, value in points])),
    ):
        assert ElementTree.fromstring(drawing).get("aria-label") == title
        assert "nan" not in drawing
        ElementTree.fromstring(standalone(drawing, title))


def test_a_plot_has_its_points_where_they_belong() -> None:
    drawing = svg(Plot("t", "x", "y", [Series("a", [(0, 0), (5, None), (10, 100)])], dots=True))
    found = [
        (float(e.get("cx", "")), float(e.get("cy", "")))
        for e in ElementTree.fromstring(drawing).iter()
        if "circle" in e.tag
    ]
    [(left, bottom), (right, top)] = found
    assert left < right
    assert top < bottom


def test_a_table_behind_a_plot_is_thinned() -> None:
    plot = Plot("t", "s", "rate", [Series("a", [(float(n), n * 1.0) for n in range(100)]), Series("b", [(0, None)])])
    head, lines = as_table(plot, 10)
    assert head == ["s", "a", "b"]
    assert len(lines) == 10
    assert lines[0] == ["0", "0", "-"]
    assert lines[-1] == ["99", "99", "-"]


def test_columns_of_a_histogram_keep_the_shares() -> None:
    histogram = [(0.001 * 1.03**n, n + 1) for n in range(300)]
    found = columns(histogram)
    assert sum(share for _, share in found) == pytest.approx(100)
    edges = [math.log10(lower) for lower, _ in found]
    assert all(b - a == pytest.approx(1 / 12) for a, b in itertools.pairwise(edges))
    assert found[-1][1] == 0
    assert columns([]) == columns([(0.0, 5)]) == []


def test_cumulative_ends_at_all() -> None:
    found = cumulative([(4.0, 1), (1.0, 2), (2.0, 1)])
    assert found == [(1.0, 50), (2.0, 75), (4.0, 100)]
    long = cumulative([(1.0 + n, 1) for n in range(5000)])
    assert len(long) <= 241
    assert long[-1] == (5000.0, 100)


def test_pages_escape_what_they_are_told() -> None:
    hostile = drawn("p2p1", HOSTILE, 10.0, title=HOSTILE)
    hostile.settings[HOSTILE] = HOSTILE
    hostile.messages.append(HOSTILE)
    hostile.targets.append(HOSTILE)
    made = report(hostile, drawn("p2p1", "b", 20.0), result(HOSTILE, HOSTILE, None, None, failure=HOSTILE, title="x"))
    made.machine[HOSTILE] = HOSTILE
    text = page(made, *cells(made.results))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10


def test_a_page_of_nothing_and_of_failures() -> None:
    assert "Load test: 0 scenarios" in page(report(), *cells([]))
    failed = report(result(rate=None, cpu=None, failure="connection refused"))
    assert "connection refused" in page(failed, *cells(failed.results))
