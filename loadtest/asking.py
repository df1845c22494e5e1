"""What operators ask of a node while it works: `python -m loadtest.asking HOST:PORT SECRET SECONDS`.

Once a second it asks everything in `ASKED`, evenly spread, and it follows the live figures like a dashboard that stands
open. At the end it prints one JSON object: for each thing the milliseconds until the whole answer was there, and how
many events came.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import threading
from time import monotonic, sleep

from loadtest.targets import host_port

#: By name: method, path, body.
ASKED: dict[str, tuple[str, str, str | None]] = {
    "metrics": ("GET", "/metrics", None),
    "readyz": ("GET", "/readyz", None),
    "clients": ("GET", "/api/v1/clients?limit=100", None),
    "nodes": ("GET", "/api/v1/nodes", None),
    "stats": ("GET", "/api/v1/stats", None),
    "subscriptions": ("GET", "/api/v1/subscriptions?limit=100", None),
    "retained": ("GET", "/api/v1/retained/tree", None),
    "publish": ("POST", "/api/v1/messages", '{"topic": "operators/said", "payload": "x", "qos": 1}'),
}
FOLLOWED = "/api/v1/stats/live"
TIMEOUT_S = 10.0


class Asker:
    """Asks one node with the secret of its key `admin`."""

    def __init__(self, address: tuple[str, int], secret: str) -> None:
        self._address = address
        token = base64.b64encode(f"admin:{secret}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        self._connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
        self.events = 0

    def ask(self, name: str) -> float:
        """Milliseconds until the answer was there. Raises OSError if it is not one of success."""
        method, path, body = ASKED[name]
        began = monotonic()
        self._connection.request(method, path, body, self._headers)
        response = self._connection.getresponse()
        content = response.read()
        took_ms = (monotonic() - began) * 1000
        if response.status >= 300:
            raise OSError(f"{method} {path}: {response.status} {content[:200]!r}")
        return took_ms

    def follow(self) -> None:
        """Count live figures until the process ends."""
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)
        connection.request("GET", FOLLOWED, None, self._headers)
        response = connection.getresponse()
        while line := response.readline():
            self.events += line.startswith(b"data:")


def main(arguments: list[str]) -> int:
    """Ask for so long; returns the exit status."""
    asker = Asker(host_port(arguments[0]), arguments[1])
    took_ms: dict[str, list[float]] = {name: [] for name in ASKED}
    for name in ASKED:  # the first of each finds nothing warm
        asker.ask(name)
    threading.Thread(target=asker.follow, daemon=True).start()
    print("ready", flush=True)
    end = monotonic() + float(arguments[2])
    due = monotonic()
    while due < end:
        for name in ASKED:
            sleep(max(0.0, due - monotonic()))
            took_ms[name].append(asker.ask(name))
            due += 1 / len(ASKED)
    print(json.dumps({"took_ms": took_ms, "events": asker.events}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
