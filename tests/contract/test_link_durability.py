"""Durability classes: what the store's settings give, what contradicts them, and waiting for replicas and disks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio

from broker.errors import ClusterError, StoreUnavailable
from cluster.redis.deployment import make_link
from cluster.redis.durability import CLASSES, Demand
from tests.kit.link_world import Expected, connected, reactor
from tests.kit.redis_server import RedisServer, redis_server, replicated_server, valkey_binary

EVERYSEC = ("--appendonly", "yes")
ALWAYS = (*EVERYSEC, "--appendfsync", "always")
NEVER = (*EVERYSEC, "--appendfsync", "no")


async def class_of(server: RedisServer, demand: Demand, username: str = "", password: str = "") -> str:
    async with reactor() as poller:
        link = make_link(replace(server.address, username=username, password=password), poller, demand=demand)
        async with connected(link, poller):
            assert await link.call("SET", "a", "b", durable=True) == b"OK"
            return link.durability


async def refusal(server: RedisServer, demand: Demand, username: str = "", password: str = "") -> str:
    async with reactor() as poller:
        link = make_link(replace(server.address, username=username, password=password), poller, demand=demand)
        with pytest.raises(ClusterError) as caught:
            await link.connect()
        assert not link.up
        link.close()
        text = str(caught.value)
        assert "\n" not in text
        return text


@pytest.mark.parametrize(
    ("options", "found"), [((), "memory"), (EVERYSEC, "aof"), (ALWAYS, "fsync"), (NEVER, "memory")]
)
async def test_auto_takes_what_the_settings_give(options: Sequence[str], found: str) -> None:
    with redis_server(options=options) as server:
        assert await class_of(server, Demand()) == found


@pytest.mark.parametrize(
    ("options", "wanted", "line"),
    [
        ((), "aof", "redis.conf: appendonly yes"),
        ((), "fsync", "redis.conf: appendonly yes"),
        (NEVER, "aof", "redis.conf: appendfsync everysec"),
        (EVERYSEC, "fsync", "redis.conf: appendfsync always"),  # Redis 7.0 has no WAITAOF
        ((), "replicated", "replicaof HOST PORT"),
        ((), "replicated-fsync", "redis.conf: appendonly yes"),
        (("--maxmemory-policy", "allkeys-lru"), "auto", "maxmemory-policy noeviction"),
        (("--maxmemory-policy", "volatile-ttl"), "memory", "maxmemory-policy noeviction"),
    ],
)
async def test_a_contradicted_class_is_refused_with_the_line_to_change(
    options: Sequence[str], wanted: str, line: str
) -> None:
    with redis_server(options=options) as server:
        assert line in await refusal(server, Demand(wanted))


@pytest.mark.parametrize(("options", "wanted"), [((), "memory"), (EVERYSEC, "aof"), (ALWAYS, "aof"), (ALWAYS, "fsync")])
async def test_a_class_that_the_settings_give_is_taken(options: Sequence[str], wanted: str) -> None:
    with redis_server(options=options) as server:
        assert await class_of(server, Demand(wanted)) == wanted


async def test_what_cannot_be_read_is_believed_and_auto_takes_the_weaker() -> None:
    with redis_server(options=ALWAYS) as server:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "blind", "on", ">pw", "~*", "+@all", "-info", "-config")
            client.execute_command("ACL", "SETUSER", "short", "on", ">pw", "~*", "+@all", "-config")
        assert await class_of(server, Demand(), "blind", "pw") == "memory"
        assert await class_of(server, Demand("fsync"), "blind", "pw") == "fsync"
        assert await class_of(server, Demand("aof"), "blind", "pw") == "aof"
        assert await class_of(server, Demand(), "short", "pw") == "aof"
        assert await class_of(server, Demand("fsync"), "short", "pw") == "fsync"


async def test_fsync_by_waiting_for_the_disk() -> None:
    with redis_server(binary=valkey_binary(), options=EVERYSEC) as server:
        assert await class_of(server, Demand()) == "aof"
        assert await class_of(server, Demand("fsync")) == "fsync"
        with server.client() as client:
            assert "waitaof" in str(client.info("commandstats"))


async def test_nothing_is_answered_before_a_replica_has_it() -> None:
    with replicated_server(1) as store:
        primary, replica = store.servers
        async with reactor() as poller:
            link = make_link(primary.address, poller, demand=Demand("replicated", timeout_s=0.1))
            async with connected(link, poller):
                assert await link.call("SET", "a", "1", durable=True) == b"OK"
                replica.pause()
                try:
                    late = Expected(20)
                    for number in range(20):
                        link.command(("RPUSH", "list", number), late.then, durable=True)
                        link.flush()
                    # What need not be durable is answered, over several rounds of waiting.
                    for _ in range(5):
                        assert await link.call("LLEN", "list") == 20
                    assert late.replies == []
                    assert link.unanswered >= 20
                finally:
                    replica.resume()
                assert await late.wait() == list(range(1, 21))
                assert await link.call("SET", "a", "2", durable=True) == b"OK"
                with replica.client() as client:
                    assert client.llen("list") == 20


async def test_a_lost_connection_leaves_what_was_not_safe_unknown() -> None:
    with replicated_server(1, aof=True) as store:
        primary, replica = store.servers
        async with reactor() as poller:
            link = make_link(primary.address, poller, demand=Demand("replicated", timeout_s=0.1))
            async with connected(link, poller):
                replica.pause()
                try:
                    late, kept = Expected(1), Expected(1)
                    link.command(("SET", "a", "1"), late.then, durable=True)
                    link.command(("SET", "b", "1"), kept.then, durable=True, resend=True)
                    assert await link.call("GET", "b") == b"1"
                    primary.restart()
                    [unknown] = await late.wait()
                    assert isinstance(unknown, StoreUnavailable)
                    assert kept.replies == []
                finally:
                    replica.resume()
                assert await kept.wait() == [b"OK"]


async def test_an_error_is_an_answer_and_an_emptied_store_gets_a_new_mark() -> None:
    with replicated_server(1) as store:
        async with reactor() as poller:
            link = make_link(store.address, poller, demand=Demand("replicated"))
            async with connected(link, poller):
                with pytest.raises(ClusterError, match="WRONGTYPE"):
                    await link.call("SET", "a", "1", durable=True)
                    await link.call("LPUSH", "a", "1", durable=True)
                await link.call("FLUSHALL")
                with trio.fail_after(20), pytest.raises(StoreUnavailable, match="mark"):
                    await link.call("SET", "a", "1", durable=True)
                with trio.fail_after(20):
                    assert await link.call("SET", "a", "1", durable=True, resend=True) == b"OK"


async def test_replicated_and_on_disk() -> None:
    with replicated_server(1, binary=valkey_binary(), aof=True) as store:
        async with reactor() as poller:
            link = make_link(store.address, poller, demand=Demand("replicated-fsync", timeout_s=3.0))
            async with connected(link, poller):
                assert link.durability == "replicated-fsync"
                assert await link.call("SET", "a", "1", durable=True) == b"OK"
    with replicated_server(1, aof=True) as store:
        assert "needs WAITAOF" in await refusal(store.servers[0], Demand("replicated-fsync"))
        assert "2 replica(s)" in await refusal(store.servers[0], Demand("replicated", replicas=2))


def test_classes_are_in_order() -> None:
    assert CLASSES == ("memory", "aof", "fsync", "replicated", "replicated-fsync")
