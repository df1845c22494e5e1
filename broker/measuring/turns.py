"""What every turn of the reactor is asked afterwards: how long it took, what it did, and how old what it sent was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from broker.dispatch import Dispatch
    from broker.metrics import Metrics
    from broker.transport.reactor import Reactor

#: Between two samples of delivery latency, at least.
SAMPLE_S: Final = 0.01


class Turns:
    """Counts turns in `metrics`. A turn costs two histogram entries, and now and then one for a message.

    A message that is passed on at once leaves in the turn in which it was read: it took at most as long as that turn.
    One that was stored carries the store time at which its node accepted it, in milliseconds."""

    __slots__ = ("_dispatch", "_local_at", "_metrics", "_reactor", "_remote_at")

    def __init__(self, reactor: Reactor, dispatch: Dispatch, metrics: Metrics) -> None:
        self._reactor = reactor
        self._dispatch = dispatch
        self._metrics = metrics
        self._local_at = self._remote_at = 0.0

    def done(self, seconds: float) -> None:
        """A turn of this length has flushed what it wrote."""
        reactor, dispatch, metrics = self._reactor, self._dispatch, self._metrics
        metrics.turn_seconds.observe(seconds)
        metrics.turn_packets.observe(reactor.handled)
        reactor.handled = 0
        if dispatch.passed or dispatch.stored_ms or dispatch.remote_ms:
            self._sample(seconds)

    def _sample(self, seconds: float) -> None:
        dispatch, metrics = self._dispatch, self._metrics
        now = self._reactor.now
        if now >= self._local_at and (dispatch.passed or dispatch.stored_ms):
            self._local_at = now + SAMPLE_S
            if dispatch.passed:
                metrics.delivered_local.observe(seconds)
            if dispatch.stored_ms:
                metrics.delivered_local.observe(self._since(dispatch.stored_ms))
        if now >= self._remote_at and dispatch.remote_ms:
            self._remote_at = now + SAMPLE_S
            metrics.delivered_remote.observe(self._since(dispatch.remote_ms))
        dispatch.passed = False
        dispatch.stored_ms = dispatch.remote_ms = 0

    def _since(self, accepted_at_ms: int) -> float:
        # What two nodes know of the store's clock differs by about half a round trip.
        return max(0, self._dispatch.cluster.now_ms() - accepted_at_ms) / 1000
