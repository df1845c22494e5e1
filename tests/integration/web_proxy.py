"""HAProxy in HTTP mode before a WebSocket listener: it says in X-Forwarded-For whom it serves."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fault.haproxy import find_haproxy
from tests.kit.ports import free_port

START_S = 10.0

_CONFIGURATION = """\
global
    stats socket {folder}/stats mode 600 level admin
defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    timeout tunnel 1h
listen web
    bind 127.0.0.1:{port}
    http-request add-header X-Forwarded-For {address}
    server node 127.0.0.1:{node}
"""


@contextmanager
def web_proxy(folder: Path, node: int, address: str) -> Iterator[int]:
    """A running HAProxy before the port `node`; gives its port. Clients seem to come from `address`."""
    binary = find_haproxy()
    if binary is None:
        raise RuntimeError("no haproxy: install the Debian package of that name")
    port = free_port()
    (folder / "haproxy.cfg").write_text(_CONFIGURATION.format(folder=folder, port=port, node=node, address=address))
    with (folder / "haproxy.log").open("ab") as log:
        process = subprocess.Popen(
            [binary, "-db", "-f", str(folder / "haproxy.cfg")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + START_S
        while not (folder / "stats").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"haproxy did not start: {(folder / 'haproxy.log').read_text()[-1000:]}")
            time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()
