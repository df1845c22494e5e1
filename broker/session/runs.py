"""What a session is told in one go: runs of messages (`broker.codec.runs`), and acknowledgements in a row.

Everything here does what `Session` does for each of them, or nothing, where they need more than to be taken note of.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import Final

from broker.session.ports import GroupDelivery, GroupRun, SessionOutput, SessionStore, SessionWatch, Waiting
from broker.session.run import Run

#: Packet ids of queued messages wrap here; those above belong to the connection (shared groups).
SEQ_MODULUS: Final = 57344
LAST_PACKET_ID: Final = 65535

#: First bytes of packet ids from this on are of messages of shared subscriptions.
_GROUP_IDS: Final = SEQ_MODULUS >> 8

#: An acknowledgement without a reason code: its first two bytes, and the packet id.
_PLAIN: Final = Struct(">HH")
_PUBACK: Final = 0x4002
_PUBREC: Final = 0x5002
_PUBCOMP: Final = 0x7002


class Runs:
    """The state of a session, and what is done with it in one go."""

    __slots__ = (
        "_ahead",
        "_asked_looks",
        "_asked_top",
        "_cursor",
        "_dup_seq",
        "_group_entries",
        "_looks",
        "_next_group_id",
        "_next_packet_id",
        "_paging",
        "_queue",
        "_queue_bytes",
        "_releasing",
        "_top",
        "behind",
        "closed",
        "hungry",
        "inflight",
        "max_queue_bytes",
        "max_queue_messages",
        "output",
        "persistent",
        "promised",
        "sent_seq",
        "store",
        "watch",
        "window",
    )

    def __init__(
        self,
        output: SessionOutput,
        store: SessionStore,
        persistent: bool,
        window: int,
        max_queue_messages: int,
        max_queue_bytes: int,
    ) -> None:
        self.output = output
        self.store = store
        self.persistent = persistent
        self.window = window
        self.max_queue_messages = max_queue_messages
        self.max_queue_bytes = max_queue_bytes
        #: packet id -> seq << 2 | QoS (seq 0 for messages without one)
        self.inflight: dict[int, int] = {}
        #: packet id -> seq; negative until the store knows of the PUBREC
        self._releasing: dict[int, int] | None = None
        self._group_entries: dict[int, GroupDelivery | GroupRun] | None = None
        self._queue: deque[Waiting] | None = None
        self._queue_bytes = 0
        self._next_packet_id = 0
        self._next_group_id = SEQ_MODULUS
        #: All up to this seq were sent or are gone.
        self._cursor = 0
        #: Seqs beyond the next one that were sent already.
        self._ahead: set[int] | None = None
        #: The newest seq known, and what it was when a page was asked for.
        self._top = 0
        self._asked_top = 0
        #: Looks into the queue that were wanted since it was last seen to its end, and likewise.
        self._looks = 0
        self._asked_looks = 0
        self._dup_seq = 0
        self._paging = False
        #: True while a persistent session is fed by pages.
        self.behind = False
        self.sent_seq = 0
        self.closed = False
        #: Set while something outside waits for `SessionStore.has_room`.
        self.hungry = False
        #: Messages of groups that are being handed over to this session.
        self.promised = 0
        #: Set while somebody follows this session.
        self.watch: SessionWatch | None = None

    # -- the window

    def credit(self) -> int:
        """How many more messages may be sent now."""
        if self.closed or not self.output.room():
            return 0
        return self.window - self.owed()

    def owed(self) -> int:
        """Messages that the receiver owes an answer for."""
        releasing = self._releasing
        return len(self.inflight) + (len(releasing) if releasing else 0)

    @property
    def newest_seq(self) -> int:
        """The highest seq that this session was told of."""
        return self._top

    def waiting(self) -> int:
        """Messages of an ephemeral session that wait in memory."""
        return len(self._queue) if self._queue else 0

    def oldest(self) -> int:
        """Stays the same as long as the message does that the receiver has owed an answer for longest; 0: none."""
        for packet_id, value in self.inflight.items():
            return (value << 16 | packet_id) + 1
        for packet_id in self._releasing or ():
            return -packet_id
        return 0

    def idle(self) -> bool:
        """Nothing waits behind the window: more may be offered."""
        return not self.behind and not self._queue and self.credit() > self.promised

    # -- messages

    def claim(self) -> int:
        """The packet id of a QoS 1 message that the caller sends an ephemeral session at once, while `output` has room;
        0: `deliver` is to be called."""
        inflight = self.inflight
        packet_id = self._next_packet_id + 1
        if (
            len(inflight) >= self.window
            or self._queue
            or self._releasing
            or self.closed
            or packet_id > SEQ_MODULUS
            or packet_id in inflight
        ):
            return 0
        self._next_packet_id = packet_id
        inflight[packet_id] = 1
        return packet_id

    def deliver_run(self, run: Run) -> bool:
        """Send the messages of a run to an ephemeral session; False if nothing was done: `deliver` is to be called for
        each."""
        count = run.count
        if self._queue or self.credit() < count:
            return False
        first = self._next_packet_id + 1
        last = first + count - 1
        if last > SEQ_MODULUS:
            return False
        taken = dict.fromkeys(range(first, last + 1), run.qos)
        if (
            not taken.keys().isdisjoint(self.inflight)
            or (self._releasing and not taken.keys().isdisjoint(self._releasing))
            or not self.output.send_run(run, first)
        ):
            return False
        self.inflight.update(taken)
        self._next_packet_id = last
        return True

    def stored_run(self, first: int, run: Run) -> bool:
        """Live messages were stored at QoS 1 under the seqs from `first` on: send all if nothing stands in the way.
        False if nothing was done, and `stored` is to be called for each."""
        count = run.count
        packet_id = 1 + first % SEQ_MODULUS
        ids = range(packet_id, packet_id + count)
        inflight = self.inflight
        if (
            self.behind
            or self._ahead is not None
            or first != self._cursor + 1
            or self.watch is not None
            or self.credit() < count
            or first <= self._dup_seq
            or packet_id + count > SEQ_MODULUS
            or not inflight.keys().isdisjoint(ids)
            or (self._releasing and not self._releasing.keys().isdisjoint(ids))
            or not self.output.send_run(run, packet_id)
        ):
            return False
        last = first + count - 1
        inflight.update(zip(ids, range(first << 2 | 1, (last << 2 | 1) + 1, 4), strict=True))
        self.sent_seq = max(self.sent_seq, last)
        self._top = max(self._top, last)
        self._cursor = last
        return True

    def deliver_group_run(self, run: Run, delivery: GroupRun) -> bool:
        """Send messages of a group at QoS 1; False if nothing was done: `deliver_group` is to be called for each."""
        first = self._next_group_id + 1
        if first + run.count - 1 > LAST_PACKET_ID:
            first = SEQ_MODULUS + 1
        taken = dict.fromkeys(range(first, first + run.count), 1)
        if (
            self.watch is not None
            or not taken.keys().isdisjoint(self.inflight)
            or (self._releasing and not taken.keys().isdisjoint(self._releasing))
            or not self.output.send_run(run, first)
        ):
            return False
        delivery.first = first
        self.inflight.update(taken)
        self._next_group_id = first + run.count - 1
        if self._group_entries is None:
            self._group_entries = {}
        self._group_entries.update(dict.fromkeys(taken, delivery))
        return True

    # -- answers of the receiver

    def acked_run(self, data: bytes) -> int:
        """As `acked` for each PUBACK that `data`, a multiple of four bytes, begins with, up to the first that asks for
        more than to be taken note of; returns how many."""
        if data[2] >= _GROUP_IDS:
            return self._acked_groups(data)
        if self._queue or self.behind or self.hungry:
            return 0
        inflight = self.inflight
        count = 0
        for head, packet_id in _PLAIN.iter_unpack(data):
            if head != _PUBACK or packet_id > SEQ_MODULUS:
                break
            value = inflight.get(packet_id, 0)
            if value & 3 != 1:
                break
            del inflight[packet_id]
            if value != 1:
                self.store.acknowledge(value >> 2, self.sent_seq)
            count += 1
        return count

    def _acked_groups(self, data: bytes) -> int:
        """As long as they are of messages of one group that came in runs."""
        entries = self._group_entries
        if entries is None or self._queue or self.behind or self.watch is not None:
            return 0
        inflight = self.inflight
        group: object = None
        done: list[bytes] = []
        for head, packet_id in _PLAIN.iter_unpack(data):
            run = entries.get(packet_id)
            if head != _PUBACK or not isinstance(run, GroupRun):
                break
            if run.group is not group:
                if done:
                    break
                group = run.group
            del entries[packet_id], inflight[packet_id]
            done.append(run.entry_ids[packet_id - run.first])
        if done:
            self.store.group_run_done(group, done)
            if self.hungry:
                self.store.has_room()
        return len(done)

    def received_run(self, data: bytes) -> int:
        """The same for PUBREC of messages that are not stored, except that the caller sends PUBREL for each."""
        inflight = self.inflight
        releasing = self._releasing
        if releasing is None:
            releasing = self._releasing = {}
        count = 0
        for head, packet_id in _PLAIN.iter_unpack(data):
            if head != _PUBREC or inflight.get(packet_id) != 2:
                break
            del inflight[packet_id]
            releasing[packet_id] = 0
            count += 1
        return count

    def completed_run(self, data: bytes) -> int:
        """The same for PUBCOMP."""
        releasing = self._releasing
        if not releasing or self._queue or self.behind or self.hungry:
            return 0
        count = 0
        for head, packet_id in _PLAIN.iter_unpack(data):
            if head != _PUBCOMP or packet_id > SEQ_MODULUS:
                break
            seq = releasing.get(packet_id, -1)
            if seq < 0:
                break
            del releasing[packet_id]
            if seq:
                self.store.acknowledge(seq, self.sent_seq)
            count += 1
        return count
