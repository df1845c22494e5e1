"""What all listeners of a node share: how many may come in, how fast, and who has not said yet who it is."""

from __future__ import annotations

from collections.abc import Callable

from broker.limits.origins import Origins
from broker.limits.quiet import Quiet
from broker.log import get_logger
from broker.metrics import Metrics
from broker.peer import Peer
from broker.transport.reactor import Reactor
from broker.transport.tls import Handshakes

_log = get_logger("listener")


class Bucket:
    """A token bucket of `rate` per second that holds as many; 0: there is always one."""

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._tokens = rate
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until there is a token; 0.0: take it."""
        rate = self.rate
        if not rate:
            return 0.0
        self._tokens = min(rate, self._tokens + (now - self._at) * rate) if self._at else rate
        self._at = now
        return 0.0 if self._tokens >= 1.0 else (1.0 - self._tokens) / rate

    def take(self) -> None:
        """One that `wait_s` found."""
        self._tokens -= 1.0


class Entrance:
    """One for a life of a node. `served` counts the connections that have passed."""

    def __init__(
        self,
        reactor: Reactor,
        metrics: Metrics,
        output_bound: int,
        served: Callable[[], int],
        max_connections: int = 0,
        connection_rate: int = 0,
        origins: Origins | None = None,
    ) -> None:
        self.reactor = reactor
        self.metrics = metrics
        self.output_bound = output_bound
        self.max_connections = max_connections
        self.bucket = Bucket(connection_rate)
        #: Who is counted for its address; those who have passed are counted there too, by who serves them.
        self.origins = origins or Origins()
        self.handshakes = Handshakes(reactor, self.refused, self.origins)
        #: Whether nothing is to be read from this address.
        self.banned: Callable[[str], bool] = lambda host: False
        #: Sockets of which the PROXY header, or the request of a WebSocket, is awaited.
        self.headers = 0
        self._served = served
        self._quiet = Quiet()

    def limit(self, max_connections: int, connection_rate: int) -> None:
        """The settings changed."""
        self.max_connections = max_connections
        self.bucket.rate = connection_rate

    def refused(self, peer: Peer, why: str, detail: str = "") -> None:
        """Count somebody who does not get in, and tell of it in the log if there is a detail."""
        self.metrics.rejected[why] += 1
        suppressed = self._quiet.tells(why) if detail else None
        if suppressed is not None:
            _log.info(
                "listener.refused",
                peer=str(peer),
                listener=peer.listener,
                reason=why,
                detail=detail,
                suppressed=suppressed or None,
            )

    def full(self) -> bool:
        """As many as allowed are served, or about to be."""
        limit = self.max_connections
        return bool(limit) and self._served() + self.headers + self.handshakes.open >= limit
