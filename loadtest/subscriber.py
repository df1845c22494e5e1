"""Clients that subscribe, count and acknowledge."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from broker.codec.encode import encode_ack
from broker.codec.packets import PUBACK, PUBCOMP, PUBREC, PUBREL, Acknowledgement, Packet, Publish
from loadtest.address import Address
from loadtest.client import Client
from loadtest.publisher import ACK
from loadtest.tally import Flow, History
from loadtest.wire import STAMP, Wire

if TYPE_CHECKING:
    from loadtest.engine import Engine

_PUBREL = 0x6202  # its first two bytes
_ANSWERS = {1: encode_ack(PUBACK, 1)[:2], 2: encode_ack(PUBREC, 1)[:2]}  # to PUBLISH, by QoS
_NO_ID = b"\0\0"
_PUBCOMP = encode_ack(PUBCOMP, 1)[:2]


class Subscriber(Client):
    """Counts and acknowledges what it receives."""

    def __init__(
        self, engine: Engine, client_id: str, node: Address, filters: list[str], wire: Wire, clean: bool
    ) -> None:
        super().__init__(engine, client_id, node, clean, filters, wire.qos)
        self.wire = wire
        self.flows: dict[bytes, Flow] = {}  # by the head of the packets
        self._by_topic: dict[str, Flow] = {}
        self._held: set[bytes] = set()  # QoS 2: PUBREC sent, PUBREL awaited
        self._resumed = False  # whether the session went on after a connection was lost

    @property
    def unreleased(self) -> int:
        """Messages of QoS 2 that wait for PUBREL."""
        return len(self._held)

    def expect(self, topic: str, number: int, history: History, shared: bool) -> None:
        """Be an audience, or one of a group that is one, of the publisher of this number."""
        flow = Flow(number, history, shared)
        self.flows[self.wire.head(topic)] = self._by_topic[topic] = flow

    def greeted(self, session_present: bool) -> None:
        self._resumed = session_present
        if not session_present:
            self._held.clear()

    def run(self, data: bytes, at: int, size: int) -> int:
        first_byte = data[at]
        if first_byte == self.wire.first_byte:
            count = (size - at) // self.wire.stride
            return self._publishes(data, at, at + count * self.wire.stride) if count else at
        if first_byte == 0x62:
            return self._releases(data, at, at + (size - at) // ACK.size * ACK.size)
        return at

    def _publishes(self, data: bytes, at: int, end: int) -> int:
        qos, properties, padding, stride = self.wire.qos, self.wire.properties, self.wire.padding, self.wire.stride
        engine, since = self.engine, self.since_ns
        now = monotonic_ns()
        known = b""
        packet_ids: list[bytes] = []
        count = repeated = stamp = same_stamp = 0
        flow: Flow | None = None
        for head, packet_id, props, number, sequence, sent, rest in self.wire.struct.iter_unpack(
            memoryview(data)[at:end]
        ):
            if head != known:
                flow = self.flows.get(head)
                known = head
                if flow is not None:
                    engine.touched.add(engine.sources[flow.number])
                    history, quick = flow.history, not flow.shared
            if flow is None or number != flow.number or props != properties or rest != padding:
                break
            if quick and sequence == history.next:
                history.next = sequence + 1
            elif sequence >= engine.sources[number].sent:
                break
            elif not flow.arrived(sequence):
                repeated += 1
            if sent != stamp:
                if same_stamp:
                    engine.latency.add(now - (stamp if stamp > since else since), same_stamp)
                stamp, same_stamp = sent, 0
            same_stamp += 1
            count += 1
            if qos:
                packet_ids.append(packet_id)
        if same_stamp:
            engine.latency.add(now - (stamp if stamp > since else since), same_stamp)
        if packet_ids:
            self._answer(packet_ids)
        engine.delivered += count - repeated
        return at + count * stride

    def _answer(self, packet_ids: list[bytes]) -> None:
        """Acknowledge messages of one read: none of them was acknowledged when the broker sent the last one."""
        used = set(packet_ids)
        if len(used) != len(packet_ids) or (self._held and not self._held.isdisjoint(used)):
            self.wrong("a packet identifier is in use twice")
        if _NO_ID in used:
            self.wrong("a message with packet identifier 0")
        if self.qos == 2:
            self._held |= used
        answer = _ANSWERS[self.qos]
        self.write(answer + answer.join(packet_ids))

    def _releases(self, data: bytes, at: int, end: int) -> int:
        for head, packet_id in ACK.iter_unpack(memoryview(data)[at:end]):
            if head != _PUBREL:
                break
            self._release(packet_id)
            at += ACK.size
        return at

    def _release(self, packet_id: bytes) -> None:
        if packet_id in self._held:
            self._held.discard(packet_id)
        elif not self._resumed:
            self.wrong(f"PUBREL for packet identifier {packet_id.hex()}, not in use")
        self.write(_PUBCOMP + packet_id)

    def packet(self, packet: Packet) -> None:
        if isinstance(packet, Publish):
            self._publish(packet)
        elif isinstance(packet, Acknowledgement) and packet.kind == PUBREL:
            self._release(packet.packet_id.to_bytes(2, "big"))
        else:
            super().packet(packet)

    def _publish(self, packet: Publish) -> None:
        packet_id = packet.packet_id.to_bytes(2, "big")
        if packet.dup and packet.qos == 2 and packet_id in self._held:  # it came before the connection was lost
            self.write(_ANSWERS[2] + packet_id)
            return
        if packet.qos:
            self._answer([packet_id])
        self._counted(packet)

    def _counted(self, packet: Publish) -> None:
        flow = self._by_topic.get(packet.topic_name)
        if flow is None or packet.qos != self.qos or len(packet.payload) != self.wire.payload_bytes:
            self.wrong(f"a message nobody sent, topic {packet.topic_name[:80]!r}")
            return
        number, sequence, sent = STAMP.unpack_from(packet.payload)
        engine = self.engine
        if (
            number != flow.number
            or sequence >= engine.sources[number].sent
            or packet.payload[STAMP.size :] != self.wire.padding
        ):
            self.wrong(f"a changed payload, topic {packet.topic_name[:80]!r}")
            return
        if packet.retain:
            self.wrong(f"RETAIN is set though nothing was stored, topic {packet.topic_name[:80]!r}")
        if packet.dup and not (packet.qos and (self._resumed or flow.shared)):
            self.wrong(f"DUP is set though nothing was sent again, topic {packet.topic_name[:80]!r}")
        self._check_properties(packet)
        engine.latency.add(monotonic_ns() - max(sent, self.since_ns))
        engine.delivered += flow.arrived(sequence)
        engine.touched.add(engine.sources[number])

    def _check_properties(self, packet: Publish) -> None:
        """Count properties that are not those that were sent."""
        changed = self.wire.changed(packet.properties)
        if changed:
            self.wrong(f"changed properties ({', '.join(changed)}), topic {packet.topic_name[:80]!r}")
