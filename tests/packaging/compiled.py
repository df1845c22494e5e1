"""Runs tests of the tree against an installed wheel: `python -m tests.packaging.compiled [TEST ...]`.

The world of such a run is the source package without the code of the broker: nothing but the installed wheel can be
imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("broker", "cluster", "loadtest")

#: All that runs the core itself.
EVERYTHING = ("tests/unit", "tests/property", "tests/node", "tests/conformance")
#: These read the files of the broker beside the tests.
ABOUT_FILES = ("tests/unit/test_tree.py", "tests/unit/test_dashboard_files.py")


def build(out: Path, *arguments: str, root: Path = ROOT, compiled: bool) -> None:
    """Build packages of the tree; its output is shown if that fails."""
    environment = {**os.environ, "ROOKERY_COMPILE": str(int(compiled))}
    call([sys.executable, "-m", "build", "--outdir", str(out), *arguments, str(root)], environment)


def call(command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
    """Run a command that has to succeed, and return what it prints."""
    done = subprocess.run(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-8000:]}")
    return done.stdout


def installed(wheel: Path, folder: Path) -> Path:
    """A Python with the wheel installed, over the libraries of this one."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    call([sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, str(wheel)])
    site = Path(call([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    # Behind its own: an editable installation of the broker among them comes too late to be found.
    libraries = sysconfig.get_path("purelib")
    (site / "zz_libraries.pth").write_text(f"import site; site.addsitedir({libraries!r})\n")
    return python


def world(sdist: Path, folder: Path) -> Path:
    """The unpacked source package, without the code."""
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    (root,) = folder.iterdir()
    for name in CODE:
        shutil.rmtree(root / name)
    return root


def run(python: Path, root: Path, tests: Sequence[str]) -> None:
    """Run the tests there."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = call([str(python), "-c", "import broker.session.session as used; print(used.__file__)"], environment, root)
    if not said.startswith(str(python.parents[1])) or not said.rstrip().endswith(".so"):
        raise AssertionError(f"the core is not the compiled one of the wheel, but {said}")
    ignored = [f"--ignore={path}" for path in ABOUT_FILES]
    call([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored, *tests], environment, root)


def main(tests: Sequence[str]) -> None:
    """Build, install, and run the tests against it."""
    with tempfile.TemporaryDirectory(prefix="rookery-compiled-") as scratch:
        folder = Path(scratch)
        build(folder / "dist", "--no-isolation", compiled=True)
        (wheel,), (sdist,) = folder.glob("dist/*.whl"), folder.glob("dist/*.tar.gz")
        run(installed(wheel, folder / "venv"), world(sdist, folder / "world"), tests or EVERYTHING)


if __name__ == "__main__":
    main(sys.argv[1:])
