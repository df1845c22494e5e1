"""The measurement of operators beside load runs, and finds that nothing was refused."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from loadtest.asking import ASKED


@pytest.mark.timeout(90)
def test_operators_are_answered_beside_load() -> None:
    command = [sys.executable, "-m", "loadtest.operators", "--seconds", "2", "--repeat", "1", "--scenario", "fanin"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80)
    assert done.returncode == 0, done.stderr
    for name in [*ASKED, "all"]:
        [count] = re.findall(rf"^\| {name} \| (\d+) \|", done.stdout, re.M)
        assert int(count) >= 1
    [messages] = re.findall(r"^\| beside operators \| ([\d,]+) \|", done.stdout, re.M)
    assert int(messages.replace(",", "")) > 0
    assert re.search(r"^\d+ events of live figures", done.stdout, re.M)
