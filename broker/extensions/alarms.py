"""What somebody should look at: conditions of a node, raised and cleared with some distance between the two.

Each is looked at every few seconds. A change is a log line, a message of QoS 1 to
`$SYS/brokers/<node>/alarms/activate` or `.../deactivate` for subscribers on all nodes, and a metric.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.errors import PeerError
from broker.log import get_logger
from broker.message import Message
from cluster.api import LEASE_S

if TYPE_CHECKING:
    from broker.server import Server
    from cluster.inspection import StoreMemory

WARNING: Final = "warning"
CRITICAL: Final = "critical"

LOOK_S: Final = 2.0

#: Kept of those that are over.
HISTORY_MAX: Final = 1000
HISTORY_MS: Final = 24 * 3600 * 1000

#: Raised at, and cleared below; shares of the limit.
_MEMORY: Final = (0.80, 0.75)
_MEMORY_CRITICAL: Final = 0.95
_CONNECTIONS: Final = (0.90, 0.85)
#: Seconds.
_LEASE: Final = (LEASE_S / 2, LEASE_S / 3)
_CLOCK: Final = (2.0, 1.0)
_CERTIFICATE: Final = (14 * 86400.0, 15 * 86400.0)
_CERTIFICATE_CRITICAL: Final = 3 * 86400.0

#: Dropped for one of these reasons: a queue was full. It is over when there was none for a while.
_OVERFLOWS: Final = ("queue_full", "group_queue_full", "node_overloaded")
_OVERFLOW_S: Final = 60.0

NAMES: Final = (
    "store_memory", "store_unavailable", "lease_late", "queue_overflow", "certificate_expiry",
    "connections_near_limit", "overloaded", "clock_skew",
)  # fmt: skip

_log = get_logger("alarms")


class Alarm:
    """`subject` is what it is about, where there may be several of a name; `deactivated_at_ms` 0: it is active."""

    __slots__ = ("activated_at_ms", "deactivated_at_ms", "message", "name", "severity", "subject")

    def __init__(self, name: str, subject: str, severity: str, message: str, activated_at_ms: int) -> None:
        self.name = name
        self.subject = subject
        self.severity = severity
        self.message = message
        self.activated_at_ms = activated_at_ms
        self.deactivated_at_ms = 0

    def shown(self, node: str) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "node": node,
            "subject": self.subject,
            "severity": self.severity,
            "message": self.message,
            "activated_at_ms": self.activated_at_ms,
            "deactivated_at_ms": self.deactivated_at_ms or None,
        }


class Alarms:
    """Of one life of a node. What it looks at beside the server is set by whoever composes the node."""

    def __init__(self, server: Server, node_name: str) -> None:
        self.memory: Callable[[], Sequence[StoreMemory]] = tuple
        #: When certificates end, by listener and name.
        self.certificates: Callable[[], Mapping[str, float]] = dict
        #: Why the node is overloaded; "": it is not.
        self.overload: Callable[[], str] = str
        self._server = server
        self._name = node_name
        self._active: dict[tuple[str, str], Alarm] = {}
        self._history: deque[Alarm] = deque(maxlen=HISTORY_MAX)
        #: What lives before this one dropped is no news.
        self._overflowed = self._dropped()
        self._overflowed_s = -_OVERFLOW_S
        for name in NAMES:
            server.metrics.alarms[name] = 0

    def active(self) -> list[Alarm]:
        """Oldest first."""
        return list(self._active.values())

    def history(self) -> list[Alarm]:
        """Those that are over, oldest first."""
        first = self._server.now_ms - HISTORY_MS
        while self._history and self._history[0].deactivated_at_ms < first:
            self._history.popleft()
        return list(self._history)

    def dismiss(self) -> int:
        """Forget those that are over; returns how many."""
        count = len(self._history)
        self._history.clear()
        return count

    async def serve(self) -> None:
        """Look, until cancelled."""
        while True:
            self.look()
            await trio.sleep(LOOK_S)

    # -- conditions

    def look(self) -> None:
        """Raise and clear, by how it is now."""
        server = self._server
        health = server.cluster.health()
        self._set("store_unavailable", not health.available, "the store does not answer", CRITICAL)
        age_s = server.cluster.telemetry().lease_age_s
        self._over("lease_late", age_s, _LEASE, f"the lease of the node was renewed {age_s:.1f} s ago")
        self._look_at_connections()
        self._look_at_queues()
        why = self.overload()
        self._set("overloaded", bool(why), why)
        if health.kind != "memory" and health.available:
            skew_s = abs(server.now_ms / 1000 - time.time())
            self._over("clock_skew", skew_s, _CLOCK, f"the clock of the node is {skew_s:.1f} s off that of the store")
        self._keep("store_memory", self._look_at_memory())
        self._keep("certificate_expiry", self._look_at_certificates())

    def _look_at_connections(self) -> None:
        limit, count = self._server.max_connections, len(self._server.connections)
        share = count / limit if limit else 0.0
        self._over("connections_near_limit", share, _CONNECTIONS, f"{count} of at most {limit} connections")

    def _look_at_queues(self) -> None:
        dropped = self._dropped()
        now = trio.current_time()
        more = dropped - self._overflowed
        if more > 0:
            self._overflowed, self._overflowed_s = dropped, now
        recently = now - self._overflowed_s < _OVERFLOW_S
        self._set("queue_overflow", recently, f"messages were dropped because queues were full: {max(more, 0)}")

    def _dropped(self) -> int:
        return sum(self._server.metrics.dropped.get(reason, 0) for reason in _OVERFLOWS)

    def _look_at_memory(self) -> Iterator[str]:
        for each in self.memory():
            limit = each.limit_bytes or each.host_bytes
            share = each.used_bytes / limit if limit else 0.0
            severity = CRITICAL if share >= _MEMORY_CRITICAL else WARNING
            text = f"the store uses {share:.0%} of its memory ({each.used_bytes >> 20} of {limit >> 20} MiB)"
            self._over("store_memory", share, _MEMORY, text, severity, each.address)
            yield each.address

    def _look_at_certificates(self) -> Iterator[str]:
        now_s = time.time()
        for subject, ends_at_s in self.certificates().items():
            left_s = ends_at_s - now_s
            severity = CRITICAL if left_s <= _CERTIFICATE_CRITICAL else WARNING
            days = int(left_s // 86400)
            text = f"the certificate ends in {days} days" if left_s > 0 else "the certificate has ended"
            # The other way round: raised when little is left.
            first, last = _CERTIFICATE
            self._over("certificate_expiry", -left_s, (-first, -last), text, severity, subject)
            yield subject

    # -- changes

    def _over(
        self,
        name: str,
        value: float,
        bounds: tuple[float, float],
        text: str,
        severity: str = WARNING,
        subject: str = "",
    ) -> None:
        """Raise from the first bound on, clear below the second."""
        if value >= bounds[0]:
            self._set(name, True, text, severity, subject)
        elif value < bounds[1]:
            self._set(name, False, text, severity, subject)

    def _keep(self, name: str, subjects: Iterator[str]) -> None:
        """Clear those about what there is no more."""
        known = set(subjects)
        for alarm in self.active():
            if alarm.name == name and alarm.subject not in known:
                self._set(name, False, "", subject=alarm.subject)

    def _set(self, name: str, on: bool, message: str, severity: str = WARNING, subject: str = "") -> None:
        key = name, subject
        alarm = self._active.get(key)
        if on and alarm is None:
            alarm = self._active[key] = Alarm(name, subject, severity, message, self._server.now_ms)
            _log.warning("alarm.activated", alarm=name, subject=subject or None, severity=severity, detail=message)
            self._tell("activate", alarm)
        elif on and alarm is not None and alarm.severity != severity:
            alarm.severity, alarm.message = severity, message
            self._tell("activate", alarm)
        elif not on and alarm is not None:
            del self._active[key]
            alarm.deactivated_at_ms = self._server.now_ms
            self._history.append(alarm)
            _log.info("alarm.deactivated", alarm=name, subject=subject or None)
            self._tell("deactivate", alarm)
        else:
            return
        counts = Counter(each.name for each in self._active.values())
        for each in NAMES:
            self._server.metrics.alarms[each] = counts[each]

    def _tell(self, what: str, alarm: Alarm) -> None:
        server = self._server
        if not self._name or server.abandoned or not len(server.dispatch.system):
            return
        topic = f"$SYS/brokers/{self._name}/alarms/{what}".encode()
        payload = json.dumps(alarm.shown(self._name), separators=(",", ":")).encode()
        message = Message(topic, payload, 1, False, accepted_at_ms=server.now_ms)
        try:
            server.dispatch.publish(message, server.dispatch.route(topic), None)
        except PeerError:  # a name of the node that is no topic level
            return
        server.reactor.wake()
