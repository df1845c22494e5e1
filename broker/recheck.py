"""Looking again at clients that are connected, after users, rules or bans changed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from broker.auth.api import BackendError
from broker.connection import Connection
from broker.errors import SessionLost, StoreUnavailable
from broker.gate import Permissions
from broker.log import get_logger
from broker.session.machine import CLOSED, OPEN
from broker.topics.names import split_shared

if TYPE_CHECKING:
    from broker.server import Server

_log = get_logger("authorization")

#: Connections that are looked at at a time: some may have to ask somebody.
WORKERS: Final = 16

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
                waiting = iter(list(self._server.connections))
                async with trio.open_nursery() as nursery:
                    for _ in range(WORKERS):
                        nursery.start_soon(self._work, waiting)
        finally:
            self._running = False

    async def _work(self, waiting: Iterator[Connection]) -> None:
        for connection in waiting:
            await trio.lowlevel.checkpoint()  # others get their turn between any two
            try:
                await self.renew(connection)
            except Exception:
                _log.exception("authorization.recheck_failed", client_id=connection.client_id)

    async def renew(self, connection: Connection) -> None:
        """Whether the client may stay; and what it may do, by the rules of now."""
        server = self._server
        principal = connection.principal
        if principal is None or connection.machine.state != OPEN:
            return  # one that is being opened looks itself whether anything changed meanwhile
        ban = server.guard.ban_of(principal)
        if ban:
            connection.disconnect(0x98, ban)  # "banned" is a reason of CONNACK only
            return
        if not await server.access.chain.still_valid(principal):
            _log.info("client.not_valid", client_id=connection.client_id, username=principal.username)
            connection.disconnect(0x87, "the client would not be let in any more")
            return
        permissions = connection.permissions
        try:
            if permissions is not None:
                await permissions.renew()
            else:
                found = await server.access.permissions(principal)
                if found.unrestricted:
                    return
                permissions = found
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

    async def _look(self, connection: Connection) -> None:
        """Will and subscriptions by the permissions of now: with one that is not allowed the client has to go."""
        connection.rechecks += 1
        permissions, subscriber, ref = connection.permissions, connection.subscriber, connection.ref
        if permissions is None or subscriber is None or ref is None or connection.machine.state != OPEN:
            return
        gate = connection.gate
        assert gate is not None
        for topic_filter in subscriber.subscriptions:
            gate.watch(topic_filter)
        connection.update_plain()
        if not await self._will_allowed(connection, permissions):
            connection.send_will = False
            _log.info("client.will_refused", client_id=connection.client_id, topic=connection.will_topic)
            connection.disconnect(0x87, "not authorized to publish the will")
            return
        refused: list[str] = []
        for name, known in list(subscriber.subscriptions.items()):
            try:
                if not await permissions.may_subscribe(split_shared(name)[1], known.qos):
                    refused.append(name)
            except BackendError:  # that nobody can say takes nothing away
                continue
        if not refused or connection.machine.state != OPEN or connection.subscriber is not subscriber:
            return
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

    async def _will_allowed(self, connection: Connection, permissions: Permissions) -> bool:
        agreement = connection.agreement
        if not connection.has_will or not connection.send_will or agreement is None or agreement.will is None:
            return True
        will = agreement.will
        allowed = permissions.may_publish(connection.will_topic, will.qos, will.retain)
        if allowed is None:
            try:
                return await permissions.ask_publish(connection.will_topic, will.qos, will.retain)
            except BackendError:
                return True
        return allowed
