"""The limits and intervals that every implementation of the cluster port keeps (GUARANTEES section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: A Session Expiry Interval that never ends.
NEVER_EXPIRES: Final = 0xFFFFFFFF

BEAT_S: Final = 1.0
#: `alone` holds for so long after a beat was answered.
ALONE_S: Final = 2.0
#: A timer item that is being worked on is handed out again after this time.
TIMER_LEASE_S: Final = 10.0
TIMER_POLL_S: Final = 1.0
#: So many delayed messages are on their way into the store at the same time.
DELAYED_AT_ONCE: Final = 1600

#: How long the store remembers who already got a QoS 2 message, and how long after its PUBREL.
SERVED_S: Final = 3600
SERVED_RELEASED_S: Final = 60

#: At most so many target sessions in one call, and about so many bytes (rule 6).
MAX_CALL_SESSIONS: Final = 100
MAX_CALL_BYTES: Final = 256 * 1024
#: Above this share of the store's `maxmemory` it takes no more messages from publishers.
SOFT_FULL: Final = 0.85
#: An adding call is refused when it reaches the store later than this (rule 5).
CALL_VALID_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class ClusterLimits:
    """Bounds of what the store keeps for one session or group; at the bound the newest is refused."""

    max_queued_messages: int = 1000
    max_queued_bytes: int = 8 * 1024 * 1024
    max_group_queue: int = 10_000
    max_delayed: int = 100_000
    #: How long the will of a session waits whose node died, so that a reconnect can cancel it.
    will_failover_grace_s: float = 10.0
    #: `cancel`: such a reconnect cancels it. `publish`: it goes out at the end of that time all the same.
    will_failover: str = "cancel"
    #: Bound on messages in flight per session.
    inflight: int = 100
    #: What may wait for an unreachable store before `publish` is refused.
    max_pending_bytes: int = 32 * 1024 * 1024
