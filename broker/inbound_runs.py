"""What a client publishes in runs of packets (`broker.codec.runs`): each run is published, and acknowledged, as one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from struct import Struct
from typing import TYPE_CHECKING, Final

from broker.codec.packets import PUBACK, PUBLISH, PUBREC, V5
from broker.codec.runs import packet_ids, plain_ids
from broker.relay import relay
from broker.routes import TO_CLIENTS, TO_NODES, TO_QUEUES, Route
from broker.session.run import Run
from broker.slots import RECEIVED, RESUMED, Exactly, PublishSlot, RunSlot
from broker.stored_run import store_run

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.services import Services

#: Packets of QoS 1 and 2 that are handled as one: what turns out to be no run is looked at again for each packet.
RUN_MAX: Final = 64

#: An acknowledgement without a reason code: its first two bytes, and the packet id.
_PLAIN: Final = Struct(">HH")
_PUBREL: Final = 0x6202
#: PUBACK without a reason code, up to its packet id; and what is none.
_PUBACK: Final = b"\x40\x02"
_NO_ID: Final = b"\0\0"

#: One that `Inbound.publish_run` took: only its id matters.
_TAKEN = Exactly(b"", RECEIVED)
_TAKEN.counted = True


class InboundRuns:
    """The state of the receiving half, and what is done with it in one go."""

    __slots__ = (
        "_acks",
        "_aliases",
        "_connection",
        "_ids",
        "_open",
        "_server",
        "_unanswered_max",
        "_v5",
        "held",
    )

    def __init__(self, connection: Connection, server: Services, resumed: Mapping[int, bytes]) -> None:
        self._connection = connection
        self._server = server
        self._v5 = connection.version == V5
        self._aliases: dict[int, bytes] | None = None
        self._acks: deque[PublishSlot] | None = None
        self._ids: dict[int, Exactly] | None = None
        if resumed:
            self._ids = {packet_id: Exactly(message_id, RESUMED) for packet_id, message_id in resumed.items()}
        self._unanswered_max = server.quotas.receive_maximum
        #: PUBLISH packets of this connection without their PUBACK, PUBCOMP or refusing PUBREC.
        self._open = 0
        #: True while a version 3 publisher is not read from, because too much waits for the store.
        self.held = False

    def run_room(self, route: Route, qos: int) -> int:
        """How many packets `publish_run` may take at once; 0: none."""
        server = self._server
        way = route.run_way
        if way == TO_CLIENTS:
            if not server.cluster.alone() or (qos == 2 and (self._acks or self._connection.persistent())):
                return 0
        elif way == TO_NODES and not server.cluster.relays():
            return 0
        if qos > server.quotas.maximum_qos:
            return 0
        return min(RUN_MAX, self._unanswered_max - self._open)

    def publish_alone(self, route: Route, before: bytes, after: bytes, family: int) -> int:
        """A QoS 1 packet that is not of a run, for clients here; `after` follows `before`, from its packet id on.
        Returns 1, or 0 if it goes another way."""
        server = self._server
        packet_id = after[:2]
        if (
            route.run_way != TO_CLIENTS
            or self._acks
            or packet_id == _NO_ID
            or not server.quotas.maximum_qos
            or not server.cluster.alone()
        ):
            return 0
        connection = self._connection
        subscriber = connection.subscriber
        publisher = subscriber.session_id if subscriber is not None else b""
        server.dispatch.packet_published(route, before, after[2:], family, publisher)
        connection.stream.write(_PUBACK + packet_id)
        metrics = server.metrics
        metrics.packets_sent[PUBACK] += 1
        metrics.packets_received[PUBLISH] += 1
        metrics.messages_received[1] += 1
        return 1

    def publish_run(self, route: Route, data: bytes, count: int, family: int, ids_at: int) -> int:
        """Packets that look like a run, of a QoS that the route has a way for (`Route.run_way`), which nobody has to
        look at; `ids_at` is where the packet id is in each. How many of them are published; those after them, or all,
        are handled one by one."""
        way = route.run_way
        if count == 1 and way == TO_QUEUES:
            return 0
        ids = plain_ids(data, count, ids_at, self._v5)
        if len(ids) != 2 * count:
            size = len(data) // count
            count = len(ids) // 2
            if not count:
                return 0
            data = data[: count * size]
        server = self._server
        connection = self._connection
        subscriber = connection.subscriber
        publisher = subscriber.session_id if subscriber is not None else b""
        run = Run(family, data, count, 0 if way == TO_CLIENTS else server.cluster.now_ms(), publisher)
        qos = run.qos
        if qos == 2 and not self._take(ids):
            return 0
        if way == TO_CLIENTS:
            server.dispatch.run_published(route, run)
            if self._acks:
                slot = RunSlot(self, ids)
                slot.done = True
                self._append(slot)
            else:
                connection.send_acks(PUBACK if qos == 1 else PUBREC, ids, 0)
        else:
            slot = RunSlot(self, ids)
            if way == TO_NODES:
                relay(server.dispatch, route, run, slot)
            else:
                store_run(server.dispatch, route, run, slot)
            self._append(slot)
        server.metrics.packets_received[PUBLISH] += count
        server.metrics.messages_received[qos] += count
        return count

    def _take(self, ids: bytes) -> bool:
        """Messages of QoS 2 that are published and acknowledged at once, by a client without a persistent session;
        False, and nothing is done, if one of them came before."""
        known = self._ids
        if known is None:
            known = self._ids = {}
        taken = dict.fromkeys(packet_ids(ids), _TAKEN)
        if 2 * len(taken) != len(ids) or not taken.keys().isdisjoint(known):
            return False
        known.update(taken)
        self._open += len(taken)
        return True

    def _append(self, slot: PublishSlot) -> None:
        if self._acks is None:
            self._acks = deque()
        self._acks.append(slot)
        self._open += slot.count

    def released_run(self, data: bytes) -> int:
        """As `released` for each PUBREL that `data`, a multiple of four bytes, begins with, up to the first that has
        more to it; returns how many. The caller sends PUBCOMP for each."""
        ids = self._ids
        if ids is None:
            return 0
        count = 0
        for head, packet_id in _PLAIN.iter_unpack(data):
            if head != _PUBREL or ids.get(packet_id) is not _TAKEN:
                break
            del ids[packet_id]
            count += 1
        self._open -= count
        return count

    def settled(self, slot: PublishSlot, error: Exception | None) -> None:
        """The message of this slot is safe, or it could not be stored."""
        raise NotImplementedError

    def patient(self, again: bool) -> bool:
        """See `PublishSlot`."""
        raise NotImplementedError
