"""The container image, built for real: by buildah, from bases that are made of the machine's own Debian packages.

There is no container engine and no registry here. The bases are made by mmdebstrap over the machine's apt sources (the
one for the running image without shell and package manager), the Python packages come from pip's own index by way of
a folder. What takes long is kept in a cache folder; what does not fit the machine any more has another name there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.kit.broker_process import ROOT

DOCKERFILE = ROOT / "deploy/Dockerfile"

#: Debian's own Python: the bases have the same one, so packages that are chosen for it fit.
PYTHON = "/usr/bin/python3"
#: Packages are unpacked and not set up, as distroless images are made: what is not named here is not there.
_BUILD = "python3,python3-venv,dash,coreutils,base-files,ca-certificates"
BASES = {
    "build": _BUILD,
    "compile": f"{_BUILD},python3-dev,gcc,libc6-dev",
    "run": "python3,base-files,ca-certificates,netbase,tzdata",
}
_CACHE = ROOT / ".cache/image"
_HOOK = "/usr/share/mmdebstrap/hooks/merged-usr"


def _release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {(done.stdout + done.stderr)[-8000:]}"
    return done.stdout


def _cached(name: str, key: str, suffix: str = "") -> Path:
    """A place in the cache for what `key` decides; others of this name are taken away."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    path = _CACHE / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}{suffix}"
    for other in _CACHE.glob(f"{name}-*"):
        if other != path:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    return path


def base(name: str) -> Path:
    """The archive of a file system; made once for a release of Debian and its packages."""
    path = _cached(name, f"{_release()['VERSION']} {BASES[name]} {_run(PYTHON, '-V')}", ".tar")
    if not path.exists():
        made = path.with_suffix(".part")
        command = ["mmdebstrap", "--variant=extract", "--format=tar", f"--hook-dir={_HOOK}", f"--include={BASES[name]}"]
        _run(*command, _release()["VERSION_CODENAME"], made)
        made.rename(path)
    return path


def wheelhouse() -> Path:
    """A folder with all packages that the Dockerfile's pip asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = re.search(r"^ARG EXTRAS=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert extras is not None
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], *compiler()]
    for extra in extras[1].split(","):
        wanted += project["project"]["optional-dependencies"][extra]
    path = _cached("wheels", "\n".join([*wanted, _run(PYTHON, "-V")]))
    if not path.exists():
        made = Path(tempfile.mkdtemp(dir=_CACHE))
        command = [sys.executable, "-m", "pip", "--python", PYTHON, "download", "--quiet", "--only-binary=:all:"]
        _run(*command, "--dest", made, *wanted)
        made.chmod(0o755)
        made.rename(path)
    return path


def compiler() -> list[str]:
    """What hatch_build.py asks for to compile."""
    found = re.search(r"^_COMPILER: Final = \[(.*)\]$", (ROOT / "hatch_build.py").read_text(), re.MULTILINE)
    assert found is not None
    return re.findall(r'"([^"]+)"', found[1])


class Buildah:
    """Buildah with all that it keeps below `folder`; `close` takes the folder away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._options = ["--root", str(folder / "root"), "--runroot", str(folder / "runroot")]
        self._options += ["--storage-driver", "vfs"]
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def command(self, *arguments: str | Path) -> list[str | Path]:
        return ["buildah", *self._options, *arguments]

    def run(self, *arguments: str | Path) -> str:
        """What it prints; AssertionError if it fails."""
        return _run(*self.command(*arguments)).strip()

    def start_from(self, archive: Path, image: str) -> None:
        """Make an image of one archive of a file system."""
        container = self.run("from", "scratch")
        self.run("add", "--quiet", container, archive, "/")
        self.run("commit", "--quiet", "--rm", container, image)

    def build(self, image: str, *, compiled: bool) -> None:
        """As `docker build --file deploy/Dockerfile .` would, with an index and bases of our own."""
        self.start_from(base("compile" if compiled else "build"), "localhost/build")
        self.start_from(base("run"), "localhost/run")
        index = self.folder / "pip.conf"
        index.write_text("[global]\nno-index = true\nfind-links = /wheelhouse\n")
        self.run(
            *("build", "--isolation", "chroot", "--format", "docker", "--file", DOCKERFILE, "--tag", image),
            *("--build-arg", "BUILD_IMAGE=localhost/build", "--build-arg", "BASE_IMAGE=localhost/run"),
            *("--build-arg", f"ROOKERY_COMPILE={int(compiled)}", "--build-arg", "REVISION=tested"),
            *("--secret", f"id=pip,src={index}", "--volume", f"{wheelhouse()}:/wheelhouse:ro"),
            ROOT,
        )

    def close(self) -> None:
        """All containers and images are gone."""
        self.run("rm", "--all")
        shutil.rmtree(self.folder)
