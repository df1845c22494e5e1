"""Links to a primary that Sentinels know: real ones, real failovers."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import coredis
import pytest
import redis
import trio

from broker.errors import StoreUnavailable
from cluster.redis.address import SentinelAddress
from cluster.redis.deployment import make_feed_link, make_link
from cluster.redis.durability import Demand
from cluster.redis.link import RedisLink
from cluster.redis.links import Link
from cluster.redis.sentinel import find_primary
from cluster.telemetry import LinkCounters
from tests.kit.link_world import connected, reactor
from tests.kit.ports import free_port
from tests.kit.redis_server import Replicated, replicated_server, sentinels

WRITERS = 8


class Writers:
    """Callers that each write numbers of their own, one after the other, and say which were acknowledged."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.acknowledged: list[list[int]] = [[] for _ in range(WRITERS)]
        self.longest_gap_s = 0.0
        self.unknown = 0
        self.stopping = False
        self._last_s = 0.0

    def total(self) -> int:
        return sum(map(len, self.acknowledged))

    async def write(self, writer: int) -> None:
        number = 0
        while not self.stopping:
            try:
                await self.link.call("ZADD", f"w{writer}", number, f"{writer}.{number}", durable=True)
            except StoreUnavailable:
                self.unknown += 1  # the same number again: it is idempotent
                await trio.sleep(0.01)
                continue
            self.acknowledged[writer].append(number)
            number += 1
            now_s = time.perf_counter()
            if self._last_s:
                self.longest_gap_s = max(self.longest_gap_s, now_s - self._last_s)
            self._last_s = now_s

    async def until(self, count: int) -> None:
        with trio.fail_after(60):
            while self.total() < count:
                await trio.sleep(0.01)


async def check_contents(store: Replicated, writers: Writers) -> None:
    """What another client finds on the primary: all that was acknowledged, in order."""
    async with coredis.Redis(port=store.primary().address.port) as oracle:
        for writer, acknowledged in enumerate(writers.acknowledged):
            found = await oracle.zrange(f"w{writer}", 0, -1)
            expected = [f"{writer}.{number}".encode() for number in acknowledged]
            assert list(found)[: len(expected)] == expected
            assert len(found) <= len(expected) + 1


async def fail_over(store: Replicated, address: SentinelAddress, manual: bool, ports: list[int]) -> None:
    """Returns when the link is at another server."""
    if manual:
        with redis.Redis(port=address.seeds[1].port) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", "mymaster")
    else:
        store.primary().kill()
    with trio.fail_after(60):
        while ports[-1] == ports[0]:
            await trio.sleep(0.01)
    # One failover: on a busy machine the new primary may be silent for as long as the old one was.
    for seed in address.seeds:
        with redis.Redis(port=seed.port) as sentinel:
            sentinel.execute_command("SENTINEL", "SET", "mymaster", "down-after-milliseconds", 60_000)


@pytest.mark.parametrize("manual", [False, True], ids=["kill -9", "SENTINEL FAILOVER"])
async def test_a_replicated_store_loses_nothing_that_was_answered(manual: bool) -> None:
    # One replica, which must have a write before that is answered: it is the one that takes over.
    with replicated_server(1) as store, sentinels(store) as address:
        ports: list[int] = []

        async def on_up(link: RedisLink) -> None:
            ports.append(link.address.port)

        async with reactor() as poller:
            link = make_link(address, poller, demand=Demand("replicated", timeout_s=0.5), on_up=on_up)
            async with connected(link, poller):
                assert link.durability == "replicated"
                writers = Writers(link)
                async with trio.open_nursery() as nursery:
                    for writer in range(WRITERS):
                        nursery.start_soon(writers.write, writer)
                    await writers.until(500)
                    old = store.primary()
                    await fail_over(store, address, manual, ports)
                    if not manual:
                        old.start()  # it becomes the replica that the new primary needs
                    await writers.until(writers.total() + 500)
                    writers.stopping = True
                assert store.primary() is not old
                await check_contents(store, writers)


