"""From CONNECT to CONNACK: authentication, takeover, and the session."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVarTuple

import trio

from broker.admin.inside import PRIVATE, is_private
from broker.auth.api import BackendError, ConnectRequest, Exchange, Principal
from broker.codec.packets import V5, V31, V311, Auth, Connack, Connect, Properties, Will
from broker.codec.publish import properties_to_forwardable
from broker.connection import Connection
from broker.errors import NotOwner, PeerError, SessionLost, StoreFull, StoreUnavailable
from broker.gate import Permissions
from broker.inbound import Inbound
from broker.message import Message
from broker.mount import mount_of
from broker.reasons import reason_name
from broker.routes import Subscriber
from broker.session.effects import ContinueAuthentication
from broker.session.machine import CLOSED, OPEN
from broker.session.negotiation import Agreement, agree, connack_properties
from broker.session.session import Session
from broker.straight import Straight
from broker.topics.names import split_shared
from cluster.api import Attachment, AttachRequest, StoredWill

if TYPE_CHECKING:
    from broker.server import Server

_Ts = TypeVarTuple("_Ts")

_VERSIONS = {V31: "3.1", V311: "3.1.1", V5: "5"}

#: Characters of an assigned client identifier.
_ID_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"

#: How long a client waits for the connection that it takes over to be let go.
TAKEOVER_TIMEOUT_S = 10.0

#: How long a session waits for its client that was refused only because its subscriptions could not be asked about, and
#: that did not want to leave the session behind.
REFUSED_EXPIRY_S = 3600


class Opening:
    """Opens the connections of a node."""

    def __init__(self, server: Server) -> None:
        self._server = server
        #: What is to be opened once an enhanced authentication ends well.
        self._exchanges: dict[Connection, tuple[Agreement, ConnectRequest]] = {}
        self._straight = Straight(server, self)

    def forget(self, connection: Connection) -> None:
        """The connection ended."""
        self._exchanges.pop(connection, None)

    def open(self, connection: Connection, connect: Connect) -> None:
        """Carry out a CONNECT."""
        if self._server.tracer is not None:
            self._server.tracer.opening(connection, connect)
        try:
            agreement, request = self._agreed(connection, connect)
            if not self._straight.open(connection, agreement, request):
                self._server.start(partial(self._answered, connection, self._open, connect, agreement, request))
        except Exception as error:
            self.failed(connection, error)
            connection.work_done()

    async def _answered(
        self, connection: Connection, work: Callable[[Connection, *_Ts], Awaitable[None]], *arguments: *_Ts
    ) -> None:
        try:
            await work(connection, *arguments)
        except Exception as error:
            self.failed(connection, error)
        finally:
            connection.work_done()

    def failed(self, connection: Connection, error: Exception) -> None:
        """The connection cannot be opened: say why."""
        connects = self._server.metrics.connects
        match error:
            case PeerError():
                connects[reason_name(error.reason_code)] += 1
                connection.fail(error)
            case NotOwner():
                connects["not_authorized"] += 1
                self._server.log.info(
                    "client.not_owner", client_id=connection.client_id, peer=str(connection.stream.peer)
                )
                connection.refuse(0x87, "the client id belongs to somebody else")
            case SessionLost():
                connects["server_unavailable"] += 1
                connection.lost = True
                connection.refuse(0x88, "another connection uses this client id")
            case StoreFull():
                connects["quota_exceeded"] += 1
                connection.refuse(0x97, "the store is full")
            case StoreUnavailable():
                connects["server_unavailable"] += 1
                connection.refuse(0x88, "the store cannot be reached")
            case _:  # a defect, of an authenticator perhaps: nobody comes in by it, and nobody waits for it
                connects["implementation_specific_error"] += 1
                self._server.log.exception("client.not_opened", client_id=connection.client_id, exc_info=error)
                connection.fail(PeerError(0x83, "an error of the server"))

    def _agreed(self, connection: Connection, connect: Connect) -> tuple[Agreement, ConnectRequest]:
        """What a CONNECT says, as far as it takes no time to know what to make of it. Raises PeerError."""
        if _VERSIONS[connect.protocol_version] not in connection.listener.options.versions:
            raise PeerError(0x84, f"MQTT {_VERSIONS[connect.protocol_version]} is not spoken here")
        new_id = connect.client_id or "auto-" + "".join(random.SystemRandom().choices(_ID_ALPHABET, k=20))
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
        if agreement.client_id.startswith(PRIVATE):
            raise PeerError(0x85, f"client ids that begin with {PRIVATE} are of the nodes alone")
        connection.rules_version = self._server.rechecking.version  # before anybody looks at users
        return agreement, request

    async def _open(
        self, connection: Connection, connect: Connect, agreement: Agreement, request: ConnectRequest
    ) -> None:
        server = self._server
        properties = connect.properties
        await server.guard.screen(request)
        if server.hooks is not None and server.hooks.connects:
            await server.hooks.connect(request)
        if agreement.authentication_method is not None:
            exchange, connection.authenticator = self._server.access.chain.begin(
                agreement.authentication_method, request, connection.listener.options
            )
            connection.exchange = exchange
            self._exchanges[connection] = (agreement, request)
            data = (properties.authentication_data if properties is not None else None) or b""
            await self._exchange(connection, request, exchange, agreement.authentication_method, data)
            return
        try:
            principal = await server.access.chain.authenticate(request, connection.listener.options)
        except PeerError as error:
            await server.guard.failed(request, error)
            raise
        await self._enter(connection, agreement, principal, None)

    def continue_authentication(self, connection: Connection, effect: ContinueAuthentication) -> None:
        """An AUTH packet of the client."""

        async def work(connection: Connection) -> None:
            principal = connection.principal
            opening = self._exchanges.get(connection)
            if opening is not None:
                request = opening[1]
            else:
                assert principal is not None
                request = ConnectRequest(connection.client_id, principal.identity, None, principal.peer)
            if effect.again:
                connection.rules_version = self._server.rechecking.version
                connection.exchange, connection.authenticator = self._server.access.chain.begin(
                    effect.method, request, connection.listener.options
                )
            exchange = connection.exchange
            assert exchange is not None
            await self._exchange(connection, request, exchange, effect.method, effect.data)

        self._server.start(partial(self._answered, connection, work))

    async def _exchange(
        self, connection: Connection, request: ConnectRequest, exchange: Exchange, method: str, data: bytes
    ) -> None:
        counted = self._server.metrics.authentication
        try:
            step = await exchange.step(data)
        except PeerError as error:
            counted[f"{connection.authenticator},{'error' if error.reason_code == 0x88 else 'deny'}"] += 1
            await self._server.guard.failed(request, error)
            raise
        if step.done:
            counted[f"{connection.authenticator},allow"] += 1
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
        principal = self._server.access.chain.principal(request, step.verdict, connection.authenticator)
        opening = self._exchanges.pop(connection, None)
        if opening is None:
            await self._renewed(connection, principal)
            if connection.machine.state != CLOSED:
                connection.machine.authenticated()
                connection.send(Auth(0x00, properties))
            return
        await self._enter(connection, opening[0], principal, step.data)

    async def _renewed(self, connection: Connection, principal: Principal) -> None:
        """A client that is connected proved again who it is, perhaps with other rights and for a longer time."""
        before = connection.principal
        assert before is not None
        if principal.identity != before.identity:  # the session is that of the other one
            raise PeerError(0x87, "the client became somebody else")
        principal.client_id = before.client_id
        rechecking = self._server.rechecking
        permissions = await self._permissions(principal)
        connection.principal = principal
        rechecking.restrict(connection, permissions)
        connection.watch_expiry()
        if rechecking.version != connection.rules_version:  # by a user who may be gone
            await rechecking.renew(connection)
        rechecking.one(connection)

    async def _permissions(self, principal: Principal) -> Permissions | None:
        try:
            permissions = await self._server.access.permissions(principal)
        except BackendError as error:
            self._server.log.warning("authorization.unavailable", client_id=principal.client_id, error=str(error))
            raise PeerError(0x88, "authorization is not possible now") from None
        return None if permissions.unrestricted else permissions

    async def _enter(
        self,
        connection: Connection,
        agreement: Agreement,
        principal: Principal,
        authentication_data: bytes | None,
    ) -> None:
        """It is known who the client is: what it may do, then its session."""
        server = self._server
        if connection.machine.state == CLOSED:
            return
        connection.principal = principal
        if principal.client_id != agreement.client_id:
            agreement.client_id = connection.client_id = principal.client_id
            agreement.assigned = True
        if server.tracer is not None:
            server.tracer.identified(connection)
        await server.guard.admit(connection)
        if connection.machine.state == CLOSED:
            server.guard.left(connection)  # what was taken after it had left
            return
        permissions = await self._permissions(principal)
        connection.mount = mount_of(principal, connection.listener.options.mountpoint)
        server.rechecking.restrict(connection, permissions)
        if server.tracer is not None:
            server.tracer.restricted(connection)
        will = await self._stored_will(connection, agreement)
        rechecking = server.rechecking
        if rechecking.version != connection.rules_version and not await server.access.chain.still_valid(principal):
            raise PeerError(0x87, "the client would not be let in any more")
        if connection.machine.state != CLOSED:
            await self._attach(connection, agreement, will, authentication_data)
        if rechecking.version != connection.rules_version and connection.machine.state == OPEN:
            await rechecking.renew(connection)

    async def _attach(
        self, connection: Connection, agreement: Agreement, will: StoredWill | None, authentication_data: bytes | None
    ) -> None:
        assert connection.principal is not None
        identity = None if self._server.session_owner_any else connection.principal.identity
        client_id = agreement.client_id
        with trio.move_on_after(TAKEOVER_TIMEOUT_S):
            while (owner := self._server.clients.get(client_id)) is not None:
                if identity is not None and (owner.principal is None or owner.principal.identity != identity):
                    raise NotOwner("a client of another identity is connected with this client id")
                if owner.finished is None:
                    owner.finished = trio.Event()
                    if self._server.tracer is not None:
                        self._server.tracer.takes_over(connection, owner)
                self._server.came_back(client_id)
                owner.disconnect(0x8E, "another connection uses this client id")  # [MQTT-3.1.4-3]
                await owner.finished.wait()
        if connection.machine.state == CLOSED:
            return
        if client_id in self._server.clients or self._server.draining:
            raise StoreUnavailable("the session is still owned by an older connection")
        self._server.clients[client_id] = connection
        request = AttachRequest(client_id, agreement.clean_start, agreement.expiry_s, will, identity=identity)
        with self._server.early.opening():
            await self._attached(connection, agreement, will, authentication_data, partial(self._attach_it, request))

    async def _attach_it(self, request: AttachRequest) -> Attachment:
        return await self._server.cluster.attach(request)

    async def _attached(
        self,
        connection: Connection,
        agreement: Agreement,
        will: StoredWill | None,
        authentication_data: bytes | None,
        attach: Callable[[], Awaitable[Attachment]],
    ) -> None:
        try:
            attachment = await attach()
        except BaseException:
            self._server.forget(connection)
            raise
        if self.found(connection, agreement, attachment):
            await self._check_restored(connection, attachment)
            if connection.machine.state != CLOSED:  # else it has let its session go
                self.establish(connection, agreement, will, attachment, authentication_data)

    def found(self, connection: Connection, agreement: Agreement, attachment: Attachment) -> bool:
        """The store has given the session; False if the connection has not waited for it."""
        connection.ref = attachment.ref
        connection.expiry_s = agreement.expiry_s
        self._settle_ended(attachment)
        if connection.machine.state != CLOSED:
            return True
        self._server.let_go(connection)  # left, or was taken over, in the meantime
        return False

    def may_keep(self, connection: Connection, attachment: Attachment) -> bool:
        """Whether it is known at once that the client may have all subscriptions of its session."""
        for stored in attachment.subscriptions:
            plain = split_shared(stored.topic_filter)[1]
            if (
                connection.permissions is not None
                or is_private(plain)
                or not self._server.subscribing.may_see(connection, plain)
            ):
                return False
        return True

    def go_on(
        self,
        connection: Connection,
        agreement: Agreement,
        will: StoredWill | None,
        attach: Callable[[], Awaitable[Attachment]],
    ) -> None:
        """What was begun without a task takes one from here on; `early` ends then."""

        async def work(connection: Connection) -> None:
            try:
                await self._attached(connection, agreement, will, None, attach)
                if self._server.rechecking.version != connection.rules_version and connection.machine.state == OPEN:
                    await self._server.rechecking.renew(connection)
            finally:
                self._server.early.end()

        self._server.start(partial(self._answered, connection, work))

    def renew(self, connection: Connection) -> None:
        """Users, rules or bans have changed since the client was let in."""

        async def work(connection: Connection) -> None:
            await self._server.rechecking.renew(connection)

        self._server.start(partial(self._answered, connection, work))

    async def _check_restored(self, connection: Connection, attachment: Attachment) -> None:
        """Subscriptions that the session had before, and the client may not have any more, are gone before CONNACK."""
        permissions = connection.permissions
        if not attachment.subscriptions:
            return
        refused: list[str] = []
        try:
            for stored in attachment.subscriptions:
                plain = split_shared(stored.topic_filter)[1]
                if is_private(plain):  # of a node that did not know of them
                    allowed = False
                elif permissions is None:
                    allowed = self._server.subscribing.may_see(connection, plain)
                else:
                    allowed = await permissions.may_subscribe(plain, stored.options & 3)
                if not allowed:
                    refused.append(stored.topic_filter)
        except BackendError:  # logged
            if not connection.expiry_s:  # it would end with this connection, which never was
                connection.expiry_s = REFUSED_EXPIRY_S
            raise PeerError(0x88, "authorization is not possible now") from None
        if refused and connection.machine.state != CLOSED:
            self._server.log.info(
                "client.subscriptions_removed", client_id=connection.client_id, count=len(refused), first=refused[0]
            )
            self._server.subscribing.conceal(connection)  # what is on its way comes yet
            await self._server.cluster.unsubscribe(attachment.ref, refused, True)
            gone = set(refused)
            attachment.subscriptions = [each for each in attachment.subscriptions if each.topic_filter not in gone]

    def establish(
        self,
        connection: Connection,
        agreement: Agreement,
        will: StoredWill | None,
        attachment: Attachment,
        authentication_data: bytes | None = None,
    ) -> None:
        """The client is in: routes, session, CONNACK."""
        ref = attachment.ref
        if will is not None:
            will.message.publisher = ref.session_id
            connection.has_will = True
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
        dispatch.set_persistent(subscriber, persistent)
        session = Session(
            connection,
            connection,
            persistent,
            agreement.receive_maximum,
            self._server.quotas.max_queued_messages,
            self._server.quotas.max_queued_bytes,
        )
        if connection.gate is not None:
            for stored in attachment.subscriptions:
                connection.gate.watch(stored.topic_filter)
        try:
            connection.established(agreement, ref, session, subscriber)
            connection.inbound = Inbound(connection, self._server, attachment.inbound)
            subscriber.session = session
            subscriber.connection = connection
            quotas = self._server.quotas
            if connection.max_packet_size:
                quotas = dataclasses.replace(quotas, max_packet_size=connection.max_packet_size)
            properties = connack_properties(agreement, quotas, authentication_data)
            if not connection.send(Connack(attachment.session_present, 0, properties)):  # [MQTT-3.1.2-24]
                connection.abort("packet_too_large")
                return
        except Exception:  # CONNACK is the first packet that a client gets, whatever happens [MQTT-3.2.0-1]
            connection.refuse(0x83, "an error of the server")
            raise
        self._server.metrics.connects["success"] += 1
        if attachment.session_present:
            self._server.metrics.sessions_resumed += 1
        connection.connected_at_ms = self._server.now_ms
        connection.epoch = attachment.epoch
        self._server.presence.connected(connection, agreement, attachment.session_present)
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

    async def _stored_will(self, connection: Connection, agreement: Agreement) -> StoredWill | None:
        will = agreement.will
        if will is None:
            return None
        made = self.stored_will(connection, will)
        permissions = connection.permissions
        if permissions is not None:
            allowed = permissions.may_publish(connection.will_topic, will.qos, will.retain)
            if allowed is None:
                try:
                    allowed = await permissions.ask_publish(connection.will_topic, will.qos, will.retain)
                except BackendError:  # logged
                    raise PeerError(0x88, "authorization is not possible now") from None
            if not allowed:
                raise PeerError(0x87, "not authorized to publish the will")
        return made

    def stored_will(self, connection: Connection, will: Will) -> StoredWill:
        """A will as it is stored, whoever may publish it. Raises PeerError."""
        properties = will.properties
        delay_s = 0
        expiry_s = -1
        forwardable = b""
        topic = will.topic_name.encode()
        if connection.mount is not None:
            topic = connection.mount.topic(topic)
        route = self._server.dispatch.route(topic)
        if route.refusal:
            raise PeerError(route.refusal, route.text)
        connection.will_topic = topic if route.delay is None else route.delay.topic
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
