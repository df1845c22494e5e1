"""The parent of several workers: it holds the embedded store, the ports and HTTP, and keeps the workers running.

Each worker is a node (`broker.worker`) that listens on the same ports (SO_REUSEPORT): the system spreads connections.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import trio

from broker import __version__
from broker.access import Access
from broker.admin.api import UNAVAILABLE, AdminError, Caller
from broker.admin.relay import Relay, Silent
from broker.config import Settings, reloaded
from broker.errors import ConfigError
from broker.http.app import HttpServer
from broker.http.report import DRAINING, JOINING, READY, RESTARTING, STARTING, Report
from broker.log import configure, get_logger
from broker.metrics_catalogue import Samples, growing, summed
from broker.notify import Notifier
from broker.options.listener import Listener
from broker.process import FAILED, OK, STOP_S, raise_file_limit, write_ready
from broker.stores import Address, open_store
from broker.transport.certificates import load_certificates
from broker.transport.listener import bind, located
from broker.workers import WorkerProcess

#: Pauses before a worker that ended is started again; the shortest again after one that ran for so long.
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 10.0
SETTLED_S = 30.0

#: A worker that stands still for so long is killed; a service manager's watchdog may say otherwise (WatchdogSec).
SILENCE_S = 30.0


class Supervisor:
    """`settings.workers` nodes, called `<node_name>-1` and so on."""

    def __init__(
        self, settings: Settings, reload: Callable[[], Settings] | None = None, notifier: Notifier | None = None
    ) -> None:
        self.settings = settings
        self.log = get_logger("supervisor")
        self._reload = reload
        self._notifier = notifier or Notifier()
        self._reserved: list[socket.socket] = []
        self._listen: tuple[Listener, ...] = ()
        self._address: Address | None = None
        self._workers = [WorkerProcess(f"{settings.node_name}-{number + 1}") for number in range(settings.workers)]
        self._ended: Samples = {}
        self._was_ready = False
        self._status = OK
        self._stops = 0
        self._stopping = trio.Event()
        self._starting = trio.CancelScope()

    @property
    def name(self) -> str:
        """What the names of the workers begin with."""
        return self.settings.node_name

    async def serve(self) -> int:
        """Start everything, keep it running until told to stop; returns the exit status."""
        settings = self.settings
        raise_file_limit()
        Access(settings, None)  # what is wrong with it is told before anything starts
        load_certificates(settings.listen)
        self._reserve()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._obey_signals)
            nursery.start_soon(self._notifier.serve, self._told_status)
            http = None
            if settings.http is not None:
                http = HttpServer(self, settings.http, self, settings)
                await nursery.start(http.serve)
            async with trio.open_nursery() as store_nursery:
                with self._starting:
                    self._address = await open_store(settings, store_nursery)
                if not self._stopping.is_set():
                    await self._keep_all(http)
                store_nursery.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        self.log.info("supervisor.stopped")
        return self._status

    def _reserve(self) -> None:
        """Take the ports without listening: they stay the same whatever becomes of the workers."""
        for listener in self.settings.listen:
            if listener.port:  # shared ports would let other brokers in silently
                bind(listener).close()
            self._reserved.append(bind(listener, shared=True))
        self._listen = tuple(
            located(told, taken) for told, taken in zip(self.settings.listen, self._reserved, strict=True)
        )

    # -- the workers

    async def _keep_all(self, http: HttpServer | None) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce, http)
            nursery.start_soon(self._bound_stop)
            async with trio.open_nursery() as keeping:
                for worker in self._workers:
                    keeping.start_soon(self._keep, worker)
            nursery.cancel_scope.cancel()

    async def _keep(self, worker: WorkerProcess) -> None:
        """One process after the other, until told to stop."""
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            since = trio.current_time()
            status = await worker.live(self._settings_of(worker), self._notifier.watchdog_s or SILENCE_S)
            if worker.last is not None:
                self._ended = summed([self._ended, growing(worker.last.samples)])
            if self._stopping.is_set():
                return
            if status > 0 and not self._was_ready:  # it told why; later ones are tried again for ever
                self._status = status
                self._stop()
                return
            if trio.current_time() - since > SETTLED_S:
                pause_s = FIRST_PAUSE_S
            how = f"signal {-status}" if status < 0 else f"status {status}"
            self.log.error("worker.ended", worker=worker.name, how=how, again_in_s=pause_s)
            with trio.move_on_after(pause_s):
                await self._stopping.wait()
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def _settings_of(self, worker: WorkerProcess) -> Settings:
        settings = dataclasses.replace(
            self.settings,
            config=None,
            node_name=worker.name,
            workers=1,
            ready_file=None,
            listen=self._listen,
            http=None,
            partitions=self.settings.partition_count,
        )
        if settings.store == "embedded" and self._address is not None:
            settings = dataclasses.replace(settings, store=str(self._address))
        return settings

    async def _announce(self, http: HttpServer | None) -> None:
        """Once all are ready."""
        for worker in self._workers:
            while worker.last is None or worker.last.status != READY:
                await worker.changed()
        self._was_ready = True
        urls = [endpoint.url for endpoint in self._listen]
        self.log.info("supervisor.ready", version=__version__, workers=len(self._workers))
        for url in urls:
            self.log.info("listener.ready", url=url)
        at = http.authority if http is not None else None
        if at is not None:
            self.log.info("http.ready", url=f"http://{at}")
        if self.settings.ready_file is not None:
            write_ready(self.settings.ready_file, {"listeners": urls, "http": at, "pid": os.getpid()})
        self._notifier.ready()

    # -- stopping

    async def _obey_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._take_settings()
                    continue
                self.log.info("supervisor.stopping", signal=signal.Signals(number).name)
                if self._stops > 1:
                    for worker in self._workers:
                        worker.kill()
                    os._exit(FAILED)
                self._stop()

    def _stop(self) -> None:
        """The first time the workers drain, the second time they hurry."""
        self._stops += 1
        # A worker is killed after STOP_S; the parent has as long again for itself and the embedded store.
        self._notifier.stopping(self.settings.drain_delay_s + self.settings.drain_timeout_s + 2 * STOP_S)
        self._stopping.set()
        self._starting.cancel()
        for worker in self._workers:
            worker.stop()

    async def _bound_stop(self) -> None:
        await self._stopping.wait()
        await trio.sleep(self.settings.drain_delay_s + self.settings.drain_timeout_s + STOP_S)
        for worker in self._workers:
            if worker.pid:
                self.log.error("worker.killed", worker=worker.name, pid=worker.pid)
                worker.kill()

    def _take_settings(self) -> None:
        """Read the settings again; each worker is given what may change, and reads the users."""
        self._notifier.reloading()
        try:
            new = self._reload() if self._reload is not None else self.settings
        except ConfigError as error:
            self.log.warning("supervisor.not_reloaded", error=str(error))
            return
        finally:
            self._notifier.reloaded()
        self.settings, _, needs_restart = reloaded(self.settings, new)
        configure(self.settings.log_level, self.settings.log_format)
        for worker in self._workers:
            worker.configure(self._settings_of(worker))
        if needs_restart:
            self.log.warning("supervisor.restart_needed", settings=needs_restart)

    # -- what operators want: `broker.admin.api.Desk`

    async def call(self, operation: str, arguments: Mapping[str, Any], caller: Caller) -> Any:
        """See `Desk`: one of the workers carries it out."""
        for relay in self._relays():
            with suppress(Silent):
                return await relay.call(operation, arguments, caller)
        raise AdminError(UNAVAILABLE, "no node is ready", "no worker answers")

    @asynccontextmanager
    async def stream(
        self, operation: str, arguments: Mapping[str, Any], caller: Caller
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """See `Desk`."""
        async with AsyncExitStack() as stack:
            for relay in self._relays():
                with suppress(Silent):
                    items = await stack.enter_async_context(relay.stream(operation, arguments, caller))
                    break
            else:
                raise AdminError(UNAVAILABLE, "no node is ready", "no worker answers")
            yield items

    def _relays(self) -> list[Relay]:
        """Of all workers that there are, those that are ready first: a drained one can still answer. One that took
        nothing comes last until it says something again."""
        found: list[tuple[bool, bool, Relay]] = []
        for worker in self._workers:
            if worker.relay is not None and worker.last is not None:
                found.append((worker.relay.silent, worker.last.status != READY, worker.relay))
        return [relay for _, _, relay in sorted(found, key=lambda each: each[:2])]

    # -- what it tells

    def _told_status(self) -> str:
        """A line for people."""
        ready = sum(worker.ready for worker in self._workers)
        status = DRAINING if self._stops else READY if self._was_ready else STARTING
        return f"{status}; {ready} of {len(self._workers)} workers ready"

    async def reports(self) -> list[Report]:
        """Of each worker. One that was restarted and does not listen yet is in nobody's way."""
        return await self._reports(counted=True)

    async def statuses(self) -> list[Report]:
        """See `Source`."""
        return await self._reports(counted=False)

    async def _reports(self, counted: bool) -> list[Report]:
        found: dict[str, Report] = {}

        async def ask(worker: WorkerProcess) -> None:
            found[worker.name] = await worker.report(counted)

        async with trio.open_nursery() as nursery:
            for worker in self._workers:
                nursery.start_soon(ask, worker)
        return [self._seen(found[worker.name]) for worker in self._workers]

    def _seen(self, report: Report) -> Report:
        again = self._was_ready and report.status in (STARTING, JOINING)
        return dataclasses.replace(report, status=RESTARTING) if again else report

    def ended(self) -> Samples:
        """Of processes that are gone, as of their last report."""
        return self._ended
