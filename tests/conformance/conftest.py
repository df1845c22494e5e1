"""One broker process per store for each module, and a factory of clients for each test.

ROOKERY_CONFORMANCE_TARGET=host:port runs the suite against a server that is running already.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from tests.conformance.peers import Peers
from tests.conformance.scram import users_file
from tests.kit.broker_process import BrokerProcess

TARGET = os.environ.get("ROOKERY_CONFORMANCE_TARGET")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "statement(versions, stores): the normative statements a test proves")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("statement")
    if mark is None:
        return
    if "version" in metafunc.fixturenames:
        metafunc.parametrize("version", mark.kwargs["versions"], ids=lambda version: f"v{version}")
    stores = mark.kwargs["stores"]
    if stores != ("memory",) and TARGET is None:
        metafunc.parametrize("store", stores)


# What tests name instead of a store: a node with these options, for features that only show when they are
# switched off or on. Paths are relative to the folder of the node.
PROFILES = {
    "validating": ("--validate-payload-format",),
    "limited": ("--max-qos", "1", "--no-retain-available", "--topic-alias-maximum", "0", "--max-keep-alive", "1"),
    "websocket": ("--listen", "ws://127.0.0.1:0/mqtt"),
    "scram": ("--authentication", "password_file?path=../users"),
}


class Nodes:
    """The broker processes of a module, one per store, started when first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: dict[str, BrokerProcess] = {}

    def get(self, store: str) -> BrokerProcess:
        """Return the running node with this store."""
        node = self._nodes.get(store)
        if node is None:
            arguments = PROFILES.get(store, ())
            kind = "memory" if store in PROFILES else store
            self._directory.joinpath("users").write_text(users_file())
            node = self._nodes[store] = BrokerProcess(self._directory / store, kind, arguments=arguments)
            node.start()
        return node

    def log(self) -> str:
        """Return what the nodes wrote."""
        return "\n".join(f"--- {store}\n{node.log()}" for store, node in self._nodes.items())

    def stop(self) -> None:
        """Stop all nodes."""
        for node in self._nodes.values():
            node.stop()


_nodes: list[Nodes] = []


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The broker processes of this module."""
    running = Nodes(tmp_path_factory.mktemp("conformance"))
    _nodes.append(running)
    yield running
    _nodes.clear()
    running.stop()
    # Whatever the clients did, it was no defect of the node.
    defects = [line for line in running.log().splitlines() if line.startswith("Traceback") or " error " in line[:40]]
    assert not defects, running.log()[-4000:]


@pytest.fixture
def store() -> str:
    """The store of the node under test; tests that name several stores run on each."""
    return "memory"


@pytest.fixture
async def peers(request: pytest.FixtureRequest, nodes: Nodes, store: str) -> AsyncIterator[Peers]:
    """A factory of clients of the node under test, with names that only this test uses."""
    if TARGET is not None:
        host, _, port_text = TARGET.rpartition(":")
        port = int(port_text)
    else:
        node = nodes.get(store)
        host, port = node.host, node.port
    made = Peers(host, port, re.sub(r"[^0-9A-Za-z]+", "-", str(request.node.name)).strip("-"))
    yield made
    await made.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed and _nodes:
        report.sections.append(("broker log", _nodes[0].log()[-4000:]))
