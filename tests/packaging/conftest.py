"""The packages, built once for all tests."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.compiled import ROOT, build, call

#: Folders of .gitignore.
_BUILT = {".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache"}
_BUILT |= {".git", "rookery-data", "node_modules", "dist", "build", ".cache", "site", "secrets"}


@dataclass(frozen=True, slots=True)
class Packages:
    """Files as they would be published."""

    sdist: Path
    compiled: Path
    pure: Path
    #: The files they were built from.
    tracked: frozenset[str]


def _tracked() -> Iterator[str]:
    """The files of the project, without what was built; where there is no history, all but what is known as built."""
    if (ROOT / ".git").exists():
        listed = call(["git", "-C", str(ROOT), "ls-files", "-z"]).split("\0")
        yield from (name for name in listed if name and (ROOT / name).exists())
        return
    for path in ROOT.rglob("*"):
        name = path.relative_to(ROOT)
        if path.is_file() and not _BUILT.intersection(name.parts):
            yield str(name)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The source package, and both kinds of wheel built from nothing but it."""
    out = tmp_path_factory.mktemp("dist")
    tracked = frozenset(_tracked())
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
