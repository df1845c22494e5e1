"""Keeps clients out that are banned or too many, and gives the others their rates. Implements `broker.guard.Guard`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from broker.auth.api import ConnectRequest, Principal
from broker.errors import ClusterError, PeerError, StoreUnavailable
from broker.limits.attempts import Attempts
from broker.limits.ban_mirror import BanMirror
from broker.limits.bans import Ban
from broker.limits.meter import Meter
from broker.limits.origins import Origins
from broker.limits.places import RECOUNT_S, Places
from broker.limits.quiet import Quiet
from broker.limits.tenants import Tenant, Tenants
from broker.log import get_logger
from broker.metrics import Metrics
from broker.options.listener import Listener
from broker.transport.api import Stream
from cluster.api import Cluster
from cluster.registry import BANS, Occupied

if TYPE_CHECKING:
    from broker.config import Settings
    from broker.connection import Connection

#: Answers of authentication that are failed logins: bad user name or password, not authorized.
FAILURES: Final = frozenset((0x86, 0x87))
#: Ends of connections that are being counted; more are not.
MAX_COUNTING: Final = 1000
#: Pause before bans are asked for again.
AGAIN_S: Final = 0.5
#: With so many bans no further ones are made without being asked.
MAX_BANS: Final = 10_000
#: Documents that are removed in one step.
MAX_REMOVED: Final = 1000
#: What a banned client is told: not the reason, which is for operators.
TEXT: Final = "banned"

_log = get_logger("limits")


class _Admitted:
    """What a connection has to give back."""

    __slots__ = ("places", "tenant")

    def __init__(self, places: list[Occupied], tenant: Tenant | None) -> None:
        self.places = places
        self.tenant = tenant


class LimitsGuard:
    """`serve` it before the first client. `spawn` runs a task of the server's."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        metrics: Metrics,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
        now: Callable[[], float],
    ) -> None:
        """`now` is the reactor's clock. ConfigError for a wrong `tenant`."""
        self._cluster = cluster
        self._registry = cluster.registry
        self._metrics = metrics
        self._spawn = spawn
        self._now = now
        self._mirror = BanMirror()
        self._bans = self._mirror.bans
        self._reading = trio.Lock()
        self._banning = False
        self._quiet = Quiet()
        self._attempts = Attempts(self._registry, self._ban, self._now_s, settings)
        self._places = Places(self._registry, settings.max_connections_per_user, settings.max_connections_per_ip)
        self._tenants = Tenants(
            self._registry, settings.tenant, settings.tenant_message_rate, settings.tenant_byte_rate
        )
        self._rates = (settings.message_rate, settings.byte_rate)
        self._admitted: dict[Connection, _Admitted] = {}
        #: Network connections of this node by address, those that have not said CONNECT included; for the entrance too.
        self.origins = Origins(settings.max_connections_per_ip)
        self._counting = 0
        self._store_is_back = trio.Event()

    def take_settings(self, settings: Settings) -> None:
        """They changed: that counts for those who connect from now on. Tenants stay as they were at the start."""
        self._attempts.take_settings(settings)
        self._places.per_user = settings.max_connections_per_user
        self._places.per_ip = self.origins.limit = settings.max_connections_per_ip
        self._rates = (settings.message_rate, settings.byte_rate)

    def _now_s(self) -> float:
        return self._cluster.now_ms() / 1000

    # -- life

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. It is started once bans were read: nobody comes in before. Raises ClusterError where that is
        not possible at all."""
        while True:
            try:
                await self.refresh()
                break
            except StoreUnavailable as error:
                _log.warning("limits.bans_not_read", error=str(error))
                await trio.sleep(AGAIN_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tenants.serve)
            task_status.started()
            pause_s = RECOUNT_S
            while True:
                with trio.move_on_after(pause_s):
                    await self._store_is_back.wait()
                self._store_is_back = trio.Event()
                pause_s = await self._places.recount()
                if any(not ban.holds(self._now_s()) for ban in self._bans):
                    try:
                        await self.refresh()
                    except ClusterError as error:
                        _log.warning("limits.bans_not_read", error=str(error))

    def banning(self) -> bool:
        """Whether there are bans since the last call that are about connected clients too."""
        found, self._banning = self._banning, False
        return found

    async def refresh(self) -> None:
        """Reads the bans; those that are over are removed. Raises ClusterError: then all stays as it was."""
        async with self._reading:
            documents = await self._registry.documents(BANS)
            new, over, wrong = await self._mirror.update(documents, self._now_s())
        if any(not ban.new_only for ban in new):
            self._banning = True
        for text in wrong[:10]:
            _log.warning("limits.wrong_ban", error=text)
        gone = list(over.items())
        for at in range(0, len(gone), MAX_REMOVED):
            await self._registry.remove(BANS, dict(gone[at : at + MAX_REMOVED]))

    async def _ban(self, ban: Ban) -> None:
        if len(self._bans) >= MAX_BANS:
            self._count("bans_full")
            self._tell("limits.bans_full", ban.by, kind=ban.kind, value=ban.value, limit=MAX_BANS)
            return
        self._bans.add(ban)  # here at once, elsewhere as soon as they look
        self._banning = self._banning or not ban.new_only
        self._count(f"ban_{ban.by}")
        self._tell("limits.banned", ban.by, kind=ban.kind, value=ban.value, reason=ban.reason)
        try:
            document = ban.document()
            await self._registry.change(BANS, {ban.name: document})
            async with self._reading:
                self._mirror.stored(ban, document)
        except ClusterError as error:
            self._tell("limits.ban_not_stored", ban.by, error=str(error))

    def _tell(self, event: str, what: str, **fields: object) -> None:
        silent = self._quiet.tells(f"{event} {what}")
        if silent is not None:
            _log.warning(event, by=what, **fields, **({"silent": silent} if silent else {}))

    def _count(self, what: str) -> None:
        self._metrics.limits[what] += 1

    # -- Guard

    def bans_address(self, host: str) -> bool:
        """Whether a network connection from there is closed before a byte of it is read."""
        return self._bans.of_host(host, self._now_s()) is not None

    def accepts(self, stream: Stream, listener: Listener) -> str | None:
        """See `Guard`."""
        host = stream.peer.host
        if self.bans_address(host):
            return "banned"
        return None if self.origins.enter(stream, host) else "max_connections_per_ip"

    async def screen(self, request: ConnectRequest) -> None:
        """See `Guard`."""
        self._refuse(self._ban_of_request(request))

    def screens(self, request: ConnectRequest) -> bool:
        """See `Guard`."""
        return not self._bans or self._ban_of_request(request) is None

    def _ban_of_request(self, request: ConnectRequest) -> Ban | None:
        now_s = self._now_s()
        bans = self._bans
        return (
            bans.of_host(request.peer.host, now_s)
            or bans.of_client_id(request.client_id, now_s)
            or bans.of_username(request.username, now_s)
        )

    async def failed(self, request: ConnectRequest, error: PeerError) -> None:
        """See `Guard`."""
        if error.reason_code in FAILURES and not self.bans_address(request.peer.host):
            await self._attempts.failed(request.peer.host, request.username)

    async def admit(self, connection: Connection) -> None:
        """See `Guard`: sets `connection.meter`. Raises StoreUnavailable too."""
        principal = connection.principal
        assert principal is not None
        self._refuse(self._ban_of_principal(principal))
        places = self._places.wanted(principal)
        if places:
            await self._take(places, principal)
        done = False
        try:
            tenant = await self._tenants.of(principal)
            done = True
        finally:
            if not done and places:
                self._places.give_back(places)
        self._measure(connection, tenant)
        if places or tenant is not None:
            self._admitted[connection] = _Admitted(places, tenant)

    def admits(self, connection: Connection) -> bool:
        """See `Guard`: where there are neither places nor tenants."""
        principal = connection.principal
        assert principal is not None
        if (
            (self._bans and self._ban_of_principal(principal) is not None)
            or self._tenants.any
            or self._places.wanted(principal)
        ):
            return False
        self._measure(connection, None)
        return True

    def _ban_of_principal(self, principal: Principal) -> Ban | None:
        """As above, for names that authentication has given."""
        now_s = self._now_s()
        return self._bans.of_client_id(principal.client_id, now_s) or self._named(principal, now_s)

    def _measure(self, connection: Connection, tenant: Tenant | None) -> None:
        options = connection.listener.options
        message_rate, byte_rate = options.message_rate or self._rates[0], options.byte_rate or self._rates[1]
        if message_rate or byte_rate or tenant is not None:
            connection.meter = Meter(message_rate, byte_rate, self._now(), tenant, self._metrics.limits)

    async def _take(self, places: list[Occupied], principal: Principal) -> None:
        full = await self._places.take(places)
        if full is None:
            return
        if await self._cluster.connected(principal.client_id, principal.identity):
            # It takes its own session over: the older connection gives its place back.
            full = await self._places.take([Occupied(place.name, place.limit + 1) for place in places])
            if full is None:
                return
        kind = "user" if full.startswith("user:") else "ip"
        self._count(f"places_{kind}")
        raise PeerError(0x97, f"too many connections of this {'user' if kind == 'user' else 'address'}")

    def left(self, connection: Connection) -> None:
        """See `Guard`."""
        self.origins.leave(connection.stream)
        admitted = self._admitted.pop(connection, None)
        if admitted is not None:
            if admitted.places:
                self._places.give_back(admitted.places)
            if admitted.tenant is not None:
                self._tenants.left(admitted.tenant)
        if connection.ref is not None and self._attempts.counts_ends(connection.close_reason):
            self._ended(connection.client_id)

    def _ended(self, client_id: str) -> None:
        if self._counting >= MAX_COUNTING or self._bans.of_client_id(client_id, self._now_s()):
            return
        self._counting += 1

        async def work() -> None:
            try:
                await self._attempts.ended(client_id)
            finally:
                self._counting -= 1

        self._spawn(work)

    def store_available(self) -> None:
        """See `Guard`: places that were given back meanwhile are still taken in the store."""
        self._places.doubt()
        self._store_is_back.set()

    def ban_of(self, principal: Principal) -> str | None:
        """See `Guard`."""
        now_s = self._now_s()
        for ban in (
            self._bans.of_host(principal.peer.host, now_s),
            self._bans.of_client_id(principal.client_id, now_s),
            self._named(principal, now_s),
        ):
            if ban is not None and not ban.new_only:
                return TEXT
        return None

    def _named(self, principal: Principal, now_s: float) -> Ban | None:
        return self._bans.of_username(principal.username, now_s) or self._bans.of_username(
            principal.identity or None, now_s
        )

    def _refuse(self, ban: Ban | None) -> None:
        if ban is not None:
            self._count(f"banned_{ban.kind}")
            raise PeerError(0x8A, TEXT)
