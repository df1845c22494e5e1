"""The outbound half of a session: what was sent, what waits, and what the receiver still owes an answer.

Without I/O: packets leave through `SessionOutput`, the store is told through `SessionStore`. Three kinds of
messages share the in-flight window (the client's Receive Maximum):

- of an ephemeral session: kept in memory, gone with the connection; packet ids 1..57344 in turn;
- of a persistent session: the queue in the store is the truth, packet id = 1 + (seq mod 57344). Live messages
  are sent as they are told of while the session keeps up (those of other nodes come another way than those of
  this one: out of turn, but each in the order of its publisher); once it is behind, it is fed by pages only;
- of a shared subscription: kept in the group's queue until acknowledged; packet ids 57345..65535.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from broker.errors import ProtocolError
from broker.session.counted import encoding_of
from broker.session.encoding import Encoding
from broker.session.ports import GroupDelivery, GroupRun, StoredDelivery, Waiting
from broker.session.runs import LAST_PACKET_ID, SEQ_MODULUS, Runs

#: Messages sent before older ones, at most: then the queue is looked into.
AHEAD_LIMIT = 1000
_DUP = 8
_QOS_MASK = 3


class Session(Runs):
    """The sending side of one session on one connection."""

    __slots__ = ()

    # -- ephemeral sessions

    def deliver(self, encoding: Encoding, qos: int, retain: bool, subscription_ids: Sequence[int]) -> bool:
        """Send a message at QoS 1 or 2, or let it wait; False if the bound refused it."""
        flags = qos << 1 | retain
        if self._queue or self.credit() <= 0:
            return self._wait(encoding, flags, subscription_ids)
        self._send_ephemeral(encoding, flags, subscription_ids)
        return True

    def _wait(self, encoding: Encoding, flags: int, subscription_ids: Sequence[int]) -> bool:
        message = encoding.message
        queue = self._queue
        if queue is None:
            queue = self._queue = deque()
        size = message.size()
        if len(queue) >= self.max_queue_messages or self._queue_bytes + size > self.max_queue_bytes:
            self.store.dropped(message, "queue_full")
            return False
        if self.watch is not None:
            self.watch.waits(self, message)
        queue.append(Waiting(encoding, flags, subscription_ids))
        self._queue_bytes += size
        return True

    def _send_ephemeral(self, encoding: Encoding, flags: int, subscription_ids: Sequence[int]) -> None:
        packet_id = self._next_packet_id + 1
        inflight = self.inflight
        while packet_id > SEQ_MODULUS or packet_id in inflight or (self._releasing and packet_id in self._releasing):
            packet_id = 1 if packet_id >= SEQ_MODULUS else packet_id + 1
        self._next_packet_id = packet_id
        refusal = self.output.send_message(encoding, flags, packet_id, subscription_ids)
        if refusal:
            self.store.dropped(encoding.message, refusal)
        else:
            inflight[packet_id] = flags >> 1 & _QOS_MASK

    def _send_waiting(self, now_ms: int) -> None:
        queue = self._queue
        while queue and self.credit() > 0:
            item = queue.popleft()
            message = item.message
            self._queue_bytes -= message.size()
            remaining = message.remaining_s(now_ms)
            if remaining == 0:
                self.store.dropped(message, "expired")
                continue
            self._send_ephemeral(encoding_of(message, remaining, item.counts), item.flags, item.subscription_ids)
        if not queue:
            self._queue = None

    # -- persistent sessions

    def resume(self, last_seq: int, lowest_seq: int, sent_seq: int, releasing: Sequence[int]) -> None:
        """After attach: send PUBREL again for `releasing`, then page through the queue.

        Seqs up to `sent_seq` may have been sent before and carry DUP."""
        self._cursor = min(lowest_seq, last_seq + 1) - 1
        self._top = last_seq
        self._dup_seq = sent_seq
        self.sent_seq = sent_seq
        for seq in releasing:  # [MQTT-4.4.0-1]
            packet_id = 1 + seq % SEQ_MODULUS
            if self._releasing is None:
                self._releasing = {}
            self._releasing[packet_id] = seq
            self.output.send_release(packet_id, 0)
        if self._cursor < last_seq:
            self.behind = True
            self._ask_page()

    def stored(self, seq: int, encoding: Encoding, qos: int, retain: bool, subscription_ids: Sequence[int]) -> None:
        """A live message was stored under `seq`: send it, unless the session is behind."""
        if self.watch is not None:
            self.watch.stored(self, encoding.message, seq)
        if seq > self._top:
            self._top = seq
        if self.closed or seq <= self._cursor or (self._ahead is not None and seq in self._ahead):
            return
        if (
            self.behind
            or self.credit() <= 0
            or (self._ahead is not None and len(self._ahead) >= AHEAD_LIMIT)
            or not self._send_stored(seq, encoding, qos, retain, subscription_ids)
        ):
            self.behind = True
            self._ask_page()
        else:
            self._told(seq)

    def _told(self, seq: int) -> None:
        """One more is sent: the cursor moves, or has to wait for those between."""
        ahead = self._ahead
        if seq != self._cursor + 1:
            if ahead is None:
                self._ahead = {seq}
                self.store.missing()
            else:
                ahead.add(seq)
            return
        self._cursor = seq
        if ahead is not None:
            self._catch_up(seq)

    def _catch_up(self, seq: int) -> None:
        """All up to `seq` are sent or gone."""
        ahead = self._ahead
        if ahead is not None:
            if seq > self._cursor + 1:
                ahead = {other for other in ahead if other > seq}
            while seq + 1 in ahead:
                seq += 1
                ahead.remove(seq)
            self._ahead = ahead or None
        self._cursor = seq

    def gap(self) -> int:
        """The seq before the oldest message that was not told of, if younger ones were; else -1."""
        return self._cursor if self._ahead is not None and not self.behind else -1

    def look(self) -> None:
        """The queue may hold a message that this session was not told of."""
        if not self.closed:
            self.behind = True
            self._looks += 1
            self._ask_page()

    def page(self, messages: Sequence[StoredDelivery], complete: bool) -> None:
        """A page of the queue; `complete` says that nothing followed it when it was read."""
        self._paging = False
        if self.closed:
            return
        for item in messages:
            seq = item.seq
            if seq <= self._cursor:
                continue
            if (self._ahead is None or seq not in self._ahead) and (
                self.credit() <= 0
                or not self._send_stored(seq, item.encoding, item.qos, item.retain, item.subscription_ids)
            ):
                return  # the rest is read again when there is room
            self._catch_up(seq)
        if complete and self._cursor < self._asked_top:
            # Seqs without a message were acknowledged out of order or never used. What was stored after the page
            # was read may have been told before it came.
            self._catch_up(self._asked_top)
        if complete and self._asked_looks == self._looks:
            self._looks = 0
        if self._cursor >= self._top and not self._looks:
            self.behind = False
            if self.hungry:
                self.store.has_room()
        else:
            self._ask_page()

    def page_failed(self) -> None:
        """The store did not answer; the page is asked for again when something moves."""
        self._paging = False

    def skip(self, seq: int) -> None:
        """A queued message will not be sent (expired or too large): it leaves the queue."""
        self.store.acknowledge(seq, self.sent_seq)

    def _send_stored(
        self, seq: int, encoding: Encoding, qos: int, retain: bool, subscription_ids: Sequence[int]
    ) -> bool:
        packet_id = 1 + seq % SEQ_MODULUS
        if packet_id in self.inflight or (self._releasing and packet_id in self._releasing):
            return False  # a whole turn of packet ids ahead of an unacknowledged message
        flags = qos << 1 | retain
        if seq <= self._dup_seq:
            flags |= _DUP  # [MQTT-3.3.1-1]
        if seq > self.sent_seq:
            self.sent_seq = seq
        if encoding.remaining_s == 0 and not (qos == 2 and flags & _DUP):  # [MQTT-4.3.3-7]
            self.store.dropped(encoding.message, "expired")
            self.skip(seq)
            return True
        refusal = self.output.send_message(encoding, flags, packet_id, subscription_ids)
        if refusal:
            self.store.dropped(encoding.message, refusal)  # [MQTT-3.1.2-25]
            self.skip(seq)
        else:
            self.inflight[packet_id] = seq << 2 | qos
        return True

    def _ask_page(self) -> None:
        # One page at a time: what is acknowledged while it is under way makes the next one larger.
        if not self._paging and not self.closed:
            credit = self.credit()
            if credit > 0:
                self._paging = True
                self._asked_top = self._top
                self._asked_looks = self._looks
                self.store.want_page(self._cursor, credit)

    # -- shared subscriptions

    def deliver_group(self, encoding: Encoding, qos: int, delivery: GroupDelivery) -> bool:
        """Send a message of a group to this member; False if it cannot be sent, for its size for example."""
        if self.watch is not None:
            self.watch.from_group(self, encoding.message, delivery)
        packet_id = self._next_group_id + 1
        while (
            packet_id > LAST_PACKET_ID
            or packet_id in self.inflight
            or (self._releasing and packet_id in self._releasing)
        ):
            packet_id = SEQ_MODULUS + 1 if packet_id >= LAST_PACKET_ID else packet_id + 1
        self._next_group_id = packet_id
        refusal = self.output.send_message(encoding, qos << 1, packet_id, delivery.subscription_ids)
        if refusal:
            self.store.dropped(encoding.message, refusal)
            return False
        self.inflight[packet_id] = qos
        if self._group_entries is None:
            self._group_entries = {}
        self._group_entries[packet_id] = delivery
        return True

    def take_group_entries(self) -> list[GroupDelivery | GroupRun]:
        """The connection ends: unacknowledged QoS 1 messages of groups, for other members, oldest first, each by
        itself."""
        entries = [
            each.only(packet_id) if isinstance(each, GroupRun) else each
            for packet_id, each in (self._group_entries or {}).items()
        ]
        self._group_entries = None
        return entries

    # -- answers of the receiver

    def acked(self, packet_id: int, now_ms: int) -> bool:
        """PUBACK; False if nothing is in flight under that id."""
        value = self.inflight.get(packet_id)
        if value is None:
            return False
        if value & _QOS_MASK != 1:
            raise ProtocolError(f"PUBACK for packet id {packet_id}, which was sent at QoS 2")
        del self.inflight[packet_id]
        self._settle(packet_id, value)
        self._room(now_ms)
        return True

    def received(self, packet_id: int, reason_code: int, now_ms: int) -> bool:
        """PUBREC; False if nothing is in flight under that id (the caller answers PUBREL 0x92)."""
        value = self.inflight.get(packet_id)
        if value is None:
            if self._releasing is None or packet_id not in self._releasing:
                return False
            if self._releasing[packet_id] >= 0:
                self.output.send_release(packet_id, 0)  # a repeated PUBREC gets its PUBREL again
            return True
        if value & _QOS_MASK != 2:
            raise ProtocolError(f"PUBREC for packet id {packet_id}, which was sent at QoS 1")
        del self.inflight[packet_id]
        if reason_code >= 0x80:  # [MQTT-4.3.3-4]: refused, no PUBREL
            self._settle(packet_id, value)
            self._room(now_ms)
            return True
        if self._releasing is None:
            self._releasing = {}
        seq = value >> 2
        self._releasing[packet_id] = -seq
        if seq:
            self.store.received(packet_id, seq, self.sent_seq)
        else:
            self.output.send_release(packet_id, 0)
        return True

    def release(self, packet_id: int) -> None:
        """The store knows of the PUBREC: PUBREL may leave."""
        if not self.closed and self._releasing is not None and packet_id in self._releasing:
            self._releasing[packet_id] = abs(self._releasing[packet_id])
            self.output.send_release(packet_id, 0)

    def completed(self, packet_id: int, now_ms: int) -> bool:
        """PUBCOMP; False if the id is unknown."""
        if self._releasing is None or packet_id not in self._releasing:
            return False
        seq = abs(self._releasing.pop(packet_id))
        self._settle(packet_id, seq << 2)
        self._room(now_ms)
        return True

    def _settle(self, packet_id: int, value: int) -> None:
        seq = value >> 2
        if seq:
            self.store.acknowledge(seq, self.sent_seq)
        elif self._group_entries is not None:
            delivery = self._group_entries.pop(packet_id, None)
            if isinstance(delivery, GroupRun):
                self.store.group_run_done(delivery.group, (delivery.entry_ids[packet_id - delivery.first],))
            elif delivery is not None:
                self.store.group_done(delivery)

    def _room(self, now_ms: int) -> None:
        if self._queue:
            self._send_waiting(now_ms)
        if self.behind:
            self._ask_page()
        elif self.hungry and not self._queue:
            self.store.has_room()

    def drained(self, now_ms: int) -> None:
        """The output buffer has room again."""
        if not self.closed:
            self._room(now_ms)

    def close(self) -> None:
        """The connection is gone: nothing is sent any more."""
        self.closed = True
        self._queue = None
        self._queue_bytes = 0
