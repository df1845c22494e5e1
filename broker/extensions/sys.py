"""`$SYS/broker/...` and `$SYS/brokers/...`: what a node says of itself by MQTT, to whoever subscribes to it there.

These are no messages of the store: a subscriber gets them from the node it is connected to, at QoS 0: as retained for
each SUBSCRIBE with a matching filter, and then all of them every `sys_interval`. Nothing is made while nobody of this
node subscribes below `$SYS/`.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import trio

from broker.codec.packets import PUBLISH
from broker.extensions import sys_emqx, sys_mosquitto
from broker.extensions.system_filters import PREFIX
from broker.message import Message
from broker.session.encoding import Encoding
from broker.topics.names import matches

if TYPE_CHECKING:
    from broker.server import Server

#: Values that many ask for one after the other are made once.
_FRESH_S: Final = 1.0

#: Of what the most that there was is told.
_MOST: Final = ("clients", "connections", "subscribers", "subscriptions", "shared", "routes", "retained")


class Counts:
    """The numbers of a node at one time, from its start, without what the node has for itself. `most` is what some of
    them were at most, by name. What is found only by looking at all sessions is 0 without `whole`."""

    def __init__(self, server: Server, retained: tuple[int, int], most: dict[str, int], whole: bool) -> None:
        metrics, dispatch, inside = server.metrics, server.dispatch, server.inside
        own = inside.subscription_count()
        self.now_ms = server.now_ms
        self.uptime_s = time.monotonic() - server.started_s
        self.clients = len(server.clients)
        self.connections = len(server.connections)
        #: Sessions with subscriptions that nobody is connected to this node with.
        self.subscribers = len(dispatch.subscribers) - inside.subscriber_count()
        self.absent = max(0, self.subscribers - self.clients)
        self.expired = server.sessions_expired
        self.subscriptions = dispatch.subscription_count() - own if whole else 0
        self.shared = sum(len(group.members) for group in dispatch.groups.values()) if whole else 0
        self.routes = dispatch.route_count() - own
        self.retained, self.retained_bytes = retained
        self.received_by_kind = list(metrics.packets_received)
        self.sent_by_kind = list(metrics.packets_sent)
        self.received_by_qos = list(metrics.messages_received)
        self.sent_by_qos = list(metrics.messages_sent)
        self.sent_by_qos[0] += sum(connection.sent_qos0 for connection in server.connections)
        self.messages_received = sum(self.received_by_qos)
        self.messages_sent = sum(self.sent_by_qos)
        self.sent_by_kind[PUBLISH] += self.messages_sent
        self.packets_received = sum(self.received_by_kind)
        self.packets_sent = sum(self.sent_by_kind)
        self.bytes_received = metrics.bytes_received + server.reactor.received_bytes
        self.bytes_sent = metrics.bytes_sent + server.reactor.sent_bytes
        self.dropped = sum(metrics.dropped.values())
        self.connects = metrics.connects["success"]
        self.disconnects = sum(metrics.disconnects.values())
        self.resumed = metrics.sessions_resumed
        self.sockets = self.disconnects + self.connections + sum(metrics.rejected.values())
        self.most = most
        for name in _MOST:
            most[name] = max(most[name], getattr(self, name))


class SystemTopics:
    """Those of one node; `node_name` "" has none. `interval_s` 0: only the durability is told."""

    def __init__(self, server: Server, node_name: str, interval_s: float = 10.0) -> None:
        self.interval_s = interval_s
        #: Messages that are retained, and their bytes, as far as that is known.
        self.retained: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._server = server
        self._node_name = node_name
        self._own = f"{PREFIX}brokers/{node_name}/"
        self._most: dict[str, int] = defaultdict(int)
        self._loads = sys_mosquitto.Loads()
        self._ticked_s = 0.0
        self._values: dict[str, str] = {}
        self._made_s = 0.0

    def matching(self, topic_filter: str) -> Iterator[Message]:
        """The messages that match."""
        if not self._node_name or not topic_filter.startswith(PREFIX):  # [MQTT-4.7.2-1]
            return
        for topic, value in self._all().items():
            if matches(topic_filter, topic):
                yield Message(topic.encode(), value.encode(), 0, True)

    def _all(self) -> dict[str, str]:
        now = trio.current_time()
        if not self._values or now - self._made_s >= _FRESH_S:
            self._values, self._made_s = self._make(), now
        return self._values

    def _make(self) -> dict[str, str]:
        health = self._server.cluster.health()
        made = {f"{self._own}durability": health.durability}
        if not self.interval_s:
            return made
        counts = self._counts(whole=True)
        names = sorted({member.rpartition(":")[0] for member in health.members} | {self._node_name})
        made[f"{PREFIX}brokers"] = ",".join(names)
        made.update((self._own + name, value) for name, value in sys_emqx.values(counts))
        made.update((f"{PREFIX}broker/{name}", value) for name, value in sys_mosquitto.values(counts, self._loads))
        return made

    def _counts(self, whole: bool) -> Counts:
        return Counts(self._server, self.retained(), self._most, whole)

    # -- in time

    async def serve(self) -> None:
        """Tell every `interval_s`, until cancelled."""
        while True:
            await trio.sleep(self.interval_s or 1.0)
            if self.interval_s and self._node_name:
                self.tick()

    def tick(self) -> None:
        """An interval has passed: tell those who are here."""
        server = self._server
        now = trio.current_time()
        self._loads.tick(self._counts(whole=False), now - self._ticked_s)
        self._ticked_s = now
        if not len(server.dispatch.system):
            return
        self._values.clear()
        for topic, value in self._all().items():
            self._tell(topic, value, True)
        server.reactor.wake()

    def node_gone(self, node_name: str) -> None:
        """Another node has left or died, and with it all its connections: those who are here are told of that."""
        if self._node_name and len(self._server.dispatch.system):
            told = {"node": node_name, "at": self._server.now_ms}
            self._tell(f"{PREFIX}brokers/{node_name}/gone", json.dumps(told, separators=(",", ":")), False)

    def _tell(self, topic: str, value: str, retained: bool) -> None:
        name = topic.encode()
        encoding: Encoding | None = None
        for entry in self._server.dispatch.route(name).entries:
            receiver = entry.subscriber.connection
            if receiver is None:
                continue
            if encoding is None:
                encoding = Encoding(Message(name, value.encode(), 0, retained))
            receiver.send_qos0(encoding, retained and entry.retain_as_published, entry.subscription_ids)
