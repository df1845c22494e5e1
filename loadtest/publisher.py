"""Clients that publish."""

from __future__ import annotations

from struct import Struct
from time import monotonic_ns
from typing import TYPE_CHECKING

from broker.codec.encode import encode_ack
from broker.codec.packets import PUBACK, PUBCOMP, PUBREC, PUBREL, Acknowledgement, Packet
from loadtest.client import Client, LoadError
from loadtest.tally import History
from loadtest.wire import Wire

if TYPE_CHECKING:
    from loadtest.engine import Engine

MOST_PER_TURN = 1000  # messages of one publisher: a turn stays short, and the time stamps true
ACK = Struct("!H2s")
_ACKNOWLEDGEMENTS = frozenset((0x4002, 0x5002, 0x7002))  # the first two bytes of PUBACK, PUBREC, PUBCOMP
_PUBACK = 0x4002
_PACKET_IDS = [packet_id.to_bytes(2, "big") for packet_id in range(1, 65_536)]
_PUBREL = encode_ack(PUBREL, 1)[:2]


class Publisher(Client):
    """Sends numbered messages to one topic as fast as window and cap allow, or as many as are due."""

    def __init__(self, engine: Engine, client_id: str, number: int, topic: str, wire: Wire, clean: bool) -> None:
        super().__init__(engine, client_id, clean)
        self.number = number
        self.wire = wire
        self.head = wire.head(topic)
        self.topic = topic
        self.histories: list[History] = []
        self.sent = 0
        self.due = 0  # messages that should have been sent by now; only counts when paced
        self._held = False
        self._packet_id = 0  # the last one used, so the next one's index
        self._open: set[bytes] = set()  # packet identifiers in use
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
        if outstanding >= self.engine.cap and self._progress == (self.sent, received) and not self.blocked:
            self._written_off = self.sent - received
            self.engine.touched.add(self)
        self._progress = (self.sent, received)

    def fill(self) -> None:
        """Send what may be sent."""
        engine = self.engine
        paced = engine.interval_ns
        if paced:
            wanted = self.due - self.sent
        else:
            wanted = min(engine.cap - max(self.sent - self._received() - self._written_off, 0), MOST_PER_TURN)
        room = min(engine.inflight, self.receive_maximum) - len(self._open) if self.wire.qos else wanted
        count = 0 if self.blocked else min(wanted, room)
        if count > 0 and engine.sending:
            first, number, properties = self.sent, self.number, self.wire.properties
            pack, head, padding = self.wire.struct.pack, self.head, self.wire.padding
            now = monotonic_ns()
            self.sent += count
            if paced and self._held:  # a message that flow control held back counts from when it was due
                times = [engine.due_ns(number, sequence) for sequence in range(first, self.sent)]
                ids = self._packet_ids(count)
                for i in range(count):
                    self.out.append(pack(head, ids[i], properties, number, first + i, min(times[i], now), padding))
            elif self.wire.qos:
                sequence = first
                for packet_id in self._packet_ids(count):
                    self.out.append(pack(head, packet_id, properties, number, sequence, now, padding))
                    sequence += 1
            else:
                sequences = range(first, self.sent)
                self.out += [pack(head, b"", properties, number, sequence, now, padding) for sequence in sequences]
            if not self.dirty:
                self.dirty = True
                engine.dirty.append(self)
        self._held = wanted > count

    def _packet_ids(self, count: int) -> list[bytes]:
        if not self.wire.qos:
            return [b""] * count
        found = _PACKET_IDS[self._packet_id : self._packet_id + count]
        self._packet_id += count
        if len(found) < count or not self._open.isdisjoint(found):  # at the end of the range, or around one in use
            found = [packet_id for packet_id in _PACKET_IDS if packet_id not in self._open][:count]
            self._packet_id = int.from_bytes(found[-1], "big")
        self._open.update(found)
        return found

    def writable(self) -> None:
        super().writable()
        if self.ready and not self.blocked:
            self.engine.touched.add(self)

    def run(self, data: bytes, at: int, size: int) -> int:
        if not self.ready:
            return at
        end = at + (size - at) // ACK.size * ACK.size
        opened, qos = self._open, self.wire.qos
        for kind, packet_id in ACK.iter_unpack(memoryview(data)[at:end]):
            if kind == _PUBACK and packet_id in opened and qos == 1:
                opened.remove(packet_id)
            elif kind in _ACKNOWLEDGEMENTS:
                self._acknowledge(kind >> 12, packet_id)
            else:
                break
            at += ACK.size
        self.engine.touched.add(self)
        return at

    def _acknowledge(self, kind: int, packet_id: bytes) -> None:
        if kind == PUBREC and self.wire.qos == 2:
            if packet_id in self._open and packet_id not in self._released:
                self._released.add(packet_id)
                self.write(_PUBREL + packet_id)
                return
        elif kind == PUBCOMP and packet_id in self._released:
            self._released.remove(packet_id)
            self._open.remove(packet_id)
            return
        elif kind == PUBACK and self.wire.qos == 1 and packet_id in self._open:
            self._open.remove(packet_id)
            return
        raise LoadError(f"{self.client_id}: acknowledgement {kind} for packet identifier {packet_id.hex()}, not in use")

    def packet(self, packet: Packet) -> None:
        if isinstance(packet, Acknowledgement):
            if packet.reason_code >= 0x80:
                raise LoadError(f"{self.client_id}: message refused, reason code 0x{packet.reason_code:02x}")
            self._acknowledge(packet.kind, packet.packet_id.to_bytes(2, "big"))
            self.engine.touched.add(self)
        else:
            super().packet(packet)
