"""`$SYS/broker/...`: the values of a node under the names, and in the form, that Mosquitto gives them."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from broker import __version__

if TYPE_CHECKING:
    from broker.extensions.sys import Counts

#: Name of the load, and of what it is the load of.
_LOADS: Final = {
    "messages/received": "packets_received",
    "messages/sent": "packets_sent",
    "publish/received": "messages_received",
    "publish/sent": "messages_sent",
    "publish/dropped": "dropped",
    "bytes/received": "bytes_received",
    "bytes/sent": "bytes_sent",
    "sockets": "sockets",
    "connections": "connects",
}
_MINUTES: Final = (1, 5, 15)


class Loads:
    """Moving averages of what happens in a minute, as Mosquitto makes them."""

    def __init__(self) -> None:
        self._before: Counts | None = None
        self._values: dict[str, list[float]] = {name: [0.0] * len(_MINUTES) for name in _LOADS}

    def tick(self, counts: Counts, passed_s: float) -> None:
        """So it is now; it was looked at `passed_s` ago."""
        before, self._before = self._before, counts
        if before is None or passed_s <= 0:
            return
        for name, attribute in _LOADS.items():
            now = (getattr(counts, attribute) - getattr(before, attribute)) * 60 / passed_s
            values = self._values[name]
            for index, minutes in enumerate(_MINUTES):
                values[index] = now + math.exp(-passed_s / (60 * minutes)) * (values[index] - now)

    def items(self) -> Iterator[tuple[str, str]]:
        """Topics below `$SYS/broker/load/`, and values."""
        for name, values in self._values.items():
            for minutes, value in zip(_MINUTES, values, strict=True):
                yield f"{name}/{minutes}min", f"{value:.2f}"


def values(counts: Counts, loads: Loads) -> Iterator[tuple[str, str]]:
    """Topics below `$SYS/broker/`, and values."""
    current, most = memory_bytes()
    yield "version", f"rookery version {__version__}"
    yield "uptime", f"{int(counts.uptime_s)} seconds"
    yield "clients/total", str(counts.clients + counts.absent)
    yield "clients/maximum", str(counts.most["clients"])
    yield "clients/connected", str(counts.clients)
    yield "clients/active", str(counts.clients)
    yield "clients/disconnected", str(counts.absent)
    yield "clients/inactive", str(counts.absent)
    yield "clients/expired", str(counts.expired)
    yield "messages/received", str(counts.packets_received)
    yield "messages/sent", str(counts.packets_sent)
    yield "messages/stored", str(counts.retained)
    yield "publish/messages/received", str(counts.messages_received)
    yield "publish/messages/sent", str(counts.messages_sent)
    yield "publish/messages/dropped", str(counts.dropped)
    yield "bytes/received", str(counts.bytes_received)
    yield "bytes/sent", str(counts.bytes_sent)
    yield "subscriptions/count", str(counts.subscriptions)
    yield "shared_subscriptions/count", str(counts.shared)
    yield "retained messages/count", str(counts.retained)
    yield "store/messages/count", str(counts.retained)
    yield "store/messages/bytes", str(counts.retained_bytes)
    yield "heap/current", str(current)
    yield "heap/maximum", str(most)
    for name, value in loads.items():
        yield f"load/{name}", value


def memory_bytes() -> tuple[int, int]:
    """Resident memory of the process now, and the most that it was."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        current = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        current = most
    return current, max(current, most)
