"""The receiving half of a connection: PUBLISH in, acknowledged in order once everything is safe."""

from __future__ import annotations

from broker.auth.api import BackendError
from broker.clearance import CLEAR, DENIED, DENIED_BY_HOOK, UNKNOWN, Answer
from broker.codec.packets import PUBACK, PUBCOMP, PUBREC
from broker.codec.publish import payload_format, scan_publish_properties
from broker.errors import MalformedPacket, PeerError, ProtocolError, StoreFull, StoreUnavailable
from broker.inbound_runs import InboundRuns
from broker.log import get_logger
from broker.message import Message
from broker.reasons import NO_MATCHING_SUBSCRIBERS, NOT_AUTHORIZED, QUOTA_EXCEEDED, SERVER_BUSY
from broker.routes import Route
from broker.session.machine import CLOSED
from broker.slots import PENDING, RECEIVED, RELEASING, RESUMED, Exactly, PublishSlot, RunSlot

_log = get_logger("connection")


class Inbound(InboundRuns):
    """What a client publishes: topic aliases, packet ids of QoS 2, acknowledgements that are due."""

    __slots__ = ()

    def publish(self, head: int, topic: bytes, data: bytes, pos: int, end: int) -> None:
        """One PUBLISH; `data[pos:end]` is what follows the topic name."""
        qos = head >> 1 & 3
        if qos == 3:
            raise MalformedPacket("PUBLISH with QoS 3")  # [MQTT-3.3.1-4]
        if head & 8 and not qos:
            raise MalformedPacket("PUBLISH with DUP at QoS 0")  # [MQTT-3.3.1-2]
        packet_id = 0
        if qos:
            if pos + 2 > end:
                raise MalformedPacket("a PUBLISH that ends within its packet id")
            packet_id = data[pos] << 8 | data[pos + 1]
            pos += 2
            if not packet_id:
                raise ProtocolError("PUBLISH with packet id 0")  # [MQTT-2.2.1-3]
        expiry_s = -1
        properties = b""
        if self._v5:
            if pos >= end:
                raise MalformedPacket("a PUBLISH that ends before its properties")
            if data[pos]:
                expiry_s, alias, properties, pos = scan_publish_properties(data, pos, end)
                if alias:
                    topic = self._resolve(alias, topic)
                elif not topic:
                    raise ProtocolError("PUBLISH with neither topic name nor topic alias")
            else:
                pos += 1
                if not topic:
                    raise ProtocolError("PUBLISH with neither topic name nor topic alias")
        elif pos > end:
            raise MalformedPacket("a PUBLISH that ends within its topic name")
        server = self._server
        connection = self._connection
        if connection.mount is not None:
            topic = connection.mount.topic(topic)
        dispatch = server.dispatch
        route = dispatch.routes.entries.get(topic)
        if route is None:
            route = dispatch.route(topic)
        quotas = server.quotas
        if qos > quotas.maximum_qos:
            raise PeerError(0x9B, f"QoS {qos} is not supported, at most {quotas.maximum_qos}")  # [MQTT-3.2.2-11]
        retain = bool(head & 1)
        if retain and not quotas.retain_available:
            raise PeerError(0x9A, "retained messages are not supported")
        payload = data[pos:end]
        subscriber = connection.subscriber
        message = Message(
            topic,
            payload,
            qos,
            retain,
            properties,
            expiry_s,
            server.cluster.now_ms() if expiry_s >= 0 else 0,
            b"",
            subscriber.session_id if subscriber is not None else b"",
        )
        invalid = quotas.validate_payload_format and properties and _invalid_text(properties, payload)
        refusal = route.refusal or (0x99 if invalid else 0)
        reason = DENIED.reason
        if connection.guarded and not refusal and not (qos == 2 and self._known(packet_id)):
            answer = self._clear(message, route, packet_id)
            if answer is None:
                return  # the same packet comes here again
            refusal, reason = answer.refusal, answer.reason
            if answer.message is not None:
                message = answer.message
                route = dispatch.route(message.topic)
        server.metrics.messages_received[qos] += 1
        if refusal:
            self._refused(message, refusal, reason, route)
            if not qos:
                return
        if qos == 1:
            self._publish1(message, route, packet_id, refusal)
        elif qos == 2:
            self._publish2(message, route, packet_id, refusal)
        elif dispatch.suspended:
            self._suspended(message)
        else:
            dispatch.publish(message, route, None)

    # -- what may be published

    def _clear(self, message: Message, route: Route, packet_id: int) -> Answer | None:
        """What rules and hooks say; None: they have to be waited for."""
        answer = self._judge(message, route, packet_id)
        if answer is not None and self._server.tracer is not None:
            self._server.tracer.cleared(self._connection, message, route, answer)
        return answer

    def _judge(self, message: Message, route: Route, packet_id: int) -> Answer | None:
        connection = self._connection
        answer = connection.take_answer()
        if answer is not None:
            again = message.qos == 2 and self._ids is not None and packet_id in self._ids
            if answer is UNKNOWN and message.qos and (again or not self._v5):
                # It may be published already, or there is no way to say so: the client sends it again.
                self._server.metrics.dropped[answer.reason] += 1
                raise PeerError(SERVER_BUSY, "authorization is not possible now")
            return answer
        permissions = connection.permissions
        hooks = connection.hooks
        named, qos = message.topic, message.qos
        topic = named if route.delay is None else route.delay.topic
        allowed = permissions is None or permissions.may_publish(topic, message.qos, message.retain)
        if allowed is False:
            return DENIED
        if allowed and hooks is None:
            return CLEAR

        async def ask() -> Answer:
            if not allowed:
                assert permissions is not None
                try:
                    if not await permissions.ask_publish(topic, message.qos, message.retain):
                        return DENIED
                except BackendError:  # logged
                    return UNKNOWN
            if hooks is None:
                return CLEAR
            assert connection.principal is not None
            changed = await hooks.publish(connection.principal, message)
            if changed is None:
                return DENIED_BY_HOOK
            if changed.topic != named or changed.qos != qos:
                return self._redirected(changed, qos)
            return Answer(0, "", changed)

        connection.ask(ask)
        return None

    def _redirected(self, message: Message, qos: int) -> Answer:
        """A hook chose another topic: it has to be one."""
        try:
            route = self._server.dispatch.route(message.topic)
        except PeerError as error:
            _log.warning("hook.bad_topic", error=error.text)
            return DENIED_BY_HOOK
        if route.refusal or message.qos != qos:
            _log.warning("hook.bad_topic", topic=route.topic_name, error=route.text or "another QoS")
            return DENIED_BY_HOOK
        return Answer(0, "", message)

    def _known(self, packet_id: int) -> bool:
        """A QoS 2 message that was cleared before, and is not published again."""
        entry = None if self._ids is None else self._ids.get(packet_id)
        return entry is not None and entry.state != RESUMED

    def _suspended(self, message: Message) -> None:
        self._server.metrics.dropped["store_unavailable"] += 1
        if self._server.tracer is not None:
            self._server.tracer.dropped(self._connection, message, "store_unavailable")

    def _refused(self, message: Message, refusal: int, reason: str, route: Route) -> None:
        """Count a message that is not published; PeerError where that ends the connection."""
        qos = message.qos
        if self._server.tracer is not None:
            self._server.tracer.refused(self._connection, message, refusal, reason, route.text)
        if refusal == NOT_AUTHORIZED:
            self._server.metrics.dropped[reason] += 1
            if self._server.quotas.deny_disconnects:
                raise PeerError(NOT_AUTHORIZED, f"not authorized to publish to {route.topic_name!r:.80}")
        elif refusal == UNKNOWN.refusal:
            self._server.metrics.dropped[reason] += 1
        elif refusal == 0x99:
            if not qos:
                raise PeerError(0x99, "the payload is not the UTF-8 text that its format indicator says")
        elif not qos or not self._v5:
            raise PeerError(refusal, route.text)

    def _resolve(self, alias: int, topic: bytes) -> bytes:
        if alias > self._server.quotas.topic_alias_maximum:  # [MQTT-3.3.2-9]
            raise PeerError(0x94, f"topic alias {alias}, at most {self._server.quotas.topic_alias_maximum}")
        if topic:
            if self._aliases is None:
                self._aliases = {}
            self._aliases[alias] = topic
            return topic
        known = None if self._aliases is None else self._aliases.get(alias)
        if known is None:
            raise ProtocolError(f"topic alias {alias} was not set on this connection")
        return known

    def _publish1(self, message: Message, route: Route, packet_id: int, refusal: int) -> None:
        acks = self._acks
        if acks:
            self._check_window()
        reason_code = refusal or (NO_MATCHING_SUBSCRIBERS if self._v5 and route.nobody else 0)
        slot = PublishSlot(self, PUBACK, packet_id, reason_code)
        if refusal or self._server.dispatch.publish(message, route, slot):
            if not acks:
                self._connection.send_ack(PUBACK, packet_id, reason_code)
                return
            slot.done = True
        self._append(slot)

    def _check_window(self) -> None:
        if self._open >= self._unanswered_max:
            if self._v5:  # [MQTT-3.3.4-7] (the server's Receive Maximum)
                raise PeerError(0x93, f"more than {self._unanswered_max} unacknowledged messages")
            self._update_hold()

    def _update_hold(self) -> None:
        acks = self._acks
        held = not self._v5 and acks is not None and sum(slot.count for slot in acks) >= self._unanswered_max
        if held != self.held:
            self.held = held
            self._connection.hold(held)

    # -- QoS 2

    def _publish2(self, message: Message, route: Route, packet_id: int, refusal: int) -> None:
        ids = self._ids
        if ids is None:
            ids = self._ids = {}
        entry = ids.get(packet_id)
        if entry is not None:
            if entry.state == RECEIVED:  # [MQTT-4.3.3-10]: a retry adds no copy
                self._connection.send_ack(PUBREC, packet_id, 0)
                return
            if entry.state != RESUMED:
                return  # its PUBREC is under way
            message.message_id = entry.message_id
        else:
            self._check_window()
            message.message_id = self._server.dispatch.new_message_id()
        slot = PublishSlot(
            self,
            PUBREC,
            packet_id,
            refusal or (NO_MATCHING_SUBSCRIBERS if self._v5 and route.nobody else 0),
        )
        connection = self._connection
        if refusal:
            slot.done = True
            self._append(slot)
            self._drain()
            return
        retry = slot.again = entry is not None
        if entry is None:
            entry = ids[packet_id] = Exactly(message.message_id, PENDING)
        else:
            entry.state = PENDING
        entry.counted = True
        self._append(slot)
        if not connection.persistent():
            self._publish2_now(message, route, slot)
        elif retry:
            self._publish2_now(message, route, slot, True)
        else:
            self._reserve(message, slot)

    def _reserve(self, message: Message, slot: PublishSlot) -> None:
        connection = self._connection

        def reserved(error: Exception | None) -> None:
            if error is not None:
                self.settled(slot, error)
            elif connection.machine.state != CLOSED:  # else the client sends it again, and those before it
                # Matched anew: the route may have changed meanwhile.
                self._publish2_now(message, self._server.dispatch.route(message.topic), slot, True)

        assert connection.ref is not None
        self._server.cluster.reserve(connection.ref, slot.packet_id, message.message_id, reserved)

    def _publish2_now(self, message: Message, route: Route, slot: PublishSlot, deduplicate: bool = False) -> None:
        if self._server.dispatch.publish(message, route, slot, deduplicate):
            self.settled(slot, None)

    def released(self, packet_id: int) -> None:
        """PUBREL."""
        entry = None if self._ids is None else self._ids.get(packet_id)
        connection = self._connection
        if entry is None or self._ids is None:
            connection.send_ack(PUBCOMP, packet_id, 0x92 if self._v5 else 0)  # [MQTT-4.3.3-11]
            return
        if entry.state == PENDING:
            raise ProtocolError(f"PUBREL for packet id {packet_id} before its PUBREC")
        if not connection.persistent():
            del self._ids[packet_id]
            self._open -= entry.counted
            connection.send_ack(PUBCOMP, packet_id, 0)
            return
        if entry.state == RELEASING:
            return
        entry.state = RELEASING

        def freed(error: Exception | None) -> None:
            if isinstance(error, StoreUnavailable):
                connection.disconnect(0x89, "the store cannot be reached")
            elif error is None and self._ids is not None and self._ids.pop(packet_id, None) is not None:
                self._open -= entry.counted
                connection.send_ack(PUBCOMP, packet_id, 0)

        assert connection.ref is not None
        self._server.cluster.release(connection.ref, packet_id, entry.message_id, freed)

    # -- acknowledgements

    def settled(self, slot: PublishSlot, error: Exception | None) -> None:
        """The message of this slot is safe, or it could not be stored."""
        if error is not None:
            connection = self._connection
            if connection.machine.state == CLOSED:  # nobody learns of it: the client sends it again
                return
            if not isinstance(error, StoreFull) or slot.patient:
                connection.disconnect(0x89, "the store cannot be reached")
                return
            slot.reason_code = QUOTA_EXCEEDED
        slot.done = True
        self._drain()

    def patient(self, again: bool) -> bool:
        """See `PublishSlot`."""
        return (again or not self._v5) and self._connection.machine.state != CLOSED

    def _drain(self) -> None:
        acks = self._acks
        connection = self._connection
        while acks and acks[0].done:
            slot = acks.popleft()
            if slot.kind == PUBACK or slot.reason_code >= 0x80:
                self._open -= slot.count
            if slot.kind == PUBREC and self._ids is not None:
                if slot.reason_code >= 0x80:
                    entry = self._ids.pop(slot.packet_id, None)
                    if entry is not None and connection.persistent() and connection.ref is not None:
                        self._server.cluster.release(connection.ref, slot.packet_id, entry.message_id, _ignore)
                else:
                    entry = self._ids.get(slot.packet_id)
                    if entry is not None:
                        entry.state = RECEIVED
            if isinstance(slot, RunSlot):
                connection.send_acks(slot.kind, slot.ids, slot.reason_code)
            else:
                connection.send_ack(slot.kind, slot.packet_id, slot.reason_code)
        if not acks:
            self._acks = None
        if self.held:
            self._update_hold()


def _ignore(error: Exception | None) -> None:
    """The answer changes nothing."""


def _invalid_text(properties: bytes, payload: bytes) -> bool:
    if payload_format(properties) != 1:
        return False
    try:
        payload.decode()
    except UnicodeDecodeError:
        return True
    return False
