"""What a node counts of its way to the store: plain numbers that only grow, and the state of the moment."""

from __future__ import annotations

from collections.abc import Mapping

from broker.histogram import SECONDS, SIZES, Histogram


class LinkCounters:
    """What the connections to the store count; those to all servers of a Redis Cluster share one. `round_trip` is in
    seconds, from a flush to the answer to its last command, one sample at a time; `batch` is commands in one flush;
    `failovers` counts primaries that were found at another address than before; `errors` is by the first word of the
    answer (`OOM`, `READONLY`, ...)."""

    __slots__ = ("batch", "errors", "failovers", "reconnects", "round_trip")

    def __init__(self) -> None:
        self.round_trip = Histogram(SECONDS)
        self.batch = Histogram(SIZES)
        self.reconnects = 0
        self.failovers = 0
        self.errors: dict[str, int] = {}

    def failed(self, text: str) -> None:
        """The store answered with this error."""
        kind = text.partition(" ")[0]
        # Whatever a server may say: it is a label.
        if not (kind.isascii() and kind.isalpha() and kind.isupper() and len(kind) <= 20):
            kind = "OTHER"
        self.errors[kind] = self.errors.get(kind, 0) + 1


class Telemetry:
    """`counters` are the live ones: do not change them. `unanswered` and `pending_bytes` are what waits for the store
    now; `lease_age_s` is the time since the last answered beat was sent; `short_s`, for how long what is written has
    not been as safe as the durability class says."""

    __slots__ = ("counters", "lease_age_s", "pending_bytes", "short_s", "unanswered")

    def __init__(
        self,
        counters: LinkCounters,
        unanswered: int = 0,
        pending_bytes: int = 0,
        lease_age_s: float = 0.0,
        short_s: float = 0.0,
    ) -> None:
        self.counters = counters
        self.unanswered = unanswered
        self.pending_bytes = pending_bytes
        self.lease_age_s = lease_age_s
        self.short_s = short_s

    @property
    def round_trip(self) -> Histogram:
        """Seconds."""
        return self.counters.round_trip

    @property
    def batch(self) -> Histogram:
        """Commands in one flush."""
        return self.counters.batch

    @property
    def commands(self) -> int:
        """Commands sent, repeated ones included."""
        return int(self.counters.batch.sum)

    @property
    def reconnects(self) -> int:
        """Connections made after the first to each server."""
        return self.counters.reconnects

    @property
    def failovers(self) -> int:
        """Primaries found at another address than before."""
        return self.counters.failovers

    @property
    def errors(self) -> Mapping[str, int]:
        """Error replies by kind."""
        return self.counters.errors
