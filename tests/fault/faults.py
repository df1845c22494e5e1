"""What may happen to a cluster: each fault is done to a world under load, and is over when its function returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from tests.fault.world import World
from tests.kit.redis_server import RedisServer

Fault = Callable[[World], Awaitable[None]]

#: A node that is away for less keeps its lease of 6 s; after more than LONG_S others have buried it.
SHORT_S = 3.0
LONG_S = 9.0


async def kill_node(world: World) -> None:
    """kill -9 of a node; it comes back a little later."""
    name = world.some_node()
    world.begin("kill -9", name)
    world.nodes.kill(name)
    await trio.sleep(1.5)
    await world.nodes.start(name)
    world.end("started again", name)


async def kill_node_for_long(world: World) -> None:
    """kill -9 of a node that stays away until others have buried and reaped it."""
    name = world.some_node()
    world.begin("kill -9", name)
    world.nodes.kill(name)
    await trio.sleep(LONG_S)
    await world.nodes.start(name)
    world.end("started again", name)


async def kill_all_nodes(world: World) -> None:
    """kill -9 of every node, and all start again."""
    names = list(world.nodes.live)
    world.begin("kill -9 of all")
    for name in names:
        world.nodes.kill(name)
    await world.nodes.start(*names)
    world.end("all started again")


async def pause_node(world: World) -> None:
    """SIGSTOP for less than the lease."""
    await _pause(world, SHORT_S)


async def pause_node_for_long(world: World) -> None:
    """SIGSTOP for longer than the lease: the node is buried, and has to notice when it wakes."""
    await _pause(world, LONG_S)


async def _pause(world: World, seconds: float) -> None:
    name = world.some_node()
    world.begin("SIGSTOP", name)
    world.nodes.pause(name)
    await trio.sleep(seconds)
    world.nodes.wake(name)
    world.end("SIGCONT", name)


def _written_out(store: RedisServer) -> None:
    """With `everysec` the store holds writes back for up to 2 s while an older fsync is slow. A kill loses them: the
    class `aof` says so, and a busy disk makes it happen. From here on it holds nothing back."""
    with store.client() as client:
        client.config_set("appendfsync", "no")
        client.ping()  # answered after what came before was written


async def kill_store(world: World) -> None:
    """kill -9 of the store, and a restart with what it had on disk."""
    world.begin("kill -9 of the store")
    await trio.to_thread.run_sync(_written_out, world.store)
    await trio.to_thread.run_sync(world.store.kill)
    world.struck()
    await trio.sleep(1.0)
    world.undo()
    await trio.to_thread.run_sync(world.store.start)
    world.end("store started again")


async def pause_store(world: World) -> None:
    """The store does not answer for a while."""
    world.begin("SIGSTOP of the store")
    world.store.pause()
    world.struck()
    await trio.sleep(SHORT_S)
    world.undo()
    world.store.resume()
    world.end("SIGCONT of the store")


async def cut_all(world: World) -> None:
    """No node reaches the store."""
    world.begin("store cut off from all")
    for proxy in world.nodes.proxies.values():
        proxy.cut()
    world.struck()
    await trio.sleep(SHORT_S)
    world.undo()
    for proxy in world.nodes.proxies.values():
        proxy.resume()
    world.end("store reachable for all")


async def stall_all_for_long(world: World) -> None:
    """Packets to and from the store are late by more than a lease."""
    world.begin("store stalled for all")
    for proxy in world.nodes.proxies.values():
        proxy.stall()
    world.struck()
    await trio.sleep(LONG_S)
    world.undo()
    for proxy in world.nodes.proxies.values():
        proxy.resume()
    world.end("store goes on for all")


async def cut_one(world: World) -> None:
    """One node does not reach the store for less than its lease."""
    await _away(world, SHORT_S, "cut off from the store")


async def cut_one_for_long(world: World) -> None:
    """One node does not reach the store for longer than its lease."""
    await _away(world, LONG_S, "cut off from the store")


async def lose_answers(world: World) -> None:
    """The store executes what a node sends, and the node does not learn of it."""
    await _away(world, SHORT_S, "answers of the store lost", lose=(False, True))


async def lose_requests(world: World) -> None:
    """The store gets nothing from a node, which sees its connection open."""
    await _away(world, SHORT_S, "requests to the store lost", lose=(True, False))


async def _away(world: World, seconds: float, what: str, lose: tuple[bool, bool] | None = None) -> None:
    name = world.some_node()
    proxy = world.nodes.proxies[name]
    world.begin(what, name)
    if lose is None:
        proxy.cut()
    else:
        proxy.lose(*lose)
    world.struck()
    await trio.sleep(seconds)
    world.undo()
    proxy.resume()
    world.end("store reachable", name)


async def slow_store(world: World) -> None:
    """Every exchange with the store takes long."""
    world.begin("store slow for all")
    for proxy in world.nodes.proxies.values():
        proxy.slow(2_000_000, 100)
    await trio.sleep(SHORT_S)
    for proxy in world.nodes.proxies.values():
        proxy.resume()
    world.end("store as fast as before")


async def rolling_restart(world: World) -> None:
    """Each node stops in good order and starts again."""
    world.begin("rolling restart")
    for name in world.nodes.names:
        status = await world.nodes.restart(name)
        assert status == 0, f"node {name} ended with status {status}"
    world.end("all restarted")


#: Those that need no proxy, and those that do.
DIRECT: tuple[Fault, ...] = (
    kill_node,
    kill_node_for_long,
    kill_all_nodes,
    pause_node,
    pause_node_for_long,
    kill_store,
    pause_store,
    rolling_restart,
)
PROXIED: tuple[Fault, ...] = (
    cut_all,
    stall_all_for_long,
    cut_one,
    cut_one_for_long,
    lose_answers,
    lose_requests,
    slow_store,
)
