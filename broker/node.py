"""A node: everything composed, started in order, drained and stopped; joined again when it was taken for dead."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import trio

from broker import __version__
from broker.access import Access
from broker.admin.api import UNAVAILABLE, AdminError, Caller
from broker.admin.office import Office
from broker.config import Settings, reloaded
from broker.errors import ClusterError, ConfigError, Fenced, StoreUnavailable
from broker.http.app import HttpServer
from broker.http.report import DRAINING, FENCED, JOINING, OVERLOADED, READY, STARTING, UNREACHABLE, Report
from broker.life import Life, quotas_of
from broker.log import configure, get_logger
from broker.measuring.life import build_samples, certificate_samples
from broker.metrics import Metrics
from broker.metrics_catalogue import Samples
from broker.notify import Notifier
from broker.process import FAILED, OK, STOP_S, causes, raise_file_limit, run_to_the_end, write_ready
from broker.stores import Address, make_cluster, open_store
from broker.transport.certificates import Certificates, load_certificates, reload_all, watch
from broker.transport.listener import bind, located

if TYPE_CHECKING:
    from broker.options.listener import Listener

#: Pauses before the cluster is asked again to let a fenced node join.
_FIRST_PAUSE_S = 0.1
_LAST_PAUSE_S = 5.0


def run(settings: Settings, reload: Callable[[], Settings] | None = None) -> int:
    """Serve until told to stop; returns the exit status. Errors are told in one line on standard error.

    `reload` reads the settings again, for SIGHUP.
    """
    with closing(Notifier.take(os.environ)) as notifier:
        if settings.workers > 1:
            from broker.supervisor import Supervisor

            return run_to_the_end(Supervisor(settings, reload, notifier).serve)
        return run_to_the_end(Node(settings, reload, notifier=notifier).serve)


class Node:
    """One member of the cluster, in this process."""

    def __init__(
        self,
        settings: Settings,
        reload: Callable[[], Settings] | None = None,
        *,
        shared_ports: bool = False,
        changed: Callable[[], None] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """With `shared_ports` other processes may listen on the same ports. `changed` is called when the node did
        something that changes its `status`. `notifier` tells the service manager; without one nobody is told."""
        self.settings = settings
        self.log = get_logger("node")
        self.metrics = Metrics()
        self.addresses: list[str] = []
        self._reload = reload
        self._shared_ports = shared_ports
        self._changed = changed or _nothing
        self._notifier = notifier or Notifier()
        self._sockets: list[socket.socket] = []
        self._listeners: list[Listener] = []
        self._certificates: list[Certificates | None] = []
        self._http: HttpServer | None = None
        self._life: Life | None = None
        self._office: Office | None = None
        self._lives = 0
        self.started_at_s = time.time()
        self._serving = False
        #: An operator wants no clients here.
        self._resting = False
        self._stops = 0
        self._stopping = trio.Event()
        #: What a first signal ends while nobody is served, and what a second one ends.
        self._starting = trio.CancelScope()
        self._draining = trio.CancelScope()
        #: Until when it is no error that there is no store yet.
        self._waits_until = 0.0
        #: While it rests: from when on clients are not let in any more, and what waits for that.
        self._rests_from = 0.0
        self._leaving = trio.CancelScope()

    @property
    def name(self) -> str:
        """The name of the node in its cluster."""
        return self.settings.node_name

    async def serve(self) -> int:
        """Start everything, serve until told to stop, drain, stop; returns the exit status."""
        settings = self.settings
        raise_file_limit()
        Access(settings, None)  # what is wrong with it is told before anything starts
        self._certificates = load_certificates(settings.listen)
        try:
            for each in settings.listen:
                self._sockets.append(bind(each, self._shared_ports))
                self._listeners.append(located(each, self._sockets[-1]))
                self.addresses.append(self._listeners[-1].url)
            return await self._serve()
        finally:
            for taken in self._sockets:  # files of Unix sockets are removed
                taken.close()

    async def _serve(self) -> int:
        settings = self.settings
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals)
            nursery.start_soon(watch, self._certificates)
            nursery.start_soon(self._notifier.serve, self._told_status)
            if settings.http is not None:
                self._http = HttpServer(self, settings.http, self, settings)
                await nursery.start(self._http.serve)
            with self._starting:
                async with trio.open_nursery() as store_nursery:
                    address = await open_store(settings, store_nursery)
                    await self._live(address)
                    store_nursery.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        self.log.info("node.stopped")
        return OK

    # -- life

    async def _live(self, address: Address | None) -> None:
        """One life after the other, until told to stop."""
        pause_s = _FIRST_PAUSE_S
        self._waits_until = trio.current_time() + self.settings.store_wait_s
        while not self._stopping.is_set():
            cluster = make_cluster(self.settings, address)
            life = self._life = Life(self.settings, cluster, self.metrics, self._shared_ports)
            self._lives += 1
            self._changed()
            try:
                await life.run(self._sockets, self._listeners, self._certificates, self._serve_life)
                return
            except BaseExceptionGroup as group:
                self._serving = False
                if self._office is not None:
                    self._office.end()
                self._office = None
                if not self._lives_on(list(causes(group)), life):
                    raise
            if life.joined:
                pause_s = _FIRST_PAUSE_S
                continue
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _lives_on(self, errors: list[BaseException], life: Life) -> bool:
        """Whether the end of `life` is one that another may follow, and not that of the node."""
        if all(isinstance(error, Fenced) for error in errors):
            self.log.error("node.fenced", reason=str(errors[0]))
            return True
        early = self._lives == 1 and not life.joined and trio.current_time() < self._waits_until
        if early and all(isinstance(error, StoreUnavailable) for error in errors):
            self.log.warning("node.waits_for_store", reason=str(errors[0]))
            self._lives = 0  # it has not lived yet
            return True
        if self._lives > 1 and not life.joined and all(isinstance(error, ClusterError) for error in errors):
            self.log.warning("node.not_joined", reason=str(errors[0]))
            return True
        return False

    async def _serve_life(self) -> None:
        """From joined to drained."""
        life = self._life
        assert life is not None
        self._office = Office(self, life.server, self.metrics, life.measuring)
        self._serving = True
        if self._resting:
            self._rest(life)
        self._announce(life)
        self._changed()
        await self._stopping.wait()
        with self._draining:
            await trio.sleep_until(self._closing_at())
            life.close_listeners()
            await life.server.drain(
                self.settings.drain_rate, self.settings.drain_timeout_s, self.settings.server_reference
            )
        life.close_listeners()

    def _announce(self, life: Life) -> None:
        health = life.cluster.health()
        self.log.info(
            "node.ready" if self._lives == 1 else "node.ready_again",
            version=__version__,
            node=self.name,
            store=health.kind,
            store_version=health.version or None,
            durability=health.durability,
            members=len(health.members),
        )
        if self._lives > 1:
            return
        for url in self.addresses:
            self.log.info("listener.ready", url=url)
        if self._http is not None:
            self.log.info("http.ready", url=f"http://{self._http.authority}")
        if self.settings.ready_file is not None:
            http = self._http.authority if self._http is not None else None
            write_ready(self.settings.ready_file, {"listeners": self.addresses, "http": http, "pid": os.getpid()})
        self._notifier.ready()

    # -- what it is told

    async def _obey_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                self.obey(number)

    def obey(self, number: int) -> None:
        """SIGHUP: take new settings. Any other: the first drains and stops, a second ends the drain, a third all."""
        if number == signal.SIGHUP:
            self._notifier.reloading()
            try:
                self._reload_settings()
            except ConfigError as error:
                self.log.warning("node.not_reloaded", error=str(error))
            finally:
                self._notifier.reloaded()
            return
        self._stops += 1
        name = signal.Signals(number).name
        if self._stops == 1:
            self.log.info("node.stopping", signal=name)
            self._notifier.stopping(self.settings.drain_delay_s + self.settings.drain_timeout_s + STOP_S)
            self._stopping.set()
            if not self._serving:
                self._starting.cancel()
            self._changed()
            return
        self.log.warning("node.hurried", signal=name)
        if self._stops > 2:
            os._exit(FAILED)
        self._draining.cancel()

    def stop_at_once(self) -> None:
        """As if it was told a second time, the first included."""
        if not self._stops:
            self.obey(signal.SIGTERM)
        self._draining.cancel()

    def _reload_settings(self) -> None:
        """Read settings, users and certificates again; what cannot change while the node runs is named."""
        reload_all(self._certificates)
        if self._life is not None:
            self._life.access.reload()
            self._life.policy_changed()
        if self._reload is None:
            return
        self.settings, changed, needs_restart = reloaded(self.settings, self._reload())
        settings = self.settings
        configure(settings.log_level, settings.log_format)
        if self._life is not None:
            server = self._life.server
            server.take_quotas(quotas_of(settings))
            server.connect_timeout_s = settings.connect_timeout_s
            server.stall_timeout_s = settings.stall_timeout_s
            server.max_connections = settings.max_connections
            server.take_events(settings.sys_interval_s, settings.slow_threshold_s, settings.slow_expiry_s)
            self._life.guard.take_settings(settings)
            self._life.entrance.limit(settings.max_connections, settings.connection_rate)
            self._life.access.authorization.no_match_allows = settings.no_match == "allow"
            self._life.policy_changed()
        self.log.info("node.reloaded", changed=changed)
        if needs_restart:
            self.log.warning("node.restart_needed", settings=needs_restart)

    # -- what operators want of it: `broker.admin.office.NodeControl` and `broker.admin.api.Desk`

    def drain(self) -> None:
        """Say that clients should go elsewhere; after `drain_delay` accept none and send away those that there are,
        until `undrain`. The process goes on. Idempotent."""
        if self._resting or self._life is None:
            return
        self.log.info("node.drained")
        self._rests_from = self._closing_at()
        self._resting = True
        self._rest(self._life)
        self._changed()

    def _closing_at(self) -> float:
        """When the listeners close if clients are to leave: who sends them here needs a moment to hear of it, once."""
        return self._rests_from if self._resting else trio.current_time() + self.settings.drain_delay_s

    def _rest(self, life: Life) -> None:
        scope = self._leaving = trio.CancelScope()

        async def leave() -> None:
            with scope:
                await trio.sleep_until(self._rests_from)
                self._close(life)

        if self._rests_from <= trio.current_time():
            self._close(life)
        else:
            life.server.start(leave)

    def _close(self, life: Life) -> None:
        life.close_listeners()
        life.server.send_away(self.settings.drain_rate, self.settings.server_reference)

    def undrain(self) -> None:
        """Accept clients again. Idempotent. Raises ConfigError if somebody else listens there by now."""
        if not self._resting or self._life is None:
            return
        self._leaving.cancel()
        if not self._stops:
            self._life.open_listeners()
            self._life.server.welcome()
        self._resting = False
        self.log.info("node.undrained")
        self._changed()

    def set_log_level(self, level: str) -> None:
        """Until the next start or SIGHUP."""
        configure(level, self.settings.log_format)

    async def call(self, operation: str, arguments: Mapping[str, Any], caller: Caller) -> Any:
        """See `Desk`."""
        return await self._present_office().call(operation, arguments, caller)

    @asynccontextmanager
    async def stream(
        self, operation: str, arguments: Mapping[str, Any], caller: Caller
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """See `Desk`."""
        async with self._present_office().stream(operation, arguments, caller) as items:
            yield items

    def _present_office(self) -> Office:
        if self._office is None:
            raise AdminError(UNAVAILABLE, "the node is not ready", f"node {self.name}: {self.status}")
        return self._office

    # -- what it tells

    @property
    def status(self) -> str:
        """READY, or why clients should go elsewhere."""
        life = self._life
        if self._stops or self._resting:
            return DRAINING
        if life is None:
            return STARTING
        if not self._serving:
            return FENCED if self._lives > 1 else JOINING
        if not (life.cluster.health().available and life.cluster.holds_lease()):
            return UNREACHABLE
        if life.measuring.overload.why:
            return OVERLOADED + life.measuring.overload.why
        return READY

    def _told_status(self) -> str:
        """A line for people."""
        return f"{self.status}; {self.metrics.connections} connections"

    async def reports(self) -> list[Report]:
        """This node's."""
        if self._life is not None:
            await self._life.measuring.refresh()
        return [self.report()]

    async def statuses(self) -> list[Report]:
        """See `Source`."""
        return [self.report(counted=False)]

    def ended(self) -> Samples:
        """Nothing: counters go on from life to life."""
        return {}

    def report(self, counted: bool = True) -> Report:
        """How the node is now, and all that was `counted`."""
        life = self._life
        told = Report(self.name, self.status, pid=os.getpid(), connections=self.metrics.connections)
        told.resting = self._resting and not self._stops
        if counted:
            told.samples = {
                **(self.metrics.samples() if life is None else life.measuring.samples()),
                **build_samples(self.name, self.started_at_s),
                **certificate_samples(self._listeners, self._certificates),
            }
        if life is None:
            return told
        health = life.cluster.health()
        told.members = list(health.members)
        told.member = next((each for each in health.members if each.rpartition(":")[0] == self.name), "")
        told.store, told.store_version, told.durability = health.kind, health.version, health.durability
        told.available, told.round_trip_ms = health.available, health.round_trip_ms
        return told


def _nothing() -> None:
    pass
