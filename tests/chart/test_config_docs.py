"""docs/kubernetes.md: its values are valid, its commands of Helm are, and its figures are those of the chart."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.config import load
from tests.chart.container import container_of
from tests.chart.helm import VERSIONS, one, refusal, render, run
from tests.kit.broker_process import ROOT

_PAGE = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")
_BLOCKS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", _PAGE, re.DOTALL)]
#: But those of prometheus-adapter's chart.
_VALUES = [values for values in _BLOCKS if "rules" not in values]
_COMMANDS = re.findall(r"^helm (?:install|upgrade) .*$", _PAGE, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(_VALUES)))
def test_values(number: int, tmp_path: Path) -> None:
    """The broker takes what comes out."""
    objects = render(_VALUES[number])
    container = container_of(objects, "Deployment", tmp_path, lambda name, key: "text")
    load({}, container.process_environment(), container.configuration)


@pytest.mark.parametrize("helm", VERSIONS)
@pytest.mark.parametrize("command", _COMMANDS)
def test_commands(command: str, helm: int) -> None:
    """Rendered: a cluster is all that is missing."""
    _, _, release, chart, *options = shlex.split(command)
    options = [option for option in options if option not in ("--create-namespace", "--reset-then-reuse-values")]
    done = run(helm, "template", release, str(ROOT / chart), *options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", re.findall(r"^\| (?:[\d,]+) \|.*$", _PAGE, re.MULTILINE))
def test_the_arithmetic(line: str) -> None:
    connections, timeout, rate, grace = (int(re.sub(r"\D", "", cell)) for cell in line.strip("|").split("|"))
    objects = render({"maxConnections": connections, "drain": {"timeoutSeconds": timeout}})
    assert f"drain_rate = {rate}\n" in one(objects, "ConfigMap", "rookery")["data"]["rookery.toml"]
    spec: dict[str, Any] = one(objects, "Deployment")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == grace


def test_what_helm_says() -> None:
    [quoted] = re.findall(r"Helm: `(drain: .*?)`", _PAGE)
    assert quoted in refusal({"maxConnections": 7000, "drain": {"rate": 100}})
