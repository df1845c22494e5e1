"""Clients that publish."""

from __future__ import annotations

from struct import Struct
from time import monotonic_ns
from typing import TYPE_CHECKING

from broker.codec.encode import encode_ack
from broker.codec.packets import PUBACK, PUBCOMP, PUBREC, PUBREL, Acknowledgement, Packet
from loadtest.address import Address
from loadtest.client import Client
from loadtest.tally import History

if TYPE_CHECKING:
    from loadtest.traffic import Traffic

MOST_PER_TURN = 1000  # messages of one publisher: a turn stays short, and the time stamps true
ACK = Struct("!H2s")
_ACKNOWLEDGEMENTS = frozenset((0x4002, 0x5002, 0x7002))  # the first two bytes of PUBACK, PUBREC, PUBCOMP
_PUBACK = 0x4002
_PACKET_IDS = [packet_id.to_bytes(2, "big") for packet_id in range(1, 65_536)]
_PUBREL = encode_ack(PUBREL, 1)[:2]
_DUP = 0x08


class Batch:
    """Messages that were sent at once: when, and how far the sequence number is above the packet identifier."""

    __slots__ = ("offset", "sent_ns")

    def __init__(self, sent_ns: int, offset: int) -> None:
        self.sent_ns = sent_ns
        self.offset = offset


