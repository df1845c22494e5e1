"""One link to a Redis Cluster: real servers, slots that move key by key, a primary that is killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import coredis
import pytest
import trio
from redis.crc import key_slot

from broker.errors import ClusterError, StoreUnavailable
from cluster.redis.address import ClusterAddress
from cluster.redis.calls import gather
from cluster.redis.deployment import feed_groups, make_feed_link, make_link, make_push_link
from cluster.redis.durability import Demand
from cluster.redis.link import RedisLink
from cluster.redis.requests import result
from cluster.redis.slots import slot_of_command
from cluster.telemetry import LinkCounters
from tests.kit.link_world import Expected, connected, reactor
from tests.kit.ports import free_port
from tests.kit.redis_server import ServerCluster, make_certificate, server_cluster, valkey_binary

#: As those of the broker: keys that are not declared, a number that makes it idempotent, several steps.
FUNCTIONS = """#!lua name=rktest
redis.register_function('rkt_add', function(keys, args)
    local p, number = keys[1], tonumber(args[1])
    local last = tonumber(redis.call('GET', p .. 'last') or '0')
    if number <= last then return {last, 'again'} end
    if number ~= last + 1 then return {last, 'gap'} end
    redis.call('RPUSH', p .. 'list', args[2])
    redis.call('HSET', p .. 'hash', args[2], number)
    redis.call('SET', p .. 'last', number)
    return {number, 'new'}
end)
"""


@pytest.fixture(scope="module", params=["redis", "valkey"])
def shared_cluster(request: pytest.FixtureRequest) -> Iterator[ServerCluster]:
    with server_cluster(3, binary=valkey_binary() if request.param == "valkey" else "") as servers:
        for server in servers.servers:
            with server.client() as client:
                client.execute_command("FUNCTION", "LOAD", "REPLACE", FUNCTIONS)
        yield servers


@pytest.fixture
def servers(shared_cluster: ServerCluster) -> ServerCluster:
    for server in shared_cluster.servers:
        with server.client() as client:
            client.flushall()
    return shared_cluster


def tag_at(servers: ServerCluster, number: int) -> bytes:
    """A prefix that lives on a given server."""
    return next(tag for tag in (b"t:{%d}:" % n for n in range(1000)) if servers.owner(tag) is servers.servers[number])


async def test_commands_go_where_their_key_is(servers: ServerCluster) -> None:
    ups: list[tuple[int, list[int]]] = []
    tags = [tag_at(servers, number) for number in range(3)]

    async def on_up(link: RedisLink) -> None:
        served = [number for number, tag in enumerate(tags) if link.serves(tag)]
        ups.append((link.address.port, served))
        assert await link.setup_call("PING") == b"PONG"

    async with reactor() as poller:
        states: list[bool] = []
        link = make_link(
            servers.address,
            poller,
            on_up=on_up,
            on_ready=lambda: states.append(True),
            on_down=lambda error: states.append(False),
        )
        async with connected(link, poller):
            assert sorted(ups) == sorted((each.address.port, [n]) for n, each in enumerate(servers.servers))
            assert (link.up, states, link.durability) == (True, [True], "memory")
            assert all(link.up_for(tag) for tag in tags)
            replies = await gather(link, poller, [("SET", tag + b"%d" % n, n) for n in range(50) for tag in tags])
            assert replies == [b"OK"] * 150
            replies = await gather(link, poller, [("GET", tag + b"%d" % n) for n in range(50) for tag in tags])
            assert replies == [b"%d" % n for n in range(50) for _ in tags]
            assert await link.call("FCALL", "rkt_add", 1, tags[1], 1, "x") == [1, b"new"]
            assert await link.call("PING") == b"PONG"
            sizes = [await each.call("DBSIZE") for each in link.primaries()]
            # (the function wrote three keys)
            assert sorted(int(str(size)) for size in sizes) == [50, 50, 53]
            with pytest.raises(ClusterError, match="CROSSSLOT"):
                await link.call("MGET", *tags)
            assert link.unanswered == link.pending_bytes == 0
            assert link.round_trip_ms > 0
        assert states == [True]


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        ((b"FCALL", b"f", b"1", b"{a}b", 1), b"a"),
        (("GET", "{a}b"), b"a"),
        (("XREAD", "COUNT", 10, "BLOCK", 0, b"STREAMS", b"{a}b", b"0"), b"a"),
        (("SPUBLISH", b"{a}b", b"x"), b"a"),
    ],
)
def test_slot_of_a_command(parts: tuple[str | bytes | int, ...], key: bytes) -> None:
    assert slot_of_command(parts) == key_slot(key)


def test_commands_without_a_key() -> None:
    assert [slot_of_command(parts) for parts in (("ping",), (b"FCALL", "f", 0), ("INFO", "memory"))] == [-1] * 3


async def test_a_slot_that_moves_under_load(servers: ServerCluster) -> None:
    tag = tag_at(servers, 0)
    slot = key_slot(tag)
    calls = 1500
    outcomes: list[bytes] = []

    async with reactor() as poller, connected(make_link(servers.address, poller), poller) as link:
        moves = 0
        progress = trio.Event()

        async def add() -> None:
            """As a lane does: one call under way, the same number until it is answered."""
            number = 1
            while number <= calls:
                try:
                    reply = await link.call("FCALL", "rkt_add", 1, tag, number, f"v{number}")
                except StoreUnavailable:
                    continue
                assert isinstance(reply, list)
                assert reply[0] == number
                outcomes.append(reply[1])
                number += 1
                if number > 100:
                    progress.set()

        async def write_and_read(worker: int) -> None:
            """Single-key commands follow their key at once."""
            number = 0
            while len(outcomes) < calls:
                key = tag + b"w%d.%d" % (worker, number % 50)
                await link.call("SET", key, number)
                assert await link.call("GET", key) == b"%d" % number
                number += 1

        async def move_back_and_forth() -> None:
            nonlocal moves
            await progress.wait()
            while len(outcomes) < calls:
                source = servers.owner(tag)
                target = servers.servers[(servers.servers.index(source) + 1) % 3]
                servers.begin_move(slot, source, target)
                while await trio.to_thread.run_sync(servers.move_keys, slot, source, target, 10):
                    await trio.lowlevel.checkpoint()
                servers.end_move(slot, source, target)
                moves += 1
                done = len(outcomes)
                while len(outcomes) < min(calls, done + 100):
                    await trio.sleep(0.005)

        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(add)
                for worker in range(3):
                    nursery.start_soon(write_and_read, worker)
                nursery.start_soon(move_back_and_forth)
        assert moves >= 3
        assert outcomes == [b"new"] * calls
        assert link.up
    async with coredis.RedisCluster("127.0.0.1", servers.servers[1].address.port) as oracle:
        expected = [b"v%d" % number for number in range(1, calls + 1)]
        assert list(await oracle.lrange(tag + b"list", 0, -1)) == expected
        assert await oracle.hlen(tag + b"hash") == calls
        assert await oracle.get(tag + b"last") == b"%d" % calls


async def test_functions_wait_for_a_slot_on_its_way_and_single_keys_do_not(servers: ServerCluster) -> None:
    tag = tag_at(servers, 0)
    slot = key_slot(tag)
    source, target = servers.servers[0], servers.servers[1]
    async with reactor() as poller, connected(make_link(servers.address, poller), poller) as link:
        assert await link.call("FCALL", "rkt_add", 1, tag, 1, "x") == [1, b"new"]
        servers.begin_move(slot, source, target)
        assert servers.move_keys(slot, source, target, 2) == 2
        expected = Expected(1)
        link.command(("FCALL", "rkt_add", 1, tag, 2, "y"), expected.then)
        link.flush()
        for name, reply in ((b"last", b"1"), (b"new", None)):
            assert await link.call("GET", tag + name) == reply
        assert await link.call("HGET", tag + b"hash", "x") == b"1"
        assert await link.call("LLEN", tag + b"list") == 1
        assert expected.replies == []
        servers.move(slot, source, target)
        assert await expected.wait() == [[2, b"new"]]
        servers.move(slot, target, source)
        assert await link.call("FCALL", "rkt_add", 1, tag, 3, "z") == [3, b"new"]


async def test_a_slot_that_does_not_arrive_is_unavailable(servers: ServerCluster) -> None:
    tag = tag_at(servers, 2)
    source, target = servers.servers[2], servers.servers[1]
    async with (
        reactor() as poller,
        connected(make_link(servers.address, poller, answer_timeout_s=0.3), poller) as link,
    ):
        servers.begin_move(key_slot(tag), source, target)
        try:
            with pytest.raises(StoreUnavailable, match="on its way"), trio.fail_after(20):
                await link.call("FCALL", "rkt_add", 1, tag, 1, "x")
        finally:
            servers.end_move(key_slot(tag), target, source)
        with trio.fail_after(20):
            assert await link.call("FCALL", "rkt_add", 1, tag, 1, "x", resend=True) == [1, b"new"]


async def test_feeds_and_pushes_move_with_their_slot(servers: ServerCluster) -> None:
    stream, other = b"s:{feed}:in", b"s:{else}:in"
    assert feed_groups(servers.address, [stream, other, b"s:{feed}:n"]) == [[stream, b"s:{feed}:n"], [other]]
    slot = key_slot(stream)
    source = servers.owner(stream)
    target = next(each for each in servers.servers if each is not source)
    subscribed: list[int] = []
    pushed: list[object] = []

    async def subscribe(link: RedisLink) -> None:
        link.subscribe("SSUBSCRIBE", [b"s:{feed}:k"], lambda reply: subscribed.append(link.address.port))

    async def until(count: int) -> None:
        with trio.fail_after(30):
            while len(subscribed) < count:
                await trio.sleep(0.01)

    async with reactor() as poller:
        link = make_link(servers.address, poller)
        feed = make_feed_link(servers.address, poller, stream)
        push = make_push_link(servers.address, poller, b"s:{feed}:k", on_push=pushed.append, on_up=subscribe)
        async with connected(link, poller), connected(feed, poller), connected(push, poller):
            await until(1)
            assert feed.address.port == source.address.port
            await link.call("XADD", stream, "0-1", "a", "1")
            assert await feed.call("XREAD", "BLOCK", 0, "STREAMS", stream, "0", allow_s=30.0)
            assert await link.call("SPUBLISH", b"s:{feed}:k", b"one") == 1
            got: list[object] = []

            async def follow() -> None:
                while not got:
                    try:
                        got.append(await feed.call("XREAD", "BLOCK", 0, "STREAMS", stream, "0-1", allow_s=30.0))
                    except StoreUnavailable:
                        await trio.sleep(0.01)

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(follow)
                    await trio.testing.wait_all_tasks_blocked()
                    servers.move(slot, source, target)
                    await link.call("XADD", stream, "0-2", "a", "2")
            assert got == [{stream: [[b"0-2", [b"a", b"2"]]]}]
            assert feed.address.port == target.address.port
            await until(2)
            assert subscribed[-1] == target.address.port
            assert await link.call("SPUBLISH", b"s:{feed}:k", b"two") == 1
            await link.call("PING")
            with trio.fail_after(30):
                while len(pushed) < 2:
                    await trio.sleep(0.01)
            assert pushed == [[b"smessage", b"s:{feed}:k", text] for text in (b"one", b"two")]


async def test_a_primary_that_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    with server_cluster(3, 1) as servers:
        tags = [tag_at(servers, number) for number in range(3)]
        async with reactor() as poller:
            states: list[bool] = []
            counters = LinkCounters()
            link = make_link(
                servers.address,
                poller,
                demand=Demand("replicated", timeout_s=0.5),
                counters=counters,
                on_ready=lambda: states.append(True),
                on_down=lambda error: states.append(False),
            )
            async with connected(link, poller):
                replies = await gather(link, poller, [("SET", tag + b"k", "v") for tag in tags], durable=True)
                assert replies == [b"OK"] * 3
                servers.servers[0].kill()
                began_s = trio.current_time()
                expected = Expected(100)
                for number in range(100):
                    link.command(("RPUSH", tags[0] + b"list", number), expected.then, resend=True)
                with trio.fail_after(30):
                    while link.up:
                        await trio.sleep(0.01)
                assert [link.up_for(tag) for tag in tags] == [False, True, True]
                with pytest.raises(StoreUnavailable):
                    await link.call("GET", tags[0] + b"k")
                # The others go on (at first: without a majority's view of it the whole cluster would stop).
                assert await link.call("GET", tags[1] + b"k") == b"v"
                assert await expected.wait() == list(range(1, 101))
                gap_s = trio.current_time() - began_s
                assert await link.call("GET", tags[0] + b"k") == b"v"
                assert states == [True, False, True]
                assert counters.failovers == 1
                # What must be on a replica is not answered: this primary has none now.
                late = Expected(1)
                link.command(("SET", tags[0] + b"k", "w"), late.then, durable=True)
                link.flush()
                assert await link.call("GET", tags[0] + b"k") == b"w"
                assert late.replies == []
                servers.servers[0].start()
                assert await late.wait() == [b"OK"]
        with capsys.disabled():
            sys.stdout.write(f" (gap {gap_s:.2f} s) ")


async def test_tls_and_a_password(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    with server_cluster(3, tls=tls, password="open sesame") as servers:
        tags = [tag_at(servers, number) for number in range(3)]
        async with reactor() as poller, connected(make_link(servers.address, poller), poller) as link:
            assert await gather(link, poller, [("SET", tag, n) for n, tag in enumerate(tags)]) == [b"OK"] * 3
            servers.move(key_slot(tags[0]), servers.servers[0], servers.servers[1])
            assert await link.call("GET", tags[0]) == b"0"
        wrong = ClusterAddress(tuple(replace(seed, password="guess") for seed in servers.address.seeds))
        async with reactor() as poller:
            with pytest.raises(ClusterError, match="wrong password"):
                await make_link(wrong, poller).connect()


async def test_what_is_no_cluster() -> None:
    with server_cluster(1) as servers:
        [server] = servers.servers
        away = replace(server.address, port=free_port())
        async with reactor() as poller:
            with pytest.raises(StoreUnavailable, match="Connection refused"):
                await make_link(ClusterAddress((away,)), poller).connect()
            link = make_link(ClusterAddress((away, server.address)), poller)
            async with connected(link, poller):
                assert await link.call("PING") == b"PONG"
        with server.client() as client:
            client.execute_command("CLUSTER", "DELSLOTS", 1)
        async with reactor() as poller:
            with pytest.raises(StoreUnavailable, match="not all slots"):
                await make_link(servers.address, poller).connect()


async def test_close_answers_what_is_held_back(servers: ServerCluster) -> None:
    tag = tag_at(servers, 0)
    async with reactor() as poller:
        link = make_link(servers.address, poller)
        async with connected(link, poller):
            servers.begin_move(key_slot(tag), servers.servers[0], servers.servers[1])
            try:
                expected = Expected(2)
                link.command(("FCALL", "rkt_add", 1, tag, 1, "x"), expected.then)
                link.command(("FCALL", "rkt_add", 1, tag, 1, "x"), expected.then, resend=True)
                link.flush()
                await trio.testing.wait_all_tasks_blocked(0.05)
                link.close()
                assert [type(reply) for reply in expected.replies] == [StoreUnavailable] * 2
                with pytest.raises(StoreUnavailable, match="closed"):
                    result(expected.replies[0])
            finally:
                servers.end_move(key_slot(tag), servers.servers[1], servers.servers[0])
