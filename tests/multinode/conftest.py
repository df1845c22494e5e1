"""Three nodes for each module, and clusters of their own for the tests that kill, pause or configure nodes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest
import trio

from tests.conformance.peers import Peers
from tests.kit.mqtt_client import MqttClient
from tests.kit.redis_server import redis_server
from tests.multinode.nodes import ALWAYS, Nodes, cluster

NAMES = ("a", "b", "c")

_numbers = count(1)
_running: list[Nodes] = []


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The three nodes that most tests share: with default settings."""
    with redis_server(aof=True, options=ALWAYS) as store:
        made = Nodes(tmp_path_factory.mktemp("nodes"), f"redis://127.0.0.1:{store.address.port}/0", NAMES)
        try:
            trio.run(made.start)
            _running.append(made)
            yield made
            _running.remove(made)
        finally:
            made.stop()


StartCluster = Callable[..., Awaitable[Nodes]]


@pytest.fixture
async def start_cluster(tmp_path: Path) -> AsyncIterator[StartCluster]:
    """Starts a cluster for one test: `await start_cluster("--will-failover-grace", "1s", proxied=True)`."""
    async with AsyncExitStack() as stack:
        mine: list[Nodes] = []

        async def start(*arguments: str, proxied: bool = False) -> Nodes:
            made = await stack.enter_async_context(cluster(tmp_path, NAMES, proxied=proxied, arguments=arguments))
            mine.append(made)
            _running.append(made)
            return made

        yield start
        for each in mine:
            _running.remove(each)


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic level that only this test uses."""
    name = re.sub(r"[^0-9A-Za-z]+", "-", str(request.node.name)).strip("-")
    return f"{name}-{next(_numbers)}"


class Everywhere:
    """Raw clients of any node of a cluster: `await at("b").connect(...)`."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._peers: list[Peers] = []
        self.nodes: Nodes

    def __call__(self, name: str) -> Peers:
        address = self.nodes.address(name)
        self._peers.append(Peers(address.host, address.port, self._topic))
        return self._peers[-1]

    async def close(self) -> None:
        """Close every connection."""
        for peers in self._peers:
            await peers.close()


@pytest.fixture
async def at(nodes: Nodes, topic: str) -> AsyncIterator[Everywhere]:
    """Clients of the shared nodes."""
    made = Everywhere(topic)
    made.nodes = nodes
    yield made
    await made.close()


@pytest.fixture
async def at_own(topic: str) -> AsyncIterator[Everywhere]:
    """Clients of a cluster of the test's own: set `nodes` first."""
    made = Everywhere(topic)
    yield made
    await made.close()


async def session(peers: Peers, client_id: str, present: bool | None = None, **values: object) -> MqttClient:
    """A client with a persistent session; `present` says whether the CONNACK has to tell of one."""
    client = await peers.connect(client_id=client_id, persistent=True, **values)  # type: ignore[arg-type]
    assert client.connack is not None
    assert present is None or client.connack.session_present is present
    return client


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for each in _running:
            for name, process in each.processes.items():
                report.sections.append((f"log of {name}", process.log()[-4000:]))
