"""Where a node carries out what operators ask of it. Implements `broker.admin.api.Desk`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Protocol

import msgspec
import trio

from broker.admin.api import (
    BAD_REQUEST,
    CALLER,
    FORBIDDEN,
    NOT_FOUND,
    UNAVAILABLE,
    AdminError,
    Caller,
    permits,
)
from broker.admin.asking import PATIENCE_S, Asking
from broker.admin.catalogue import SUBJECTS
from broker.admin.inside import CUT_OFF
from broker.admin.keyring import KeyRing
from broker.admin.logs import Temporary
from broker.admin.operations import INTERNAL, OPERATIONS, Operation
from broker.admin.paging import part_bytes
from broker.admin.questions import Answers
from broker.admin.turns import LOOKING, READERS, Turns
from broker.config import Settings
from broker.errors import ClusterError, StoreFull
from broker.http.report import Report
from broker.log import get_logger
from broker.measuring.life import Measuring
from broker.metrics import Metrics
from broker.server import Server
from cluster.api import Cluster
from cluster.inspection import Inspection
from cluster.registry import Registry

_log = get_logger("admin")


class NodeControl(Protocol):
    """The node, as far as operators steer it."""

    settings: Settings
    #: URLs of its listeners, with the ports that they have.
    addresses: list[str]
    #: Since the epoch.
    started_at_s: float

    @property
    def name(self) -> str:
        """Of the node in its cluster."""

    @property
    def status(self) -> str:
        """READY, or why clients should go elsewhere."""

    def report(self) -> Report:
        """How the node is now."""

    def drain(self) -> None:
        """After `drain_delay` send clients away and accept none, until `undrain`; the process goes on. Idempotent."""

    def undrain(self) -> None:
        """Accept clients again. Idempotent."""

    def set_log_level(self, level: str) -> None:
        """Until the next start or SIGHUP."""


class Office:
    """Of one life of a node."""

    def __init__(self, node: NodeControl, server: Server, metrics: Metrics, measuring: Measuring) -> None:
        self.node = node
        self.measuring = measuring
        self.server = server
        self.metrics = metrics
        self.cluster: Cluster = server.cluster
        self.registry: Registry = server.cluster.registry
        self.inspection: Inspection = server.cluster.inspection
        self.inside = server.inside
        self.keys = KeyRing(self.registry, node.settings, self.cluster.now_ms)
        self.log_level = Temporary()
        #: Around each read of payloads in the store.
        self.reading = Turns(READERS)
        #: Around each look at all that this node knows.
        self.looking = Turns(LOOKING)
        #: Around all that is being done.
        self._under_way: set[trio.CancelScope] = set()
        self._over = False
        self._asking = Asking(self)
        assert SUBJECTS, "what they declare is declared"

    @property
    def name(self) -> str:
        """Of the node."""
        return self.node.name

    @property
    def settings(self) -> Settings:
        """In force now."""
        return self.node.settings

    def end(self) -> None:
        """The life of the node is over: so is all that was asked, and all that is followed, with an error."""
        self._over = True
        for scope in self._under_way:
            scope.cancel()

    @contextmanager
    def _while_it_lives(self) -> Iterator[None]:
        """What a life began and its store does not answer any more would wait for good."""
        with trio.CancelScope() as scope:
            self._under_way.add(scope)
            if self._over:
                scope.cancel()
            try:
                yield
            finally:
                self._under_way.discard(scope)
        if scope.cancelled_caught:
            raise AdminError(UNAVAILABLE, *CUT_OFF)

    # -- other nodes

    def part_bytes(self) -> int:
        """How much of a page each node may tell."""
        return part_bytes(len(self.cluster.health().members))

    async def everywhere(
        self,
        question: str,
        arguments: Mapping[str, Any] | None = None,
        nodes: Sequence[str] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> Answers:
        """Ask all live nodes, or those of `nodes`. Whoever refuses or does not answer in time is in `missing`."""
        answers, refusals = await self._asking.ask(question, arguments or {}, nodes, patience_s)
        answers.missing += sorted(refusals)
        return answers

    async def at(self, node: str, question: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Ask one node. Raises AdminError: what it said, 404 if there is no such node, 503 if it does not answer."""
        known = {member.rpartition(":")[0] for member in self.cluster.health().members}
        if node != self.name and node not in known:
            raise AdminError(NOT_FOUND, "no such node", f"there is no live node {node!r}")
        answers, refusals = await self._asking.ask(question, arguments or {}, [node], PATIENCE_S)
        if node in refusals:
            raise refusals[node]
        if node not in answers.by_node:
            raise AdminError(
                UNAVAILABLE, "the node does not answer", f"node {node!r} did not answer in {PATIENCE_S:g} s"
            )
        return answers.by_node[node]

    # -- Desk

    async def call(self, operation: str, arguments: Mapping[str, Any], caller: Caller) -> Any:
        """See `Desk`."""
        declared = _operation(operation, caller)
        if declared.events:
            raise AdminError(BAD_REQUEST, "not an answer", f"{operation} is a stream of events")
        read = declared.read(arguments)
        CALLER.set(caller)
        try:
            with self._while_it_lives():
                result = await declared.handler(self, read)
        except ClusterError as error:
            raise _unavailable(error) from None
        if declared.method != "GET":
            tell = _log.debug if declared.subject == "messages" else _log.info  # nothing per message above debug
            tell("admin.done", operation=operation, by=caller.name, **_shown(arguments))
        return None if declared.status == 204 else msgspec.to_builtins(result)

    @asynccontextmanager
    async def stream(
        self, operation: str, arguments: Mapping[str, Any], caller: Caller
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """See `Desk`."""
        declared = _operation(operation, caller)
        if not declared.events:
            raise AdminError(BAD_REQUEST, "not a stream", f"{operation} answers once")
        read = declared.read(arguments)
        try:
            async with declared.handler(self, read) as items, aclosing(self._plain(items)) as plain:
                yield plain
        except ClusterError as error:
            raise _unavailable(error) from None

    async def _plain(self, items: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        while True:
            try:
                with self._while_it_lives():
                    item = await anext(items)
            except StopAsyncIteration:
                return
            except ClusterError as error:
                raise _unavailable(error) from None
            yield msgspec.to_builtins(item)


def _operation(name: str, caller: Caller) -> Operation[Any]:
    declared = OPERATIONS.get(name)
    if declared is None and not caller.name:
        declared = INTERNAL.get(name)
    if declared is None:
        raise AdminError(NOT_FOUND, "no such operation", f"there is no operation {name!r}")
    if not permits(caller.scope, declared.scope):
        raise AdminError(FORBIDDEN, "not allowed", f"{name} needs the scope {declared.scope}")
    return declared


def _unavailable(error: ClusterError) -> AdminError:
    if isinstance(error, StoreFull):
        return AdminError(507, "the store is full", str(error))
    return AdminError(UNAVAILABLE, "the store cannot be reached", str(error))


def _shown(arguments: Mapping[str, Any]) -> dict[str, str]:
    """What of the arguments is short, names something and is no secret."""
    shown = ("client_id", "username", "name", "kind", "value", "node", "topic", "topic_filter", "id")
    return {key: str(arguments[key])[:80] for key in shown if isinstance(arguments.get(key), str)}
