"""Compiles the core while a wheel is built, where that is possible; everywhere else the wheel is pure Python.

ROOKERY_COMPILE=1 compiles or fails, 0 does not. Without it the core is compiled by CPython on Linux (x86_64, arm64) if
there is a C compiler that works. Both kinds of wheel hold the same Python files; compiled modules lie beside theirs and
come first. An editable installation is never compiled: the files that are edited would not be those that run.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What each message passes through, and does not depend on anything outside of the core.
_COMPILED: Final = (
    "broker/codec/*.py",
    "broker/message.py",
    "broker/reasons.py",
    "broker/session/*.py",
    "broker/topics/*.py",
)

#: Packages stay folders of files; mypyc does not know dataclasses with slots.
_INTERPRETED: Final = ("__init__.py", "quotas.py")

#: mypyc is a part of mypy: another version of it is another compiler.
_COMPILER: Final = ["mypy==2.4.1", "setuptools>=77"]

_MACHINES: Final = ("x86_64", "aarch64", "arm64")
_GROUP: Final = "rookery"


def modules(root: Path) -> list[str]:
    """The files to compile, relative to the root."""
    found = sorted(path for pattern in _COMPILED for path in root.glob(pattern) if path.name not in _INTERPRETED)
    return [path.relative_to(root).as_posix() for path in found]


def wanted() -> bool:
    """Whether wheels are compiled here; ValueError if the environment says neither 0 nor 1."""
    said = os.environ.get("ROOKERY_COMPILE", "")
    if said not in ("", "0", "1"):
        raise ValueError(f"ROOKERY_COMPILE is {said!r}, must be 0 or 1")
    return said == "1" or (not said and _possible())


def _possible() -> bool:
    if sys.implementation.name != "cpython" or not sys.platform.startswith("linux"):
        return False
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    return platform.machine() in _MACHINES and shutil.which(compiler) is not None and header.exists()


class CustomBuildHook(BuildHookInterface[BuilderConfig]):
    """The hook that hatchling finds by this name."""

    _scratch: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        return _COMPILER if self.target_name == "wheel" and wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable" or not wanted():
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="rookery-build-")
        try:
            compiled = _compile(Path(self.root), Path(self._scratch.name))
        except (Exception, SystemExit) as error:  # the latter is how mypyc says what it does not like
            self._scratch.cleanup()
            if os.environ.get("ROOKERY_COMPILE") == "1":
                raise
            self.app.display_warning(f"the core is not compiled, this wheel is pure Python: {error!s:.2000}")
            return
        for path, place in compiled:
            build_data["force_include"][str(path)] = place
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()


def _compile(root: Path, scratch: Path) -> list[tuple[Path, str]]:
    """Extension modules and their places in the wheel."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    before = Path.cwd()
    os.chdir(root)  # names of modules are those of their paths from here
    try:
        options = ["--cache-dir", str(scratch / "cache"), "--no-error-summary"]
        extensions = mypycify(
            [*options, *modules(root)], opt_level="3", debug_level="0", group_name=_GROUP, target_dir=str(scratch / "c")
        )
        for extension in extensions:  # newer compilers have more warnings about what is generated
            extension.extra_compile_args = [each for each in extension.extra_compile_args if each != "-Werror"]
        command = build_ext(Distribution({"name": _GROUP, "ext_modules": extensions}))
        command.build_lib = str(scratch / "lib")
        command.build_temp = str(scratch / "objects")
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
    built = scratch / "lib"
    return [(path, path.relative_to(built).as_posix()) for path in sorted(built.rglob("*.so"))]
