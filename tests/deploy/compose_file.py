"""deploy/compose.yaml as it is written, and its files on a machine of one's own: a copy of the folder with secrets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.kit.broker_process import ROOT

DEPLOY = ROOT / "deploy"
FILE = DEPLOY / "compose.yaml"

#: Where Compose puts the files of secrets.
SECRETS = "/run/secrets/"

Service = dict[str, Any]


def whole() -> dict[str, Any]:
    """The file with its anchors resolved."""
    found = yaml.safe_load(FILE.read_text())
    assert isinstance(found, dict)
    return found


def services() -> dict[str, Service]:
    """By name."""
    found: dict[str, Service] = whole()["services"]
    return found


def nodes() -> dict[str, Service]:
    """The services that are nodes."""
    return {name: service for name, service in services().items() if "ROOKERY_LISTEN" in service.get("environment", {})}


def environment_of(name: str, deploy: Path) -> dict[str, str]:
    """What the node `name` finds in its environment, with the paths of its secrets as they are in `deploy`."""
    given = {variable: str(value) for variable, value in nodes()[name]["environment"].items()}
    return {variable: value.replace(SECRETS, f"{deploy}/secrets/") for variable, value in given.items()}


def seconds(duration: str) -> int:
    """Of `60s`, the only form the file uses."""
    assert duration.endswith("s"), duration
    return int(duration[:-1])


def with_secrets(folder: Path) -> Path:
    """A copy of deploy/ in `folder`, after `secrets.sh` was run in it."""
    copy = folder / "deploy"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("secrets"))
    make_secrets(copy)
    return copy


def make_secrets(deploy: Path) -> None:
    """As users do, from another folder."""
    subprocess.run([deploy / "secrets.sh"], cwd=deploy.parent, check=True, capture_output=True)
