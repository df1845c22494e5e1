"""One Network Connection: bytes in, packets through the machine and the session, packets out.

The hot ways (PUBLISH in, deliveries out, acknowledgements) are handled here, synchronously and without an
object per packet where it can be avoided. Whatever takes time is started as a task through the server; until it
is done the connection's further packets wait, and nobody else's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from broker.auth.api import Exchange
from broker.clearance import DENIED, Answer
from broker.codec.decode import decode
from broker.codec.packets import (
    CONNECT,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    V5,
    Acknowledgement,
)
from broker.codec.primitives import remaining_length_at
from broker.direct import PLAIN, Direct
from broker.errors import MalformedPacket, PeerError, ProtocolError
from broker.options.listener import Listener
from broker.paced import PACKETS_PER_TURN
from broker.permitted import NOTHING
from broker.reasons import reason_name
from broker.routes import Route, Subscriber
from broker.session.effects import ChangeSubscriptions, ContinueAuthentication, Effect, Finish, Open, Send
from broker.session.machine import CLOSED, NEW, OPEN
from broker.session.negotiation import Agreement
from broker.session.session import Session
from broker.transport.api import Stream
from cluster.api import SessionRef

if TYPE_CHECKING:
    from broker.services import Services

#: First bytes of acknowledgements; with two bytes behind them they are a packet id and success.
_PLAIN_ACKS = frozenset((0x40, 0x50, 0x62, 0x70))


class Connection(Direct):
    """A client's connection from accept to close. Implements `StreamProtocol`."""

    __slots__ = (
        "_answer",
        "_asking",
        "_inbound_max",
        "_need",
        "agreement",
        "authenticator",
        "bridge",
        "connected_at_ms",
        "epoch",
        "exchange",
        "expiry_s",
        "finished",
        "has_will",
        "listener",
        "lost",
        "max_packet_size",
    )

    def __init__(self, stream: Stream, server: Services, listener: Listener) -> None:
        super().__init__(stream, server)
        self.listener = listener
        self._asking = False
        self._answer: Answer | None = None
        self.agreement: Agreement | None = None
        #: Another connection owns the session: nothing that is done here counts for it any more.
        self.lost = False
        self.expiry_s = 0
        self.bridge = False
        self.has_will = False
        #: Store time of CONNACK, and the number of this connection among those of the client id; 0 before.
        self.connected_at_ms = 0
        self.epoch = 0
        self.exchange: Exchange | None = None
        #: Whose exchange it is.
        self.authenticator = ""
        #: Set by the server while somebody waits for the session to be let go.
        self.finished: trio.Event | None = None
        #: Of the listener; 0: as the quotas say.
        self.max_packet_size = listener.options.max_packet_size
        self._inbound_max = server.quotas.max_packet_size_before_auth
        self._need = 0

    # -- bytes in

    def data_received(self, data: bytes) -> None:
        """A chunk from the peer."""
        self.last_received = self._server.reactor.now
        have = self._have
        if have is not None:  # a large packet comes in pieces
            have += data
            self._need -= len(data)
            if self._need > 0:
                return
            data = bytes(have)
            self._have = None
        elif self._rest:
            data = self._rest + data
        self._rest = b""
        if self._busy:
            self._rest = data
            self._pause(True)
        elif self.meter is None:
            self._process(data, PACKETS_PER_TURN)
        else:
            self._process_metered(data, self.meter)

    def resume(self) -> None:
        """Go on with what was left over."""
        if self._rest and not self._busy and self.machine.state != CLOSED:
            data, self._rest = self._rest, b""
            if self.meter is None:
                self._process(data, PACKETS_PER_TURN)
            else:
                self._process_metered(data, self.meter)

    def begin_work(self) -> bool:
        """Let further packets wait for a task that is not of this connection, until `work_done`; False if it is not
        open, or waits for a task already."""
        if self._working or self.machine.state != OPEN:
            return False
        self._busy = self._working = True
        return True

    def work_done(self) -> None:
        """A task that held this connection has finished: its further packets may go on."""
        self._working = False
        self._go_on()

    def ask(self, question: Callable[[], Awaitable[Answer]]) -> None:
        """Called while a PUBLISH is handled, which has had no effect yet: it is handled again, before any other packet,
        with what the question comes to in `take_answer`. Others than this connection do not wait."""
        self._busy = self._working = self._asking = True

        async def work() -> None:
            self._answer = DENIED  # where the question fails
            try:
                self._answer = await question()
            finally:
                self.work_done()

        self._server.start(work)

    def take_answer(self) -> Answer | None:
        """The answer to the question that was asked about the packet at hand."""
        answer, self._answer = self._answer, None
        return answer

    def _process(self, data: bytes, budget: int) -> None:
        """Handle the complete packets in `data`, at most `budget`; keep the rest."""
        server = self._server
        dispatch = server.dispatch
        routes = dispatch.routes.entries
        machine = self.machine
        size = len(data)
        at = 0
        allowance = budget
        direct = 0
        #: What the QoS 0 message before had: only then it is worth to look for a run.
        last: Route | None = None
        # The first packet may be one that there is an answer about: it takes the way on which that is used up.
        cleared = self._cleared if self._answer is None else NOTHING
        is_open = machine.state == OPEN
        family = 5 if self.version == V5 else 4
        try:
            if machine.state == NEW and data[0] != 0x10:
                raise ProtocolError("the first packet is not CONNECT")  # [MQTT-3.1.0-1]
            while size - at >= 2:
                head = data[at]
                length = data[at + 1]
                start = at + 2
                if length & 128:
                    length, start = remaining_length_at(data, at)
                    if length < 0:
                        break
                end = start + length
                if end - at > self._inbound_max:
                    raise PeerError(0x95, f"a packet of {end - at} bytes, at most {self._inbound_max} are allowed")
                if end > size:
                    if end - size > 16384:
                        self._need = end - size
                        self._have = bytearray(data[at:])
                        at = size
                    break
                if head & 0xF0 == 0x30 and is_open:
                    count = 0
                    if length > 2 and head in PLAIN:
                        body = start + 2 + (data[start] << 8 | data[start + 1])
                        topic = data[start + 2 : body]
                        route = routes.get(topic)
                        if route is None or not (cleared is None or cleared.get(topic, 0) >> (head & 6) & 1):
                            pass
                        elif head != 0x30:
                            count = self._run(route, data, at, body, end, budget)
                        elif route is last:
                            count = self._run0(route, data, at, body, end, budget)
                        elif route.live0 is not None and (
                            body < end and not data[body] if family == 5 else body <= end
                        ):  # as `_run0`, without its call
                            count, last, frame = 1, route, data[at:end]
                            if dispatch.forward_verbatim(route.live0, topic, frame, family, body - at) or route.nodes:
                                self._forward_on(route, frame, 1, family, body - at)
                    if count:
                        if head == 0x30:
                            direct += count
                        budget -= count - 1
                        end = at + count * (end - at)
                    else:
                        self._publish(head, data, start, end)
                elif is_open and length == 2 and head in _PLAIN_ACKS:
                    count = self._acknowledge(head, data, at, end, budget)
                    budget -= count - 1
                    end = at + 4 * count
                else:
                    self._packet(head, data, start, end)
                    is_open = machine.state == OPEN
                    family = 5 if self.version == V5 else 4
                budget -= 1
                if self._busy or machine.state == CLOSED:
                    if self._asking:  # it comes again, once there is an answer
                        self._asking = False
                        server.metrics.packets_received[PUBLISH] -= 1
                    else:
                        at = end
                    break
                at = end
                if budget <= 0:
                    self.stream.call_again()
                    break
        except PeerError as error:
            self.fail(error)
        finally:
            server.reactor.handled += allowance - budget
            if direct:
                server.metrics.packets_received[PUBLISH] += direct
                server.metrics.messages_received[0] += direct
                if last is not None and last.live0:  # of one of them: it is for samples
                    dispatch.passed = True
        if machine.state != CLOSED:
            self._keep(data, at, budget)

    def _keep(self, data: bytes, at: int, budget: int) -> None:
        """What follows `at` is for later."""
        if at < len(data):
            self._rest = data[at:] if at else data
            self._pause(self._busy or budget <= 0)
        elif self._paused and not self._busy:
            self._pause(False)

    def _packet(self, head: int, data: bytes, start: int, end: int) -> None:
        """Everything that does not take a direct way."""
        kind = head >> 4
        server = self._server
        if kind == CONNECT and self.machine.state != NEW:  # whatever it says [MQTT-3.1.0-2]
            raise ProtocolError("a second CONNECT")
        if not self.version and end - start > 2:
            level_at = start + 2 + (data[start] << 8 | data[start + 1])
            if level_at < end and data[level_at] & 127 >= V5:
                self.version = V5  # so that a refusal has a form that the client understands
        packet = decode(head, data, start, end, self.version, True)
        server.metrics.packets_received[kind] += 1
        if self.machine.state == OPEN and PUBACK <= kind <= PUBCOMP:
            assert isinstance(packet, Acknowledgement)
            self._acknowledgement(kind, packet.packet_id, packet.reason_code)
            return
        effect = self.machine.receive(packet)
        self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.send(effect.packet)
        elif isinstance(effect, ChangeSubscriptions):
            self._busy = self._working = True
            self._server.change_subscriptions(self, effect.packet)
        elif isinstance(effect, Open):
            self.version = effect.connect.protocol_version
            self._busy = self._working = True
            self._server.opener.open(self, effect.connect)
        elif isinstance(effect, ContinueAuthentication):
            self._busy = self._working = True
            self._server.opener.continue_authentication(self, effect)
        elif isinstance(effect, Finish):
            self.send_will = effect.send_will
            if effect.expiry_s >= 0:
                self.expiry_s = min(effect.expiry_s, self._server.quotas.session_expiry_max_s)
            self.close_code = effect.reason_code
            self._end("normal" if effect.reason_code == 0 else reason_name(effect.reason_code))
            self.stream.close()

    # -- messages in

    def _publish(self, head: int, data: bytes, start: int, end: int) -> None:
        server = self._server
        server.metrics.packets_received[PUBLISH] += 1
        if end - start < 2:
            raise MalformedPacket("a PUBLISH without a topic name")
        body = start + 2 + (data[start] << 8 | data[start + 1])
        inbound = self.inbound
        assert inbound is not None
        inbound.publish(head, data[start + 2 : body], data, body, end)
        self._answer = None  # it was about this packet, whatever became of that

    def _acknowledge(self, head: int, data: bytes, at: int, end: int, budget: int) -> int:
        """The plain acknowledgement in `data[at:end]`, and those behind it that may be taken note of in one go, at most
        `budget`. How many it were."""
        if end < len(data) and data[end] == head:
            count = self._acknowledgements(head, data, at, budget)
            if count:
                return count
        kind = head >> 4
        self.metrics.packets_received[kind] += 1
        self._acknowledgement(kind, data[end - 2] << 8 | data[end - 1], 0)
        return 1

    def _acknowledgement(self, kind: int, packet_id: int, reason_code: int) -> None:
        session = self.session
        inbound = self.inbound
        assert session is not None and inbound is not None
        now_ms = self._server.now_ms
        if not packet_id:
            raise ProtocolError("an acknowledgement of packet id 0")
        if kind == PUBACK:
            session.acked(packet_id, now_ms)
        elif kind == PUBREC:
            if not session.received(packet_id, reason_code, now_ms) and reason_code < 0x80:
                self.send_release(packet_id, 0x92)
        elif kind == PUBREL:
            inbound.released(packet_id)
        else:
            session.completed(packet_id, now_ms)

    def hold(self, held: bool) -> None:
        """Do not read from a publisher whose messages cannot be stored, until they can."""
        self._held = held
        if held:
            self._busy = True
            self._pause(True)
        else:
            self._go_on()

    # -- StreamProtocol

    def output_congested(self) -> None:
        """The output buffer is over its bound."""
        self.plain = 0
        self.metrics.slow_consumers["congested"] += 1
        if self._server.quotas.slow_consumer_disconnects and self.machine.state == OPEN:
            self.metrics.slow_consumers["disconnected"] += 1
            self.disconnect(0x97, "the output buffer is full")

    def output_drained(self) -> None:
        """There is room again in the output buffer."""
        self.update_plain()
        if self.session is not None:
            self.session.drained(self._server.now_ms)
            self._wake_feed()

    # -- beginning and end

    def established(self, agreement: Agreement, ref: SessionRef, session: Session, subscriber: Subscriber) -> None:
        """The session is attached: from now on the connection is open."""
        self.agreement = agreement
        self.ref = ref
        self.session = session
        self.subscriber = subscriber
        self.expiry_s = agreement.expiry_s
        self.keep_alive_s = agreement.keep_alive_s
        self._inbound_max = self.max_packet_size or self._server.quotas.max_packet_size
        self.machine.opened(agreement.expiry_s)
        self.update_plain()
        self.watch_from_now()

    def dispose(self) -> None:
        """The session was let go: break the cycles, so that this does not wait for the garbage collector."""
        self.session = None
        self.inbound = None
        self.subscriber = None
        self.agreement = None
        self.permissions = None
        self.gate = None

    def _end(self, reason: str) -> None:
        self.machine.close()
        self.close_reason = reason
        self.plain = 0
        if self.permissions is not None:
            self.permissions.close()
        self._rest = b""
        self._have = None
        metrics = self.metrics
        metrics.messages_sent[0] += self.sent_qos0
        self.sent_qos0 = 0
        if self.session is not None:
            self.session.close()
        for scope in self.feed_scopes:
            scope.cancel()
        self._server.connection_ended(self)
