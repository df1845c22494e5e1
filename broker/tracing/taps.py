"""Connections and sessions that are followed: the same objects, of a class that tells what they do.

A connection becomes a `TracedConnection` when a trace begins to concern it, and a `Connection` again when the trace
ends (`Traces.fit`): neither has attributes of its own, so one can take the place of the other at any time, and those
that nobody follows have nothing of it looked at. While a trace of topics runs, all connections are of this class;
those without a `Tap` then tell only of messages of these topics, which alone leave the direct way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from broker.auth.api import READ
from broker.codec.decode import decode
from broker.codec.packets import CONNECT, KIND_NAMES, PUBACK, PUBCOMP, Packet, Publish
from broker.codec.runs import packet_ids
from broker.connection import Connection
from broker.errors import PeerError
from broker.gate import NOT_AUTHORIZED
from broker.groups import Group
from broker.message import Message
from broker.permitted import NOTHING
from broker.reasons import reason_name
from broker.routes import Subscriber
from broker.session.encoding import Encoding
from broker.session.machine import CLOSED, OPEN
from broker.session.negotiation import Agreement
from broker.session.ports import GroupDelivery
from broker.session.session import Session
from broker.tracing.text import (
    acknowledgement_text,
    escaped,
    message_shown,
    message_text,
    packet_shown,
    quoted,
    reason_text,
    topic_text,
)
from cluster.api import SessionRef

if TYPE_CHECKING:
    from broker.tracing.record import Trace
    from broker.tracing.traces import Traces

#: What a refused CONNECT says where it was not believed who the client is.
_CREDENTIALS: Final = frozenset((0x86, 0x87, 0x88, 0x8A, 0x8C))

_TAKEN_OVER: Final = 0x8E


class Tap:
    """What is known of a connection that is followed, also after its end."""

    __slots__ = ("_tracer", "client_id", "peer", "traces")

    def __init__(self, tracer: Traces, traces: tuple[Trace, ...], client_id: str, peer: str) -> None:
        self._tracer = tracer
        self.traces = traces
        self.client_id = client_id
        self.peer = peer

    def line(self, kind: str, text: str, details: dict[str, Any]) -> None:
        """Add a line, if a trace takes it."""
        traces = self._tracer.taking(self.traces)
        if traces:
            self.add(traces, kind, text, details)

    def add(
        self,
        traces: Sequence[Trace],
        kind: str,
        text: str,
        details: dict[str, Any],
        direction: str = "",
        payload: bytes | None = None,
    ) -> None:
        """Add a line to traces that take it."""
        self._tracer.add(traces, self.client_id, self.peer, kind, text, details, direction, payload)


class TracedConnection(Connection):
    """See the module. Each method does what that of `Connection` does."""

    __slots__ = ()

    def _tap(self) -> Tap | None:
        tracer = self._server.tracer
        return None if tracer is None else tracer.taps.get(self)

    def _note(self, kind: str, text: str, **details: object) -> None:
        tap = self._tap()
        if tap is not None:
            tap.line(kind, text, details)

    def _note_message(
        self,
        kind: str,
        words: str,
        message: Message,
        direction: str = "",
        shown: dict[str, Any] | None = None,
    ) -> None:
        """Tell of a message that concerns this connection or is of a topic that is followed."""
        tracer = self._server.tracer
        if tracer is None:
            return
        tap = tracer.taps.get(self)
        traces = tracer.taking(tracer.by_topic(message.topic), tap.traces if tap is not None else ())
        if traces:
            details = {**message_shown(message), **(shown or {})}
            payload = message.payload if direction else None
            tracer.add(traces, self.client_id, str(self.stream.peer), kind, words, details, direction, payload)

    # -- which way messages take

    def choose_way(self) -> None:
        """All of a client that is followed take the general way."""
        super().choose_way()
        if self._tap() is not None:
            self._cleared = NOTHING

    def update_plain(self) -> None:
        super().update_plain()
        if self.plain and self._tap() is not None:
            self.plain = 0

    # -- packets in

    def _publish(self, head: int, data: bytes, start: int, end: int) -> None:
        tap = self._tap()
        if tap is not None and self._answer is None:  # else it was told before its rules were asked about
            self._told_in(tap, head, data, start, end)
        super()._publish(head, data, start, end)

    def _packet(self, head: int, data: bytes, start: int, end: int) -> None:
        tap = self._tap()
        kind = head >> 4
        if tap is not None and kind != CONNECT and not PUBACK <= kind <= PUBCOMP:
            self._told_in(tap, head, data, start, end)
        super()._packet(head, data, start, end)

    def _told_in(self, tap: Tap, head: int, data: bytes, start: int, end: int) -> None:
        traces = tap._tracer.taking(tap.traces)
        if not traces:
            return
        payload: bytes | None = None
        try:
            packet: Packet = decode(head, data, start, end, self.version, True)
        except PeerError as error:
            name = KIND_NAMES[head >> 4]
            shown: dict[str, Any] = {"type": name, "error": error.text}
            text = f"{name}, malformed: {escaped(error.text)}"
        else:
            if isinstance(packet, Publish):
                payload = packet.payload
            text, shown = packet_shown(packet)
        shown["packet_bytes"] = end - start
        tap.add(traces, "packet", text, shown, "in", payload)

    def _acknowledgements(self, head: int, data: bytes, at: int, budget: int) -> int:
        return 0 if self._tap() is not None else super()._acknowledgements(head, data, at, budget)

    def _acknowledgement(self, kind: int, packet_id: int, reason_code: int) -> None:
        tap = self._tap()
        if tap is not None and (traces := tap._tracer.taking(tap.traces)):
            text, shown = _acknowledged(kind, packet_id, reason_code)
            tap.add(traces, "packet", text, shown, "in")
        super()._acknowledgement(kind, packet_id, reason_code)

    # -- packets out

    def send(self, packet: Packet) -> bool:
        sent = super().send(packet)
        tap = self._tap()
        if tap is not None and (traces := tap._tracer.taking(tap.traces)):
            text, shown = packet_shown(packet)
            tap.add(traces, "packet" if sent else "drop", text if sent else f"{text}, too large", shown, "out")
        return sent

    def send_acks(self, kind: int, ids: bytes, reason_code: int) -> None:
        for packet_id in packet_ids(ids):
            self.send_ack(kind, packet_id, reason_code)

    def send_ack(self, kind: int, packet_id: int, reason_code: int) -> None:
        super().send_ack(kind, packet_id, reason_code)
        tap = self._tap()
        if tap is not None and (traces := tap._tracer.taking(tap.traces)):
            text, shown = _acknowledged(kind, packet_id, reason_code)
            tap.add(traces, "packet", text, shown, "out")

    def send_message(self, encoding: Encoding, flags: int, packet_id: int, subscription_ids: Sequence[int]) -> str:
        refusal = super().send_message(encoding, flags, packet_id, subscription_ids)
        if not refusal:
            self._told_out(encoding.message, flags, packet_id, subscription_ids)
        return refusal

    def send_qos0(self, encoding: Encoding, retain: bool, subscription_ids: Sequence[int]) -> None:
        sent = self.metrics.messages_sent[0]
        super().send_qos0(encoding, retain, subscription_ids)
        if self.metrics.messages_sent[0] != sent:
            self._told_out(encoding.message, int(retain), 0, subscription_ids)
            return
        gate = self.gate
        if self.stream.congested or self.session is None:
            reason = "output_full"
        elif gate is not None and not gate.lets(encoding.message.topic):
            reason = gate.reason
        else:
            reason = "packet_too_large"
        self._told_dropped(encoding.message, reason)

    def _told_out(self, message: Message, flags: int, packet_id: int, subscription_ids: Sequence[int]) -> None:
        shown: dict[str, Any] = {
            "type": "PUBLISH",
            "packet_id": packet_id,
            "qos": flags >> 1 & 3,
            "dup": bool(flags & 8),
            "retain": bool(flags & 1),
        }
        if subscription_ids:
            shown["subscription_identifiers"] = list(subscription_ids)
        if self._alias_out is not None and (alias := self._alias_out.get(message.topic)):
            shown["topic_alias"] = alias
        text = message_text(message.topic, flags, packet_id, len(message.payload))
        self._note_message("packet", text, message, "out", shown)

    def _told_dropped(self, message: Message, reason: str) -> None:
        words = f"{quoted(topic_text(message.topic))} is not sent: {reason}"
        tracer = self._server.tracer
        if tracer is not None and reason == NOT_AUTHORIZED:
            words += f" (read: {tracer.why(self, READ, topic_text(message.topic), False)})"
        self._note_message("drop", words, message, "", {"reason": reason})

    # -- the queue

    def dropped(self, message: Message, reason: str) -> None:
        super().dropped(message, reason)
        self._told_dropped(message, reason)

    def acknowledge(self, seq: int, sent_seq: int) -> None:
        super().acknowledge(seq, sent_seq)
        self._note("queue", f"{seq} is done and leaves the queue", queue_seq=seq, sent_seq=sent_seq)

    def received(self, packet_id: int, seq: int, sent_seq: int) -> None:
        super().received(packet_id, seq, sent_seq)
        self._note("queue", f"{seq} was received and awaits PUBCOMP", queue_seq=seq, packet_id=packet_id)

    def want_page(self, after_seq: int, limit: int) -> None:
        super().want_page(after_seq, limit)
        self._note("queue", f"the queue is read behind {after_seq}", after_seq=after_seq, limit=limit)

    def group_done(self, entry: GroupDelivery) -> None:
        super().group_done(entry)
        name = entry.group.name if isinstance(entry.group, Group) else ""
        self._note("queue", f"a message of {quoted(name)} is done", group=name)

    def group_run_done(self, group: object, entry_ids: Sequence[bytes]) -> None:
        super().group_run_done(group, entry_ids)
        name = group.name if isinstance(group, Group) else ""
        for _ in entry_ids:
            self._note("queue", f"a message of {quoted(name)} is done", group=name)

    def hold(self, held: bool) -> None:
        super().hold(held)
        text = "not read: too many of its messages wait for the store" if held else "read again"
        self._note("queue", text, held=held)

    def hold_for(self, seconds: float) -> None:
        super().hold_for(seconds)
        self._note("queue", f"too fast: not read for {seconds:.3f} s", held_s=seconds)

    def output_congested(self) -> None:
        self._note("queue", "the output buffer is full: QoS 0 is dropped, the rest waits", congested=True)
        super().output_congested()

    def output_drained(self) -> None:
        super().output_drained()
        self._note("queue", "the output buffer has room again", congested=False)

    # -- beginning and end

    def established(self, agreement: Agreement, ref: SessionRef, session: Session, subscriber: Subscriber) -> None:
        super().established(agreement, ref, session, subscriber)
        tracer = self._server.tracer
        tap = self._tap()
        if tracer is None or tap is None:
            return
        session.watch = FOLLOWER
        tracer.remember(ref.session_id, tap)
        tap.line(
            "session",
            f"has its session: {len(subscriber.subscriptions)} subscriptions, expires {agreement.expiry_s} s after it "
            f"leaves, window of {agreement.receive_maximum} messages",
            {
                "subscriptions": len(subscriber.subscriptions),
                "session_expiry_interval": agreement.expiry_s,
                "receive_maximum": agreement.receive_maximum,
                "persistent": subscriber.persistent,
            },
        )

    def fail(self, error: PeerError) -> None:
        if self.machine.state != CLOSED:
            code = error.reason_code
            unknown = self.machine.state != OPEN and self.principal is None and code in _CREDENTIALS
            text = f"refused: {reason_text(code)}, {escaped(error.text)}"
            details: dict[str, Any] = {"reason_code": code, "reason": error.text}
            if unknown:
                details["asked"] = self._server.authenticators(self)
                text += f"; asked: {', '.join(details['asked']) or 'nobody'}"
            self._note("authentication" if unknown else "disconnect", text, **details)
        super().fail(error)

    def disconnect(self, reason_code: int, text: str, server_reference: str = "") -> None:
        if self.machine.state != CLOSED:
            kind = "takeover" if reason_code == _TAKEN_OVER else "disconnect"
            words = f"is disconnected: {reason_text(reason_code)}, {escaped(text)}"
            self._note(kind, words, reason_code=reason_code, reason=text)
        super().disconnect(reason_code, text, server_reference)

    def refuse(self, reason_code: int, text: str) -> None:
        if self.machine.state != CLOSED:
            words = f"refused: {reason_text(reason_code)}, {escaped(text)}"
            self._note("disconnect", words, reason_code=reason_code, reason=text)
        super().refuse(reason_code, text)

    def _end(self, reason: str) -> None:
        self._told_end(reason)
        super()._end(reason)
        tracer = self._server.tracer
        if tracer is not None:
            tracer.taps.pop(self, None)

    def _told_end(self, reason: str) -> None:
        tap = self._tap()
        if tap is None:
            return
        tap.line("connection", f"the connection ends: {reason}", {"reason": reason})
        agreement = self.agreement
        if agreement is None:
            return
        if self.has_will and agreement.will is not None:
            properties = agreement.will.properties
            delay_s = (properties.will_delay_interval or 0) if properties is not None else 0
            when = f"in {delay_s} s" if delay_s else "now"
            topic = quoted(agreement.will.topic_name)
            text = f"the will for {topic} is due {when}" if self.send_will else f"the will for {topic} is forgotten"
            tap.line("will", text, {"due": self.send_will, "will_delay_interval": delay_s})
        if self.lost:
            text = "the session goes on elsewhere"
        elif self.expiry_s:
            text = f"the session is kept for {self.expiry_s} s"
        else:
            text = "the session ends"
        tap.line("session", text, {"session_expiry_interval": self.expiry_s, "lost": self.lost})


class Follower:
    """Tells of the session of a connection that is followed."""

    __slots__ = ()

    def waits(self, session: Session, message: Message) -> None:
        _note(session, f"waits in memory: {_window(session)}", message, waiting=session.waiting() + 1)

    def stored(self, session: Session, message: Message, seq: int) -> None:
        waits = session.behind or session.credit() <= 0
        text = f"waits in the queue as {seq}: {_window(session)}" if waits else f"is in the queue as {seq}"
        _note(session, text, message, queue_seq=seq)

    def from_group(self, session: Session, message: Message, delivery: GroupDelivery) -> None:
        name = delivery.group.name if isinstance(delivery.group, Group) else ""
        _note(session, f"comes from {quoted(name)}", message, "route", group=name)


#: It keeps nothing: one does for all sessions.
FOLLOWER: Final = Follower()


def _note(session: Session, text: str, message: Message, kind: str = "queue", **details: object) -> None:
    output = session.output
    if isinstance(output, TracedConnection):
        output._note_message(kind, f"{quoted(topic_text(message.topic))} {text}", message, "", details)


def _window(session: Session) -> str:
    used = session.owed()
    if used >= session.window:
        return f"{used} of {session.window} are in flight"
    return "older ones wait" if session.behind or session.waiting() else "the output buffer is full"


def _acknowledged(kind: int, packet_id: int, reason_code: int) -> tuple[str, dict[str, Any]]:
    name = KIND_NAMES[kind]
    shown = {"type": name, "packet_id": packet_id, "reason_code": reason_code, "reason": reason_name(reason_code)}
    return name + acknowledgement_text(packet_id, reason_code), shown
