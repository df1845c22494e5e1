"""A connection's clock: connect timeout, keep-alive, a peer that takes nothing, credentials that expire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.auth.api import Principal
from broker.errors import PeerError
from broker.session.machine import CLOSED, OPEN
from broker.session_side import SessionSide
from broker.transport.api import Stream
from broker.transport.reactor import TICK_S

if TYPE_CHECKING:
    from broker.services import Services

#: How often at least a connection's clock is looked at.
DEADLINE_STEP_S = 10.0


class Watched(SessionSide):
    """Known to the reactor's deadline wheel from the beginning; no task of its own."""

    __slots__ = ("_next_check", "_paused", "held_until", "keep_alive_s", "last_received", "opened_at", "principal")

    def __init__(self, stream: Stream, server: Services) -> None:
        super().__init__(stream, server)
        #: Who it is, once CONNECT was authenticated.
        self.principal: Principal | None = None
        self.keep_alive_s = 0
        self.opened_at = self.last_received = server.reactor.now
        #: Packets wait until then (monotonic); 0.0: they do not.
        self.held_until = 0.0
        #: Nothing is read.
        self._paused = False
        self._next_check = self.opened_at + server.connect_timeout_s
        server.reactor.watch_deadline(self, self._next_check)

    def watch_from_now(self) -> None:
        """The connection is open."""
        now = self._server.reactor.now
        self._look_by(now + min(1.5 * self.keep_alive_s or DEADLINE_STEP_S, self._server.stall_timeout_s))
        self.watch_expiry()

    def _look_by(self, at: float) -> None:
        if at < self._next_check:
            self._next_check = at
            self._server.reactor.watch_deadline(self, at)

    def watch_expiry(self) -> None:
        """The credentials are new: the connection ends with them."""
        left = self._credentials_left()
        if left is not None:
            self._look_by(self._server.reactor.now + left)

    def _go_on(self) -> None:
        """Packets that waited may be handled."""
        raise NotImplementedError

    def _credentials_left(self) -> float | None:
        """Seconds until the credentials expire; None: they do not."""
        if self.principal is None or self.principal.expires_at_s is None:
            return None
        return self.principal.expires_at_s - self._server.now_ms / 1000

    def check_deadline(self, now: float) -> float:
        """Connect timeout, keep-alive and a peer that takes nothing."""
        if self.stream.closed or now + TICK_S < self._next_check:
            return 0.0  # gone, or an earlier look took the place of this one
        self._next_check = self._look_at_clock(now)
        return self._next_check

    def _look_at_clock(self, now: float) -> float:
        """Returns when to look again."""
        stream = self.stream
        later = now + min(DEADLINE_STEP_S, self._server.stall_timeout_s)
        if stream.stalled_since and now - stream.stalled_since > self._server.stall_timeout_s:
            self.metrics.slow_consumers["stalled"] += 1
            self.abort("output_stalled")
            return 0.0
        state = self.machine.state
        if self.held_until:
            if now >= self.held_until:
                self.held_until = 0.0
                self._go_on()
            else:
                later = min(later, self.held_until)
        if state == OPEN:
            left = self._credentials_left()
            if left is not None:
                if left <= 0:
                    self.disconnect(0xA0, "the credentials of the client have expired")
                    return 0.0
                later = min(later, now + left)
            if not self.keep_alive_s:
                return later
            limit = self.last_received + 1.5 * self.keep_alive_s  # [MQTT-3.1.2-22]
            if self._paused or stream.overrun:
                self.last_received = now  # it is us who do not read
            elif now >= limit:
                self.fail(PeerError(0x8D, "nothing received within the keep-alive time"))
                return later
            return min(limit, later)
        if state == CLOSED:
            return later
        limit = self.opened_at + self._server.connect_timeout_s
        if now >= limit:
            self.abort("connect_timeout")
            return 0.0
        return limit
