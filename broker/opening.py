"""From CONNECT to CONNACK: authentication, takeover, and the session."""

from __future__ import annotations

import random
from collections.abc import Awaitable
from typing import TYPE_CHECKING

import trio

from broker.auth.api import ConnectRequest, Exchange
from broker.codec.packets import Auth, Connack, Connect, Properties
from broker.codec.publish import properties_to_forwardable
from broker.connection import Connection
from broker.errors import PeerError, StoreFull, StoreUnavailable
from broker.inbound import Inbound
from broker.message import Message
from broker.reasons import reason_name
from broker.routes import Subscriber
from broker.session.effects import ContinueAuthentication
from broker.session.machine import CLOSED
from broker.session.negotiation import Agreement, agree, connack_properties
from broker.session.session import Session
from cluster.api import Attachment, AttachRequest, StoredWill

if TYPE_CHECKING:
    from broker.server import Server

#: Characters of an assigned client identifier.
_ID_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"

#: How long a client waits for the connection that it takes over to be let go.
TAKEOVER_TIMEOUT_S = 10.0


class Opening:
    """Opens the connections of a node."""

    def __init__(self, server: Server) -> None:
        self._server = server
        #: What is to be opened once an enhanced authentication ends well.
        self._exchanges: dict[Connection, tuple[Connect, Agreement, ConnectRequest]] = {}

    def forget(self, connection: Connection) -> None:
        """The connection ended."""
        self._exchanges.pop(connection, None)

    def open(self, connection: Connection, connect: Connect) -> None:
        """Carry out a CONNECT."""

        async def work() -> None:
            await self._answered(connection, self._open(connection, connect))

        self._server.start(work)

    async def _answered(self, connection: Connection, work: Awaitable[None]) -> None:
        try:
            await work
        except PeerError as error:
            self._server.metrics.connects[reason_name(error.reason_code)] += 1
            connection.fail(error)
        except StoreFull:
            self._server.metrics.connects["quota_exceeded"] += 1
            connection.refuse(0x97, "the store is full")
        except StoreUnavailable:
            self._server.metrics.connects["server_unavailable"] += 1
            connection.refuse(0x88, "the store cannot be reached")
        finally:
            connection.work_done()

    async def _open(self, connection: Connection, connect: Connect) -> None:
        new_id = "auto-" + "".join(random.SystemRandom().choices(_ID_ALPHABET, k=20))
        properties = connect.properties
        if properties is not None:
            connection.problem_information = properties.request_problem_information != 0
            aliases = min(properties.topic_alias_maximum or 0, self._server.quotas.topic_alias_maximum)
            connection.set_limits(properties.maximum_packet_size or 0, aliases)
        agreement = agree(connect, self._server.quotas, new_id)
        connection.client_id = agreement.client_id
        connection.bridge = connect.bridge
        request = ConnectRequest(
            agreement.client_id,
            connect.username,
            connect.password,
            connection.stream.peer,
            connect.protocol_version,
            properties.user_properties if properties is not None else (),
        )
        if agreement.authentication_method is not None:
            exchange, connection.authenticator = self._server.access.chain.begin(
                agreement.authentication_method, request, connection.listener.options
            )
            connection.exchange = exchange
            self._exchanges[connection] = (connect, agreement, request)
            data = (properties.authentication_data if properties is not None else None) or b""
            await self._exchange(connection, exchange, agreement.authentication_method, data)
            return
        connection.principal = await self._server.access.chain.authenticate(request, connection.listener.options)
        await self._attach(connection, connect, agreement, None)

    def continue_authentication(self, connection: Connection, effect: ContinueAuthentication) -> None:
        """An AUTH packet of the client."""

        async def work() -> None:
            if effect.again:
                principal = connection.principal
                assert principal is not None
                request = ConnectRequest(connection.client_id, principal.identity, None, principal.peer)
                connection.exchange, connection.authenticator = self._server.access.chain.begin(
                    effect.method, request, connection.listener.options
                )
            exchange = connection.exchange
            assert exchange is not None
            await self._exchange(connection, exchange, effect.method, effect.data)

        async def answered() -> None:
            await self._answered(connection, work())

        self._server.start(answered)

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
        assert step.verdict is not None
        opening = self._exchanges.pop(connection, None)
        if opening is None:
            connection.machine.authenticated()
            connection.send(Auth(0x00, properties))
            return
        connect, agreement, request = opening
        connection.principal = self._server.access.chain.principal(request, step.verdict, connection.authenticator)
        await self._attach(connection, connect, agreement, step.data)

    async def _attach(
        self, connection: Connection, connect: Connect, agreement: Agreement, authentication_data: bytes | None
    ) -> None:
        client_id = agreement.client_id
        with trio.move_on_after(TAKEOVER_TIMEOUT_S):
            while (owner := self._server.clients.get(client_id)) is not None:
                if owner.finished is None:
                    owner.finished = trio.Event()
                owner.disconnect(0x8E, "another connection uses this client id")  # [MQTT-3.1.4-3]
                await owner.finished.wait()
        if connection.machine.state == CLOSED:
            return
        if client_id in self._server.clients or self._server.draining:
            raise StoreUnavailable("the session is still owned by an older connection")
        will = self._stored_will(connection, connect, agreement)
        self._server.clients[client_id] = connection
        with self._server.early.opening():
            try:
                attachment = await self._server.cluster.attach(
                    AttachRequest(client_id, agreement.clean_start, agreement.expiry_s, will)
                )
            except BaseException:
                self._server.forget(connection)
                raise
            connection.ref = attachment.ref
            connection.expiry_s = agreement.expiry_s
            self._settle_ended(attachment)
            self._attached(connection, agreement, attachment, will, authentication_data)

    def _attached(
        self,
        connection: Connection,
        agreement: Agreement,
        attachment: Attachment,
        will: StoredWill | None,
        authentication_data: bytes | None,
    ) -> None:
        if connection.machine.state == CLOSED:  # left, or was taken over, in the meantime
            self._server.let_go(connection)
            return
        if will is not None:
            will.message.publisher = attachment.ref.session_id
            connection.has_will = True
        self._establish(connection, agreement, attachment, authentication_data)

    def _establish(
        self, connection: Connection, agreement: Agreement, attachment: Attachment, authentication_data: bytes | None
    ) -> None:
        ref = attachment.ref
        dispatch = self._server.dispatch
        persistent = agreement.expiry_s > 0 or attachment.session_present
        subscriber = dispatch.subscribers.get(ref.session_id)
        if subscriber is not None and subscriber.birth > ref.birth:
            # A client elsewhere ended this session and has a new one, whose routes came before the answer to `attach`.
            connection.lost = True
            connection.refuse(0x88, "another connection uses this client id")
            return
        if subscriber is not None and subscriber.birth != ref.birth:
            dispatch.drop(subscriber)
            subscriber = None
        if subscriber is None:
            subscriber = Subscriber(ref.session_id, ref.client_id, ref.birth, persistent)
        in_force = {stored.topic_filter for stored in attachment.subscriptions}
        for topic_filter in [name for name in subscriber.subscriptions if name not in in_force]:
            dispatch.remove(subscriber, topic_filter)
        for stored in attachment.subscriptions:
            # The store decides: a SUBSCRIBE may have reached it whose SUBACK was never sent.
            known = subscriber.subscriptions.get(stored.topic_filter)
            if known is None or (known.options, known.identifier) != (stored.options, stored.subscription_identifier):
                dispatch.add(subscriber, stored)
        subscriber.persistent = persistent
        session = Session(
            connection,
            connection,
            persistent,
            agreement.receive_maximum,
            self._server.quotas.max_queued_messages,
            self._server.quotas.max_queued_bytes,
        )
        connection.established(agreement, ref, session, subscriber)
        connection.inbound = Inbound(connection, self._server, attachment.inbound)
        subscriber.session = session
        subscriber.connection = connection
        if not connection.send(
            Connack(
                attachment.session_present, 0, connack_properties(agreement, self._server.quotas, authentication_data)
            )
        ):  # [MQTT-3.1.2-24]
            connection.abort("packet_too_large")
            return
        self._server.metrics.connects["success"] += 1
        if attachment.session_present:
            self._server.metrics.sessions_resumed += 1
        self._server.log.debug("client.connected", client_id=ref.client_id, peer=str(connection.stream.peer))
        if persistent:
            # Stored after the store answered `attach`, and answered before this task came to run.
            early = self._server.early.take(ref.session_id)
            last_seq = max(attachment.last_seq, subscriber.stored_seq, early)
            session.resume(last_seq, attachment.lowest_seq, attachment.sent_seq, sorted(attachment.releasing))
            if subscriber.unsure or not early:
                subscriber.unsure = False
                session.look()
        dispatch.connected(subscriber)

    def _settle_ended(self, attachment: Attachment) -> None:
        """A clean start ended an older session: its routes go, and its will if it was still due."""
        ref = attachment.ref
        old = self._server.dispatch.subscribers.get(ref.session_id)
        if old is not None and old.birth < ref.birth:
            self._server.dispatch.drop(old)
        if attachment.ended_will is not None:
            self._server.publish_ended_will(attachment.ended_will)

    def _stored_will(self, connection: Connection, connect: Connect, agreement: Agreement) -> StoredWill | None:
        will = agreement.will
        if will is None:
            return None
        properties = will.properties
        delay_s = 0
        expiry_s = -1
        forwardable = b""
        topic = will.topic_name.encode()
        route = self._server.dispatch.route(topic)
        if route.delay is not None:
            route.delay.check()
        if properties is not None:
            delay_s = properties.will_delay_interval or 0
            if properties.message_expiry_interval is not None:
                expiry_s = properties.message_expiry_interval
            forwardable = properties_to_forwardable(properties)
        message = Message(
            topic,
            will.payload,
            will.qos,
            will.retain,
            forwardable,
            expiry_s,
            self._server.now_ms,
            self._server.dispatch.new_message_id(),
        )
        return StoredWill(message, delay_s)
