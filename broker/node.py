"""A node: everything composed, started in order, drained and stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import trio

from broker import __version__
from broker.auth.api import Authenticators
from broker.auth.scram import ScramSha256
from broker.auth.users import UserFile, UserFilePasswords
from broker.config import SETTINGS, Settings
from broker.errors import BrokerError, ConfigError
from broker.http.app import HttpServer
from broker.log import configure, get_logger
from broker.metrics import Metrics
from broker.server import Server
from broker.session.quotas import Quotas
from broker.transport.listener import TcpListener
from broker.transport.reactor import Reactor
from cluster.api import Cluster
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from cluster.redis.address import parse_store_url
from cluster.redis.embedded import EmbeddedServer
from cluster.redis.store import RedisCluster

OK = 0
FAILED = 1
MISCONFIGURED = 2


def run(settings: Settings, reload: Callable[[], Settings] | None = None) -> int:
    """Serve until told to stop; returns the exit status. Errors are told in one line on standard error.

    `reload` reads the settings again, for SIGHUP.
    """
    try:
        trio.run(Node(settings, reload).serve)
    except BaseExceptionGroup as group:
        error = _first(group)
        if isinstance(error, KeyboardInterrupt):
            return OK
        if not isinstance(error, BrokerError | OSError):
            raise
        sys.stderr.write(f"rookery: {error}\n")
        return MISCONFIGURED if isinstance(error, ConfigError) else FAILED
    except (BrokerError, OSError) as error:
        sys.stderr.write(f"rookery: {error}\n")
        return MISCONFIGURED if isinstance(error, ConfigError) else FAILED
    return OK


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


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
        validate_payload_format=settings.validate_payload_format,
        response_information=settings.response_information,
    )


class Node:
    """One process of the cluster."""

    def __init__(self, settings: Settings, reload: Callable[[], Settings] | None = None) -> None:
        self.settings = settings
        self._reload = reload
        self._users: UserFile | None = None
        self.log = get_logger("node")
        self.reactor = Reactor()
        self.metrics = Metrics()
        self.cluster: Cluster
        self.server: Server
        self.listeners: list[TcpListener] = []
        self.ready = False

    @property
    def name(self) -> str:
        """The name of the node in its cluster."""
        return self.settings.node_name

    async def serve(self) -> None:
        """Start everything, serve until a signal, drain, stop."""
        settings = self.settings
        _raise_file_limit()
        users = self._users = UserFile(settings.scram_file) if settings.scram_file is not None else None
        authenticators = Authenticators(
            settings.anonymous_allowed,
            UserFilePasswords(users) if users is not None else None,
            [ScramSha256(users)] if users is not None else [],
        )
        cluster_scope, cluster_left = trio.CancelScope(), trio.Event()
        async with trio.open_nursery() as store_nursery:
            self.cluster = await self._store(store_nursery)
            async with trio.open_nursery() as nursery:
                self.server = Server(
                    self.reactor,
                    self.cluster,
                    self.metrics,
                    quotas_of(settings),
                    authenticators,
                    connect_timeout_s=settings.connect_timeout_s,
                    stall_timeout_s=settings.stall_timeout_s,
                    output_buffer_bytes=settings.output_buffer_bytes,
                    store_grace_s=settings.store_grace_s,
                    max_connections=settings.max_connections,
                    max_group_queue=settings.max_group_queue,
                )
                self.reactor.turn_hooks.append(self.cluster.flush)
                nursery.start_soon(self.reactor.run)
                await nursery.start(self.server.run)
                for endpoint in settings.listen:
                    self.listeners.append(
                        TcpListener(
                            endpoint.host, endpoint.port, self.reactor, settings.output_buffer_bytes, self.server.accept
                        )
                    )
                await nursery.start(self._serve_cluster, cluster_scope, cluster_left)
                http = None
                if settings.http is not None:
                    http = HttpServer(self, settings.http)
                    await nursery.start(http.serve)
                for listener in self.listeners:
                    listener.start()
                self.ready = True
                self._announce(http)
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                    await self._wait_for_stop(signals)
                    async with trio.open_nursery() as stopping:
                        stopping.start_soon(self._second_signal, signals, stopping.cancel_scope)
                        await self._stop()
                        stopping.cancel_scope.cancel()
                cluster_scope.cancel()  # first, while the reactor can still carry its goodbye
                await cluster_left.wait()
                nursery.cancel_scope.cancel()
            store_nursery.cancel_scope.cancel()
        self.log.info("node.stopped")

    async def _serve_cluster(
        self, scope: trio.CancelScope, left: trio.Event, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            with scope:
                await self.cluster.serve(self.server, self.reactor, task_status=task_status)
        finally:
            left.set()

    async def _store(self, nursery: trio.Nursery) -> Cluster:
        settings = self.settings
        limits = ClusterLimits(
            max_queued_messages=settings.max_queued_messages,
            max_queued_bytes=settings.max_queued_bytes,
            max_group_queue=settings.max_group_queue,
            will_failover_grace_s=settings.will_failover_grace_s,
            inflight=settings.max_inflight,
        )
        if settings.store == "memory":
            return MemoryCluster(settings.node_name, limits)
        if settings.store == "embedded":
            address = await nursery.start(EmbeddedServer(settings.data_dir).serve)
        else:
            address = parse_store_url(
                settings.store, username=settings.store_username or None, password=settings.store_password or None
            )
        return RedisCluster(address, settings.node_name, limits, settings.namespace, settings.partition_count)

    async def _wait_for_stop(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number != signal.SIGHUP:
                self.log.info("node.stopping", signal=signal.Signals(number).name)
                return
            try:
                self._reload_settings()
            except ConfigError as error:
                self.log.warning("node.not_reloaded", error=str(error))

    def _reload_settings(self) -> None:
        """Read settings and users again; what cannot change while the node runs is named."""
        if self._users is not None:
            self._users.reload()
        if self._reload is None:
            return
        new = self._reload()
        changed = [item for item in SETTINGS if getattr(new, item.attribute) != getattr(self.settings, item.attribute)]
        needs_restart = [item.name for item in changed if not item.reload]
        applied = {item.attribute: getattr(new, item.attribute) for item in changed if item.reload}
        settings = self.settings = dataclasses.replace(self.settings, **applied)
        configure(settings.log_level, settings.log_format)
        server = self.server
        server.quotas = quotas_of(settings)
        server.connect_timeout_s = settings.connect_timeout_s
        server.stall_timeout_s = settings.stall_timeout_s
        server.max_connections = settings.max_connections
        self.log.info("node.reloaded", changed=sorted(item.name for item in changed if item.reload))
        if needs_restart:
            self.log.warning("node.restart_needed", settings=needs_restart)

    async def _second_signal(self, signals: AsyncIterator[int], draining: trio.CancelScope) -> None:
        """A second signal ends the drain, a third everything."""
        async for number in signals:
            if number == signal.SIGHUP:
                continue
            self.log.warning("node.hurried", signal=signal.Signals(number).name)
            if draining.cancel_called:
                os._exit(FAILED)
            draining.cancel()

    async def _stop(self) -> None:
        """Stop accepting, let the clients go at a pace, flush."""
        self.ready = False
        for listener in self.listeners:
            listener.close()
        await self.server.drain(self.settings.drain_rate, self.settings.drain_timeout_s)

    def _announce(self, http: HttpServer | None) -> None:
        health = self.cluster.health()
        self.log.info(
            "node.ready",
            version=__version__,
            node=self.settings.node_name,
            store=health.kind,
            store_version=health.version or None,
            durability=health.durability,
        )
        urls = [f"tcp://{_authority(listener.host, listener.port)}" for listener in self.listeners]
        for url in urls:
            self.log.info("listener.ready", url=url)
        if http is not None:
            self.log.info("http.ready", url=f"http://{http.authority}")
        if self.settings.ready_file is not None:
            _write_ready(
                self.settings.ready_file,
                {"listeners": urls, "http": http.authority if http is not None else None, "pid": os.getpid()},
            )


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _write_ready(path: Path, content: dict[str, object]) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
