"""`$SYS/brokers/<node>/clients/<client id>/connected` and `.../disconnected`: clients that come and go, as they do.

Messages of QoS 1 from this node, for subscribers on all nodes, made only while there is one. `epoch` grows with every
connection of a client id, whichever node it is to. What is told of a client is in order: the end of a connection is
stored before the session is given back to the store, so before another node can have it; and a node that gets the
session tells of that only once what others told before has come here.
"""

from __future__ import annotations

import json
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.codec.packets import V5, V31
from broker.dispatch import Delivery, EntryTarget
from broker.log import get_logger
from broker.message import Message
from broker.routes import AckSlot
from cluster.api import NodeTarget, Publication, Target

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.server import Server
    from broker.session.negotiation import Agreement

#: Where a node hears from itself by way of the store.
MARK: Final = "$rookery/presence"

#: A session is given back after so long, stored or not: another node that wants it takes it by force after a second.
STORED_S: Final = 0.5

#: How long word of a client waits for what other nodes told before.
CAUGHT_UP_S: Final = 2.0

#: More than this does not wait.
WAITING_MAX: Final = 100_000

#: Bytes of a client id that go into a topic, before they are escaped.
_ID_BYTES: Final = 4096

_PROTOCOLS: Final = {"tcp": "mqtt", "tls": "mqtts", "ws": "ws", "wss": "wss", "unix": "unix"}
_VERSIONS: Final = {V31: 3, V5: 5}

_log = get_logger("presence")


def escaped(client_id: str) -> str:
    """A client id as one level of a topic: what has a meaning there, and `%`, is percent-encoded. Of a very long one
    it is the beginning."""
    cut = client_id.encode()[:_ID_BYTES].decode("utf-8", "ignore")
    for character in "%/+#":
        cut = cut.replace(character, f"%{ord(character):02X}")
    return cut


class _InTurn(Delivery):
    """Sessions here read it from their queues, behind what other nodes stored there before."""

    __slots__ = ()

    def reached(self, target: Target) -> None:
        assert isinstance(target, EntryTarget)
        if target.seq > 0 and target.entry.subscriber.session is not None:
            target.seq = 0  # as one that was stored before: the session looks
        super().reached(target)


class _Event(AckSlot):
    """One message; `stored` is set when it is, or will never be."""

    __slots__ = ("connected", "failed", "payload", "stored", "topic")

    def __init__(self, topic: bytes, payload: bytes, connected: bool) -> None:
        self.topic = topic
        self.payload = payload
        self.connected = connected
        self.failed = False
        self.stored = trio.Event()

    def settle(self, error: Exception | None) -> None:
        self.failed = error is not None
        self.stored.set()


class Presence:
    """Of one node; `node_name` "" tells nothing."""

    def __init__(self, server: Server, node_name: str) -> None:
        self._server = server
        self._name = node_name
        self._prefix = f"$SYS/brokers/{node_name}/clients/"
        self._waiting: deque[_Event] = deque()
        self._working = False
        self._mark = b""
        self._marked = trio.Event()
        #: Of connections that have ended and are not given back yet.
        self._endings: dict[Connection, _Event] = {}
        self._listening = False

    def wanted(self) -> bool:
        """Whether anybody wants to know."""
        return self._server.dispatch.system.clients > 0 and bool(self._name) and not self._server.abandoned

    def connected(self, connection: Connection, agreement: Agreement, session_present: bool) -> None:
        """CONNACK was sent."""
        if not self.wanted():
            return
        told = self._common(connection)
        told |= {
            "connected_at": connection.connected_at_ms,
            "keepalive": agreement.keep_alive_s,
            "clean_start": agreement.clean_start,
            "session_present": session_present,
            "expiry_interval": agreement.expiry_s,
        }
        self._tell(_Event(*self._encoded(connection.client_id, "connected", told), True))

    def disconnected(self, connection: Connection) -> None:
        """The connection has ended; `gone` waits until that is stored."""
        if not connection.connected_at_ms or not self.wanted():
            return
        told = self._common(connection)
        told |= {
            "connected_at": connection.connected_at_ms,
            "disconnected_at": self._server.now_ms,
            "reason": connection.close_reason,
        }
        if connection.close_code is not None:
            told["reason_code"] = connection.close_code
        event = self._endings[connection] = _Event(*self._encoded(connection.client_id, "disconnected", told), False)
        self._tell(event)

    async def gone(self, connection: Connection) -> None:
        """Returns when what was told of its end is stored, or that takes too long."""
        event = self._endings.pop(connection, None)
        if event is not None and not event.stored.is_set():
            with trio.move_on_after(STORED_S):
                await event.stored.wait()

    def _common(self, connection: Connection) -> dict[str, Any]:
        peer = connection.stream.peer
        principal = connection.principal
        return {
            "clientid": connection.client_id,
            "username": principal.username if principal is not None else None,
            "ipaddress": peer.host,
            "port": peer.port,
            "protocol": _PROTOCOLS.get(connection.listener.scheme, connection.listener.scheme),
            "proto_ver": _VERSIONS.get(connection.version, 4),
            "node": self._name,
            "listener": connection.listener.name,
            "epoch": connection.epoch,
        }

    def _encoded(self, client_id: str, what: str, told: dict[str, Any]) -> tuple[bytes, bytes]:
        topic = f"{self._prefix}{escaped(client_id)}/{what}"
        return topic.encode(), json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()

    # -- in order

    def _tell(self, event: _Event) -> None:
        if not self._working and (not event.connected or self._server.cluster.alone()):
            self._publish(event)
            return
        if len(self._waiting) >= WAITING_MAX:
            self._lost(event)
            return
        self._waiting.append(event)
        if not self._working:
            self._working = True
            self._server.start(self._work)

    async def _work(self) -> None:
        """What waits goes out once all has come here that other nodes told before."""
        try:
            while self._waiting:
                count = len(self._waiting)
                await self._catch_up()
                for _ in range(count):
                    self._publish(self._waiting.popleft())
                self._server.reactor.wake()
        finally:
            self._working = False

    async def _catch_up(self) -> None:
        """Returns when what is in this node's stream now has been read: a message of its own comes behind it."""
        cluster = self._server.cluster
        own = [member for member in cluster.health().members if member.rpartition(":")[0] == self._name]
        if not own or cluster.alone():
            await trio.lowlevel.checkpoint()
            return
        if not self._listening:
            self._listening = True
            self._server.inside.listen(MARK, self._heard)
        self._mark, self._marked = os.urandom(8), trio.Event()
        cluster.publish(Publication(Message(MARK.encode(), self._mark, 0, False), nodes=[NodeTarget(own[0].encode())]))
        self._server.reactor.wake()
        with trio.move_on_after(CAUGHT_UP_S) as scope:
            await self._marked.wait()
        if scope.cancelled_caught:
            _log.warning("presence.not_caught_up", waited_s=CAUGHT_UP_S)

    def _heard(self, message: Message) -> None:
        if message.payload == self._mark:
            self._marked.set()

    def _publish(self, event: _Event) -> None:
        server = self._server
        if server.abandoned:
            event.settle(None)
            return
        dispatch = server.dispatch
        message = Message(event.topic, event.payload, 1, False, accepted_at_ms=server.now_ms)
        delivery = Delivery if server.cluster.alone() else _InTurn
        if dispatch.publish(message, dispatch.route(event.topic), event, delivery=delivery):
            event.settle(None)

    def _lost(self, event: _Event) -> None:
        event.settle(None)
        self._server.metrics.dropped["presence"] += 1
