"""One life of a node: from joining the cluster to leaving it, or to being taken for dead by the others.

All that a connection of this life holds (its reactor, the server, the routes, the member of the cluster) is made with
it and ends with it, so nothing can leak into the next.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Sequence

import trio

from broker.access import Access
from broker.auth.watch import PolicyWatch
from broker.config import Settings
from broker.errors import Fenced
from broker.limits.guard import LimitsGuard
from broker.limits.policy import Policy
from broker.log import get_logger
from broker.measuring.life import Measuring
from broker.metrics import Metrics
from broker.options.listener import Listener
from broker.process import causes
from broker.server import Server
from broker.session.quotas import Quotas
from broker.transport.certificates import Certificates
from broker.transport.entrance import Entrance
from broker.transport.listener import Acceptor, bind
from broker.transport.reactor import Reactor
from broker.transport.websocket import WebSockets
from cluster.api import Cluster

#: How long clients are left alone after the lease ran out, before the node goes on as without its store.
HOLD_S = 2.0

_log = get_logger("node")


def quotas_of(settings: Settings) -> Quotas:
    """The limits that connections know."""
    return Quotas(
        receive_maximum=settings.receive_maximum,
        max_inflight=settings.max_inflight,
        topic_alias_maximum=settings.topic_alias_maximum,
        max_packet_size=settings.max_packet_size,
        max_packet_size_before_auth=settings.max_packet_size_before_auth,
        max_queued_messages=settings.max_queued_messages,
        max_queued_bytes=settings.max_queued_bytes,
        session_expiry_max_s=settings.session_expiry_max_s,
        session_expiry_v3_s=settings.session_expiry_v3_s,
        max_keep_alive_s=settings.max_keep_alive_s,
        maximum_qos=settings.max_qos,
        retain_available=settings.retain_available,
        wildcard_available=settings.wildcard_available,
        shared_available=settings.shared_available,
        subscription_ids_available=settings.subscription_ids_available,
        max_subscriptions=settings.max_subscriptions_per_client,
        max_topic_levels=settings.max_topic_levels,
        max_topic_bytes=settings.max_topic_length,
        deny_disconnects=settings.deny_action == "disconnect",
        slow_consumer_disconnects=settings.slow_consumer == "disconnect",
        validate_payload_format=settings.validate_payload_format,
        response_information=settings.response_information,
    )


def strategy_of(settings: Settings) -> Callable[[str], str]:
    """How the shared subscriptions of a name, `$share/NAME/...`, choose among their members."""
    by_name = dict(settings.shared_strategies)
    return lambda share_name: by_name.get(share_name, settings.shared_strategy)


class Life:
    """`run` it once. `cluster` has not joined before `joined` is true."""

    def __init__(self, settings: Settings, cluster: Cluster, metrics: Metrics, shared_ports: bool = False) -> None:
        """With `shared_ports` other processes may listen on the same ports."""
        self._shared_ports = shared_ports
        self.cluster = cluster
        self.metrics = metrics
        self.access = Access(settings, cluster.registry, metrics)
        self.reactor = Reactor(lingers=True)
        self.server = Server(
            self.reactor,
            cluster,
            metrics,
            quotas_of(settings),
            self.access,
            connect_timeout_s=settings.connect_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
            output_buffer_bytes=settings.output_buffer_bytes,
            store_grace_s=settings.store_grace_s,
            max_connections=settings.max_connections,
            max_group_queue=settings.max_group_queue,
            strategy_of=strategy_of(settings),
            delayed_available=settings.delayed_available,
            node_name=settings.node_name,
            session_owner_any=settings.session_owner == "any",
            system_open=settings.sys_access == "all",
            will_grace_s=settings.will_failover_grace_s if settings.will_failover == "cancel" else 0.0,
        )
        self.measuring = Measuring(self.server)
        self.server.system_topics.retained = self._retained
        self.server.alarms.memory = lambda: self.measuring.store.memory
        self.server.alarms.overload = lambda: self.measuring.overload.why
        self.server.take_events(settings.sys_interval_s, settings.slow_threshold_s, settings.slow_expiry_s)
        self.guard = LimitsGuard(settings, cluster, metrics, self.server.start, lambda: self.reactor.now)
        self.server.guard = self.guard
        policy = Policy(self.access, self.guard, cluster.registry, self.server)
        self.policy = PolicyWatch(policy, cluster.registry, policy.changed)
        self.server.hooks = self.access.hooks
        self.joined = False
        self._settings = settings
        self.entrance = Entrance(
            self.reactor,
            metrics,
            settings.output_buffer_bytes,
            lambda: len(self.server.connections),
            settings.max_connections,
            settings.connection_rate,
            self.guard.origins,
        )
        self.entrance.banned = self.guard.bans_address
        self._listeners: list[Acceptor] = []
        self._open: Callable[[], None] = _nothing
        #: When the lease was first seen to be over, 0.0 while it holds.
        self._lapsed_s = 0.0

    async def run(
        self,
        sockets: list[socket.socket],
        listeners: Sequence[Listener],
        certificates: Sequence[Certificates | None],
        serve: Callable[[], Awaitable[None]],
    ) -> None:
        """Join, accept clients on the bound `sockets` until `serve` returns, leave. Of each socket there are its
        listener, with the address that it has, and its certificates. Those that were closed meanwhile are replaced.

        Raises (in a group) Fenced if other nodes took this one for dead, ClusterError if the store cannot be used,
        ConfigError if an address is taken.
        """
        carrying = trio.CancelScope(shield=True)
        try:
            async with trio.open_nursery() as carrier:
                carrier.start_soon(self._carry, carrying)
                try:
                    await self._live(sockets, listeners, certificates, serve)
                finally:
                    carrying.cancel()  # last: until here it carried the member's goodbye
        finally:
            self._end()

    async def _live(
        self,
        sockets: list[socket.socket],
        listeners: Sequence[Listener],
        certificates: Sequence[Certificates | None],
        serve: Callable[[], Awaitable[None]],
    ) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.server.run)
            await nursery.start(self._be_member)
            await nursery.start(self.access.serve)
            await nursery.start(self.guard.serve)
            await nursery.start(self.policy.serve)
            nursery.start_soon(self.measuring.serve)
            nursery.start_soon(self.server.system_topics.serve)
            nursery.start_soon(self.server.slow.serve)
            nursery.start_soon(self.server.topic_counts.serve)
            self.server.alarms.certificates = lambda: _expiries(listeners, certificates)
            nursery.start_soon(self.server.alarms.serve)
            self.joined = True
            self.reactor.hold = self._hold
            web = WebSockets(self.entrance, self.server.start, self.server.accept)

            def open_all() -> None:
                for number, (shown, told) in enumerate(zip(certificates, listeners, strict=True)):
                    if sockets[number].fileno() < 0:
                        sockets[number] = bind(told, self._shared_ports)
                    accept = web.accept if told.web else self.server.accept
                    listener = Acceptor(sockets[number], told, self.entrance, shown, accept)
                    listener.start()
                    self._listeners.append(listener)

            self._open = open_all
            open_all()
            await serve()
            await self.server.inside.close()
            nursery.cancel_scope.cancel()

    async def _carry(self, scope: trio.CancelScope) -> None:
        self.reactor.turn_hooks.append(self.cluster.flush)
        with scope:
            await self.reactor.run()

    async def _be_member(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self.cluster.serve(self.server, self.reactor, task_status=task_status)
        except BaseException as error:
            if any(isinstance(cause, Fenced) for cause in causes(error)):
                self._drop_everything()
            raise

    def _drop_everything(self) -> None:
        """At once: nobody may get anything of this life any more, and nothing of it may reach the store."""
        self.reactor.turn_hooks.clear()
        self.server.abandon("fenced")
        self.reactor.drop_clients()

    def _retained(self) -> tuple[int, int]:
        """Retained messages and their bytes, as of the last look."""
        return self.measuring.store.retained or 0, 0

    def policy_changed(self) -> None:
        """Users, rules or bans are not what they were: all connections are looked at again."""
        self.server.recheck()

    def close_listeners(self) -> None:
        """Accept nobody any more. Idempotent."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def open_listeners(self) -> None:
        """Accept clients again. Raises ConfigError if somebody else listens there by now."""
        if not self._listeners:
            self._open()

    def _end(self) -> None:
        self.server.abandon("stopped")
        self.reactor.close()
        self.metrics.bytes_received += self.reactor.received_bytes
        self.metrics.bytes_sent += self.reactor.sent_bytes
        self.reactor.received_bytes = self.reactor.sent_bytes = 0

    def _hold(self) -> bool:
        """Whether clients have to wait: this node may have been taken for dead while it was paused, and not know it.

        A beat's answer decides it. Should none come, the node goes on as it does without its store.
        """
        if self.cluster.holds_lease():
            if self._lapsed_s:
                self._lapsed_s = 0.0
                self.server.dispatch.suspend(False)
            return False
        if self.server.dispatch.suspended:
            return False
        now = time.monotonic()
        if not self._lapsed_s:
            self._lapsed_s = now
            _log.warning("node.lease_over")
        if now - self._lapsed_s < HOLD_S:
            return True
        self.server.dispatch.suspend(True)
        return False


def _nothing() -> None:
    pass


def _expiries(listeners: Sequence[Listener], certificates: Sequence[Certificates | None]) -> dict[str, float]:
    """When certificates end, in seconds since the epoch, by listener and name."""
    return {
        f"{listener.name} {name}".strip(): ends_at_s
        for listener, shown in zip(listeners, certificates, strict=True)
        if shown is not None
        for name, ends_at_s in shown.expiries.items()
    }
