"""A cluster under load that something is done to, and the checks that follow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import trio

from tests.history import availability, checks
from tests.history.run import Run, always, recorded
from tests.history.timeline import Timeline
from tests.history.workload import RETAINED, ROOMY, Mix, Workload
from tests.kit.redis_server import RedisServer, redis_server
from tests.multinode.nodes import ALWAYS, Nodes, cluster

NAMES = ("a", "b", "c")

#: Wills of dead nodes come soon: the drain waits for them.
SETTINGS = (*ROOMY, "--will-failover-grace", "2s", "--store-grace", "1h", "--drain-rate", "10000")

#: Longest that a client that publishes may have to wait after a fault is over, on a busy machine.
RECOVERY_S = 20.0


@dataclass
class World:
    """What a fault works on; the times are those of the last one.

    From `begun` to `undone` it surely had its effect, at `ended` it is over for good: a server that is started has
    answered others before the one that started it knows.
    """

    nodes: Nodes
    store: RedisServer
    run: Run
    load: Workload
    begun: float = inf
    undone: float = -inf
    ended: float = -inf
    what: list[str] = field(default_factory=list)

    def some_node(self) -> str:
        """A node for the fault, picked by the seed."""
        return self.run.random.choice(sorted(self.nodes.live))

    def begin(self, what: str, node: str = "") -> None:
        """The fault begins now."""
        self.begun = self.run.history.fault(what, node)
        self.undone = -inf
        self.what.append(f"{what} {node}".strip())

    def struck(self) -> None:
        """It has its effect only now."""
        self.begun = self.run.history.now()

    def undo(self) -> None:
        """It loses its effect at any time from now on."""
        self.undone = self.run.history.now()

    def end(self, what: str, node: str = "") -> None:
        """The fault is over."""
        self.ended = self.run.history.fault(what, node)


@asynccontextmanager
async def world(
    folder: Path,
    *,
    seed: int = 1,
    mix: Mix | None = None,
    proxied: bool = False,
    arguments: Sequence[str] = (),
    prepare: Callable[[Nodes], None] | None = None,
    names: Sequence[str] = NAMES,
    store: RedisServer | None = None,
    store_url: str = "",
) -> AsyncIterator[World]:
    """Nodes under load; at the end of the block the load stops. Within it `verdict` tells what was wrong.

    Without `store` (with `store_url`, where that is more than one server) they get a server of their own.
    """
    with ExitStack() as stack:
        if store is None:
            store = stack.enter_context(redis_server(aof=True, options=ALWAYS))
        async with cluster(
            folder,
            names,
            store=store,
            store_url=store_url,
            proxied=proxied,
            arguments=(*SETTINGS, *arguments),
            prepare=prepare,
        ) as nodes:
            try:
                async with recorded(nodes, folder, seed) as run:
                    load = Workload(run, mix)
                    await load.begin()
                    made = World(nodes, store, run, load)
                    async with trio.open_nursery() as nursery:
                        await load.serve(nursery)
                        yield made
                        load.stop()
                        nursery.cancel_scope.cancel()
            except BaseException as error:
                error.add_note(nodes.logs())
                raise


async def verdict(made: World, limit_s: float = 40.0) -> tuple[Timeline, list[str]]:
    """Let everything arrive that was promised; returns what happened, and what was wrong with it."""
    made.load.stop()
    run = made.run
    due = made.load.due_wills
    await run.drain(limit_s, lambda timeline: checks.wills(timeline, ["observer"], due))
    readers = await run.retained_values("kept/#", RETAINED) if made.load.mix.retained_rate else None
    timeline = Timeline(run.history)
    problems = [
        *always(timeline, ends=False),
        *checks.wills(timeline, ["observer"], due),
        *checks.retained(timeline, readers),
        *checks.delayed(timeline, late_s=RECOVERY_S + limit_s),
    ]
    return timeline, problems


def recovered(made: World, timeline: Timeline) -> list[str]:
    """Everybody went on soon after the fault was over (G9, G16)."""
    return availability.recovery(timeline, made.ended, RECOVERY_S)


async def endure(
    folder: Path,
    fault: Callable[[World], Awaitable[None]],
    *,
    seed: int = 1,
    mix: Mix | None = None,
    proxied: bool = False,
    before_s: float = 1.5,
    after_s: float = 2.0,
    prepare: Callable[[Nodes], None] | None = None,
    arguments: Sequence[str] = (),
    store: RedisServer | None = None,
    store_url: str = "",
) -> tuple[World, Timeline, list[str]]:
    """Load, the fault, more load; then everything arrives, and is checked."""
    folder.mkdir(parents=True, exist_ok=True)
    async with world(
        folder,
        seed=seed,
        mix=mix,
        proxied=proxied,
        prepare=prepare,
        arguments=arguments,
        store=store,
        store_url=store_url,
    ) as made:
        await trio.sleep(before_s)
        await fault(made)
        await trio.sleep(after_s)
        timeline, problems = await verdict(made)
        problems += recovered(made, timeline)
        if problems:
            made.run.history.save(folder / "history.jsonl")
    return made, timeline, problems


async def together(
    folder: Path, names: Iterable[str], situation: Callable[[Path, str], Awaitable[list[str]]]
) -> list[str]:
    """Situations at the same time, each with a cluster and a folder of its own: they mostly wait.

    Returns what was wrong, with the names of the situations.
    """
    problems: list[str] = []

    async def one(name: str) -> None:
        problems.extend(f"[{name}] {problem}" for problem in await situation(folder / name, name))

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(one, name)
    return problems
