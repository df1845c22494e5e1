"""Tables of load tests, as text and as Markdown, and reports read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest import html
from loadtest.report import Style, aligned, cells, main, narrow, show, status, table
from loadtest.summary import notes, rows
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
    assert notes(rows([result()])) == []
    assert notes(rows([result(others=50.0), result()])) == [
        "In 1 of 2 runs other processes used over 40 % of a processor."
    ]


def test_runs_that_the_generator_limited_are_marked() -> None:
    own, busy, idle = result("own"), result("busy"), result("idle")
    own.generator_cpu_percent = 85.0
    busy.generator_cpu_percent, busy.busy_percent = 40.0, 95.0
    idle.generator_cpu_percent, idle.busy_percent = 40.0, 60.0
    assert [row.remarks for row in rows([own, busy, idle])] == [
        "none; generator-bound",
        "none; generator-bound",
        "none",
    ]
    [told] = notes(rows([own, busy, idle]))
    assert told.startswith("In 2 of 3 runs the generator may have been the limit")
    assert "generator-bound" in html.page(report(own), *cells([own]))


def test_what_may_be_lost_is_told_as_such() -> None:
    run = result(settings={"qos": 0}, sent=10, expected=10, received=5, lost=5)
    run.allowed = ["lost"]
    assert rows([run])[0].remarks == "none; 5 lost (QoS 0 permits it)"
    text = html.page(report(run), *cells([run]))
    assert "5 lost (QoS 0 permits it)" in text
    assert "Nothing was lost" not in text
    assert 'class="bad"' not in text
    cut = result(settings={"qos": 1}, sent=10, expected=10, received=10, duplicated=2)
    cut.allowed = ["duplicated"]
    assert rows([cut])[0].remarks == "none; 2 duplicated (permitted: connections were cut)"
    fine = result(sent=10, expected=10, received=10)
    assert "Nothing was lost" in html.page(report(fine), *cells([fine]))
    assert "No faults; no messages." in html.page(report(result()), *cells([result()]))


def test_that_nothing_arrived_is_seen() -> None:
    run = result(rate=0.0, settings={"qos": 0}, sent=1000, expected=1000, lost=1000)
    run.allowed = ["lost"]
    assert rows([run])[0].remarks == "nothing arrived of 1,000 sent; 1,000 lost (QoS 0 permits it)"
    assert 'class="bad">title of p2p1, rookery: nothing arrived of 1,000 sent' in html.page(report(run), *cells([run]))
    late = result(rate=0.0, sent=10, expected=10, received=10)
    assert rows([late])[0].remarks == "nothing arrived in the window"


def test_a_rate_that_was_not_kept_is_told() -> None:
    run = result(settings={"rate": 10_000.0}, sent=1, expected=1, received=1)
    run.asked_per_s, run.sent_per_s = 10_000.0, 812.0
    assert rows([run])[0].remarks == "none; rate not kept: 812/s sent of 10,000/s"
    assert "rate not kept" in html.page(report(run), *cells([run]))


def test_a_terminal_gets_nothing_that_it_obeys() -> None:
    made = table([result(title="a\x1b[31mb\nc\x9b\u202e", failure="x\x07")], "text")
    assert "a?[31mb c??" in made
    assert "failed: x?" in made


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("style", ["rich", "text"])
def test_narrow_terminals_break_no_words(monkeypatch: pytest.MonkeyPatch, width: int, style: Style) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    runs = [
        drawn("p2p1", broker, 1000, title="publishers to subscribers, QoS 1") for broker in ("mosquitto", "rookery")
    ]
    head, lines = cells(runs)
    made = table(runs, "rich") if style == "rich" else narrow(head, lines, width)
    words = {word for line in [head[1:], *lines] for text in line for word in text.split()}
    assert words <= set(made.split())
    assert all(len(line) <= width for line in made.splitlines())


def test_files_that_cannot_be_written_cost_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(report(result()), html_path=tmp_path, json_path=tmp_path / "none" / "r.json") == 2
    told = capsys.readouterr()
    assert "title of p2p1" in told.out
    assert "r.json: No such file" in told.err
    assert "Is a directory" in told.err
    assert show(report(result(lost=1)), html_path=tmp_path) == 3


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
        (("results", 0, "series", 0, "t"), float("nan"), "t: not a number up to 1e+18"),
        (("results", 0, "histogram", 0), [1, 2, 3], "histogram[0]: [1, 2, 3] is not"),
        (("results", 0, "seconds"), 10**400, "seconds: not a number up to"),
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


@pytest.mark.parametrize(
    "steps, to",
    [
        (("results", 0, "histogram"), [[1.0, 0], [2.0, 0]]),
        (("results", 0, "histogram"), [[1.0, -1], [2.0, 1]]),
        (("results", 0, "histogram"), [[-1.0, 5], [0.0, 5]]),
        (("results", 0, "settings"), {"rate": "fast", "also": 3, "qos": []}),
        (("results", 0, "title"), "\ud800\x1b"),
        (("results",), []),
    ],
    ids=str,
)
def test_odd_values_are_shown_nevertheless(tmp_path: Path, steps: tuple[str | int, ...], to: Any) -> None:
    (tmp_path / "r.json").write_text(json.dumps(_changed(*steps, to=to)), "utf-8")
    assert main([str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text("utf-8").endswith("</html>\n")
