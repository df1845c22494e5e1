"""Free loopback ports that no other process of the tests takes, as long as this one lives."""

from __future__ import annotations

import fcntl
import random
import socket
import tempfile
from pathlib import Path

#: Below the ports that the kernel gives to outgoing connections.
_PORTS = range(20000, 32000)
#: One file per port, locked by the process that uses it.
_FOLDER = Path(tempfile.gettempdir()) / "rookery-test-ports"
_held: list[object] = []


def free_port() -> int:
    """A port that stays this process's own: a server that was killed may come back to it, and nobody who still knows
    it as that server (a Sentinel, a node) meets the server of another test there."""
    _FOLDER.mkdir(exist_ok=True)
    choice = random.SystemRandom()
    for _ in range(1000):
        port = choice.choice(_PORTS)
        lock = (_FOLDER / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port
    raise RuntimeError(f"no free port from {_PORTS.start} to {_PORTS.stop - 1}")
