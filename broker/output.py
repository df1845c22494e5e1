"""The sending side of a connection: packets in the client's version, within what the client accepts."""

from __future__ import annotations

from collections.abc import Sequence

from broker.codec.encode import encode
from broker.codec.packets import PUBREL, V5, Packet, Properties
from broker.codec.runs import acknowledgements, packet_ids, with_packet_ids
from broker.gate import Gate
from broker.metrics import Metrics
from broker.session.encoding import Encoding
from broker.session.run import Run
from broker.session.session import Session
from broker.transport.api import Stream

_TOO_LARGE = "packet_too_large"


class Output:
    """Implements `SessionOutput` and `Receiver` over a stream.

    `plain` is 5 or 4 while packets of that version family may be written to `stream` unchanged but for packet ids, else
    0.
    """

    __slots__ = (
        "_alias_limit",
        "_alias_out",
        "_client_max",
        "gate",
        "metrics",
        "plain",
        "problem_information",
        "sent_qos0",
        "session",
        "stream",
        "version",
    )

    def __init__(self, stream: Stream, metrics: Metrics) -> None:
        self.stream = stream
        self.metrics = metrics
        self.version = 0
        self.session: Session | None = None
        self.plain = 0
        self.sent_qos0 = 0
        #: What looks at each message; None: all may pass as they are.
        self.gate: Gate | None = None
        #: The client wants reason strings and user properties on acknowledgements.
        self.problem_information = True
        self._alias_out: dict[bytes, int] | None = None
        self._alias_limit = 0
        self._client_max = 0

    def set_limits(self, max_packet_size: int, topic_alias_maximum: int) -> None:
        """What the client accepts, from its CONNECT, before anything is answered."""
        self._client_max = max_packet_size
        self._alias_limit = topic_alias_maximum
        if topic_alias_maximum and self.version == V5:
            self._alias_out = {}

    def room(self) -> bool:
        return not self.stream.congested

    def send_message(self, encoding: Encoding, flags: int, packet_id: int, subscription_ids: Sequence[int]) -> str:
        version = self.version
        gate = self.gate
        view = encoding
        if gate is not None:
            passed = gate.view(encoding)
            if passed is None:
                return gate.reason
            view = passed
        if self._alias_out is not None or (subscription_ids and version == V5):
            refusal = self._send_special(view, flags, packet_id, subscription_ids)
            if refusal:
                return refusal
        else:
            tail = view.tail(version)
            head = view.head(version, flags)
            if self._client_max and len(head) + 2 + len(tail) > self._client_max:
                return _TOO_LARGE
            self.stream.write_parts(head, packet_id.to_bytes(2, "big"), tail)
            metrics = self.metrics
            metrics.messages_sent[flags >> 1 & 3] += 1
            if flags & 8:
                metrics.redelivered += 1
        if gate is not None and gate.told is not None:
            gate.told(encoding.message)
        return ""

    def _send_special(self, encoding: Encoding, flags: int, packet_id: int, subscription_ids: Sequence[int]) -> str:
        """With subscription identifiers or a topic alias."""
        version = self.version
        topic = full = encoding.message.topic
        aliases = self._alias_out
        alias = 0
        is_new = False
        if aliases is not None:
            alias = aliases.get(topic, 0)
            if alias:
                topic = b""
            elif len(aliases) < self._alias_limit:
                alias = len(aliases) + 1
                is_new = True
        packet = encoding.special(version, flags, packet_id, subscription_ids, topic, alias)
        if self._client_max and len(packet) > self._client_max:
            if not is_new:
                return _TOO_LARGE
            is_new = False  # it may fit without its new alias
            packet = encoding.special(version, flags, packet_id, subscription_ids, full, 0)
            if len(packet) > self._client_max:
                return _TOO_LARGE
        if is_new and aliases is not None:
            aliases[full] = alias
        self.stream.write(packet)
        metrics = self.metrics
        metrics.messages_sent[flags >> 1 & 3] += 1
        if flags & 8:
            metrics.redelivered += 1
        return ""

    def send_qos0(self, encoding: Encoding, retain: bool, subscription_ids: Sequence[int]) -> None:
        metrics = self.metrics
        if self.stream.congested or self.session is None:
            metrics.dropped["output_full"] += 1
            for count in encoding.counts:
                count.dropped += 1
            return
        gate = self.gate
        view = encoding
        if gate is not None:
            passed = gate.view(encoding)
            if passed is None:
                metrics.dropped[gate.reason] += 1
                for count in encoding.counts:
                    count.dropped += 1
                return
            view = passed
        if self._alias_out is not None or (subscription_ids and self.version == V5):
            refusal = self._send_special(view, int(retain), 0, subscription_ids)
            if refusal:
                metrics.dropped[refusal] += 1
                for count in encoding.counts:
                    count.dropped += 1
                return
        else:
            packet = view.qos0(self.version, retain)
            if self._client_max and len(packet) > self._client_max:
                metrics.dropped[_TOO_LARGE] += 1
                for count in encoding.counts:
                    count.dropped += 1
                return
            self.stream.write(packet)
            metrics.messages_sent[0] += 1
        if gate is not None and gate.told is not None:
            gate.told(encoding.message)

    def send_release(self, packet_id: int, reason_code: int) -> None:
        self.send_ack(PUBREL, packet_id, reason_code)

    def send_ack(self, kind: int, packet_id: int, reason_code: int) -> None:
        """PUBACK, PUBREC, PUBREL or PUBCOMP."""
        head = kind << 4 | (2 if kind == PUBREL else 0)
        if reason_code and self.version == V5:
            self.stream.write(bytes((head, 3, packet_id >> 8, packet_id & 255, reason_code)))
        else:
            self.stream.write(bytes((head, 2, packet_id >> 8, packet_id & 255)))
        self.metrics.packets_sent[kind] += 1

    def send_acks(self, kind: int, ids: bytes, reason_code: int) -> None:
        """PUBACK or PUBREC for a run, with ids as `plain_ids` gives them."""
        if reason_code:
            for packet_id in packet_ids(ids):
                self.send_ack(kind, packet_id, reason_code)
        else:
            self.stream.write(acknowledgements(ids, kind << 4))
            self.metrics.packets_sent[kind] += len(ids) // 2

    def send_run(self, run: Run, first_id: int) -> bool:
        """Pass the packets of a run on with packet ids from `first_id` on; False: not as they are."""
        if self.plain != run.family:
            return False
        self.stream.write(with_packet_ids(run.data, run.count, run.id_at, first_id))
        self.metrics.messages_sent[run.qos] += run.count
        return True

    def send(self, packet: Packet) -> bool:
        """Write any packet; False if it is too large for the client even without what may be left out."""
        data = encode(packet, self.version or 4)
        if self._client_max and len(data) > self._client_max:
            properties: Properties | None = getattr(packet, "properties", None)
            if properties is None:
                return False
            properties.reason_string = None  # [MQTT-3.2.2-19]
            properties.user_properties = ()
            data = encode(packet, self.version)
            if len(data) > self._client_max:
                return False
        self.stream.write(data)
        self.metrics.packets_sent[packet.kind] += 1
        return True

    def update_plain(self) -> None:
        """Whether packets may take direct ways to this client; called when something of it changed."""
        simple = self._alias_out is None and not self._client_max and not self.stream.congested
        if self.gate is not None and not self.gate.open():
            simple = False
        self.plain = (5 if self.version == V5 else 4) if simple and self.session is not None else 0

    def output_congested(self) -> None:
        """The output buffer is over its bound."""
        self.plain = 0

    def reason_properties(self, text: str) -> Properties | None:
        """A Reason String, if the client wants problem information [MQTT-3.1.2-29]."""
        if self.version != V5 or not self.problem_information:
            return None
        properties = Properties()
        properties.reason_string = text
        return properties
