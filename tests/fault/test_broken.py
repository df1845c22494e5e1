"""Every checker fails on a build that breaks what it checks, in a situation where the whole build passes.

The situations leave nothing to chance: what a missing mechanism would have caught surely happens in them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.fault.broken import broken_process
from tests.fault.world import SETTINGS
from tests.history import availability, checks
from tests.history.client import Profile
from tests.history.run import Run, recorded
from tests.history.timeline import Timeline
from tests.kit.redis_server import redis_server
from tests.multinode.nodes import ALWAYS, Nodes, cluster

pytestmark = pytest.mark.timeout(90)

#: For what has to come on a whole build, on a busy machine; and on a broken one, where it never comes.
WHOLE_S, BROKEN_S = 20.0, 3.0

#: Also gets the seconds that what has to come may take.
Situation = Callable[[Nodes, Run, float], Awaitable[list[str]]]


@asynccontextmanager
async def build(folder: Path, kind: str) -> AsyncIterator[tuple[Nodes, Run]]:
    """Three nodes of one build (the whole one if `kind` is empty), each behind a proxy, with a run on them."""

    def prepare(nodes: Nodes) -> None:
        if kind:
            nodes.make = lambda name, url: broken_process(
                kind, nodes.folder / name, url, ("--node-name", name, *nodes.arguments)
            )

    with redis_server(aof=True, options=ALWAYS) as store:
        async with (
            cluster(folder, store=store, proxied=True, arguments=SETTINGS, prepare=prepare) as nodes,
            recorded(nodes, folder) as run,
        ):
            yield nodes, run
            for name in nodes.names:
                # A build that is broken in another way than the one that is meant says nothing.
                assert "Traceback" not in nodes[name].log(), nodes[name].log()


async def publish_and_die(nodes: Nodes, run: Run, limit_s: float) -> list[str]:
    """A node publishes while it cannot reach the store, and dies."""
    run.client("sub", "b", Profile(expiry_s=600, subscriptions=(("t", 1),)))
    publisher = run.client("pub", "a", Profile(expiry_s=600))
    await run.ready()
    begin = run.history.fault("store stalled", "a")
    nodes.proxies["a"].stall()
    for _ in range(10):
        publisher.publish("t", 1)
    await trio.sleep(1.0)
    end = run.history.fault("kill", "a")
    nodes.kill("a")
    # The messages that were not acknowledged would be sent again.
    publisher.leave()
    with trio.move_on_after(limit_s):
        timeline = Timeline(run.history)
        while checks.acked_loss(timeline):
            await trio.sleep(0.5)
            timeline = Timeline(run.history)
    timeline = Timeline(run.history)
    return [
        problem
        for problems in (checks.acked_loss(timeline), availability.nothing_acked(timeline, begin, end))
        for problem in problems[:1]
    ]


async def wake_after_takeover(nodes: Nodes, run: Run, limit_s: float) -> list[str]:
    """A node is paused, its client goes elsewhere, and goes on talking to the old node, too."""
    subscriber = run.client("sub", "a", Profile(expiry_s=600, subscriptions=(("t", 1),), hold=1000, patience_s=1.5))
    publisher = run.client("pub", "b")
    await run.ready()
    for _ in range(10):
        publisher.publish("t", 1)
    await publisher.settled()
    await run.until(lambda: subscriber.delivered == 10, "delivery")
    run.move("sub", "b")
    # What tells the old node of the takeover is to come later than what the old connection says.
    nodes.proxies["a"].stall()
    nodes.pause("a")
    await run.until(lambda: subscriber.delivered >= 20, "redelivery on another node")
    nodes.wake("a")
    # The old connection's acknowledgements are read, and go to the store before anything comes from there.
    await trio.sleep(0.5)
    nodes.proxies["a"].resume()
    # Then a third connection: all are still unacknowledged.
    await run.until(lambda: any(event.kind == "closed" for event in run.history.events), "end of the old one", 20)
    run.move("sub", "c")
    subscriber.drop()
    with trio.move_on_after(limit_s):
        await subscriber.until(lambda: subscriber.delivered >= 30)
    return checks.consumed(await run.drain(limit_s))


async def answers_lost_then_die(nodes: Nodes, run: Run, limit_s: float) -> list[str]:
    """The store executes what a node sends, but the node dies before it has heard of it: publishers send again."""
    run.client("sub", "b", Profile(expiry_s=600, subscriptions=(("t", 2),)))
    publisher = run.client("pub", "a", Profile(expiry_s=600))
    await run.ready()
    publisher.publish("t", 2)
    await publisher.settled()
    # Each way takes a while: the subscriber's node has the messages long before their publisher's hears of it.
    nodes.proxies["a"].slow(10_000_000, 150)
    for _ in range(5):
        publisher.publish("t", 2)
    await run.until(lambda: stored(run), "messages in the queue")
    run.history.fault("kill", "a")
    nodes.kill("a")
    return checks.duplicates(await run.drain(limit_s))


def stored(run: Run) -> bool:
    """The subscriber has the messages: the store executed the call whose answer is still on its way."""
    got = {event.payload for event in run.history.of("deliver")}
    return len(got) == 6


async def subscribe_ahead_of_the_log(nodes: Nodes, run: Run, limit_s: float) -> list[str]:
    """A node learns late of the routes of others, and publishes right after a SUBACK that it does not know of."""
    subscriber = run.client("sub", "a", Profile(expiry_s=600))
    live = run.client("live", "c")
    publisher = run.client("pub", "b")
    await run.ready()
    nodes.proxies["b"].slow(10_000_000, 150)
    for number in range(8):
        await subscriber.subscribe(f"t/{number}", 1)
        await live.subscribe(f"t/{number}", 1)
        publisher.publish(f"t/{number}", 1)
        await publisher.settled()
    return checks.acked_loss(await run.drain(limit_s))


async def across_nodes(nodes: Nodes, run: Run, limit_s: float) -> list[str]:
    """Messages from one node to the ephemeral sessions of another."""
    run.client("sub", "a", Profile(subscriptions=(("t", 1),)))
    publisher = run.client("pub", "b", Profile(window=1))
    await run.ready()
    for _ in range(300):
        publisher.publish("t", 1)
    return checks.acked_loss(await run.drain(limit_s))


SITUATIONS: dict[str, Situation] = {
    "ack-early": publish_and_die,
    "no-fence": wake_after_takeover,
    "no-mid": answers_lost_then_die,
    "no-version": subscribe_ahead_of_the_log,
    "pubsub-only": across_nodes,
}


@pytest.mark.parametrize("kind", list(SITUATIONS))
async def test_a_broken_build_is_found(tmp_path: Path, kind: str) -> None:
    async with build(tmp_path, kind) as (nodes, run):
        problems = await SITUATIONS[kind](nodes, run, BROKEN_S)
    assert problems
    assert kind != "ack-early" or len(problems) == 2  # both checkers that it is meant for


@pytest.mark.parametrize("kind", list(SITUATIONS))
async def test_the_whole_build_passes_there(tmp_path: Path, kind: str) -> None:
    async with build(tmp_path, "") as (nodes, run):
        problems = await SITUATIONS[kind](nodes, run, WHOLE_S)
    assert problems == []
