"""The packages, built once for all tests."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.compiled import ROOT, build, call


@dataclass(frozen=True, slots=True)
class Packages:
    """Files as they would be published."""

    sdist: Path
    compiled: Path
    pure: Path
    #: What git knew of when they were built.
    tracked: frozenset[str]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The source package, and both kinds of wheel built from nothing but it."""
    out = tmp_path_factory.mktemp("dist")
    listed = call(["git", "-C", str(ROOT), "ls-files", "-z"]).split("\0")
    tracked = frozenset(name for name in listed if name and (ROOT / name).exists())
    build(out, compiled=True)  # with what pyproject.toml asks for, and the wheel from the source package
    (sdist,) = out.glob("*.tar.gz")
    (compiled,) = out.glob("*.whl")
    unpacked = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as packed:
        packed.extractall(unpacked, filter="data")
    (root,) = unpacked.iterdir()
    build(out, "--wheel", "--no-isolation", root=root, compiled=False)
    (pure,) = set(out.glob("*.whl")) - {compiled}
    return Packages(sdist, compiled, pure, tracked)
