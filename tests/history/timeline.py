"""What the events of a history add up to: publications, sessions, subscriptions, and who got what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import ClassVar

from tests.history import events as ev
from tests.history.events import Event, History, split_delay, split_share, topic_matches


class Publication:
    """One payload on its way from a client to the broker, with all its repetitions."""

    __slots__ = ("ack_at", "ack_code", "client", "connections", "delay_s", "first_at", "payload", "qos", "retain",
                 "sends", "topic")  # fmt: skip

    def __init__(self, event: Event) -> None:
        self.payload = event.payload
        self.client = event.client
        self.delay_s, self.topic = split_delay(event.topic)
        self.qos = event.qos
        self.retain = event.retain
        self.first_at = event.at
        self.sends = 0
        self.connections: list[int] = []
        #: Of the first acknowledgement; inf if none came.
        self.ack_at = inf
        self.ack_code = 0

    @property
    def acked(self) -> bool:
        """The broker promised that it is safe."""
        return self.ack_at < inf and self.ack_code < 0x80


class Subscription:
    """One filter of a session: asked for, in force from `since` (SUBACK), ended between `until` and `gone`."""

    __slots__ = ("asked_at", "gone", "plain", "qos", "share", "since", "topic_filter", "until")

    def __init__(self, topic_filter: str, asked_at: float) -> None:
        self.topic_filter = topic_filter
        self.share, self.plain = split_share(topic_filter)
        self.asked_at = asked_at
        self.since = inf
        self.qos = 0
        #: When UNSUBSCRIBE was sent, and UNSUBACK received.
        self.until = inf
        self.gone = inf


class Delivery:
    """A PUBLISH that a client received; `first` is False for what it knew by its packet id (QoS 2) already."""

    __slots__ = ("event", "first", "late")

    def __init__(self, event: Event, first: bool, late: bool) -> None:
        self.event = event
        self.first = first
        #: It came on a connection that a newer one of the same client had replaced.
        self.late = late


class Session:
    """One session as its client saw it, from the CONNACK that made it until it ended."""

    __slots__ = ("begun_at", "client", "confirmed", "connections", "deliveries", "ended_at", "expiry_s", "known",
                 "subscriptions")  # fmt: skip

    def __init__(self, client: str, begun_at: float, expiry_s: float) -> None:
        self.client = client
        self.begun_at = begun_at
        self.ended_at = inf
        self.expiry_s = expiry_s
        #: Numbers of its connections, in order.
        self.connections: list[int] = []
        self.subscriptions: list[Subscription] = []
        self.deliveries: list[Delivery] = []
        #: Payloads that the client acknowledged while the connection was its newest.
        self.confirmed: set[str] = set()
        #: Packet ids of QoS 2 messages that are not released: payload.
        self.known: dict[int, str] = {}

    @property
    def persistent(self) -> bool:
        """It outlives its connections."""
        return self.expiry_s > 0

    def taken(self) -> Iterator[Event]:
        """Deliveries of live messages (no retained ones) that the client counts: neither late nor known already."""
        return (each.event for each in self.deliveries if each.first and not each.late and not each.event.retain)

    def __repr__(self) -> str:
        return f"{self.client} (session from {self.begun_at:.3f})"


class Connection:
    """One network connection with its CONNECT."""

    __slots__ = ("accepted_at", "asked", "client", "closed_at", "code", "disconnected", "left", "node", "number",
                 "present", "replaced_at")  # fmt: skip

    def __init__(self, asked: Event) -> None:
        self.asked = asked
        self.client = asked.client
        self.number = asked.connection
        self.node = asked.node
        self.accepted_at = inf
        self.code = -1
        self.present = False
        self.closed_at = inf
        #: When a newer connection of the same client was accepted.
        self.replaced_at = inf
        #: Reason code of the server's DISCONNECT; -1 if none came.
        self.disconnected = -1
        #: How the client left it: BYE, ABORT, or "" if it did not.
        self.left = ""


class Timeline:
    """A history, read once."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.end = history.events[-1].at if history.events else 0.0
        self.publications: dict[str, Publication] = {}
        self.sessions: list[Session] = []
        self.connections: dict[int, Connection] = {}
        #: PUBLISH of each connection, in the order in which they were sent.
        self.sent: dict[int, list[Event]] = defaultdict(list)
        #: A packet id that names another message before the one it named was released.
        self.reused_ids: list[tuple[Session, Event, str]] = []
        self._current: dict[str, Session] = {}
        self._newest: dict[str, Connection] = {}
        self._session_of: dict[int, Session] = {}
        self._matching: dict[str, list[tuple[Session, Subscription]]] = {}
        for event in history.events:
            handler = self._HANDLERS.get(event.kind)
            if handler is not None:
                handler(self, event)

    # -- connections and sessions

    def _connect(self, event: Event) -> None:
        self.connections[event.connection] = Connection(event)

    def _connack(self, event: Event) -> None:
        connection = self.connections[event.connection]
        connection.code = event.code
        if event.code:
            return
        connection.accepted_at = event.at
        connection.present = bool(event.value)
        older = self._newest.get(event.client)
        if older is not None:
            older.replaced_at = event.at
        self._newest[event.client] = connection
        session = self._current.get(event.client)
        if session is not None and not event.value:
            session.ended_at = min(session.ended_at, connection.asked.at)
            session = None
        if session is None:
            session = self._current[event.client] = Session(event.client, event.at, connection.asked.value)
            self.sessions.append(session)
        session.expiry_s = connection.asked.value
        session.connections.append(event.connection)
        self._session_of[event.connection] = session

    def _left(self, event: Event) -> None:
        self.connections[event.connection].left = event.kind

    def _disconnect(self, event: Event) -> None:
        self.connections[event.connection].disconnected = event.code

    def _closed(self, event: Event) -> None:
        connection = self.connections.get(event.connection)
        if connection is None or connection.closed_at < inf:
            return
        connection.closed_at = event.at
        session = self._session_of.get(event.connection)
        if session is not None and not session.persistent and session.connections[-1] == event.connection:
            session.ended_at = min(session.ended_at, event.at)
            if self._current.get(event.client) is session:
                del self._current[event.client]

    # -- messages

    def _publish(self, event: Event) -> None:
        publication = self.publications.get(event.payload)
        if publication is None:
            publication = self.publications[event.payload] = Publication(event)
        publication.sends += 1
        publication.connections.append(event.connection)
        self.sent[event.connection].append(event)

    def _ack(self, event: Event) -> None:
        publication = self.publications[event.payload]
        if event.at < publication.ack_at and (publication.ack_at == inf or publication.ack_code >= 0x80):
            publication.ack_at = event.at
            publication.ack_code = event.code

    def _deliver(self, event: Event) -> None:
        session = self._session_of.get(event.connection)
        if session is None:
            return
        late = self.connections[event.connection].replaced_at < event.at
        first = True
        if event.qos == 2 and not late:
            before = session.known.get(event.packet_id)
            first = before is None
            if before is not None and before != event.payload:
                self.reused_ids.append((session, event, before))
            session.known[event.packet_id] = event.payload
        session.deliveries.append(Delivery(event, first, late))

    def _confirm(self, event: Event) -> None:
        session = self._session_of.get(event.connection)
        if session is not None and self.connections[event.connection].replaced_at >= event.at:
            session.confirmed.add(event.payload)

    def _release(self, event: Event) -> None:
        session = self._session_of.get(event.connection)
        if session is not None and self.connections[event.connection].replaced_at >= event.at:
            session.known.pop(event.packet_id, None)

    # -- subscriptions

    def _subscribe(self, event: Event) -> None:
        session = self._session_of[event.connection]
        if self._open(session, event.topic) is None:
            session.subscriptions.append(Subscription(event.topic, event.at))

    def _suback(self, event: Event) -> None:
        subscription = self._open(self._session_of[event.connection], event.topic)
        if subscription is None:
            return
        if event.code >= 0x80:
            self._session_of[event.connection].subscriptions.remove(subscription)
            return
        subscription.since = min(subscription.since, event.at)
        subscription.qos = event.code

    def _unsubscribe(self, event: Event) -> None:
        subscription = self._open(self._session_of[event.connection], event.topic)
        if subscription is not None:
            subscription.until = min(subscription.until, event.at)

    def _unsuback(self, event: Event) -> None:
        subscription = self._open(self._session_of[event.connection], event.topic)
        if subscription is not None and subscription.until < inf:
            subscription.gone = event.at

    @staticmethod
    def _open(session: Session, topic_filter: str) -> Subscription | None:
        for subscription in reversed(session.subscriptions):
            if subscription.topic_filter == topic_filter:
                return subscription if subscription.gone == inf else None
        return None

    _HANDLERS: ClassVar[Mapping[str, Callable[[Timeline, Event], None]]] = {
        ev.CONNECT: _connect,
        ev.CONNACK: _connack,
        ev.BYE: _left,
        ev.ABORT: _left,
        ev.DISCONNECT: _disconnect,
        ev.CLOSED: _closed,
        ev.PUBLISH: _publish,
        ev.ACK: _ack,
        ev.DELIVER: _deliver,
        ev.CONFIRM: _confirm,
        ev.RELEASE: _release,
        ev.SUBSCRIBE: _subscribe,
        ev.SUBACK: _suback,
        ev.UNSUBSCRIBE: _unsubscribe,
        ev.UNSUBACK: _unsuback,
    }

    # -- questions

    def matching(self, topic: str) -> list[tuple[Session, Subscription]]:
        """Sessions with their subscriptions that ever matched a topic, shared ones included."""
        found = self._matching.get(topic)
        if found is None:
            found = self._matching[topic] = [
                (session, subscription)
                for session in self.sessions
                for subscription in session.subscriptions
                if topic_matches(subscription.plain, topic)
            ]
        return found

    def connections_of(self, client: str) -> list[Connection]:
        """The accepted connections of a client, in order of acceptance."""
        mine = [each for each in self.connections.values() if each.client == client and each.accepted_at < inf]
        return sorted(mine, key=lambda each: each.accepted_at)

    def clients(self) -> list[str]:
        """All that ever were accepted."""
        return sorted(self._newest)
