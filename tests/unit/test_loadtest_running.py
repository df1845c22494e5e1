"""How long a run waits for what is on its way, and what it knows of the broker's processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loadtest.address import Address, Credentials
from loadtest.client import LoadError
from loadtest.engine import Engine
from loadtest.processes import gone
from loadtest.running import Patience, Run, Target
from loadtest.sampling import Usage
from loadtest.scenario import Scenario

SCENARIO = Scenario(publishers=1, subscribers=1)


def test_a_broker_that_is_silent_is_awaited_for_a_pause() -> None:
    patience = Patience(2.0, 30.0, now=100.0)
    assert not patience.ended((5,), 101.9)
    assert not patience.ended((6,), 103.8)
    assert not patience.ended((6,), 105.7)
    assert patience.ended((6,), 105.9) is Patience.STILL


def test_clients_that_are_away_lengthen_the_pause() -> None:
    patience = Patience(2.0, 30.0, now=100.0)
    assert not patience.ended((5,), 100.0, longer_s=3.0)
    assert not patience.ended((5,), 104.9)
    assert patience.ended((5,), 105.1) is Patience.STILL


def test_a_broker_that_dribbles_is_not_awaited_for_ever() -> None:
    patience = Patience(2.0, 30.0, now=100.0)
    looks = [patience.ended((number,), 100.0 + 1.5 * number) for number in range(1, 30)]
    assert looks[:20] == [""] * 20
    assert looks[20] is Patience.LONG


def _ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_processes_that_ended_are_gone_also_before_anybody_asked_for_them() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as zombie:
        assert zombie.stdout is not None
        zombie.stdout.read()
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert gone([os.getpid(), zombie.pid]) == [zombie.pid]
    assert gone([zombie.pid]) == [zombie.pid]


def test_the_cpu_of_a_process_that_died_is_not_known() -> None:
    engine = Engine(SCENARIO, (), (), Credentials())
    before = Usage.now(engine, [os.getpid()])
    after = Usage.now(engine, [os.getpid()])
    assert after.broker_since(before) is not None
    assert Usage.now(engine, [_ended_process()]).broker_since(before) is None
    engine.close()


def test_a_process_that_is_not_there_cannot_be_measured() -> None:
    pid = _ended_process()
    node = Address("127.0.0.1", 1, 2, ("127.0.0.1", 1))
    run = Run(SCENARIO, Target("it", (node,), (node,), (pid,)))
    with pytest.raises(LoadError, match=f"no process {pid} is there"):
        run.populate()
    run.engine.close()
