"""Two nodes whose store moves to another server under load: nothing answered is lost, nothing stored twice."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from broker.errors import StoreUnavailable
from cluster.api import Attachment
from cluster.keys import Keys
from cluster.policy import ClusterLimits
from cluster.redis.address import Deployment
from cluster.redis.durability import Demand
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import WaitingPublication, World, message, served, target
from tests.kit.redis_server import (
    documented_user,
    make_certificate,
    replicated_server,
    sentinels,
    server_cluster,
)

PUBLISHERS = 20
DEMAND = Demand("replicated", timeout_s=0.5)


@contextlib.asynccontextmanager
async def two(address: Deployment) -> AsyncIterator[tuple[World, World]]:
    limits = ClusterLimits(max_queued_messages=1_000_000, max_queued_bytes=1 << 30)
    async with (
        served(RedisCluster(address, "a", limits, "rookery", 16, demand=DEMAND)) as one,
        served(RedisCluster(address, "b", limits, "rookery", 16, demand=DEMAND)) as other,
    ):
        yield one, other


class Publishers:
    """On one node, for sessions of the other: each publishes its numbers one after the other."""

    def __init__(self, world: World, sessions: list[Attachment]) -> None:
        self.world = world
        self.sessions = sessions
        self.answered: list[list[int]] = [[] for _ in sessions]
        self.refused = 0
        self.longest_gap_s = self.away_s = 0.0
        self.stopping = False
        self._last_s = time.perf_counter()

    def total(self) -> int:
        return sum(map(len, self.answered))

    async def publish(self, publisher: int) -> None:
        at = self.sessions[publisher]
        for number in itertools.count():
            if self.stopping:
                return
            publication = WaitingPublication(message(payload=b"%d" % number), [target(at)])
            self.world.start(publication)
            await publication.done.wait()
            assert publication.answers == 1
            if publication.error is not None:
                assert isinstance(publication.error, StoreUnavailable)
                self.refused += 1
                continue
            self.answered[publisher].append(number)
            now_s = time.perf_counter()
            self.longest_gap_s = max(self.longest_gap_s, now_s - self._last_s)
            self._last_s = now_s

    async def until(self, count: int) -> None:
        with trio.fail_after(60):
            while self.total() < count:
                await trio.sleep(0.01)

    async def check(self, reader: World) -> None:
        for at, answered in zip(self.sessions, self.answered, strict=True):
            found = [int(payload) for payload in await reader.queue(at.ref)]
            assert found == sorted(set(found)), "out of order, or stored twice"
            assert set(answered) <= set(found), "answered, and lost"


def contains(available: list[bool], value: bool) -> bool:
    return value in available


async def exercise(one: World, other: World, kill: Callable[[], None], start: Callable[[], None]) -> Publishers:
    """The primary is killed under load; once another one took its place it is started as the replica of that."""
    sessions = [await other.connect(f"c{number}") for number in range(PUBLISHERS)]
    for number, at in enumerate(sessions):
        await other.subscribe(at, f"t/{number}")
    publishers = Publishers(one, sessions)
    async with trio.open_nursery() as nursery:
        for publisher in range(PUBLISHERS):
            nursery.start_soon(publishers.publish, publisher)
        await publishers.until(1000)
        kill()
        began_s = trio.current_time()
        for world in (one, other):
            await world.events.until(partial(contains, world.events.available, False))
        for world in (one, other):
            await world.events.until(partial(contains, world.events.available, True))
        publishers.away_s = trio.current_time() - began_s
        # Not before: what is started too early is the primary still, and empty.
        await trio.to_thread.run_sync(start)
        await publishers.until(publishers.total() + 1000)
        publishers.stopping = True
    await publishers.check(other)
    assert (await one.connect("new")).last_seq == 0
    return publishers


async def test_sentinels_with_tls_passwords_and_the_least_rights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = make_certificate(tmp_path)
    with (
        replicated_server(1, tls=tls, password="hush store") as store,
        sentinels(store, tls=tls, password="hush watch") as address,
    ):
        for server in store.servers:
            with server.client() as client:
                client.execute_command("ACL", *documented_user("rookery:", "secret"))
        address = dataclasses.replace(
            address, store=dataclasses.replace(address.store, username="rookery", password="secret")
        )

        def mend() -> None:
            """The new primary needs a replica; the user of the old one was in its memory alone."""
            old.start()
            with old.client() as client:
                client.execute_command("ACL", *documented_user("rookery:", "secret"))

        async with two(address) as (one, other):
            assert one.cluster.health().durability == "replicated"
            old = store.primary()
            publishers = await exercise(one, other, old.kill, mend)
            assert store.primary() is not old
            assert [world.cluster.health().available for world in (one, other)] == [True, True]
    with capsys.disabled():
        sys.stdout.write(f" (store away {publishers.away_s:.2f} s, with its replica {publishers.longest_gap_s:.2f} s) ")


@pytest.mark.parametrize("prefix", ["routes", "members"])
async def test_a_shard_that_is_killed(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    with server_cluster(3, 1) as servers:
        async with two(servers.address) as (one, other):
            old = servers.owner(getattr(Keys("rookery", 16), prefix))

            publishers = await exercise(one, other, old.kill, old.start)
    with capsys.disabled():
        sys.stdout.write(f" (store away {publishers.away_s:.2f} s, with its replica {publishers.longest_gap_s:.2f} s) ")
