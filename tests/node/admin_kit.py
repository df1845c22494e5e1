"""A server with an office: operations are carried out as for somebody who may do everything."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from broker.access import Access
from broker.admin.api import AdminError, Caller
from broker.admin.office import NodeControl, Office
from broker.config import Settings
from broker.log import configure
from broker.measuring.life import Measuring
from broker.session.quotas import Quotas
from cluster.policy import ClusterLimits
from tests.node.faulty_cluster import FaultyCluster
from tests.node.kit import World, serving

CALLER = Caller("somebody")


class Desk:
    """The office of a world."""

    def __init__(self, world: World, settings: Settings | None = None) -> None:
        self.world = world
        self.level = "info"
        found = settings or Settings(node_name="a")
        node = SimpleNamespace(
            name="a",
            settings=found,
            addresses=["tcp://127.0.0.1:1883"],
            started_at_s=time.time(),
            status="ready",
            set_log_level=self._set_level,
        )
        self.office = Office(cast(NodeControl, node), world.server, world.metrics, Measuring(world.server))

    def _set_level(self, level: str) -> None:
        self.level = level
        configure(level)

    async def __call__(self, operation: str, **arguments: Any) -> Any:
        return await self.office.call(operation, arguments, CALLER)

    async def items(self, operation: str, **arguments: Any) -> list[Any]:
        """Of a list that is one part."""
        found = await self(operation, **arguments)
        assert found.get("cursor") is None
        return cast(list[Any], found["items"])

    async def all(self, operation: str, **arguments: Any) -> list[Any]:
        """Of all parts of a list."""
        found: list[Any] = []
        cursor = ""
        while True:
            part = await self(operation, cursor=cursor, **arguments)
            found += part["items"]
            cursor = part["cursor"]
            if cursor is None:
                return found

    async def refused(self, operation: str, **arguments: Any) -> tuple[int, str]:
        """Status and text of what cannot be done."""
        with pytest.raises(AdminError) as caught:
            await self(operation, **arguments)
        return caught.value.status, caught.value.detail

    async def meanwhile(self, operation: str, **arguments: Any) -> Pending:
        """Begin with it, and return when it waits for something."""
        pending = Pending()

        async def work() -> None:
            try:
                pending.result = await self(operation, **arguments)
            except AdminError as error:
                pending.error = error
            pending.done.set()

        self.world.server.start(work)
        await self.world.settle()
        return pending


class Pending:
    """An operation under way."""

    def __init__(self) -> None:
        self.result: Any = None
        self.error: AdminError | None = None
        self.done = trio.Event()


@asynccontextmanager
async def desk(
    quotas: Quotas | None = None,
    limits: ClusterLimits | None = None,
    access: Access | None = None,
    *,
    settings: Settings | None = None,
    wrap: Callable[[FaultyCluster], None] | None = None,
    **options: Any,
) -> AsyncIterator[Desk]:
    """A running server with its office."""
    async with serving(quotas, limits, access, wrap=wrap, **options) as world:
        yield Desk(world, settings)
