"""Several real nodes on one real Redis: started, killed, paused, restarted and stopped by name."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import trio

from tests.history.link import Address
from tests.kit.broker_process import BrokerProcess
from tests.kit.fault_proxy import FaultProxy
from tests.kit.redis_server import RedisServer, redis_server

LOOPBACK = "127.0.0.1:0"

#: Every write is on the disk before it is answered: whatever is killed, nothing that was acknowledged may be lost.
ALWAYS = ("--appendfsync", "always")

#: For nodes to do what their leases and timers make them do on a busy machine.
SOON_S = 30.0


class Nodes:
    """The nodes of one cluster by name; `live` has those that clients may go to."""

    def __init__(self, folder: Path, store_url: str, names: Sequence[str], arguments: Sequence[str] = ()) -> None:
        self.store_url = store_url
        self.arguments = tuple(arguments)
        self.folder = folder
        #: Makes the process of a node; a test may put another one in its place before `start`.
        self.make: Callable[[str, str], BrokerProcess] = self._make
        self.processes: dict[str, BrokerProcess] = {}
        self.live: list[str] = []
        self.names = tuple(names)
        #: Fault proxies by node, between it and its store; none unless asked for.
        self.proxies: dict[str, FaultProxy] = {}

    def _make(self, name: str, store_url: str) -> BrokerProcess:
        return BrokerProcess(
            self.folder / name,
            store_url,
            http=LOOPBACK,
            arguments=("--node-name", name, "--log-level", "debug", *self.arguments)
            if os.environ.get("ROOKERY_TEST_DEBUG")
            else ("--node-name", name, *self.arguments),
        )

    def __getitem__(self, name: str) -> BrokerProcess:
        return self.processes[name]

    def address(self, name: str) -> Address:
        """Where clients of this node connect."""
        process = self.processes[name]
        return Address(name, process.host, process.port)

    async def start(self, *names: str) -> None:
        """Start nodes (all, if none are named), all at the same time; returns when each accepts clients."""
        async with trio.open_nursery() as nursery:
            for name in names or self.names:
                nursery.start_soon(self._start, name)

    async def _start(self, name: str) -> None:
        process = self.processes.get(name)
        if process is None:
            proxy = self.proxies.get(name)
            url = self.store_url if proxy is None else f"redis://127.0.0.1:{proxy.port}/0"
            process = self.processes[name] = self.make(name, url)
        await trio.to_thread.run_sync(process.start)
        self.live.append(name)

    def kill(self, name: str) -> None:
        """kill -9; clients lose their connections."""
        if name in self.live:
            self.live.remove(name)
        self.processes[name].kill()

    def pause(self, name: str) -> None:
        """SIGSTOP: silent, with all its connections open."""
        if name in self.live:
            self.live.remove(name)
        os.kill(self.processes[name].pid, signal.SIGSTOP)

    def wake(self, name: str) -> None:
        """SIGCONT."""
        os.kill(self.processes[name].pid, signal.SIGCONT)
        if name not in self.live:
            self.live.append(name)

    async def terminate(self, name: str) -> int:
        """SIGTERM, and wait for the end; returns the exit status."""
        if name in self.live:
            self.live.remove(name)
        return await trio.to_thread.run_sync(self.processes[name].terminate)

    async def restart(self, name: str) -> int:
        """SIGTERM, wait for the end, start again; returns the exit status."""
        status = await self.terminate(name)
        await self.start(name)
        return status

    def stop(self) -> None:
        """End all of them at once, whatever state they are in: kill, as nothing is asked of them any more."""
        for process in self.processes.values():
            process.kill()

    def logs(self) -> str:
        """The end of each node's log."""
        return "\n".join(f"--- {name}\n{process.log()[-6000:]}" for name, process in self.processes.items())


async def until_buried(nodes: Nodes, dead: str) -> None:
    """Wait until one of the others has reaped a node."""
    logs = [nodes[name].log_path for name in nodes.names if name != dead]
    with trio.fail_after(30):
        while not any(f"cluster.reaped member={dead}:" in log.read_text(errors="replace") for log in logs):
            await trio.sleep(0.05)


@asynccontextmanager
async def cluster(
    folder: Path,
    names: Sequence[str] = ("a", "b", "c"),
    *,
    store: RedisServer | None = None,
    store_url: str = "",
    proxied: bool = False,
    arguments: Sequence[str] = (),
    options: Sequence[str] = (),
    prepare: Callable[[Nodes], None] | None = None,
) -> AsyncIterator[Nodes]:
    """Nodes on a Redis server of their own, on `store`, or on what `store_url` names.

    `proxied` puts a fault proxy before the store for each. `prepare` may change how they are made, before they start.
    """
    with ExitStack() as stack:
        if store is None:
            store = stack.enter_context(redis_server(aof=True, options=(*ALWAYS, *options)))
        nodes = Nodes(folder, store_url or f"redis://127.0.0.1:{store.address.port}/0", names, arguments)
        if proxied:
            for name in names:
                nodes.proxies[name] = stack.enter_context(FaultProxy("127.0.0.1", store.address.port))
        if prepare is not None:
            prepare(nodes)
        stack.callback(nodes.stop)
        await nodes.start()
        yield nodes
