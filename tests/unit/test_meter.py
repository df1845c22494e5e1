"""Rates of one client, on a clock of our own."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from broker.limits.meter import SHARE_WAIT_S, Bucket, Meter
from broker.limits.quiet import LINES, Quiet


class Pool:
    """A share that is empty or not, as a test wants."""

    def __init__(self) -> None:
        self.is_empty = False
        self.taken: list[tuple[int, int]] = []

    def budget(self, who: object) -> int:
        return 0 if self.is_empty else 5

    def take(self, who: object, messages: int, size: int) -> None:
        self.taken.append((messages, size))


def test_without_rates_nothing_waits() -> None:
    counters: Counter[str] = Counter()
    meter = Meter(0, 0, 0.0, counters=counters)
    assert meter.budget(0.0) > 1_000_000
    meter.take(100_000, 1 << 30, 0.0)
    assert meter.wait_s(0.0) == 0.0
    assert not counters


def test_a_burst_of_a_second_then_the_rate() -> None:
    meter = Meter(10, 0, 0.0)
    assert meter.budget(0.0) == 10
    meter.take(10, 1000, 0.0)
    assert meter.budget(0.0) == 0
    assert abs(meter.wait_s(0.0) - 0.1) < 1e-9
    assert meter.budget(0.55) == 5
    assert meter.budget(100.0) == 10


def test_what_was_handled_beyond_is_a_debt() -> None:
    counters: Counter[str] = Counter()
    meter = Meter(10, 0, 0.0, counters=counters)
    meter.take(35, 1000, 0.0)
    assert abs(meter.wait_s(0.0) - 2.6) < 1e-9
    assert meter.budget(2.5) == 0
    assert meter.budget(2.6 + 1e-6) == 1
    assert counters == {"paused_messages": 1}


def test_packets_that_are_no_messages_cost_bytes_only() -> None:
    meter = Meter(1, 1000, 0.0)
    meter.take(0, 900, 0.0)
    assert meter.budget(0.0) == 1
    assert meter.wait_s(0.0) == 0.0
    meter.take(0, 1100, 0.0)
    assert meter.budget(0.5) == 0
    assert abs(meter.wait_s(0.5) - 0.501) < 1e-9


def test_a_rate_below_one_burst_lets_single_messages_through() -> None:
    bucket = Bucket(0.1, 0.0)
    assert bucket.level(0.0) == 1.0
    bucket.take(1, 0.0)
    assert abs(bucket.wait_s(0.0, 1.0) - 10.0) < 1e-9


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(10, 5.0)
    bucket.take(10, 5.0)
    assert bucket.level(1.0) == 0.0
    assert bucket.level(5.1) > 0.9


def test_an_empty_share_stops_all_its_clients() -> None:
    pool = Pool()
    meters = [Meter(0, 0, 0.0, pool), Meter(1000, 0, 0.0, pool)]
    for meter in meters:
        meter.take(3, 300, 0.0)
    assert pool.taken == [(3, 300)] * 2
    pool.is_empty = True
    for meter in meters:
        assert meter.budget(0.0) == 0
        assert meter.wait_s(0.0) == SHARE_WAIT_S
    pool.is_empty = False
    assert all(meter.budget(0.0) == 5 and not meter.wait_s(0.0) for meter in meters)


@given(
    st.integers(1, 10_000),
    st.lists(st.tuples(st.integers(0, 300), st.floats(0, 3)), max_size=60),
)
def test_in_the_long_run_nobody_is_over_the_rate(rate: int, chunks: list[tuple[int, float]]) -> None:
    """A client that keeps to `budget` and `wait_s` never has more than the burst beyond its rate."""
    meter, now, sent = Meter(rate, 0, 0.0), 0.0, 0
    for count, pause_s in chunks:
        now += pause_s
        handled = min(count, meter.budget(now))
        meter.take(handled, 100 * handled, now)
        sent += handled
        assert sent <= rate * (now + 1.0) + 1e-3
        now += meter.wait_s(now)


def test_a_flood_of_lines_is_counted() -> None:
    now = 0.0
    quiet = Quiet(lambda: now)
    assert [quiet.tells("a") for _ in range(LINES)] == [0] * LINES
    assert [quiet.tells("a") for _ in range(1000)] == [None] * 1000
    assert quiet.tells("b") == 0
    now = 1.0
    assert quiet.tells("a") == 1000
    assert quiet.tells("a") == 0
