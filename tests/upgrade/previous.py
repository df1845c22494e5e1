"""The release before this one: run beside nodes of this tree.

Its code is kept here as an archive (`git archive v0.1.0 broker cluster | xz -9e`), so that the tests need no history:
a shallow clone and an unpacked source distribution have none."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.kit.broker_process import BrokerProcess


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


def unpacked(folder: Path) -> Release:
    """The release that previous.toml names, below `folder`."""
    version = str(tomllib.loads(Path(__file__).with_name("previous.toml").read_text())["version"])
    with tarfile.open(Path(__file__).with_name(f"rookery-{version}.tar.xz")) as files:
        files.extractall(folder, filter="data")
    declared = (folder / "broker" / "__init__.py").read_text()
    assert f'"{version}"' in declared, f"the archive is not the release {version}: {declared}"
    return Release(version, folder)
