"""The packages, built once for all tests."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.compiled import build


@dataclass(frozen=True, slots=True)
class Packages:
    """Files as they would be published."""

    sdist: Path
    compiled: Path
    pure: Path


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The source package, and both kinds of wheel built from nothing but it."""
    out = tmp_path_factory.mktemp("dist")
    build(out, compiled=True)  # with what pyproject.toml asks for, and the wheel from the source package
    (sdist,) = out.glob("*.tar.gz")
    (compiled,) = out.glob("*.whl")
    unpacked = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as packed:
        packed.extractall(unpacked, filter="data")
    (root,) = unpacked.iterdir()
    build(out, "--wheel", "--no-isolation", root=root, compiled=False)
    (pure,) = set(out.glob("*.whl")) - {compiled}
    return Packages(sdist, compiled, pure)
