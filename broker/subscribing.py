"""SUBSCRIBE and UNSUBSCRIBE: checks, the store, the routes, and the retained messages that follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING

import trio

from broker.admin.inside import PRIVATE, is_private
from broker.auth.api import BackendError
from broker.codec.packets import V5, Suback, Subscribe, SubscriptionRequest, Unsuback, Unsubscribe
from broker.errors import PeerError, SessionLost, StoreFull, StoreUnavailable
from broker.extensions.system_filters import PREFIX, is_system
from broker.gate import Concealing
from broker.message import Message
from broker.metrics import Metrics
from broker.mount import Mount
from broker.routes import Subscriber, Subscription
from broker.session.encoding import Encoding
from broker.session.machine import CLOSED
from broker.session.session import Session
from broker.topics.names import check_topic_filter, has_wildcard, is_shared, split_shared
from cluster.api import (
    PAGE_LIMIT,
    REFUSED_FULL,
    Publication,
    QueuedMessage,
    StoredSubscription,
    Target,
    shared_group_id,
)

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.server import Server

_NOTHING = ""

#: Pause before a subscription is offered again to a store that was away.
STORE_RETRY_S = 0.25

#: About so many bytes of retained messages are read at a time; at first they are taken for large.
PAGE_BYTES = 512 * 1024
FIRST_AVERAGE_BYTES = 64 * 1024

#: QoS 0 retained messages sent before the others get a turn.
BURST = 100


class RetainedDelivery(Publication):
    """A retained message on its way into the queue of a persistent session; `newer` has the topics of those that were
    overtaken on the way."""

    __slots__ = ("_encoding", "_metrics", "_newer", "_subscriber", "answered", "told")

    def __init__(
        self,
        message: Message,
        encoding: Encoding,
        target: Target,
        subscriber: Subscriber,
        metrics: Metrics,
        newer: Set[bytes],
    ) -> None:
        super().__init__(message, [target])
        self._newer = newer
        self._encoding = encoding
        self._subscriber = subscriber
        self._metrics = metrics
        self.answered = False
        #: Set then, if somebody waits.
        self.told: trio.Event | None = None

    def reached(self, target: Target) -> None:
        """Send it like any live message."""
        subscriber = self._subscriber
        session = subscriber.session
        if target.seq == 0:
            pass  # something newer of the topic is in the queue
        elif target.seq < 0:
            self._metrics.dropped["queue_full" if target.seq == REFUSED_FULL else "not_stored"] += 1
        elif session is None:
            subscriber.stored_seq = max(subscriber.stored_seq, target.seq)
        elif self.message.topic in self._newer:
            session.skip(target.seq)  # what was queued behind it came first
        else:
            session.stored(target.seq, self._encoding, target.qos, target.retain, target.subscription_ids)

    def stored(self) -> None:
        """Whoever waits goes on."""
        if self.error is not None:
            self._metrics.dropped["not_stored"] += 1
        self.answered = True
        if self.told is not None:
            self.told.set()


class Subscribing:
    """Subscription changes of all connections of a node."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def change(self, connection: Connection, packet: Subscribe | Unsubscribe) -> None:
        """Carry out and answer. Raises PeerError, SessionLost or StoreUnavailable; nothing is answered then."""
        if isinstance(packet, Subscribe):
            await self._subscribe(connection, packet)
        else:
            await self._unsubscribe(connection, packet)

    async def on_behalf(self, connection: Connection, packet: Subscribe | Unsubscribe) -> Sequence[int]:
        """Carry out what the client did not ask for: a packet with the id 0, which is not answered. Returns the reason
        codes of the answer, none if the connection was closed meanwhile. `connection.begin_work` comes before."""
        assert not packet.packet_id
        if isinstance(packet, Subscribe):
            return await self._subscribe(connection, packet)
        return await self._unsubscribe(connection, packet)

    async def _subscribe(self, connection: Connection, packet: Subscribe) -> Sequence[int]:
        server = self._server
        dispatch = server.dispatch
        subscriber = connection.subscriber
        ref = connection.ref
        assert subscriber is not None and ref is not None
        identifier = 0
        if packet.properties is not None and packet.properties.subscription_identifiers:
            identifier = packet.properties.subscription_identifiers[0]
            if not server.quotas.subscription_ids_available:
                raise PeerError(0xA1, "subscription identifiers are not supported")
        codes: list[int] = []
        accepted: list[StoredSubscription] = []
        rechecks, version = connection.rechecks, server.rechecking.version
        count = len(subscriber.subscriptions)
        for request in packet.subscriptions:
            code = self.check(request)
            if code < 0x80:
                # From here on the real filter.
                topic_filter = request.topic_filter
                if connection.mount is not None:
                    topic_filter = connection.mount.filter(topic_filter)
                is_new = topic_filter not in subscriber.subscriptions
                code = await self._admit(connection, topic_filter, code, count if is_new else 0)
                if server.tracer is not None:
                    server.tracer.subscribed(connection, topic_filter, code)
                if code < 0x80:
                    accepted.append(StoredSubscription(topic_filter, _options(connection, request, code), identifier))
                    count += is_new
            codes.append(code)
        if connection.machine.state == CLOSED:
            return ()
        # In force here first, then everywhere. Messages may come before SUBACK: MQTT allows it.
        before = {each.topic_filter: subscriber.subscriptions.get(each.topic_filter) for each in accepted}
        for stored in accepted:
            connection.watch(stored.topic_filter)
            dispatch.add(subscriber, stored)
        if (connection.rechecks, server.rechecking.version) != (rechecks, version):
            server.rechecking.one(connection)  # by rules that may not be those of now
        persistent = subscriber.persistent
        try:
            if accepted:
                await self._until_known(connection, lambda: server.cluster.subscribe(ref, accepted, persistent))
                for stored in accepted:
                    await self._members_known(connection, subscriber, stored.topic_filter)
        except StoreUnavailable:
            # Closed meanwhile. Nobody was told, but the store may have them, and the session goes on without its
            # connection: what it finds when it comes back decides.
            return ()
        except (StoreFull, SessionLost) as error:
            self._take_back(connection, subscriber, before)
            if isinstance(error, SessionLost):
                raise
            # The session may have them while the route table has not: in force nowhere is what SUBACK says.
            new = [name for name, known in before.items() if known is None]
            if new:
                await self._until_known(connection, lambda: server.cluster.unsubscribe(ref, new, persistent))
            codes = [code if code >= 0x80 else 0x97 for code in codes]
            _answer(connection, Suback(packet.packet_id, codes))
            return codes
        if connection.machine.state == CLOSED:
            return ()
        new_names = {name for name, known in before.items() if known is None}
        await self._subscribed(connection, subscriber, packet.packet_id, codes, accepted, new_names)
        return codes

    async def _until_known(self, connection: Connection, call: Callable[[], Awaitable[None]]) -> None:
        """Ask again while the store is away: nothing was answered, and trying again does no harm.

        `store_grace` ends it. Raises StoreUnavailable once the connection is closed; else what `call` raises."""
        while True:
            try:
                await call()
                return
            except StoreUnavailable:
                if connection.machine.state == CLOSED:
                    raise
                await trio.sleep(STORE_RETRY_S)

    async def _members_known(self, connection: Connection, subscriber: Subscriber, topic_filter: str) -> None:
        """A shared subscription: the cluster knows of the member here."""
        group = self._server.dispatch.groups.get(shared_group_id(topic_filter)) if is_shared(topic_filter) else None
        if group is not None and subscriber.session_id in group.members:
            await self._until_known(connection, group.announcing.done)

    def _take_back(
        self, connection: Connection, subscriber: Subscriber, before: Mapping[str, Subscription | None]
    ) -> None:
        """The subscriptions are as they were, unless the session has ended."""
        for topic_filter, known in before.items():
            if topic_filter not in subscriber.subscriptions:
                continue
            if known is None:
                self._server.dispatch.remove(subscriber, topic_filter)
                if connection.gate is not None:
                    connection.gate.forget(topic_filter)
            else:
                self._server.dispatch.add(subscriber, StoredSubscription(topic_filter, known.options, known.identifier))

    async def _subscribed(
        self,
        connection: Connection,
        subscriber: Subscriber,
        packet_id: int,
        codes: Sequence[int],
        accepted: Sequence[StoredSubscription],
        new: Set[str],
    ) -> None:
        """All nodes know them: answer, and send what is retained."""
        feeds: list[tuple[str, int, int]] = []
        for stored in accepted:
            handling = stored.options >> 4 & 3
            if not is_shared(stored.topic_filter) and (handling == 0 or (handling == 1 and stored.topic_filter in new)):
                feeds.append((stored.topic_filter, stored.options & 3, stored.subscription_identifier))
        _answer(connection, Suback(packet_id, codes))  # [MQTT-3.8.4-1]
        self._server.log.debug("client.subscribed", client_id=connection.client_id, filters=len(accepted))
        for stored in accepted:
            if is_shared(stored.topic_filter):
                self._server.dispatch.groups[shared_group_id(stored.topic_filter)].subscribed(subscriber)
        for name, _, identifier in feeds:
            for message in self._server.system_topics.matching(name):
                connection.send_qos0(Encoding(message), True, (identifier,) if identifier else ())
        if feeds:
            await self._start_feed(connection, subscriber, feeds)

    def check(self, request: SubscriptionRequest) -> int:
        """The SUBACK reason code of one filter as the client sent it."""
        quotas = self._server.quotas
        topic_filter = request.topic_filter
        try:
            check_topic_filter(topic_filter)
        except PeerError as error:
            return error.reason_code
        share_name, plain = split_shared(topic_filter)
        if share_name and not quotas.shared_available:
            return 0x9E
        if not quotas.wildcard_available and has_wildcard(plain):
            return 0xA2
        return min(request.qos, quotas.maximum_qos)

    def refusal(self, topic_filter: str, count: int) -> int:
        """Why nobody who has `count` subscriptions may have this real filter too: a SUBACK reason code, or 0."""
        quotas = self._server.quotas
        plain = split_shared(topic_filter)[1]
        if is_private(plain):
            return 0x87
        if plain.count("/") >= quotas.max_topic_levels or len(topic_filter.encode()) > quotas.max_topic_bytes:
            return 0x8F
        return 0x97 if count >= quotas.max_subscriptions else 0

    async def _admit(self, connection: Connection, topic_filter: str, qos: int, count: int) -> int:
        """The same for the real filter, of which the client may be allowed this QoS."""
        refusal = self.refusal(topic_filter, count)
        if refusal:
            return refusal
        plain = split_shared(topic_filter)[1]
        permissions = connection.permissions
        if permissions is None and not self.may_see(connection, plain):
            return 0x87
        try:
            if permissions is not None and not await permissions.may_subscribe(plain, qos):
                return 0x87
        except BackendError:  # logged
            return 0x83
        return qos

    def may_see(self, connection: Connection, plain: str) -> bool:
        """Whether a client that has no rules may subscribe to a filter, without `$share/NAME/`."""
        principal = connection.principal
        return self._server.system_open or not is_system(plain) or (principal is not None and principal.superuser)

    def conceal(self, connection: Connection) -> None:
        """What is not for the client has come into the queue of its session, or may have: it leaves it unseen."""
        hidden = [PRIVATE]
        if connection.permissions is None and not self.may_see(connection, PREFIX):
            hidden.append(PREFIX)
        connection.gate = Concealing(connection.gate, tuple(each.encode() for each in hidden))
        connection.update_plain()

    def screen(self, connection: Connection, messages: Sequence[QueuedMessage]) -> None:
        """These were in the queue of its session."""
        found = any(each.message.topic.startswith(b"$") for each in messages)
        if found and not isinstance(connection.gate, Concealing):
            self.conceal(connection)

    async def _unsubscribe(self, connection: Connection, packet: Unsubscribe) -> Sequence[int]:
        server = self._server
        subscriber = connection.subscriber
        ref = connection.ref
        assert subscriber is not None and ref is not None
        dispatch = server.dispatch
        persistent = subscriber.persistent
        names = packet.topic_filters
        if connection.mount is not None:
            names = [_mounted(connection.mount, name) for name in names]
        before = {name: subscriber.subscriptions[name] for name in names if name in subscriber.subscriptions}
        for topic_filter in before:
            dispatch.remove(subscriber, topic_filter)
        if before:
            try:
                await self._until_known(connection, lambda: server.cluster.unsubscribe(ref, list(before), persistent))
            except (SessionLost, StoreUnavailable) as error:
                # Not done: the session, wherever it goes on, has them still.
                current = dispatch.subscribers.get(subscriber.session_id, subscriber)
                if persistent and current is subscriber and connection.expiry_s:
                    for name, known in before.items():
                        dispatch.add(subscriber, StoredSubscription(name, known.options, known.identifier))
                if isinstance(error, SessionLost):
                    raise
                return ()
        left = set(before)
        codes = []
        for topic_filter in names:
            codes.append(0 if topic_filter in left else 0x11)
            left.discard(topic_filter)
        if connection.gate is not None:
            for topic_filter in before:
                connection.gate.forget(topic_filter)
            connection.update_plain()
        _answer(connection, Unsuback(packet.packet_id, codes))  # [MQTT-3.10.4-4]
        return codes

    # -- retained messages

    async def _start_feed(
        self, connection: Connection, subscriber: Subscriber, feeds: Sequence[tuple[str, int, int]]
    ) -> None:
        """Send retained messages; what is more than a burst goes on in a task of its own."""
        server = self._server
        if not any(_anything(server.cluster.retained_match(name)) for name, _, _ in feeds):
            return

        async def work() -> None:
            with trio.CancelScope() as scope:
                if connection.machine.state == CLOSED:
                    return
                connection.feed_scopes.append(scope)
                try:
                    for topic_filter, qos, identifier in feeds:
                        await self._feed(connection, subscriber, topic_filter, qos, identifier)
                except StoreUnavailable:
                    connection.disconnect(0x89, "the store cannot be reached")
                finally:
                    connection.feed_scopes.remove(scope)

        server.start(work)

    async def _feed(
        self, connection: Connection, subscriber: Subscriber, topic_filter: str, qos: int, identifier: int
    ) -> None:
        session = connection.session
        assert session is not None
        topics: list[str] = []
        limit = 1
        average = FIRST_AVERAGE_BYTES
        for topic in self._server.cluster.retained_match(topic_filter):
            if topic is None:
                await trio.lowlevel.checkpoint()
                continue
            if not topics:
                limit = min(await self._room(connection, session, qos), max(1, PAGE_BYTES // average))
            topics.append(topic)
            if len(topics) >= limit:
                sent_bytes = await self._send_some(connection, subscriber, session, topics, qos, identifier)
                average = 1 + sent_bytes // len(topics)
                topics = []
        if topics:
            await self._send_some(connection, subscriber, session, topics, qos, identifier)

    async def _room(self, connection: Connection, session: Session, qos: int) -> int:
        """Wait until the client can take more; returns how many messages."""
        while True:
            if session.closed:
                return 1
            if qos == 0 and session.output.room():
                return BURST
            if qos and session.idle():
                return min(PAGE_LIMIT, session.credit())
            session.hungry = True
            if connection.feed_wanted is None:
                connection.feed_wanted = trio.Event()
            await connection.feed_wanted.wait()

    async def _send_some(
        self,
        connection: Connection,
        subscriber: Subscriber,
        session: Session,
        topics: Sequence[str],
        qos: int,
        identifier: int,
    ) -> int:
        """Returns the bytes of the messages."""
        newest_seq = session.newest_seq
        with self._server.dispatch.in_hand(topics) as newer:
            values = await self._server.cluster.retained_values(topics)
            await self._send_values(connection, subscriber, session, values, newer, newest_seq, qos, identifier)
        return sum(message.size() for message in values if message is not None)

    async def _send_values(
        self,
        connection: Connection,
        subscriber: Subscriber,
        session: Session,
        values: Sequence[Message | None],
        newer: Set[bytes],
        newest_seq: int,
        qos: int,
        identifier: int,
    ) -> None:
        """`newer` are the topics whose next retained message went out live since the values were asked for;
        `newest_seq` is the last of the session's queue that was known then."""
        server = self._server
        now_ms = server.now_ms
        last: RetainedDelivery | None = None
        ids = (identifier,) if identifier else ()
        for message in values:
            if message is None:
                continue
            granted = min(qos, message.qos)
            if not granted and not session.output.room():
                await self._room(connection, session, 0)
            if session.closed:
                return
            if message.topic in newer:
                continue
            remaining = message.remaining_s(now_ms)
            if remaining == 0:
                continue
            encoding = server.dispatch.encoding(message, remaining)
            if not granted:
                connection.send_qos0(encoding, True, ids)  # [MQTT-3.3.1-8]
            elif subscriber.persistent:
                target = Target(subscriber.session_id, subscriber.birth, granted, True, ids, newest_seq)
                last = RetainedDelivery(message, encoding, target, subscriber, server.metrics, newer)
                server.cluster.publish(last)
            else:
                session.deliver(encoding, granted, True, ids)
        server.reactor.wake()
        if last is not None and not last.answered:
            last.told = trio.Event()
            await last.told.wait()
        else:
            await trio.lowlevel.checkpoint()


def _answer(connection: Connection, packet: Suback | Unsuback) -> None:
    if packet.packet_id:  # else the client did not ask
        connection.send(packet)


def _mounted(mount: Mount, topic_filter: str) -> str:
    """The real filter of one that the client names; a wrong one stays, and is nobody's."""
    try:
        return mount.filter(topic_filter)
    except PeerError:
        return topic_filter


def _options(connection: Connection, request: SubscriptionRequest, qos: int) -> int:
    options = qos
    # Bridges mark their connection instead of using options: they keep RETAIN and get nothing back.
    if request.no_local or connection.bridge:
        options |= 4
    if request.retain_as_published or connection.bridge:
        options |= 8
    if connection.version == V5:
        options |= request.retain_handling << 4
    return options


def _anything(topics: Iterator[str | None]) -> bool:
    """False if nothing matches; True also where that would take long to find out."""
    return next(topics, _NOTHING) is not _NOTHING
