"""The load test's table and exit status."""

from __future__ import annotations

import pytest

from loadtest.report import FAULTS, FIGURES, Row, status, table


def _run(**figures: float | int | None) -> dict[str, float | int | None]:
    return dict.fromkeys(FIGURES) | dict.fromkeys(FAULTS, 0) | figures


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_medians_and_ratios() -> None:
    ours = Row("p2p", "rookery", [_run(messages_per_s=rate, cpu_us_per_message=2.0) for rate in (900, 300, 600)])
    theirs = Row("p2p", "mosquitto", [_run(messages_per_s=200, cpu_us_per_message=8.0)])
    head, rule, first, second = table([ours, theirs], "mosquitto").splitlines()
    assert len({len(line) for line in (head, rule, first, second)}) == 1
    assert dict(zip(_cells(head), _cells(first), strict=True)) == {
        "scenario": "p2p",
        "broker": "rookery",
        "messages/s": "600",
        "CPU us/message": "2.0",
        "CPU %": "-",
        "p50 ms": "-",
        "p99 ms": "-",
        "KB/connection": "-",
        "rate ratio": "3.00",
        "CPU ratio": "0.25",
        "generator CPU %": "-",
        "faults": "none",
    }
    assert _cells(second)[8:10] == ["1.00", "1.00"]


def test_ratios_are_within_a_scenario() -> None:
    rows = [
        Row("a", "rookery", [_run(messages_per_s=100)]),
        Row("b", "rookery", [_run(messages_per_s=100)]),
        Row("b", "mosquitto", [_run(messages_per_s=50)]),
    ]
    lines = table(rows, "mosquitto").splitlines()
    assert [_cells(line)[8] for line in lines[2:]] == ["-", "2.00", "1.00"]


def test_faults_are_summed_over_the_runs() -> None:
    row = Row("p2p", "rookery", [_run(lost=1000), _run(lost=234, reordered=2), _run()])
    assert _cells(table([row], "mosquitto").splitlines()[2])[-1] == "1,234 lost, 2 reordered"


def test_a_failure_is_told() -> None:
    row = Row("p2p", "rookery", failure="connection refused")
    assert _cells(table([row], "mosquitto").splitlines()[2])[-1] == "connection refused"


@pytest.mark.parametrize("fault", FAULTS)
def test_any_fault_fails(fault: str) -> None:
    good = Row("a", "rookery", [_run()])
    assert status([good, Row("b", "rookery", [_run(), _run(**{fault: 1}), _run()])]) == 1


def test_status_of_failed_runs() -> None:
    good = Row("a", "rookery", [_run()])
    assert status([good]) == 0
    assert status([good, Row("b", "rookery", failure="refused")]) == 2
