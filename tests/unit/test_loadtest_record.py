"""The record of figures: what is kept, and what counts as worse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.record import PATH, Change, Record, changes, record, remarks, table, together
from loadtest.result import Percentiles, Result
from loadtest.summary import CPU, P99, RECEIVED
from tests.kit.load_results import report, result


def _record(*results: Result) -> Record:
    return record(report(*results))


def _both(rate: float, cpu: float = 5.0, base: float = 100.0, base_cpu: float = 10.0) -> Record:
    return _record(result("a", "mosquitto", base, base_cpu), result("a", "rookery", rate, cpu))


def _change(now: float | None, then: float | None, noise: float = 0.0, figure: object = RECEIVED) -> Change:
    assert figure in (RECEIVED, CPU)
    return Change("a", RECEIVED if figure is RECEIVED else CPU, now, then, True, now, noise)


def test_a_record_is_read_again(tmp_path: Path) -> None:
    made = _record(
        result("a", "rookery", 123_456.7, 5.0), result("a", "rookery", 100_000.0, 5.5), result("a", "mosquitto")
    )
    made.write(tmp_path / "f.json")
    assert Record.read(tmp_path / "f.json") == made
    kept = made.scenarios["a"].brokers["rookery"]["received_per_s"]
    assert (kept.value, kept.spread) == (111_700.0, 0.21)


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{}", '{"schema": 2}', "nonsense", '{"schema": 1}'),
        '{"schema": 1, "recorded": "", "machine": {}, "runs": 1, "seconds": 1, "scenarios": []}',
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "f.json").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=r"not a record|Expecting value|record: no recorded|scenarios: \[\] is not"):
        Record.read(tmp_path / "f.json")


def test_the_record_of_this_tree_is_one() -> None:
    kept = Record.read(PATH)
    assert kept.runs >= 3
    assert {"mosquitto", "rookery", "processors"} <= kept.machine.keys()
    assert all({"mosquitto", "rookery"} <= each.brokers.keys() for each in kept.scenarios.values())


def test_a_given_rate_is_no_figure_but_its_latency_is() -> None:
    made = _record(result("a", settings={"rate": 2000}))
    assert list(made.scenarios["a"].brokers["rookery"]) == ["cpu_us_per_message", "p99_ms"]


def test_failed_runs_leave_nothing() -> None:
    made = _record(result("a", rate=None, cpu=None, failure="refused"))
    assert made.scenarios == {}
    assert made.runs == 0


@pytest.mark.parametrize(
    "now, then, noise, figure, gain, verdict",
    [
        (5.0, 5.0, 0.0, RECEIVED, 0.0, "same"),
        (4.6, 5.0, 0.0, RECEIVED, -0.08, "same"),
        (4.0, 5.0, 0.05, RECEIVED, -0.2, "WORSE"),
        (4.0, 5.0, 0.30, RECEIVED, -0.2, "worse, within the noise"),
        (6.0, 5.0, 0.05, RECEIVED, 0.2, "better"),
        (6.0, 5.0, 0.30, RECEIVED, 0.2, "better, within the noise"),
        (5.0, 4.0, 0.05, CPU, -0.2, "WORSE"),
        (4.0, 5.0, 0.05, CPU, 0.25, "better"),
        (5.0, None, 0.0, RECEIVED, None, "not recorded"),
        (None, 5.0, 0.0, RECEIVED, None, "not measured"),
        (5.0, 0.0, 0.0, RECEIVED, None, "not recorded"),
    ],
)
def test_what_counts_as_worse(
    now: float | None, then: float | None, noise: float, figure: object, gain: float | None, verdict: str
) -> None:
    change = _change(now, then, noise, figure)
    assert change.gain == (None if gain is None else pytest.approx(gain))
    assert change.verdict == verdict


def test_a_slower_machine_is_no_slower_build() -> None:
    then, now = _both(400, 5.0), _both(200, 10.0, base=50, base_cpu=20.0)
    assert [change.gain for change in changes(now, then)] == [0.0, 0.0]
    assert all(change.relative for change in changes(now, then))


def test_noise_is_the_largest_of_what_takes_part() -> None:
    then = _record(*(result("a", broker, rate) for broker in ("mosquitto", "rookery") for rate in (90, 100)))
    now = _record(
        *(
            result("a", broker, 100 + n * (broker == "mosquitto"))
            for broker in ("mosquitto", "rookery")
            for n in (0, 40)
        )
    )
    noise = {change.figure.name: change.noise for change in changes(now, then)}
    assert noise["received_per_s"] == pytest.approx(0.333)


def test_without_mosquitto_figures_are_compared_with_a_warning() -> None:
    then, now = _both(400), _record(result("a", "rookery", 200))
    found = changes(now, then)
    assert [(change.relative, change.gain) for change in found] == [(False, -0.5), (False, 0.0)]
    assert any("says nothing about the build" in line for line in remarks(found, now, then))


def test_remarks_name_what_fell_and_what_was_not_measured() -> None:
    then = _record(*(result(name, broker, 100) for name in ("a", "b") for broker in ("mosquitto", "rookery")))
    now = _both(50)
    told = " ".join(remarks(changes(now, then), now, then))
    assert "WORSE by more than 10 %: title of a, messages/s." in told
    assert "not measured now: title of b" in told
    assert "make bench-record" in remarks(changes(now, None), now, None)[0]
    assert "Nothing fell" in " ".join(remarks(changes(then, then), then, then))


def test_the_table_of_changes() -> None:
    then, now = _both(400, 5.0), _both(300, 4.0)
    head, lines = table(changes(now, then))
    assert head == ["scenario", "figure", "now", "now / mosquitto", "recorded", "change", "noise", "verdict"]
    assert lines == [
        ["title of a", "messages/s", "300", "3.00", "4.00", "-25 %", "0 %", "WORSE"],
        ["title of a", "CPU us/message", "4.0", "0.40", "0.50", "+25 %", "0 %", "better"],
    ]
    assert json.dumps(lines)


@pytest.mark.parametrize(
    "now, then, verdict", [(1.9, 1.0, "worse, within the noise"), (2.1, 1.0, "WORSE"), (9.0, 1.0, "WORSE")]
)
def test_no_noise_hides_what_is_twice_as_bad(now: float, then: float, verdict: str) -> None:
    wide = (1.0, 5.0, 9.0)

    def made(p99: float) -> Record:
        runs = [result("a", broker, settings={"rate": 10}) for broker in ("mosquitto", "rookery") for _ in wide]
        for number, run in enumerate(runs):
            spread = wide[number % 3] / 5 if run.broker == "mosquitto" else 1.0
            run.latency_ms = Percentiles(10, p99=spread * (1.0 if run.broker == "mosquitto" else p99))
        return _record(*runs)

    [change] = [each for each in changes(made(now), made(then)) if each.figure is P99]
    assert change.noise == 1.0
    assert change.verdict == verdict


def test_a_record_of_some_scenarios_keeps_the_others() -> None:
    old = _record(result("a"), result("b"))
    new = replace(_record(result("b", rate=7.0)), recorded="later")
    found = together(new, old)
    assert list(found.scenarios) == ["a", "b"]
    assert (found.recorded, found.scenarios["a"].recorded, found.scenarios["b"].recorded) == ("later", old.recorded, "")
    assert found.scenarios["b"] == new.scenarios["b"]
    assert f"Recorded {old.recorded}: title of a." in remarks([], new, found)
    assert together(new, None) == new
    assert together(replace(new, recorded="last"), found).scenarios["a"].recorded == old.recorded


def test_an_interrupted_comparison_does_not_say_that_all_is_well() -> None:
    then = _both(100)
    told = " ".join(remarks(changes(then, then), then, then, whole=False))
    assert "Interrupted" in told
    assert "Nothing fell" not in told
