"""The release before this one, from the history of this checkout: run beside nodes of this tree."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.broker_process import ROOT, BrokerProcess

#: What a node needs of it.
_FOLDERS = ("broker", "cluster")


class Release(NamedTuple):
    """A version, and the folder that has its code."""

    version: str
    folder: Path

    def node(self, directory: Path, store: str, *, arguments: Sequence[str] = (), http: str = "off") -> BrokerProcess:
        """A node that runs its code."""
        environment = {"PYTHONPATH": str(self.folder)}
        return BrokerProcess(directory, store, http=http, arguments=tuple(arguments), environment=environment)

    def rookery(self, *arguments: str) -> str:
        """What its command prints; it has to succeed."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        command = [sys.executable, "-m", "broker", *arguments]
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)


def checkout(folder: Path) -> Release:
    """The release that previous.toml names, below `folder`.

    Skips the test only where there is nothing to take it from: in an unpacked source distribution."""
    if not (ROOT / ".git").exists():
        pytest.skip("the release before is taken from git: this is no checkout")
    named = tomllib.loads(Path(__file__).with_name("previous.toml").read_text())
    version, commit = str(named["version"]), str(named["commit"])
    found = [name for name in (f"v{version}", commit) if _git("cat-file", "-e", f"{name}^{{commit}}").returncode == 0]
    if not found:
        if _git("rev-parse", "--is-shallow-repository").stdout.strip() == b"true":
            raise AssertionError(f"the release before, {version}, is not in this shallow clone: git fetch --unshallow")
        raise AssertionError(f"neither the tag v{version} nor the commit {commit} is in the history of this checkout")
    archive = _git("archive", found[0], *_FOLDERS)
    assert archive.returncode == 0, archive.stderr.decode()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    declared = (folder / "broker" / "__init__.py").read_text()
    assert f'"{version}"' in declared, f"{found[0]} is not the release {version}: {declared}"
    return Release(version, folder)
