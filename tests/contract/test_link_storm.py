"""Thousands of calls, cancelled at random while connections break under way: every reply belongs to its request."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import coredis
import hiredis
import pytest
import redis
import trio

from broker.errors import StoreUnavailable
from cluster.redis.deployment import make_link
from cluster.redis.links import Link
from tests.kit.link_world import CuttingProxy, connected, reactor
from tests.kit.redis_server import ServerCluster, redis_server, server_cluster, valkey_binary

CALLERS = 40
CUTS = 8


class Storm:
    """Callers with tokens of their own; what was sent, and what was answered."""

    def __init__(self, link: Link, rng: random.Random) -> None:
        self.link = link
        self.rng = rng
        self.sent: set[bytes] = set()
        self.stored: set[bytes] = set()
        self.counts = dict.fromkeys(("answered", "unknown", "cancelled"), 0)
        self.stopping = False
        self.batched = 0

    async def call(self, caller: int) -> None:
        number = 0
        while not self.stopping:
            number += 1
            token = b"%d.%d" % (caller, number) + b"x" * self.rng.randrange(300)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cancel, scope, self.rng.randrange(40))
                    try:
                        await self._one(caller, token)
                        self.counts["answered"] += 1
                    except StoreUnavailable:
                        self.counts["unknown"] += 1
                    nursery.cancel_scope.cancel()
            self.counts["cancelled"] += scope.cancelled_caught
            await trio.lowlevel.checkpoint()

    async def _one(self, caller: int, token: bytes) -> None:
        resend = self.rng.random() < 0.5
        key = b"{%d}set" % caller
        match self.rng.randrange(4):
            case 0:
                self.sent.add(token)
                assert await self.link.call("SADD", key, token, resend=resend) in (0, 1)
                self.stored.add(token)
            case 1:
                assert await self.link.call("SMISMEMBER", key, token, token, resend=resend) == [0, 0]
            case 2:
                assert await self.link.call("EVAL", "return KEYS[1]", 1, token, resend=resend) == token
            case 3:
                self.sent.add(token)

                def answered(reply: object) -> None:
                    self.batched -= 1
                    assert not isinstance(reply, hiredis.ReplyError)
                    if not isinstance(reply, StoreUnavailable):
                        assert reply == 1
                        self.stored.add(token)

                self.batched += 1
                self.link.command(("SADD", key, token), answered, False)

    async def _cancel(self, scope: trio.CancelScope, checkpoints: int) -> None:
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        if checkpoints > 20:
            await trio.sleep(checkpoints / 1000)
        scope.cancel()

    async def rage(self, cut: Callable[[], None]) -> None:
        """Cuts again and again, each time when there was some progress."""
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                for caller in range(CALLERS):
                    nursery.start_soon(self.call, caller)
                for _ in range(CUTS):
                    before = self.counts["answered"]
                    while self.counts["answered"] < before + 200 or not self.link.up:
                        await trio.sleep(0.002)
                    cut()
                    for _ in range(50):
                        await trio.lowlevel.checkpoint()
                self.stopping = True
            assert await self.link.call("EVAL", "return KEYS[1]", 1, "last", resend=True) == b"last"
            while self.link.unanswered:
                await trio.sleep(0.002)
        assert self.batched == 0

    def check(self, found: set[bytes]) -> None:
        assert self.stored <= found <= self.sent
        assert min(self.counts.values()) > 50, self.counts


@asynccontextmanager
async def stormy(link_of: Callable[..., Link]) -> AsyncIterator[Storm]:
    seed = random.randrange(2**32)
    async with reactor() as poller, connected(link_of(poller), poller) as link:
        storm = Storm(link, random.Random(seed))
        try:
            yield storm
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.parametrize("kind", ["redis", "valkey"])
async def test_one_server_behind_a_proxy_that_cuts(kind: str) -> None:
    with redis_server(binary=valkey_binary() if kind == "valkey" else "") as server:
        async with trio.open_nursery() as nursery:
            proxy = CuttingProxy(server.address.port)
            await nursery.start(proxy.serve)
            address = replace(server.address, port=proxy.port)
            async with stormy(lambda poller: make_link(address, poller)) as storm:
                await storm.rage(proxy.cut)
            assert proxy.cuts >= CUTS
            nursery.cancel_scope.cancel()
        async with coredis.Redis(port=server.address.port) as oracle:
            found: set[bytes] = set()
            for caller in range(CALLERS):
                found |= {bytes(each) for each in await oracle.smembers(b"{%d}set" % caller)}
        storm.check(found)


def cut_at_random(servers: ServerCluster) -> None:
    """As a proxy would, but at the servers: a cluster names its servers itself."""
    for server in random.sample(servers.servers, 2):
        with suppress(redis.RedisError), server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def test_a_cluster_whose_servers_cut() -> None:
    with server_cluster(3) as servers:
        async with stormy(lambda poller: make_link(servers.address, poller)) as storm:
            await storm.rage(lambda: cut_at_random(servers))
        async with coredis.RedisCluster("127.0.0.1", servers.servers[0].address.port) as oracle:
            found: set[bytes] = set()
            for caller in range(CALLERS):
                found |= {bytes(each) for each in await oracle.smembers(b"{%d}set" % caller)}
        storm.check(found)
