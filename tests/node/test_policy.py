"""Who is looked at when bans change: nobody for those that make themselves."""

from __future__ import annotations

from typing import cast

import trio

from broker.access import Access
from broker.limits.bans import CLIENT_ID, IP, Ban
from broker.limits.policy import Policy
from broker.server import Server
from cluster.registry import BANS, RULES
from tests.node.test_limits import World


class _Access:
    def __init__(self) -> None:
        self.refreshed = 0

    async def refresh(self) -> None:
        self.refreshed += 1


class _Server:
    def __init__(self, world: World) -> None:
        self.rechecks = 0
        self.connections: set[object] = set()
        self.start = world.tasks.append

    def recheck(self) -> None:
        self.rechecks += 1


async def test_what_a_change_costs(autojump_clock: trio.abc.Clock) -> None:
    world = World()
    registry = world.cluster.registry
    access, server = _Access(), _Server(world)
    policy = Policy(cast(Access, access), world.guard, registry, cast(Server, server))

    async def seen() -> tuple[int, int, int]:
        """Documents read again, all looked at, all asked for their ban."""
        access.refreshed = server.rechecks = 0
        await policy.refresh()
        policy.changed()
        drops = len(world.tasks)
        await world.run()
        return access.refreshed, server.rechecks, drops

    assert await seen() == (1, 1, 0)
    failures = Ban(IP, "192.0.2.1", world.now_s() + 60, new_only=True)
    await registry.change(BANS, {failures.name: failures.document()})
    assert await seen() == (0, 0, 0)
    assert world.guard.bans_address("192.0.2.1")
    for until_s in (world.now_s() + 1, world.now_s() + 60):
        ban = Ban(CLIENT_ID, "c", until_s)
        await registry.change(BANS, {ban.name: ban.document()})
        assert await seen() == (0, 0, 1)
        assert await seen() == (1, 1, 0)  # nothing is known to have changed: the store may have lost something
    await registry.change(RULES, {"a": b"{}"})
    assert await seen() == (1, 1, 0)
    await registry.change(BANS, {"client_id:c": None})
    assert await seen() == (0, 0, 0)
    # One that made itself here.
    await world.guard._ban(Ban(CLIENT_ID, "d", None, "", "flapping"))
    assert await seen() == (0, 0, 1)
    # Files.
    policy.changed()
    assert server.rechecks == 1
