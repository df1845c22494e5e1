"""Tables of load tests, as text and as Markdown, and reports read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.report import aligned, main, noise, status, table
from tests.kit.load_results import drawn, report, result


def test_a_table_of_one_broker() -> None:
    results = [result("a", rate=1234567.8, cpu=0.72), result("bb", rate=2000, cpu=None, lost=3)]
    assert table(results, "text").splitlines() == [
        "scenario     messages/s  CPU us/message  p50 ms  p99 ms  faults",
        "-----------  ----------  --------------  ------  ------  ------",
        "title of a    1,234,568             0.7    1.00    4.00  none",
        "title of bb       2,000               -    1.00    4.00  3 lost",
    ]


def test_a_table_of_two_brokers_has_ratios_within_a_scenario() -> None:
    results = [
        result("a", "m", 200, 8.0),
        result("a", "r", 900, 2.0),
        result("a", "r", 300, 2.0),
        result("a", "r", 600, 2.0),
    ]
    results += [result("b", "r", 5, 1.0), result("b", "m", 10, 4.0)]
    assert table(results, "markdown").splitlines() == [
        "| scenario   | broker | messages/s | CPU us/message | p50 ms | p99 ms | rate ratio | CPU ratio | faults |",
        "|------------|--------|-----------:|---------------:|-------:|-------:|-----------:|----------:|--------|",
        "| title of a | m      |        200 |            8.0 |   1.00 |   4.00 |       1.00 |      1.00 | none   |",
        "| title of a | r      |        600 |            2.0 |   1.00 |   4.00 |       3.00 |      0.25 | none   |",
        "| title of b | r      |          5 |            1.0 |   1.00 |   4.00 |       1.00 |      1.00 | none   |",
        "| title of b | m      |         10 |            4.0 |   1.00 |   4.00 |       2.00 |      4.00 | none   |",
    ]


def test_a_failure_is_told() -> None:
    lines = table([result("a", "m"), result("a", "r", None, None, failure="connection refused")], "text").splitlines()
    assert lines[-1].endswith("failed: connection refused")
    assert lines[-1].split()[4:8] == ["-", "-", "-", "-"]


def test_markdown_cells_do_not_end_early() -> None:
    assert aligned(["a", "b"], [["x|y", "1"]], "markdown").splitlines()[-1] == "| x\\|y | 1 |"


def test_a_table_in_colours_says_the_same() -> None:
    text = table([result("a", "m", 200, 8.0), result("a", "[red]r", 600, 2.0)], "rich")
    assert "[red]r" in text
    assert "3.00" in text


def test_noise_is_told() -> None:
    assert noise([result()]) == ""
    assert noise([result(others=50.0), result()]) == "In 1 of 2 runs other processes used over 40 % of a processor."


def test_status_is_the_worst() -> None:
    assert status([]) == status([result()]) == 0
    assert status([result(), result(failure="refused")]) == 2
    assert status([result(failure="refused"), result(reordered=1)]) == 3


def test_a_report_is_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = report(drawn("p2p1", "mosquitto", 50_000), drawn("p2p1", "rookery", 200_000))
    made.write(tmp_path / "r.json")
    assert main([str(tmp_path / "r.json"), "--markdown", "--html", str(tmp_path / "r.html")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("2 processors, Linux 1, python 3.11; 2026-01-01T00:00:00+00:00\n\n| scenario")
    assert "| rookery   |    200,000 |" in told
    assert "Load test: title of p2p1" in (tmp_path / "r.html").read_text("utf-8")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "results": [{"name": 1}]}']
)
def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "r.json").write_text(content, "utf-8")
    assert main([str(tmp_path / "r.json")]) == 1
    assert "r.json" in capsys.readouterr().err


def _changed(*steps: str | int, to: Any) -> Any:
    """A report with one value that is something else."""
    found = report(drawn("p2p1", "rookery", 1000)).as_dict()
    inner: Any = found
    for step in steps[:-1]:
        inner = inner[step]
    inner[steps[-1]] = to
    return found


@pytest.mark.parametrize(
    "steps, to, said",
    [
        (("results",), [1], "results[0]: 1 is no object"),
        (("machine",), [1], "machine: [1] is not a list or an object"),
        (("machine",), {"python": [3]}, "machine.python: [3] is not text or an integer"),
        (("results", 0, "counts"), None, "counts: None is no object"),
        (("results", 0, "settings"), None, "settings: None is not"),
        (("results", 0, "received_per_s"), "many", "received_per_s: 'many' is not a number"),
        (("results", 0, "seconds"), True, "seconds: True is not a number"),
        (("results", 0, "counts", "lost"), 1.5, "counts.lost: 1.5 is not an integer"),
        (("results", 0, "series", 0, "t"), float("nan"), "t: not a finite number"),
        (("results", 0, "histogram", 0), [1, 2, 3], "histogram[0]: [1, 2, 3] is not"),
        (("results", 0, "seconds"), 10**400, "seconds: not a finite number"),
        (("results", 0, "interrupted"), 1, "interrupted: 1 is not true or false"),
    ],
    ids=str,
)
def test_values_of_another_type_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: tuple[str | int, ...], to: Any, said: str
) -> None:
    (tmp_path / "r.json").write_text(json.dumps(_changed(*steps, to=to)), "utf-8")
    assert main([str(tmp_path / "r.json")]) == 1
    assert said in capsys.readouterr().err


def test_keys_of_a_later_version_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(_changed("results", 0, "counts", "later", to={})), "utf-8")
    assert main([str(tmp_path / "r.json")]) == 0
