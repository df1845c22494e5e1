"""One node for each module, and nodes of their own for the tests that kill, fill or configure them.

TEST_STORE names the store of these nodes; without it they run on the embedded one, as a user's would.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.peers import Peers
from tests.kit.api import ADMIN_ARGUMENTS
from tests.kit.broker_process import BrokerProcess

STORE = os.environ.get("TEST_STORE", "embedded")

_numbers = count(1)
_running: list[BrokerProcess] = []

StartNode = Callable[..., BrokerProcess]
PeersOf = Callable[[BrokerProcess], Peers]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """The node that most tests share: with default settings."""
    process = BrokerProcess(tmp_path_factory.mktemp("node") / "n", STORE)
    process.start()
    _running.append(process)
    yield process
    _running.remove(process)
    process.stop()


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Starts nodes for one test: `start_node("--max-inflight", "5", store="memory")`."""
    mine: list[BrokerProcess] = []

    def start(*arguments: str, store: str = STORE, http: str = "off", **options: Any) -> BrokerProcess:
        # Tests that wait for a metric ask for it as often as they can.
        arguments = ("--http-rate", "0", *arguments)
        process = BrokerProcess(tmp_path / f"n{len(mine)}", store, http=http, arguments=arguments, **options)
        process.start()
        mine.append(process)
        _running.append(process)
        return process

    yield start
    for process in mine:
        _running.remove(process)
        process.stop()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic level that only this test uses."""
    name = re.sub(r"[^0-9A-Za-z]+", "-", str(request.node.name)).strip("-")
    return f"{name}-{next(_numbers)}"


@pytest.fixture
async def peers(node: BrokerProcess, topic: str) -> AsyncIterator[Peers]:
    """A factory of raw clients of the shared node."""
    made = Peers(node.host, node.port, topic)
    yield made
    await made.close()


@pytest.fixture
async def peers_of(topic: str) -> AsyncIterator[PeersOf]:
    """Makes a factory of raw clients of a node; all are closed at the end."""
    made: list[Peers] = []

    def make(node: BrokerProcess) -> Peers:
        made.append(Peers(node.host, node.port, topic))
        return made[-1]

    yield make
    for peers in made:
        await peers.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for process in _running:
            report.sections.append((f"log of {process.directory.name}", process.log()[-4000:]))


@pytest.fixture(scope="module")
def http_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A node with HTTP and the key of `tests.kit.api`, that tests share."""
    process = BrokerProcess(
        tmp_path_factory.mktemp("http") / "n", "memory", http="127.0.0.1:0", arguments=ADMIN_ARGUMENTS
    )
    process.start()
    _running.append(process)
    yield process
    _running.remove(process)
    process.stop()
