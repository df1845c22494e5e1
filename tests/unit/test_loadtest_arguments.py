"""Command lines of the load tester: what is refused, and said, before anything is measured; what ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest import bench, command, compare, growth, record
from loadtest.__main__ import main
from loadtest.arguments import output
from loadtest.result import Report, Result
from loadtest.scenario import Scenario, override
from loadtest.targets import BROKERS, Broker
from tests.kit.load_results import report, result


@pytest.mark.parametrize(
    "line, said",
    [
        ("run p2p0 --nodes 0", "--nodes: '0' is not an integer from 1 on"),
        ("run p2p0 --repeat 0", "--repeat: '0' is not"),
        ("run p2p0 --repeat -1", "--repeat: '-1' is not"),
        ("run p2p0 --pid abc", "--pid: 'abc' is not a process id"),
        ("run p2p0 --json /nonexistent/r.json", "--json: /nonexistent/r.json: No such file or directory"),
        ("run p2p0 --html /", "--html: /: Is a directory"),
        ("run p2p0 --target mqtts://127.0.0.1:1 --ca /nonexistent", "--ca /nonexistent: No such file"),
        ("run p2p0 --target mqtts://127.0.0.1:1 --cert /nonexistent", "--cert, --key /nonexistent: No such file"),
        ("run p2p0 --password-file /nonexistent", "--password-file /nonexistent: No such file"),
        ("run p2p0 --target mqtt://127.0.0.1:", "mqtt://127.0.0.1: is not mqtt://HOST:PORT"),
        ("compare p2p0 --repeat 0", "--repeat: '0' is not"),
        ("compare p2p0 --brokers ''", "give --brokers or --target"),
        ("compare p2p0 --target rookery=mqtt://127.0.0.1:1", "each name once"),
        ("compare p2p0 --brokers '' --target x=mqtt://no.such.invalid", "mqtt://no.such.invalid:1883: "),
        ("compare p2p0 --target x=mqtt://127.0.0.1:1;abc", "'abc' is not a process id"),
        ("compare p2p0 --json /nonexistent/r.json", "--json: /nonexistent/r.json: No such file or directory"),
        ("bench --record --repeat 0", "--repeat: '0' is not"),
        ("bench --strict --figures /nonexistent.json", "/nonexistent.json: there is no record"),
        ("bench --record --figures /nonexistent/f.json", "/nonexistent/f.json: No such file"),
        ("growth --seconds -1", "--seconds: '-1' is not a number from 0.1 on"),
        ("growth --seconds nan", "--seconds: 'nan' is not"),
        ("growth --svg /dev/null/x", "--svg: /dev/null/x: Not a directory"),
        ("memory --json /nonexistent/m.json", "--json: /nonexistent/m.json: No such"),
        ("routes --count 0", "--count: '0' is not"),
        ("size --connections -5", "--connections: '-5' is not"),
    ],
    ids=str,
)
def test_wrong_command_lines(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["" if word == "''" else word for word in line.split()]
    assert main(arguments) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_file_that_can_be_written_is_not_touched(tmp_path: Path) -> None:
    assert output(str(tmp_path / "new")) == tmp_path / "new"
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").write_text("kept")
    output(str(tmp_path / "old"))
    assert (tmp_path / "old").read_text() == "kept"
    os.mkfifo(tmp_path / "pipe")
    output(str(tmp_path / "pipe"))  # without waiting for a reader


def test_numbers_without_a_zero_in_front() -> None:
    assert override("warmup=.2") == ("warmup", 0.2)
    assert override("title=.2") == ("title", ".2")


@pytest.mark.parametrize("content", ['{"schema": 9}', "nonsense", '{"schema": 1, "recorded": "", "scenarios": []}'])
def test_a_record_is_read_before_the_run(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.json").write_text(content, "utf-8")
    assert main(["bench", "p2p0", "--figures", str(tmp_path / "f.json")]) == 1
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("made", [None, report(result())], ids=["another schema", "another command"])
def test_growth_shows_only_its_own_runs(
    tmp_path: Path, made: Report | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "g.json"
    path.write_text('{"schema": 99}', "utf-8")
    if made is not None:
        made.write(path)
    assert growth.main(["--from", str(path)]) == 1
    assert "g.json: " in capsys.readouterr().err


def _bench(monkeypatch: pytest.MonkeyPatch, results: list[Result], *arguments: str) -> int:
    def run(*_: Any) -> list[Result]:
        return results

    monkeypatch.setattr(compare, "run", run)
    return main(["bench", "p2p1", *arguments])


def test_a_bench_that_ended_early_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "f.json"
    record.record(report(result())).write(figures)
    stopped = result()
    stopped.interrupted = True
    assert _bench(monkeypatch, [stopped], "--figures", str(figures)) == 130
    assert "Interrupted: this is not all" in capsys.readouterr().out
    assert _bench(monkeypatch, [result(rate=None, failure="refused")], "--figures", str(figures)) == 2
    assert "Nothing fell" not in capsys.readouterr().out
    assert _bench(monkeypatch, [result(rate=100.0, cpu=50.0)], "--figures", str(figures)) == 0
    assert _bench(monkeypatch, [result(rate=100.0, cpu=50.0)], "--figures", str(figures), "--strict") == bench.FELL


def test_recording_some_scenarios_keeps_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = tmp_path / "f.json"
    record.record(report(result("p2p0"), result("p2p1"))).write(figures)
    assert _bench(monkeypatch, [result("p2p1", rate=7.0)], "--record", "--figures", str(figures)) == 0
    kept = record.Record.read(figures).scenarios
    assert [kept[name].brokers["rookery"]["received_per_s"].value for name in ("p2p0", "p2p1")] == [1000, 7]


def test_a_comparison_of_nothing_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(BROKERS, "mosquitto", Broker("mosquitto", BROKERS["rookery"].start, lambda: "no"))
    assert main(["compare", "p2p0", "--brokers", "mosquitto"]) == 2
    assert "nothing was measured" in capsys.readouterr().err


def test_ctrl_c_while_a_broker_starts_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([result("p2p0")])

    def one(*_: Any) -> Result:
        try:
            return next(found)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(compare, "one", one)
    assert main(["compare", "p2p0", "--brokers", "rookery", "--repeat", "3"]) == 130
    assert "title of p2p0" in capsys.readouterr().out


def test_a_broker_that_ends_between_runs_costs_no_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = iter([result("p2p0", title="the\x1b[2J title")])

    def run(one: Scenario, *_: Any) -> Result:
        try:
            return next(found)
        except StopIteration:
            raise OSError("it is gone") from None

    monkeypatch.setattr(command, "_run", run)
    line = ["run", "p2p0", "--repeat", "2", "--target", "mqtt://127.0.0.1:1", "--progress", "off"]
    assert main(line) == 2
    told = capsys.readouterr()
    assert "the?[2J title" in told.out
    assert "it is gone" in told.err
    assert "\x1b" not in told.out + told.err


def test_a_reader_that_has_enough_is_no_trouble() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "loadtest", "list"]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
