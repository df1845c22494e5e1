"""The short way from CONNECT to CONNACK: without a task, for clients about whom nobody has to be asked but the store.

It is taken where there are neither hooks nor authenticators nor rules, no limits that others count, no trace, and no
other connection of the client id. All it does is what `broker.opening` does for everybody; from where something takes
longer than one answer of the store, that goes on with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from broker.auth.api import ConnectRequest
from broker.errors import StoreUnavailable
from broker.mount import mount_of
from broker.session.machine import OPEN
from cluster.api import Attachment, AttachRequest, StoredWill

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.opening import Opening
    from broker.server import Server
    from broker.session.negotiation import Agreement

#: How long a client waits for its session.
WAIT_S: Final = 5.0


class Straight:
    """Of one node."""

    def __init__(self, server: Server, opening: Opening) -> None:
        self._server = server
        self._opening = opening
        #: Who waits for the store, in the order of their time, with that.
        self._waiting: dict[Connection, float] = {}
        self._watched = False

    def open(self, connection: Connection, agreement: Agreement, request: ConnectRequest) -> bool:
        """Open the connection; False if it is not one for this way: then nothing was done that is not done again.
        Raises PeerError."""
        server = self._server
        options = connection.listener.options
        client_id = agreement.client_id
        if (
            server.tracer is not None
            or (server.hooks is not None and server.hooks.connects)
            or agreement.authentication_method is not None
            or client_id in server.clients
            or server.draining
            or not server.guard.screens(request)
        ):
            return False
        principal = server.access.stranger(request, options)
        if principal is None:
            return False
        connection.principal = principal
        if not server.guard.admits(connection):
            return False
        server.metrics.authentication["anonymous,allow"] += 1
        connection.mount = mount_of(principal, options.mountpoint)
        server.rechecking.restrict(connection, None)
        will = None if agreement.will is None else self._opening.stored_will(connection, agreement.will)
        identity = None if server.session_owner_any else principal.identity
        server.clients[client_id] = connection
        server.early.begin()
        self._wait(connection)
        server.cluster.attach_then(
            AttachRequest(client_id, agreement.clean_start, agreement.expiry_s, will, identity=identity),
            partial(self._answered, connection, agreement, will),
        )
        return True

    def _answered(
        self,
        connection: Connection,
        agreement: Agreement,
        will: StoredWill | None,
        outcome: Attachment | Exception | Callable[[], Awaitable[Attachment]],
    ) -> None:
        """What the store says."""
        opening = self._opening
        server = self._server
        waited = self._waiting.pop(connection, None) is not None
        if isinstance(outcome, Attachment) and not opening.may_keep(connection, outcome):
            outcome = partial(_known, outcome)
        if not isinstance(outcome, (Attachment, Exception)):
            opening.go_on(connection, agreement, will, outcome)
            return
        try:
            if isinstance(outcome, Exception):
                server.forget(connection)
                if waited:
                    opening.failed(connection, outcome)
            elif opening.found(connection, agreement, outcome):
                opening.establish(connection, agreement, will, outcome)
        except Exception as error:
            opening.failed(connection, error)
        server.early.end()
        if server.rechecking.version != connection.rules_version and connection.machine.state == OPEN:
            opening.renew(connection)
        else:
            connection.work_done()
        server.reactor.wake()  # for what this told the store, where no turn called back

    def _wait(self, connection: Connection) -> None:
        at = self._server.reactor.now + WAIT_S
        self._waiting[connection] = at
        if not self._watched:
            self._watched = True
            self._server.reactor.watch_deadline(self, at)

    def check_deadline(self, now: float) -> float:
        """Clients that waited for too long are told so. Their client ids are free once the store has answered."""
        for connection, until in list(self._waiting.items()):
            if until > now:
                return until
            del self._waiting[connection]
            self._opening.failed(connection, StoreUnavailable("the store is slow, or lacks replicas"))
        self._watched = False
        return 0.0


async def _known(attachment: Attachment) -> Attachment:
    return attachment
