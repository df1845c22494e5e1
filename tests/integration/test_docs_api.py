"""The examples of docs/api.md work."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.kit.api import ADMIN_SECRET
from tests.kit.broker_process import BrokerProcess

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


def test_examples(http_node: BrokerProcess) -> None:
    environment = {**os.environ, "URL": f"http://{http_node.http}", "KEY": f"rk_admin_{ADMIN_SECRET}"}
    commands = [
        command
        for block in re.findall(r"^```console\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
        for command in re.findall(r"^\$ (curl .*)$", block, re.MULTILINE)
    ]
    assert len(commands) == 9
    for command in commands:
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
