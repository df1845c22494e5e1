"""A container of a rendered pod, as the kubelet would start it: arguments, environment and files, below a folder."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.chart.helm import Resource, of_kind, one, pod_templates
from tests.kit.broker_process import ROOT

#: What a Secret of the user has under a key.
Given = Callable[[str, str], str]

POD_NAME = "rookery-5d8f7c9b6d-x2x7k"
#: What the values name by paths of the container's own file system.
_OUTSIDE = ("/etc/rookery",)


def not_given(name: str, key: str) -> str:
    """Nobody has made Secrets beforehand."""
    raise AssertionError(f"Secret {name} with {key} is not in the release")


@dataclass
class Container:
    """One container; `environment` is all that it has, `folder` what stands for its root."""

    spec: Resource
    environment: dict[str, str]
    folder: Path

    @property
    def arguments(self) -> list[str]:
        """Those of the image's entry point, `rookery`."""
        return self.command_of(self.spec["args"])

    @property
    def configuration(self) -> Path:
        """The file of settings."""
        return self.folder / "etc/rookery/rookery.toml"

    def command_of(self, words: Sequence[str]) -> list[str]:
        """The words, with paths of the container found below the folder and variables filled in."""
        return [self.below(_expanded(word, self.environment)) for word in words]

    def below(self, text: str) -> str:
        """Paths of the container, here."""
        for path in _OUTSIDE:
            here = f"{self.folder}{path}"
            text = text.replace(path, here).replace(quote(path, safe=""), quote(here, safe=""))
        return text

    def run(self, words: Sequence[str], module: str = "broker") -> subprocess.CompletedProcess[str]:
        """What a command of `rookery` says in it; without the first word if that is the program itself."""
        command = self.program(words[1:] if words[0] == "rookery" else words, module)
        environment = self.process_environment()
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=90)

    def program(self, words: Sequence[str], module: str = "broker") -> list[str]:
        """The command line, here."""
        return [sys.executable, "-m", module, *self.command_of(words)]

    def process_environment(self) -> dict[str, str]:
        """What the container has, and what Python needs here."""
        environment = {name: self.below(text) for name, text in self.environment.items()}
        # The image's data folder lies on a root file system that is read-only.
        image = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "ROOKERY_DATA_DIR": "/proc/read-only"}
        return {**image, **environment}


def container_of(objects: list[Resource], kind: str, folder: Path, given: Given = not_given) -> Container:
    """The first container of the only workload (or pod) of that kind."""
    workload = one(objects, kind)
    [template] = [template for item, template in pod_templates(objects) if item is workload]
    spec = template["spec"]["containers"][0]
    environment: dict[str, str] = {}
    for source in spec.get("envFrom", []):
        environment |= _all_of(source, objects, given)
    for variable in spec.get("env", []):
        text = _value(variable, objects, given)
        if text is not None:
            environment[variable["name"]] = _expanded(text, environment)
    volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
    container = Container(spec, environment, folder)
    for mount in spec.get("volumeMounts", []):
        for path, text in _files(volumes.get(mount["name"], {}), objects, given).items():
            inside = mount["mountPath"] if mount.get("subPath") == path else f"{mount['mountPath']}/{path}"
            if mount.get("subPath", path) == path:
                file = folder / inside.lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(container.below(text) if path.endswith(".toml") else text)
    return container


def _value(variable: Resource, objects: list[Resource], given: Given) -> str | None:
    if "value" in variable:
        return str(variable["value"])
    source = variable["valueFrom"]
    if "fieldRef" in source:
        return POD_NAME if source["fieldRef"]["fieldPath"] == "metadata.name" else "of-the-pod"
    reference = source["secretKeyRef"]
    return _key(reference["name"], reference["key"], objects, given)


def _key(name: str, key: str, objects: list[Resource], given: Given) -> str:
    secret = _data(objects, "Secret", name)
    return given(name, key) if secret is None else secret[key]


def _all_of(source: Resource, objects: list[Resource], given: Given) -> Mapping[str, str]:
    kind, reference = ("Secret", source.get("secretRef")) if "secretRef" in source else ("ConfigMap", None)
    reference = reference or source["configMapRef"]
    data = _data(objects, kind, reference["name"])
    if data is None and reference.get("optional"):
        return {}
    return {"ROOKERY_LOG_LEVEL": given(reference["name"], "ROOKERY_LOG_LEVEL")} if data is None else data


def _data(objects: list[Resource], kind: str, name: str) -> dict[str, str] | None:
    for item in of_kind(objects, kind):
        if item["metadata"]["name"] == name:
            encoded = item.get("data", {})
            if kind == "Secret":
                encoded = {key: base64.b64decode(text).decode() for key, text in encoded.items()}
            return {**encoded, **item.get("stringData", {})}
    return None


def _files(volume: Resource, objects: list[Resource], given: Given) -> dict[str, str]:
    if "secret" in volume:
        kind, source = "Secret", volume["secret"]
    elif "configMap" in volume:
        kind, source = "ConfigMap", volume["configMap"]
    else:
        return {}
    name = source.get("secretName") or source["name"]
    data = _data(objects, kind, name)
    if "items" in source:
        return {
            item["path"]: given(name, item["key"]) if data is None else data[item["key"]] for item in source["items"]
        }
    assert data is not None, f"{kind} {name} is not in the release"
    return data


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes reads it: what is not known stays, `$$` is a dollar."""

    def known(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", known, text)
