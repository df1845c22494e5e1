"""How fast one client may send: it is read more slowly, and never dropped.

A connection asks for its `budget` before it handles what it has read, tells what it handled with `take`, and does not
read for `wait_s`. What was read is handled, even if it is more than there are tokens for: that makes a debt, which has
to be paid off first.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final, Protocol

#: A bucket holds what comes in so many seconds.
BURST_S: Final = 1.0
#: How long a connection waits that a share has nothing for.
SHARE_WAIT_S: Final = 0.1

#: More packets than a turn has.
UNLIMITED: Final = 1 << 30


class Bucket:
    """Tokens that come in at `rate` a second, up to those of BURST_S and at least one; begins full, may be in debt."""

    __slots__ = ("_at", "_burst", "_level", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._burst = max(1.0, rate * BURST_S)
        self._level = self._burst
        self._at = now

    def level(self, now: float) -> float:
        """Tokens, below 0 for a debt."""
        if now > self._at:
            self._level = min(self._burst, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def take(self, amount: int, now: float) -> None:
        """Takes them, there or not."""
        self._level = self.level(now) - amount

    def wait_s(self, now: float, need: float) -> float:
        """Until there are so many."""
        missing = need - self.level(now)
        return missing / self.rate if missing > 0 else 0.0


class Share(Protocol):
    """What several clients have together: see `broker.limits.tenants`."""

    def budget(self, who: object) -> int:
        """How many messages `who` may take now; 0: nothing at all, until it is its turn."""
        ...

    def take(self, who: object, messages: int, size: int) -> None:
        """So much was handled."""
        ...


class Meter:
    """Of one connection. Times are those of the reactor."""

    __slots__ = ("_bytes", "_counters", "_messages", "_share")

    def __init__(
        self,
        message_rate: int,
        byte_rate: int,
        now: float,
        share: Share | None = None,
        counters: dict[str, int] | None = None,
    ) -> None:
        """A rate of 0 is no limit. `counters` gets how often a client had to wait, by reason."""
        self._messages = Bucket(message_rate, now) if message_rate else None
        self._bytes = Bucket(byte_rate, now) if byte_rate else None
        self._share = share
        self._counters: dict[str, int] = defaultdict(int) if counters is None else counters

    def budget(self, now: float) -> int:
        """How many packets may be handled at once; 0: `wait_s` comes first."""
        if self._bytes is not None and self._bytes.level(now) <= 0:
            return 0
        budget = UNLIMITED if self._messages is None else max(0, int(self._messages.level(now)))
        return budget if self._share is None or not budget else min(budget, self._share.budget(self))

    def take(self, messages: int, size: int, now: float) -> None:
        """So many messages, in packets of so many bytes, were handled."""
        if self._messages is not None and messages:
            self._messages.take(messages, now)
        if self._bytes is not None:
            self._bytes.take(size, now)
        if self._share is not None:
            self._share.take(self, messages, size)

    def wait_s(self, now: float) -> float:
        """How long nothing may be read; 0.0: go on."""
        wait_s, reason = 0.0, "paused_messages"
        if self._messages is not None:
            wait_s = self._messages.wait_s(now, 1.0)
        if self._bytes is not None and (bytes_s := self._bytes.wait_s(now, 1.0)) > wait_s:
            wait_s, reason = bytes_s, "paused_bytes"
        if self._share is not None and wait_s < SHARE_WAIT_S and not self._share.budget(self):
            wait_s, reason = SHARE_WAIT_S, "paused_tenant"
        if wait_s:
            self._counters[reason] += 1
        return wait_s
