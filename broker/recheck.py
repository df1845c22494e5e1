"""Looking again at clients that are connected, after users, rules or bans changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from broker.auth.api import BackendError
from broker.connection import Connection
from broker.errors import SessionLost, StoreUnavailable
from broker.gate import Permissions
from broker.log import get_logger
from broker.routes import Subscriber
from broker.session.machine import CLOSED, OPEN
from broker.topics.names import split_shared
from cluster.api import SessionRef

if TYPE_CHECKING:
    from broker.server import Server

_log = get_logger("authorization")

#: Connections that are looked at at a time: some may have to ask somebody.
WORKERS: Final = 16

#: Pause before somebody who did not answer is asked again.
RETRY_S: Final = 5.0

#: How long the store may take to forget a subscription before the client is disconnected all the same.
STORE_TIMEOUT_S: Final = 2.0


class Rechecking:
    """All connections of a node, one run after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        #: Grows with every change; a run covers all changes before it.
        self.version = 0
        self._done = 0
        self._running = False
        #: Those with subscriptions or a will that somebody has to be asked about, and those for whom nobody answered.
        self._unsure: dict[Connection, None] = {}
        self._unanswered: dict[Connection, None] = {}
        self._asking = False
        self._more = trio.Event()

    def all(self) -> None:
        """Something changed that may concern anybody."""
        self.version += 1
        if not self._running:
            self._running = True
            self._server.start(self._run)

    def one(self, connection: Connection) -> None:
        """Something changed that may concern this connection."""
        self._server.start(partial(self._look, connection))

    async def _run(self) -> None:
        try:
            while self._done != self.version:
                self._done = self.version
                # Who has to go does not wait for what others may do.
                await self._each(iter(list(self._server.connections)), self._stays)
                await self._each(iter(list(self._server.connections)), self._renew)
        finally:
            self._running = False

    async def _each(self, connections: Iterator[Connection], look: Callable[[Connection], Awaitable[object]]) -> None:
        async def work() -> None:
            for connection in connections:
                await trio.lowlevel.checkpoint()  # others get their turn between any two
                try:
                    await look(connection)
                except Exception:
                    _log.exception("authorization.recheck_failed", client_id=connection.client_id)

        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(work)

    async def renew(self, connection: Connection) -> None:
        """Whether the client may stay; and what it may do, by the rules of now."""
        if await self._stays(connection):
            await self._renew(connection)

    async def _stays(self, connection: Connection) -> bool:
        """Whether the client may stay; one that may not is gone."""
        server = self._server
        principal = connection.principal
        if principal is None or connection.machine.state != OPEN:
            return False  # one that is being opened looks itself whether anything changed meanwhile
        ban = server.guard.ban_of(principal)
        if ban:
            connection.send_will = False  # whoever is thrown out has no last word
            connection.disconnect(0x98, ban)  # "banned" is a reason of CONNACK only
            return False
        if not await server.access.chain.still_valid(principal):
            _log.info("client.not_valid", client_id=connection.client_id, username=principal.username)
            connection.send_will = False
            connection.disconnect(0x87, "the client would not be let in any more")
            return False
        return True

    async def _renew(self, connection: Connection) -> None:
        """What the client may do, by the rules of now."""
        principal = connection.principal
        if principal is None or connection.machine.state != OPEN:
            return
        permissions = connection.permissions
        try:
            if permissions is not None:
                if not await permissions.renew():
                    return
            else:
                found = await self._server.access.permissions(principal)
                if found.unrestricted:
                    return
                self.restrict(connection, found)
        except BackendError as error:
            # It goes on by the rules of before; the source is asked again at the next change.
            _log.warning("authorization.not_renewed", client_id=connection.client_id, error=str(error))
            return
        await self._look(connection)

    def restrict(self, connection: Connection, permissions: Permissions | None) -> None:
        """These are the permissions of the connection from now on."""
        hooks = self._server.hooks
        principal = connection.principal
        told = partial(hooks.delivered, principal) if hooks is not None and hooks.delivers and principal else None
        if permissions is not None and connection.machine.state != CLOSED:
            permissions.changed = partial(self.one, connection)
        connection.permit(permissions, connection.mount, hooks if hooks is not None and hooks.publishes else None, told)

    async def _look(self, connection: Connection, ask: bool = False) -> None:
        """Will and subscriptions by the permissions of now: with one that is not allowed the client has to go. What
        somebody has to be asked about is left to `_ask_all`, and stays until it is known not to be allowed."""
        connection.rechecks += 1
        permissions, subscriber, ref = connection.permissions, connection.subscriber, connection.ref
        if permissions is None or subscriber is None or ref is None or connection.machine.state != OPEN:
            return
        gate = connection.gate
        assert gate is not None
        for topic_filter in subscriber.subscriptions:
            gate.watch(topic_filter)
        connection.update_plain()
        asked, unsure = ask, False
        allowed = await self._will_allowed(connection, permissions, ask)
        if allowed is None:
            unsure = True
            ask = False  # whoever was not there just now keeps nobody waiting again
        elif not allowed:
            connection.send_will = False
            _log.info("client.will_refused", client_id=connection.client_id, topic=connection.will_topic)
            connection.disconnect(0x87, "not authorized to publish the will")
            return
        refused: list[str] = []
        for name, known in list(subscriber.subscriptions.items()):
            plain = split_shared(name)[1]
            allowed = permissions.subscribable(plain, known.qos)
            if allowed is None and ask:
                try:
                    allowed = await permissions.may_subscribe(plain, known.qos)
                except BackendError:  # logged
                    ask = False
            if allowed is None:
                unsure = True
            elif not allowed:
                refused.append(name)
        if connection.machine.state != OPEN or connection.subscriber is not subscriber:
            return
        refused = [name for name in refused if name in subscriber.subscriptions]
        if refused:
            await self._remove(connection, subscriber, ref, refused)
        elif unsure and asked:
            self._unanswered[connection] = None
        elif unsure:
            self._unsure[connection] = None
            self._more.set()
            if not self._asking:
                self._asking = True
                self._server.start(self._ask_all)

    async def _ask_all(self) -> None:
        """Ask about those of whom nothing is known otherwise, again and again where nobody answers."""
        try:
            while self._unsure or self._unanswered:
                if not self._unsure:
                    self._more = trio.Event()
                    with trio.move_on_after(RETRY_S):
                        await self._more.wait()
                    self._unsure.update(self._unanswered)
                    self._unanswered.clear()
                await self._each(self._next_unsure(), partial(self._look, ask=True))
        finally:
            self._asking = False

    def _next_unsure(self) -> Iterator[Connection]:
        while self._unsure:
            connection = next(iter(self._unsure))
            del self._unsure[connection]
            yield connection

    async def _remove(
        self, connection: Connection, subscriber: Subscriber, ref: SessionRef, refused: Sequence[str]
    ) -> None:
        _log.info("client.subscriptions_removed", client_id=connection.client_id, count=len(refused), first=refused[0])
        for name in refused:
            self._server.dispatch.remove(subscriber, name)
        with trio.move_on_after(STORE_TIMEOUT_S):
            try:
                await self._server.cluster.unsubscribe(ref, refused, subscriber.persistent)
            except (SessionLost, StoreUnavailable) as error:  # looked at again when the client comes back
                _log.warning("client.subscriptions_not_stored", client_id=connection.client_id, error=str(error))
        shown = refused[0] if connection.mount is None else connection.mount.seen(refused[0])
        connection.disconnect(0x87, f"not authorized to subscribe to {shown!r:.200}")

    async def _will_allowed(self, connection: Connection, permissions: Permissions, ask: bool) -> bool | None:
        agreement = connection.agreement
        if not connection.has_will or not connection.send_will or agreement is None or agreement.will is None:
            return True
        will = agreement.will
        allowed = permissions.may_publish(connection.will_topic, will.qos, will.retain)
        if allowed is None and ask:
            try:
                return await permissions.ask_publish(connection.will_topic, will.qos, will.retain)
            except BackendError:  # logged
                return None
        return allowed