async def test_a_failover_under_load_needs_no_restart(capsys: pytest.CaptureFixture[str]) -> None:
    with replicated_server(2) as store, sentinels(store) as address:
        ports: list[int] = []
        states: list[bool] = []
        counters = LinkCounters()

        async def on_up(link: RedisLink) -> None:
            ports.append(link.address.port)

        async with reactor() as poller:
            link = make_link(
                address,
                poller,
                on_up=on_up,
                on_ready=lambda: states.append(True),
                on_down=lambda error: states.append(False),
                counters=counters,
            )
            async with connected(link, poller):
                assert (counters.reconnects, counters.failovers) == (0, 0)
                writers = Writers(link)
                async with trio.open_nursery() as nursery:
                    for writer in range(WRITERS):
                        nursery.start_soon(writers.write, writer)
                    await writers.until(500)
                    await fail_over(store, address, False, ports)
                    with trio.fail_after(60):
                        while not store.settled() or ports[-1] != store.primary().address.port:
                            await trio.sleep(0.01)
                    before = [len(each) for each in writers.acknowledged]
                    await writers.until(writers.total() + 500)
                    writers.stopping = True
                async with coredis.Redis(port=store.primary().address.port) as oracle:
                    for writer, acknowledged in enumerate(writers.acknowledged):
                        found = set(await oracle.zrange(f"w{writer}", 0, -1))
                        assert found >= {f"{writer}.{number}".encode() for number in acknowledged[before[writer] :]}
                # Two Sentinels that began at the same time make two failovers of it.
                assert states == [True, *[False, True] * counters.reconnects]
                assert 1 <= counters.failovers <= counters.reconnects
        with capsys.disabled():
            sys.stdout.write(f" (longest gap {writers.longest_gap_s:.2f} s, {writers.unknown} outcomes unknown) ")


async def test_a_feed_link_follows_and_reads_on() -> None:
    with replicated_server(1) as store, sentinels(store) as address:
        async with reactor() as poller:
            feed = make_feed_link(address, poller, b"stream")
            async with connected(feed, poller):
                first = store.primary()
                with first.client() as client:
                    client.execute_command("XADD", "stream", "0-1", "a", "1")
                    client.execute_command("WAIT", 1, 5000)
                assert await feed.call("XREAD", "BLOCK", 0, "STREAMS", "stream", "0", allow_s=60.0)
                got: list[object] = []

                async def follow() -> None:
                    while not got:
                        try:
                            got.append(await feed.call("XREAD", "BLOCK", 0, "STREAMS", "stream", "0-1", allow_s=60.0))
                        except StoreUnavailable:
                            await trio.sleep(0.01)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(follow)
                    await trio.testing.wait_all_tasks_blocked()
                    first.kill()
                    with trio.fail_after(60):
                        while feed.address.port == first.address.port or not feed.up:
                            await trio.sleep(0.01)
                    with store.primary().client() as client:
                        client.execute_command("XADD", "stream", "0-2", "a", "2")
                assert got == [{b"stream": [[b"0-2", [b"a", b"2"]]]}]


async def test_passwords_of_the_store_and_of_the_sentinels() -> None:
    with replicated_server(1, password="s3cret store") as store, sentinels(store, password="s3cret-watch") as address:
        assert (await find_primary(address)).port == store.address.port
        async with reactor() as poller, connected(make_link(address, poller), poller) as link:
            assert await link.call("PING") == b"PONG"
        wrong = replace(address, seeds=tuple(replace(seed, password="guess") for seed in address.seeds))
        with pytest.raises(StoreUnavailable, match="wrong password") as caught:
            await find_primary(wrong)
        assert "guess" not in str(caught.value)


async def test_sentinels_that_are_away_or_know_nothing() -> None:
    with replicated_server(1) as store, sentinels(store, 1) as address:
        away = replace(address.seeds[0], port=free_port())
        some = replace(address, seeds=(away, *address.seeds))
        assert (await find_primary(some)).port == store.address.port
        with pytest.raises(StoreUnavailable, match="Connection refused"):
            await find_primary(replace(address, seeds=(away,)))
        with pytest.raises(StoreUnavailable, match="knows no primary 'other'"):
            await find_primary(replace(address, master="other"))
        no_sentinel = SentinelAddress((store.address,), "mymaster", store.address)
        with pytest.raises(StoreUnavailable, match="unknown command"):
            await find_primary(no_sentinel)
