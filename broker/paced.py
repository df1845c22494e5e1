"""How fast a connection's packets are handled: what waits, for what, and what becomes of it when the client is gone.

A client that sends faster than it may is not read. That it is gone is noticed nevertheless: then up to EAGER_BYTES of
what it sent are handled at once, whatever its rate. What is more comes at its rate, for as long as a client may be
silent (one and a half times its keep-alive time; without one, the time after which a peer that takes nothing is let
go); after that the connection ends as if it had been lost then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from broker.codec.packets import PUBLISH
from broker.codec.primitives import FrameBuffer
from broker.errors import PeerError
from broker.limits.meter import UNLIMITED, Meter
from broker.permitted import Permitted
from broker.session.machine import CLOSED, OPEN
from broker.transport.api import Stream

if TYPE_CHECKING:
    from broker.services import Services

#: Packets of one connection in one turn; the rest waits for the next, so that everybody gets a share.
PACKETS_PER_TURN: Final = 256

#: Shorter pauses of a client that sends too fast are worth a task: the deadlines are looked at twice a second only.
FINE_S: Final = 1.0

#: Handled at once of a client that is gone: two reads, so that it is all of them where a WebSocket stands between.
EAGER_BYTES: Final = 128 * 1024


class Paced(Permitted):
    """A connection with packets that wait."""

    __slots__ = ("_busy", "_eager", "_gone_at", "_have", "_held", "_rest", "_working", "meter", "send_will")

    def __init__(self, stream: Stream, server: Services) -> None:
        super().__init__(stream, server)
        #: How fast it may send; None: as it likes.
        self.meter: Meter | None = None
        #: Packets wait: for a task (`_working`), for the store (`_held`), for their time (`held_until`).
        self._busy = self._working = self._held = False
        self._rest = b""
        #: A large packet that comes in pieces.
        self._have: bytearray | None = None
        #: When the peer's end was noticed, 0.0 before; and how many bytes of it need not wait for their time.
        self._gone_at = 0.0
        self._eager = 0
        #: What the will does when the connection ends.
        self.send_will = True

    def _process(self, data: bytes, budget: int) -> None:
        """Handle the complete packets in `data`, at most `budget`; keep the rest."""
        raise NotImplementedError

    def _process_metered(self, data: bytes, meter: Meter) -> None:
        """A client that sends faster than it may is read later."""
        now = self._server.reactor.now
        budget = PACKETS_PER_TURN if self._eager else min(PACKETS_PER_TURN, meter.budget(now))
        if budget <= 0:
            self._rest = data
            self.hold_for(meter.wait_s(now))
            return
        self._handle(data, budget, meter)
        if self.machine.state != CLOSED and not self._eager:
            wait_s = meter.wait_s(now)
            if wait_s:
                self.hold_for(wait_s)

    def _handle(self, data: bytes, budget: int, meter: Meter) -> None:
        packets = self.metrics.packets_received
        before = packets[PUBLISH]
        self._process(data, budget)
        handled = max(0, len(data) - (len(self._rest) if self._have is None else len(self._have)))
        meter.take(packets[PUBLISH] - before, handled, self._server.reactor.now)
        if self._eager:
            self._eager = max(0, self._eager - handled)

    def hold_for(self, seconds: float) -> None:
        """Handle nothing more for so long."""
        until = self.held_until = self._server.reactor.now + seconds
        self._busy = True
        self._pause(True)
        if seconds > FINE_S:
            self._look_by(until)
            return

        async def work() -> None:
            await trio.sleep(seconds)
            if self.held_until == until:
                self.held_until = 0.0
                self._go_on()

        self._server.start(work)

    def _go_on(self) -> None:
        if self._working or self._held or self.held_until:
            return
        self._busy = False
        if self.machine.state != CLOSED:
            if self._rest:  # read on once it is handled, or it would grow by a read for each packet that takes a task
                self.stream.call_again()
            else:
                self._pause(False)

    def _pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            self.stream.pause_reading(paused)

    # -- the client is gone

    def peer_gone(self) -> None:
        """It has ended, and was not read until its end."""
        if self._gone_at or self.machine.state == CLOSED:
            return
        self._gone_at = self._server.reactor.now
        self._eager = EAGER_BYTES
        if self.meter is not None:
            self._look_by(self._gone_at + self._patience_s())
        if self.held_until:
            self.held_until = 0.0
            self._go_on()

    def _patience_s(self) -> float:
        return 1.5 * self.keep_alive_s or self._server.stall_timeout_s

    def _look_at_clock(self, now: float) -> float:
        if self._gone_at and self.meter is not None and self.machine.state == OPEN:
            until = self._gone_at + self._patience_s()
            if now >= until:
                self.connection_lost("closed by peer")
                self.stream.abort()
                return 0.0
            return min(super()._look_at_clock(now) or until, until)
        return super()._look_at_clock(now)

    def connection_lost(self, reason: str) -> None:
        """The network connection is gone."""
        if self.machine.state == CLOSED:
            return
        rest = self._rest
        goodbye = False
        try:
            goodbye = bool(rest) and _left(rest)[0]
            if rest and self.meter is not None and not (self._working or self._held) and self.machine.state == OPEN:
                # It waited only for its time.
                self.held_until = 0.0
                self._busy = False
                self._rest = b""
                self._handle(rest[:EAGER_BYTES], UNLIMITED, self.meter)
                if self.machine.state != CLOSED:
                    self._rest += rest[EAGER_BYTES:]
        finally:
            if self.machine.state != CLOSED:
                if self._rest and self.machine.state == OPEN and (lost := _left(self._rest)[1]):
                    self.metrics.dropped["sender_gone"] += lost
                if goodbye:
                    self.send_will = False  # [MQTT-3.14.4-3]: it came, and waited for its turn
                self._end("normal" if goodbye else "connection_lost")


def _left(data: bytes) -> tuple[bool, int]:
    """Whether a plain DISCONNECT is among these packets, and how many messages at QoS 0: nobody sends them again."""
    frames = FrameBuffer()
    frames.feed(data)
    goodbye, messages = False, 0
    try:
        for first, body in frames:
            messages += first & 0xF6 == 0x30
            goodbye = goodbye or (first == 0xE0 and body[:1] in (b"", b"\0"))
    except PeerError:
        pass
    return goodbye, messages
