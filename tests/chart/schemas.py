"""Whether an API server would take an object, and drop nothing of it: schemas of Kubernetes, and of operators."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from typing import Any

import jsonschema
from kubernetes_validate.utils import all_versions, latest_version, schema_contents
from referencing import Registry
from referencing import Resource as Document

from tests.chart.helm import Resource
from tests.kit.broker_process import ROOT

#: The oldest that Chart.yaml allows, one in between, and the newest that there are schemas for.
KUBERNETES = ("1.27", "1.31", latest_version())


def faults(objects: list[Resource], kubernetes: str) -> list[str]:
    """What strict schemas of that version find; nothing about kinds of others (`custom`)."""
    found = []
    for item in objects:
        if not custom(item):
            found += [f"{called(item)}: {fault}" for fault in _faults(json.dumps(item, sort_keys=True), kubernetes)]
    return found


def faults_of_custom(objects: list[Resource]) -> list[str]:
    """The same for kinds of operators (prometheus-operator, KEDA, cert-manager, Gateway API)."""
    theirs = [item for item in objects if custom(item)]
    program = ROOT / "tests" / "chart" / "custom_resources.mjs"
    done = subprocess.run(
        ["node", str(program)], input=json.dumps(theirs), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = []
    for item, told in zip(theirs, json.loads(done.stdout), strict=True):
        found += [f"{called(item)}: {fault}" for fault in (["of a kind that is not known"] if told is None else told)]
    return found


def custom(item: Resource) -> bool:
    """Whether it is of a kind that Kubernetes itself does not have."""
    group = item["apiVersion"].rpartition("/")[0]
    return "." in group and (group == "gateway.networking.k8s.io" or not group.endswith(".k8s.io"))


def called(item: Resource) -> str:
    """How tests name it."""
    return f"{item['kind']} {item['metadata']['name']}"


@cache
def _faults(item: str, kubernetes: str) -> tuple[str, ...]:
    loaded = json.loads(item)
    validator = _validator(kubernetes, loaded["apiVersion"], loaded["kind"])
    return tuple(f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(loaded))


@cache
def _validator(kubernetes: str, api_version: str, kind: str) -> Any:
    folder, definitions = _definitions(kubernetes)
    group, _, version = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], version) if part)
    schema = schema_contents(f"{folder}/{name}.json", kubernetes)
    registry: Registry[Any] = Document.from_contents(schema) @ (definitions @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cache
def _definitions(kubernetes: str) -> tuple[str, Document[Any]]:
    version = [each for each in all_versions() if each == kubernetes or each.startswith(f"{kubernetes}.")][-1]
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    return folder, Document.from_contents(schema_contents(f"{folder}/_definitions.json", kubernetes))
