"""Comparisons: turns, versions, what is left out, and what a broker that does not start does to the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest import compare
from loadtest.compare import cases, present, why_not
from loadtest.report import status
from loadtest.result import Result
from loadtest.scenario import Scenario, ScenarioError
from loadtest.targets import Broker, Running, TargetError, external, host_port
from tests.kit.load_results import result


@contextmanager
def _starting(nodes: int) -> Iterator[Running]:
    yield Running(tuple(("127.0.0.1", 1000 + number) for number in range(nodes)))


@contextmanager
def _broken(nodes: int) -> Iterator[Running]:
    if nodes:
        raise TargetError("it did not start")
    yield Running(())


def _runner(scenario: Scenario, broker: str, running: Running) -> Result:
    return result(scenario.name, broker, settings={"version": scenario.version, "nodes": len(running.addresses)})


def test_brokers_take_turns() -> None:
    said: list[str] = []
    brokers = [Broker("x", _starting), Broker("y", _starting, version=4)]
    found = compare.run(cases(["p2p0", "p2p1"], {}), brokers, 2, _runner, said.append)
    assert [(each.name, each.broker) for each in found] == [
        *[("p2p0", "x"), ("p2p0", "y"), ("p2p0", "x"), ("p2p0", "y")],
        *[("p2p1", "x"), ("p2p1", "y"), ("p2p1", "x"), ("p2p1", "y")],
    ]
    assert {(each.broker, each.settings["version"]) for each in found} == {("x", 5), ("y", 4)}
    assert said[0] == "p2p0 x 1/2: 1,000/s, 5.0 us of CPU, 4.00 ms p99"


def test_a_broker_that_does_not_start_is_a_failure_of_its_own() -> None:
    found = compare.run(
        cases(["p2p0"], {}), [Broker("x", _broken), Broker("y", _starting)], 1, _runner, lambda line: None
    )
    assert [(each.broker, each.failure) for each in found] == [("x", "it did not start"), ("y", "")]


def test_two_nodes_for_those_that_have_them() -> None:
    said: list[str] = []
    brokers = [Broker("x", _starting), Broker("y", _starting, most_nodes=2)]
    [found] = compare.run(cases(["p2p1@2"], {}), brokers, 1, _runner, said.append)
    assert (found.name, found.broker, found.settings["nodes"]) == ("p2p1@2", "y", 2)
    assert found.title.endswith(", one of 2 nodes to another")
    assert said[0] == "p2p1@2 x: left out, it has no 2 nodes"


def test_layouts_that_a_broker_lacks_are_left_out() -> None:
    [case] = cases(["shared"], {})
    assert why_not(case, Broker("x", _starting, without=frozenset({"shared"}))) == "it has no layout shared"
    assert why_not(case, Broker("x", _starting)) == ""


@pytest.mark.parametrize("text", ["p2p1@", "p2p1@two", "p2p1@0", "nonsense"])
def test_wrong_scenarios_are_refused(text: str) -> None:
    with pytest.raises(ScenarioError):
        cases([text], {})


def test_the_command_line_changes_windows() -> None:
    [case] = cases(["p2p1"], {"seconds": 0.5, "warmup": 0.1})
    assert (case.scenario.seconds, case.scenario.warmup) == (0.5, 0.1)


def test_missing_brokers_are_left_out_with_a_word() -> None:
    said: list[str] = []
    there, gone = Broker("x", _starting), Broker("y", _starting, lambda: "node is not installed")
    assert present([there, gone], said.append) == [there]
    assert said == ["y is left out: node is not installed"]


def test_disturbed_runs_and_faults_are_told() -> None:
    assert "disturbed: others used 55 % of a processor" in compare.told(result(others=55.0))
    assert compare.told(result(lost=3)).endswith("3 lost")
    assert compare.told(result(rate=None, failure="refused")) == "failed: refused"


def test_brokers_that_run_already() -> None:
    broker = external("emqx=mqtt://h:1884,tcp://[::1]:1885;12,13")
    with broker.start(1) as running:
        assert running == Running((("h", 1884),), (12, 13))
    with broker.start(2) as running:
        assert (running.publish_to, running.subscribe_to) == ((("h", 1884),), (("::1", 1885),))
    assert broker.most_nodes == 2
    with external("a=localhost").start(1) as running:
        assert running.address == ("localhost", 1883)


@pytest.mark.parametrize("text", ["", "a", "a=", "=mqtt://h", "a=http://h:1", "a=mqtt://h:1;x", "a=mqtt://h:port"])
def test_wrong_targets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|Port|port|invalid literal"):
        external(text)


def test_host_and_port() -> None:
    assert host_port("[::1]:1883") == ("::1", 1883)
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        host_port("1883")


@pytest.mark.parametrize("option", [["--brokers", "nonsense"], ["--target", "x"], ["nonsense"], ["p2p1@x"]])
def test_wrong_command_lines_say_so(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare.main(option)
    assert "error:" in capsys.readouterr().err


def test_an_interrupted_run_is_the_last() -> None:
    def interrupted(scenario: Scenario, broker: str, running: Running) -> Result:
        found = _runner(scenario, broker, running)
        found.interrupted = True
        return found

    found = compare.run(cases(["p2p0"], {}), [Broker("x", _starting)], 3, interrupted, lambda line: None)
    assert len(found) == 1
    assert status(found) == 130
