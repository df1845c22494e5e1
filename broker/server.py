"""The connections of a node: who is connected, and everything about a connection that takes time."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from broker.auth.api import Authenticators, Exchange
from broker.codec.packets import Auth, Connack, Connect, Properties, Subscribe, Unsubscribe
from broker.codec.publish import properties_to_forwardable
from broker.connection import Connection
from broker.dispatch import Dispatch
from broker.errors import ClusterError, PeerError, SessionLost, StoreFull, StoreUnavailable
from broker.groups import Group
from broker.inbound import Inbound, PublishSlot
from broker.log import get_logger
from broker.message import Message
from broker.metrics import Metrics
from broker.reasons import reason_name
from broker.routes import Subscriber
from broker.session.effects import ContinueAuthentication
from broker.session.encoding import Encoding
from broker.session.machine import CLOSED
from broker.session.negotiation import Agreement, agree, connack_properties
from broker.session.quotas import Quotas
from broker.session.session import GroupDelivery, Session, StoredDelivery
from broker.subscribing import Subscribing
from broker.transport.reactor import Reactor
from broker.transport.stream import TcpStream
from cluster.api import PAGE_LIMIT, Attachment, AttachRequest, Cluster, GroupEntry, SessionRef, StoredWill

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cluster.api import Route, StoredSubscription

#: Characters of an assigned client identifier.
_ID_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"

#: How long a client waits for the connection that it takes over to be let go.
TAKEOVER_TIMEOUT_S = 10.0

#: Pause before a message is offered again to a full store.
FULL_RETRY_S = 1.0


class Server:
    """Implements `cluster.api.ClusterEvents`."""

    def __init__(
        self,
        reactor: Reactor,
        cluster: Cluster,
        metrics: Metrics,
        quotas: Quotas,
        authenticators: Authenticators,
        *,
        connect_timeout_s: float = 10.0,
        stall_timeout_s: float = 30.0,
        output_buffer_bytes: int = 1024 * 1024,
        store_grace_s: float = 15.0,
        max_connections: int = 0,
    ) -> None:
        self.reactor = reactor
        self.cluster = cluster
        self.metrics = metrics
        self.quotas = quotas
        self.authenticators = authenticators
        self.connect_timeout_s = connect_timeout_s
        self.stall_timeout_s = stall_timeout_s
        self.output_buffer_bytes = output_buffer_bytes
        self.store_grace_s = store_grace_s
        self.max_connections = max_connections
        self.log = get_logger("server")
        self.dispatch = Dispatch(cluster, metrics, _message_ids())
        self.subscribing = Subscribing(self)
        self.connections: set[Connection] = set()
        #: The connection that owns each client id here, from CONNECT until its session was let go.
        self.clients: dict[str, Connection] = {}
        self.draining = False
        self._nursery: trio.Nursery
        self._wills: dict[Connection, StoredWill] = {}
        self._opening: dict[Connection, tuple[Connect, Agreement]] = {}
        self._ending = 0
        self._all_ended = trio.Event()
        self._store_down: trio.CancelScope | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The nursery of everything that connections start."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.dispatch.spawn = self.start
            task_status.started()
            await trio.sleep_forever()

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` as a task; its errors are logged and touch nobody else."""
        self._nursery.start_soon(self._guard, work)

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            self.log.exception("server.task_failed")
        self.reactor.wake()

    @property
    def now_ms(self) -> int:
        """Store time."""
        return self.cluster.now_ms()

    def accept(self, stream: TcpStream) -> None:
        """A client connected."""
        if self.draining or (self.max_connections and len(self.connections) >= self.max_connections):
            self.metrics.rejected["draining" if self.draining else "max_connections"] += 1
            stream.start(_Closed())
            stream.abort()
            return
        connection = Connection(stream, self)
        self.connections.add(connection)
        self.metrics.connections += 1
        stream.start(connection)

    # -- CONNECT

    def open(self, connection: Connection, connect: Connect) -> None:
        """Carry out a CONNECT."""

        async def work() -> None:
            await self._answered(connection, self._open(connection, connect))

        self.start(work)

    async def _answered(self, connection: Connection, work: Awaitable[None]) -> None:
        try:
            await work
        except PeerError as error:
            self.metrics.connects[reason_name(error.reason_code)] += 1
            connection.fail(error)
        except StoreFull:
            self.metrics.connects["quota_exceeded"] += 1
            connection.refuse(0x97, "the store is full")
        except StoreUnavailable:
            self.metrics.connects["server_unavailable"] += 1
            connection.refuse(0x88, "the store cannot be reached")
        finally:
            connection.work_done()

    async def _open(self, connection: Connection, connect: Connect) -> None:
        new_id = "auto-" + "".join(random.SystemRandom().choices(_ID_ALPHABET, k=20))
        properties = connect.properties
        if properties is not None and properties.request_problem_information == 0:
            connection.set_problem_information(False)
        agreement = agree(connect, self.quotas, new_id)
        connection.client_id = agreement.client_id
        connection.username = connect.username
        connection.bridge = connect.bridge
        if agreement.authentication_method is not None:
            exchange = self.authenticators.begin(agreement.authentication_method, agreement.client_id, connect.username)
            connection.exchange = exchange
            self._opening[connection] = (connect, agreement)
            data = (properties.authentication_data if properties is not None else None) or b""
            await self._exchange(connection, exchange, agreement.authentication_method, data)
            return
        await self.authenticators.authenticate(connect.username, connect.password)
        await self._attach(connection, connect, agreement, None)

    def continue_authentication(self, connection: Connection, effect: ContinueAuthentication) -> None:
        """An AUTH packet of the client."""

        async def work() -> None:
            if effect.again:
                connection.exchange = self.authenticators.begin(
                    effect.method, connection.client_id, connection.username
                )
            exchange = connection.exchange
            assert exchange is not None
            await self._exchange(connection, exchange, effect.method, effect.data)

        async def answered() -> None:
            await self._answered(connection, work())

        self.start(answered)

    async def _exchange(self, connection: Connection, exchange: Exchange, method: str, data: bytes) -> None:
        step = await exchange.step(data)
        if connection.machine.state == CLOSED:
            return
        properties = Properties()
        properties.authentication_method = method
        properties.authentication_data = step.data
        if not step.done:
            connection.machine.authenticating()
            connection.send(Auth(0x18, properties))
            return
        connection.exchange = None
        connection.username = step.identity
        opening = self._opening.pop(connection, None)
        if opening is None:
            connection.machine.authenticated()
            connection.send(Auth(0x00, properties))
            return
        await self._attach(connection, opening[0], opening[1], step.data)

    async def _attach(
        self, connection: Connection, connect: Connect, agreement: Agreement, authentication_data: bytes | None
    ) -> None:
        client_id = agreement.client_id
        with trio.move_on_after(TAKEOVER_TIMEOUT_S):
            while (owner := self.clients.get(client_id)) is not None:
                if owner.finished is None:
                    owner.finished = trio.Event()
                owner.disconnect(0x8E, "another connection uses this client id")  # [MQTT-3.1.4-3]
                await owner.finished.wait()
        if connection.machine.state == CLOSED:
            return
        if client_id in self.clients or self.draining:
            raise StoreUnavailable("the session is still owned by an older connection")
        self.clients[client_id] = connection
        will = self._stored_will(connection, connect, agreement)
        try:
            attachment = await self.cluster.attach(
                AttachRequest(client_id, agreement.clean_start, agreement.expiry_s, will)
            )
        except BaseException:
            if connection.ref is None:
                self._forget(connection)
            raise
        connection.ref = attachment.ref
        connection.expiry_s = agreement.expiry_s
        self._settle_ended(attachment)
        if connection.machine.state == CLOSED:  # left, or was taken over, in the meantime
            self._let_go(connection)
            return
        if will is not None:
            will.message.publisher = attachment.ref.session_id
            self._wills[connection] = will
        self._establish(connection, agreement, attachment, authentication_data)

    def _establish(
        self, connection: Connection, agreement: Agreement, attachment: Attachment, authentication_data: bytes | None
    ) -> None:
        ref = attachment.ref
        dispatch = self.dispatch
        persistent = agreement.expiry_s > 0 or attachment.session_present
        subscriber = dispatch.subscribers.get(ref.session_id)
        if subscriber is not None and subscriber.birth != ref.birth:
            self._drop(subscriber)
            subscriber = None
        if subscriber is None:
            subscriber = Subscriber(ref.session_id, ref.client_id, ref.birth, persistent)
            for stored in attachment.subscriptions:
                dispatch.add(subscriber, stored)
        subscriber.persistent = persistent
        session = Session(
            connection,
            connection,
            persistent,
            agreement.receive_maximum,
            self.quotas.max_queued_messages,
            self.quotas.max_queued_bytes,
        )
        connection.established(agreement, ref, session, subscriber)
        connection.inbound = Inbound(connection, self, attachment.inbound)
        subscriber.session = session
        subscriber.connection = connection
        connection.send(
            Connack(attachment.session_present, 0, connack_properties(agreement, self.quotas, authentication_data))
        )
        self.metrics.connects["success"] += 1
        if attachment.session_present:
            self.metrics.sessions_resumed += 1
        self.log.debug("client.connected", client_id=ref.client_id, peer=connection.stream.peer)
        if persistent:
            session.resume(
                attachment.last_seq, attachment.lowest_seq, attachment.sent_seq, sorted(attachment.releasing)
            )
        for group in dispatch.groups_of(subscriber):
            group.feed()

    def _settle_ended(self, attachment: Attachment) -> None:
        """A clean start ended an older session: its routes go, and its will if it was still due."""
        ref = attachment.ref
        old = self.dispatch.subscribers.get(ref.session_id)
        if old is not None and old.birth != ref.birth:
            self._drop(old)
        if attachment.ended_will is not None:
            self.publish_will(attachment.ended_will)

    def _stored_will(self, connection: Connection, connect: Connect, agreement: Agreement) -> StoredWill | None:
        will = agreement.will
        if will is None:
            return None
        properties = will.properties
        delay_s = 0
        expiry_s = -1
        forwardable = b""
        if properties is not None:
            delay_s = properties.will_delay_interval or 0
            if properties.message_expiry_interval is not None:
                expiry_s = properties.message_expiry_interval
            forwardable = properties_to_forwardable(properties)
        message = Message(
            will.topic_name.encode(),
            will.payload,
            will.qos,
            will.retain,
            forwardable,
            expiry_s,
            self.now_ms,
            self.dispatch.new_message_id(),
        )
        return StoredWill(message, delay_s)

    # -- the end of a connection

    def connection_ended(self, connection: Connection) -> None:
        """The connection can do nothing more; called once, from within a turn or a task."""
        self.connections.discard(connection)
        self._opening.pop(connection, None)
        self.metrics.connections -= 1
        self.metrics.disconnects[connection.close_reason] += 1
        session = connection.session
        subscriber = connection.subscriber
        if session is None or subscriber is None:
            if connection.ref is not None:
                self._let_go(connection)
            return
        self.log.debug("client.disconnected", client_id=connection.client_id, reason=connection.close_reason)
        if subscriber.session is session:
            subscriber.session = None
            subscriber.connection = None
        entries = session.take_group_entries()
        self._return_entries(entries)
        self._let_go(connection)

    def _return_entries(self, entries: Iterable[GroupDelivery]) -> None:
        by_group: dict[int, tuple[Group, list[GroupEntry]]] = {}
        for delivery in entries:
            group = delivery.group
            assert isinstance(group, Group)
            by_group.setdefault(id(group), (group, []))[1].append(GroupEntry(delivery.entry_id, delivery.message))
        for group, returned in by_group.values():
            group.give_back(returned)

    def _let_go(self, connection: Connection) -> None:
        """Publish the will if it is due, then give the session back to the store."""
        will = self._wills.pop(connection, None)
        keep_will = False
        ends = connection.expiry_s == 0
        if will is not None and connection.send_will:
            if will.delay_s == 0 or ends:  # [MQTT-3.1.2-8]
                self.publish_will(will)
            else:
                keep_will = True
        subscriber = connection.subscriber
        if ends and subscriber is not None:
            self._drop(subscriber)
        self._ending += 1

        async def work() -> None:
            try:
                await self._detach(connection, keep_will)
            finally:
                self._forget(connection)
                self._ending -= 1
                if not self._ending:
                    self._all_ended.set()

        self.start(work)

    async def _detach(self, connection: Connection, keep_will: bool) -> None:
        ref = connection.ref
        assert ref is not None
        sent_seq = connection.session.sent_seq if connection.session is not None else 0
        delay = 0.1
        while True:
            try:
                await self.cluster.detach(ref, connection.expiry_s, sent_seq, keep_will)
                return
            except StoreUnavailable:
                await trio.sleep(delay)
                delay = min(2 * delay, 2.0) * random.uniform(0.8, 1.2)

    def _forget(self, connection: Connection) -> None:
        if self.clients.get(connection.client_id) is connection:
            del self.clients[connection.client_id]
        if connection.finished is not None:
            connection.finished.set()

    def _drop(self, subscriber: Subscriber) -> None:
        """A session ended: its subscriptions go, and groups that have nobody left."""
        for group in self.dispatch.drop(subscriber):
            self.end_group(group)

    def end_group(self, group: Group) -> None:
        """The last member is gone."""

        async def work() -> None:
            if group.group_id not in self.dispatch.groups:
                await self.cluster.declare_group(group.group_id, False)

        async def patiently() -> None:
            try:
                await work()
            except ClusterError as error:
                self.log.warning("group.not_deleted", share_name=group.share_name, error=str(error))

        self.start(patiently)

    def publish_will(self, will: StoredWill) -> None:
        """Publish a will that is due, effectively once."""
        message = will.message
        message.accepted_at_ms = self.now_ms
        try:
            route = self.dispatch.route(message.topic)
        except PeerError:
            return
        self.dispatch.publish(message, route, None, None, deduplicate=True)
        self.reactor.wake()

    # -- work for connections

    def change_subscriptions(self, connection: Connection, packet: Subscribe | Unsubscribe) -> None:
        """Carry out SUBSCRIBE or UNSUBSCRIBE."""

        async def work() -> None:
            try:
                await self.subscribing.change(connection, packet)
            except PeerError as error:
                connection.fail(error)
            except SessionLost:
                connection.disconnect(0x8E, "another connection uses this client id")
            except StoreUnavailable:
                connection.disconnect(0x88, "the store cannot be reached")
            finally:
                connection.work_done()

        self.start(work)

    def fetch_page(self, connection: Connection, after_seq: int, limit: int) -> None:
        """Read a page of the session's queue."""
        session = connection.session
        ref = connection.ref
        assert session is not None and ref is not None

        async def work() -> None:
            try:
                messages = await self.cluster.page(ref, after_seq, min(limit, PAGE_LIMIT))
            except ClusterError:
                session.page_failed()
                return
            now_ms = self.now_ms
            session.page(
                [
                    StoredDelivery(
                        item.seq,
                        Encoding(item.message, item.message.remaining_s(now_ms)),
                        item.qos,
                        item.retain,
                        item.subscription_ids,
                    )
                    for item in messages
                ],
                not messages,
            )

        self.start(work)

    def group_done(self, delivery: GroupDelivery) -> None:
        """A member acknowledged a message of a shared subscription."""
        group = delivery.group
        assert isinstance(group, Group)
        group.done(delivery.entry_id)

    def retry_later(self, inbound: Inbound, slot: PublishSlot) -> None:
        """The store was full for a version 3 publisher: try again."""

        async def work() -> None:
            await trio.sleep(FULL_RETRY_S)
            inbound.retry(slot)

        self.start(work)

    # -- ClusterEvents

    def restore(self, routes: Iterable[Route]) -> None:
        """The subscriptions of persistent sessions, before the first client."""
        dispatch = self.dispatch
        for route in routes:
            subscriber = dispatch.subscribers.get(route.session_id)
            if subscriber is None:
                subscriber = Subscriber(route.session_id, route.client_id, route.birth, True)
            dispatch.add(subscriber, route.subscription)
        for group in dispatch.groups.values():
            group.backlog()

    async def will_due(self, client_id: str, will: StoredWill) -> None:
        """A delayed will, or one left by a node that died."""
        self.log.info("will.due", client_id=client_id)
        self.publish_will(will)

    async def session_ended(
        self, client_id: str, session_id: bytes, subscriptions: Sequence[StoredSubscription]
    ) -> None:
        """A session expired."""
        self.log.debug("session.expired", client_id=client_id)
        subscriber = self.dispatch.subscribers.get(session_id)
        if subscriber is not None and subscriber.session is None:
            self._drop(subscriber)

    def session_lost(self, ref: SessionRef) -> None:
        """The session has another owner."""
        connection = self.clients.get(ref.client_id)
        if connection is not None and connection.ref is ref:
            connection.disconnect(0x8E, "another connection uses this client id")

    def store_changed(self, available: bool) -> None:
        """Without the store, clients are let go after a grace period; with it again, sessions go on."""
        if available:
            self.log.info("store.available")
            if self._store_down is not None:
                self._store_down.cancel()
                self._store_down = None
            for connection in self.connections:
                if connection.session is not None:
                    connection.session.drained(self.now_ms)
            return
        if self._store_down is not None:
            return
        self.log.warning("store.unavailable", grace_s=self.store_grace_s)
        scope = self._store_down = trio.CancelScope()

        async def work() -> None:
            with scope:
                await trio.sleep(self.store_grace_s)
                await self._disconnect_all(0x88, "the store cannot be reached", 10.0)

        self.start(work)

    # -- draining

    async def drain(self, rate: float, timeout_s: float) -> None:
        """Disconnect all clients at `rate` a second and wait until their sessions are stored."""
        self.draining = True
        with trio.move_on_after(timeout_s):
            count = max(1, len(self.connections))
            await self._disconnect_all(0x8B, "the server is shutting down", count / rate)
            while self._ending:
                self._all_ended = trio.Event()
                await self._all_ended.wait()

    async def _disconnect_all(self, reason_code: int, text: str, over_s: float) -> None:
        connections = list(self.connections)
        pause = over_s / max(1, len(connections))
        owed = 0.0
        for connection in connections:
            connection.disconnect(reason_code, text)
            owed += pause
            if owed > 0.05:
                await trio.sleep(owed)
                owed = 0.0


class _Closed:
    """The protocol of a socket that is turned away."""

    def data_received(self, data: bytes) -> None: ...

    def resume(self) -> None: ...

    def connection_lost(self, reason: str) -> None: ...

    def output_congested(self) -> None: ...

    def output_drained(self) -> None: ...


def _message_ids() -> Callable[[], bytes]:
    """16-byte ids: 8 random bytes of this process, then a number."""
    prefix = os.urandom(8)
    number = 0

    def new_message_id() -> bytes:
        nonlocal number
        number += 1
        return prefix + number.to_bytes(8, "big")

    return new_message_id
