"""What the packages hold, and what they say about themselves."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Iterable
from email import message_from_bytes
from email.message import Message as Metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

import broker
import hatch_build
from tests.packaging.compiled import ROOT, call
from tests.packaging.conftest import Packages

#: Whichever test comes first builds the packages, which takes a minute of an idle processor.
pytestmark = pytest.mark.timeout(600)

_INFO = f"rookery-{broker.__version__}.dist-info"
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: Files of the packages that git knows of, and that are no notes for developers.
_DATA = {".lua", ".js", ".css", ".html", ".svg", ".txt", ".json", ".toml", ".typed"}


def _names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as packed:
        return {name for name in packed.namelist() if not name.endswith("/")}


def _metadata(wheel: Path) -> Metadata:
    with ZipFile(wheel) as packed:
        return message_from_bytes(packed.read(f"{_INFO}/METADATA"))


def _below(names: Iterable[str], *folders: str) -> set[str]:
    return {name for name in names if name.partition("/")[0] in folders}


def test_names_say_where_wheels_can_be_installed(packages: Packages) -> None:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    version = broker.__version__
    assert packages.compiled.name == f"rookery-{version}-{python}-{python}-{platform}.whl"
    assert packages.pure.name == f"rookery-{version}-py3-none-any.whl"
    assert packages.sdist.name == f"rookery-{version}.tar.gz"


def test_wheels_hold_the_same_but_the_compiled_modules(packages: Packages) -> None:
    extra = _names(packages.compiled) - _names(packages.pure)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    modules = {name.removesuffix(".py") + suffix for name in hatch_build.modules(ROOT)}
    assert extra == modules | {f"rookery__mypyc{suffix}"}
    assert len(modules) > 15
    assert _names(packages.pure) < _names(packages.compiled)


def test_wheels_hold_code_scripts_and_assets_and_nothing_else(packages: Packages) -> None:
    names = _names(packages.pure)
    tracked = _below(packages.tracked, "broker", "cluster", "loadtest")
    needed = {name for name in tracked if Path(name).suffix in _DATA | {".py"}}
    assert {name for name in needed if name.endswith((".lua", "vendor/mqtt.min.js", "dashboard/index.html"))}
    assert "loadtest/scenarios/p2p1.toml" in names
    assert needed <= names
    others = {name.partition("/")[0] for name in names - tracked}
    assert others == {_INFO, f"rookery-{broker.__version__}.data"}


def test_licences_of_all_that_is_shipped_travel_with_it(packages: Packages) -> None:
    vendored = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("broker/http/dashboard/vendor/*.LICENSE.txt")}
    assert len(vendored) == 2
    licences = {"LICENSE", *vendored}
    assert {f"{_INFO}/licenses/{name}" for name in licences} <= _names(packages.pure)
    metadata = _metadata(packages.pure)
    assert set(metadata.get_all("License-File", [])) == licences
    assert metadata["License-Expression"] == "Apache-2.0"


def test_manual_pages_and_completions_are_installed_where_shells_look(packages: Packages) -> None:
    shared = f"rookery-{broker.__version__}.data/data/"
    assert {name.removeprefix(shared) for name in _names(packages.pure) if name.startswith(shared)} == {
        "share/man/man1/rookery.1",
        "share/man/man5/rookery.toml.5",
        "share/bash-completion/completions/rookery",
        "share/zsh/site-functions/_rookery",
        "share/fish/vendor_completions.d/rookery.fish",
    }


def test_the_source_package_is_complete(packages: Packages) -> None:
    """Wheels are built from it by the fixture; here: that all else of the repository is in it, and nothing more."""
    with tarfile.open(packages.sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    folders = (".ci", "broker", "cluster", "deploy", "docs", "helm", "loadtest", "share", "tests")
    files = ("LICENSE", "Makefile", "README.md", "hatch_build.py", "mkdocs.yml", "pyproject.toml")
    assert _below(packages.tracked, *folders, *files) - names == set()
    assert [name for name in names if "node_modules/" in name or "__pycache__" in name or name.endswith(".so")] == []


def test_metadata_is_what_an_index_accepts(packages: Packages) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", packages.sdist, packages.compiled, packages.pure],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 3
    metadata = _metadata(packages.compiled)
    assert metadata["Version"] == broker.__version__
    assert set(metadata.get_all("Provides-Extra", [])) == set(_PROJECT["optional-dependencies"])


def test_the_page_on_installing_names_every_extra_of_users() -> None:
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    extras = set(_PROJECT["optional-dependencies"]) - {"test", "dev", "docs", "fuzz"}
    assert [extra for extra in sorted(extras) if f"| `{extra}` |" not in page] == []


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_wheels_for_linux_are_configured(architecture: str) -> None:
    listed = call(
        [
            *(sys.executable, "-m", "cibuildwheel", "--platform", "linux", "--archs", architecture),
            *("--print-build-identifiers", str(ROOT)),
        ]
    )
    told = [each.rpartition(" ")[2] for each in _PROJECT["classifiers"] if "Python :: 3." in each]
    assert listed.split() == [f"cp{version.replace('.', '')}-manylinux_{architecture}" for version in told]
    assert len(told) >= 3
