"""Nodes for the tests of a module, and what holds for each test: bystanders notice nothing, the log has no defect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.abuse.world import DEFECTS, AbusedNode, bystanders, total


class Nodes:
    """The nodes of a module, by their settings, started when first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._nodes: dict[tuple[str, ...], AbusedNode] = {}
        self._read: dict[AbusedNode, int] = {}

    def get(self, *arguments: str, store: str = "memory") -> AbusedNode:
        """The running node with these settings."""
        key = (store, *arguments)
        node = self._nodes.get(key)
        if node is None:
            node = AbusedNode(self._directory / str(len(self._nodes)), store, *arguments)
            node.start()
            self._nodes[key] = node
        return node

    def new_log(self) -> str:
        """What all nodes wrote since the last call."""
        text = ""
        for node in self._nodes.values():
            log = node.whole_log()
            text += log[self._read.get(node, 0) :]
            self._read[node] = len(log)
        return text

    def stop(self) -> None:
        """Stop all nodes."""
        for node in self._nodes.values():
            node.stop()


_running: list[Nodes] = []


@pytest.fixture(scope="module")  # not for longer: a node that nobody uses still takes its share of the machine
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The nodes of this module."""
    running = Nodes(tmp_path_factory.mktemp("abuse"))
    _running.append(running)
    yield running
    _running.clear()
    running.stop()


@pytest.fixture(autouse=True)
def clean_log(nodes: Nodes) -> Iterator[None]:
    """No test may leave a traceback or a failed handler in the log of a node."""
    yield
    log = nodes.new_log()
    found = DEFECTS.search(log)
    if found is not None:
        pytest.fail(f"a defect in the log: {log[max(0, found.start() - 500) : found.start() + 4000]}")


@pytest.fixture
def arguments() -> tuple[str, ...]:
    """Settings of the node; modules and tests override this."""
    return ()


@asynccontextmanager
async def attended(node: AbusedNode) -> AsyncIterator[AbusedNode]:
    """The node with bystanders, and without a test's clients at the end."""
    try:
        async with bystanders(node) as pair:
            node.attended_by = pair
            yield node
    finally:
        node.attended_by = None
        with trio.CancelScope(shield=True):
            await node.close_clients()


@pytest.fixture
async def node(nodes: Nodes, arguments: tuple[str, ...]) -> AsyncIterator[AbusedNode]:
    """The node under abuse, with bystanders for the whole test, whose clients end with it."""
    async with attended(nodes.get(*arguments)) as node:
        yield node


Counted = Callable[[str], float]


@pytest.fixture
def moved(node: AbusedNode) -> Counted:
    """How far a counter moved since the test began; without labels, the sum over them."""
    before = node.counters()

    def since(name: str) -> float:
        return node.counter(name) - total(before, name)

    return since


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed and _running:
        logs = [node.log()[-3000:] for node in _running[0]._nodes.values()]
        report.sections.append(("node logs", "\n---\n".join(logs)))
