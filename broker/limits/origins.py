"""How many network connections of one address a node has open, whatever they have said so far."""

from __future__ import annotations

from collections import Counter

from broker.limits.places import origin_of


class Origins:
    """Everybody counts from accept to the end: first as one whose TLS handshake or WebSocket request is awaited, then
    as a connection. `limit` 0: nobody is counted."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._here: Counter[str] = Counter()
        self._of: dict[object, str] = {}

    def enter(self, who: object, host: str) -> bool:
        """Count `who` until `leave`; False if there are too many of its address.

        One more than may stay: the newest may be one that takes an older one over."""
        if not self.limit:
            return True
        origin = origin_of(host)
        if not origin:
            return True
        if self._here[origin] > self.limit:
            return False
        self._here[origin] += 1
        self._of[who] = origin
        return True

    def leave(self, who: object) -> None:
        """It ended, or goes on as something else. Idempotent."""
        origin = self._of.pop(who, "")
        if origin:
            self._here[origin] -= 1
            if not self._here[origin]:
                del self._here[origin]
