"""What the service manager is told over the socket in NOTIFY_SOCKET: ready, reloading, stopping, alive (sd_notify(3)).

Without that variable nothing is done and nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

import trio

from broker.log import get_logger

#: How often the status text is looked at where no watchdog asks for more.
STATUS_S = 5.0

_log = get_logger("notify")


class Notifier:
    """Of the one process that the manager started. What it does not take (it is busy, or starts anew) is lost but for
    the last state, which it is told with the next sign of life."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """`address` as in NOTIFY_SOCKET, "" for nobody; `watchdog_s`: the manager wants a sign at least so often."""
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) if address else None
        self._status: Callable[[], str] = str
        self._told = ""
        self._due: tuple[str, ...] = ()
        self._ready = self._stopping = False

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Whom the environment names. The names are removed: child processes are not meant."""
        address = environ.pop("NOTIFY_SOCKET", "")
        pid, period = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        if address[:1] not in ("", "/", "@"):
            _log.warning("notify.unknown_address", address=address)
            address = ""
        meant = period.isascii() and period.isdigit() and pid in ("", str(os.getpid()))
        return cls(address, int(period) / 1e6 if address and meant else 0.0)

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self) -> None:
        """Clients are accepted, for the first time or after `reloading`."""
        if not self._stopping:
            self._ready = True
            self._enter("READY=1")

    def reloading(self) -> None:
        """SIGHUP came; `ready` follows."""
        if self._ready and not self._stopping:
            self._enter("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """The end of what `reloading` began."""
        if self._ready:
            self.ready()

    def stopping(self, within_s: float) -> None:
        """The process ends, and takes no longer than this for it, whatever the manager's own time-out is."""
        if not self._stopping:
            self._stopping = True
            self._enter("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}")

    async def serve(self, status: Callable[[], str]) -> None:
        """Pass on the status text where it changed, and signs of life; returns at once where nobody listens."""
        if self._socket is None:
            return
        self._status = status
        pause_s = min(self.watchdog_s / 2, STATUS_S) if self.watchdog_s else STATUS_S
        while True:
            self._send(*(["WATCHDOG=1"] if self.watchdog_s else []))
            await trio.sleep(pause_s)

    def _enter(self, *state: str) -> None:
        self._due = state
        self._send()

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        lines = (*self._due, *lines)
        text = " ".join(self._status().split())
        if text != self._told:
            lines = (*lines, f"STATUS={text}")
        if lines:
            with suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)
                self._told, self._due = text, ()