class Publisher(Client):
    """Sends numbered messages to one topic as fast as window and cap allow, or as many as are due."""

    def __init__(self, traffic: Traffic, client_id: str, node: Address, number: int, topic: str, clean: bool) -> None:
        super().__init__(traffic.engine, client_id, node, clean)
        self.traffic = traffic
        self.number = number
        self.wire = traffic.wire
        self.head = traffic.wire.head(topic)
        self.topic = topic
        self.histories: list[History] = []
        self.sent = 0
        self.acked = 0
        self.refused: set[int] = set()  # sequence numbers of messages that the broker does not want
        self.due = 0  # messages that should have been sent by now; only counts when paced
        self._held = False
        self._packet_id = 0  # the last one used, so the next one's index
        self._open: dict[bytes, Batch] = {}  # packet identifiers in use, in the order of their messages
        self._released: set[bytes] = set()  # those of them whose PUBREL was sent
        self._written_off = 0
        self._progress = (0, 0)

    @property
    def unacknowledged(self) -> int:
        """QoS 1 and 2 messages whose last acknowledgement is missing."""
        return len(self._open)

    def _received(self) -> int:
        return min([history.next - len(history.missing) for history in self.histories])

    def tick(self) -> None:
        """Once a second: what stands still at the cap is taken as lost, so that the run goes on (and is counted)."""
        received = self._received()
        outstanding = self.sent - received - self._written_off
        if outstanding >= self.traffic.cap and self._progress == (self.sent, received) and not self.blocked:
            self._written_off = self.sent - received
            self.engine.touched.add(self)
        self._progress = (self.sent, received)

    def fill(self) -> None:
        """Send what may be sent."""
        traffic = self.traffic
        paced = traffic.interval_ns
        if paced:
            wanted = min(self.due - self.sent, MOST_PER_TURN)
        else:
            wanted = min(traffic.cap - max(self.sent - self._received() - self._written_off, 0), MOST_PER_TURN)
        room = min(traffic.window, self.receive_maximum) - len(self._open) if self.wire.qos else wanted
        count = 0 if self.blocked or not self.ready else min(wanted, room)
        if count > 0 and self.engine.sending:
            first, number, properties = self.sent, self.number, self.wire.properties
            pack, head, padding = self.wire.struct.pack, self.head, self.wire.padding
            now = monotonic_ns()
            self.sent += count
            self.engine.sent += count
            self.engine.expected += count * traffic.audience
            if paced and self._held:  # a message that flow control held back counts from when it was due
                times = [traffic.due_ns(number, sequence) for sequence in range(first, self.sent)]
                ids = self._packet_ids(count, first, now) if self.wire.qos else [b""] * count
                for i in range(count):
                    self.out.append(pack(head, ids[i], properties, number, first + i, min(times[i], now), padding))
            elif self.wire.qos:
                sequence = first
                for packet_id in self._packet_ids(count, first, now):
                    self.out.append(pack(head, packet_id, properties, number, sequence, now, padding))
                    sequence += 1
            else:
                sequences = range(first, self.sent)
                self.out += [pack(head, b"", properties, number, sequence, now, padding) for sequence in sequences]
            if not self.dirty:
                self.dirty = True
                self.engine.dirty.append(self)
        self._held = wanted > count

    def _packet_ids(self, count: int, first: int, now: int) -> list[bytes]:
        found = _PACKET_IDS[self._packet_id : self._packet_id + count]
        if len(found) == count and self._open.keys().isdisjoint(found):
            self._open.update(dict.fromkeys(found, Batch(now, first - self._packet_id - 1)))
            self._packet_id += count
            return found
        # At the end of the range, or around one in use.
        found = [packet_id for packet_id in _PACKET_IDS if packet_id not in self._open][:count]
        self._packet_id = int.from_bytes(found[-1], "big")
        for sequence, packet_id in enumerate(found, first):
            self._open[packet_id] = Batch(now, sequence - int.from_bytes(packet_id, "big"))
        return found

    def greeted(self, session_present: bool) -> None:
        """Send again what was not acknowledged: to the same session with DUP, to a new one as new. [MQTT-4.4.0-1]"""
        if not session_present:
            for packet_id in self._released:  # the broker had these
                del self._open[packet_id]
            self._released.clear()
        for packet_id, batch in self._open.items():
            if packet_id in self._released:
                self.write(_PUBREL + packet_id)
                continue
            packet = self._again(packet_id, int.from_bytes(packet_id, "big") + batch.offset, batch.sent_ns)
            self.write(bytes((packet[0] | (_DUP if session_present else 0),)) + packet[1:])
            self.engine.counts.retransmitted += 1

    def _again(self, packet_id: bytes, sequence: int, sent_ns: int) -> bytes:
        wire = self.wire
        return wire.struct.pack(self.head, packet_id, wire.properties, self.number, sequence, sent_ns, wire.padding)

    def opened(self) -> None:
        super().opened()
        self.engine.touched.add(self)

    def writable(self) -> None:
        super().writable()
        if self.ready and not self.blocked:
            self.engine.touched.add(self)

    def run(self, data: bytes, at: int, size: int) -> int:
        if not self.ready:
            return at
        end = at + (size - at) // ACK.size * ACK.size
        opened, qos1 = self._open, self.wire.qos == 1
        known: Batch | None = None
        same = acked = 0
        for kind, packet_id in ACK.iter_unpack(memoryview(data)[at:end]):
            if kind == _PUBACK and qos1 and packet_id in opened:
                batch = opened.pop(packet_id)
                if batch is not known:
                    if known is not None:
                        self.engine.ack.add(monotonic_ns() - known.sent_ns, same)
                    known, same = batch, 0
                same += 1
                acked += 1
            elif kind in _ACKNOWLEDGEMENTS:
                self._acknowledge(kind >> 12, packet_id)
            else:
                break
            at += ACK.size
        if known is not None:
            self.engine.ack.add(monotonic_ns() - known.sent_ns, same)
        self.acked += acked
        self.engine.touched.add(self)
        return at

    def _acknowledge(self, kind: int, packet_id: bytes) -> None:
        if kind == PUBREC and self.wire.qos == 2:
            if packet_id in self._open and packet_id not in self._released:
                self._released.add(packet_id)
                self.write(_PUBREL + packet_id)
                return
        elif (kind == PUBCOMP and packet_id in self._released) or (
            kind == PUBACK and self.wire.qos == 1 and packet_id in self._open
        ):
            self._released.discard(packet_id)
            self.engine.ack.add(monotonic_ns() - self._open.pop(packet_id).sent_ns)
            self.acked += 1
            return
        self.wrong(f"acknowledgement {kind} for packet identifier {packet_id.hex()}, not in use")

    def _refuse(self, packet_id: bytes, reason_code: int) -> None:
        batch = self._open.pop(packet_id, None)
        if batch is not None:
            self.refused.add(int.from_bytes(packet_id, "big") + batch.offset)
            self._written_off += 1
        self.engine.trouble("refused", f"{self.client_id}: message refused, reason code 0x{reason_code:02x}")

    def packet(self, packet: Packet) -> None:
        if isinstance(packet, Acknowledgement):
            packet_id = packet.packet_id.to_bytes(2, "big")
            if packet.reason_code >= 0x80 and packet_id not in self._released:
                self._refuse(packet_id, packet.reason_code)
            else:
                self._acknowledge(packet.kind, packet_id)
            self.engine.touched.add(self)
        else:
            super().packet(packet)
