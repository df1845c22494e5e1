"""A store is moved to another layout by a command: while no node runs, to the end, and every node minds it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from broker import __version__
from cluster import layout
from cluster.keys import Keys
from cluster.redis.library import NAME, source
from tests.kit.broker_process import ROOT, BrokerFailed, BrokerProcess
from tests.kit.redis_server import RedisServer, ServerCluster, documented_user, redis_server, server_cluster
from tests.upgrade.previous import Release
from tests.upgrade.stored import CLIENTS, TOPICS, expect_all, furnish

NEXT = "tests.upgrade.next_layout"
OWN = "broker"


class Place:
    """A store, and commands and nodes of versions that work on it."""

    def __init__(self, folder: Path, store: RedisServer) -> None:
        self.folder = folder
        self.store = store
        self.url = f"redis://127.0.0.1:{store.address.port}/0"
        self.keys = Keys("rookery", 16)

    def run(self, module: str, *arguments: str, status: int = 0, die: str = "") -> str:
        """What a command below `store` prints."""
        return rookery(module, *arguments, "--store", self.url, status=status, die=die)

    def client(self) -> redis.Redis:
        return self.store.client()

    def node(self, module: str = OWN, name: str = "a") -> BrokerProcess:
        """Of this version or the next; not started."""
        node = _Node(self.folder / name, self.url, arguments=("--node-name", name))
        node.module = module
        return node

    def refused(self, module: str = OWN) -> str:
        """Why a node does not start."""
        with pytest.raises(BrokerFailed) as failed:
            self.node(module, "refused").start()
        return str(failed.value).strip().splitlines()[-1]

    def layout(self) -> str:
        with self.client() as client:
            return str(client.hget(self.keys.members + b"meta", "layout"), "ascii")

    def pass_time(self) -> None:
        """Whoever was at a migration is alone with it no more."""
        with self.client() as client:
            client.hset(self.keys.members + b"mig", "until", 0)

    def without_progress(self) -> dict[bytes, bytes]:
        """Everything that lies there, but for what a migration notes of itself."""
        with self.client() as client:
            return {key: client.dump(key) or b"" for key in client.scan_iter() if not key.endswith(b"}:mig")}


class _Node(BrokerProcess):
    module = OWN

    def command(self) -> list[str]:
        return [self.module if each == "broker" else each for each in super().command()]


def commanded(module: str, *arguments: str, die: str = "") -> tuple[list[str], dict[str, str]]:
    """The command and its environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIE": die}
    return [sys.executable, "-m", module, "store", *arguments], environment


def rookery(module: str, *arguments: str, status: int = 0, die: str = "") -> str:
    """`rookery store` of this version or the next."""
    command, environment = commanded(module, *arguments, die=die)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
async def place(tmp_path: Path) -> Any:
    """A store with data of this version, without nodes."""
    with redis_server(aof=True) as store:
        made = Place(tmp_path, store)
        node = made.node()
        node.start()
        try:
            await furnish(node)
        finally:
            node.stop()
        yield made


async def test_killed_in_the_middle_and_resumed(place: Place) -> None:
    before = place.without_progress()
    told = place.run(NEXT, "migrate", "--dry-run")
    assert f"sessions: {len(CLIENTS)} entries" in told and f"retained messages: {len(TOPICS)} entries" in told
    after = place.without_progress()
    assert after == before, "a dry run changes nothing"
    # Once before it noted how far it came, and once behind that.
    place.run(NEXT, "migrate", status=-signal.SIGKILL, die="before:5")
    assert place.layout() == "1>2"
    # No node starts now, and nobody else goes on before it is clear that the one that began is dead.
    assert "on its way from layout 1 to 2" in place.refused(NEXT)
    assert "is at it" in place.run(NEXT, "migrate", status=1)
    assert "migration      at sessions" in place.run(NEXT, "status")
    place.pass_time()
    told = place.run(NEXT, "migrate", status=-signal.SIGKILL, die="after:20")
    assert "sessions: goes on behind" in told
    place.pass_time()
    told = place.run(NEXT, "migrate")
    assert "retained messages: goes on behind" in told and "layout 2: done" in told
    check(place, again=3)
    assert "nothing to do" in place.run(NEXT, "migrate")
    node = place.node(NEXT)
    node.start()
    try:
        await expect_all(node)
    finally:
        node.stop()


def check(place: Place, again: int = 0) -> None:
    """Everything was moved; at most so many entries were looked at twice."""
    ids: list[bytes] = []
    times: list[int] = []
    with place.client() as client:
        for prefix in place.keys.partitions:
            ids += client.hkeys(prefix + b"ix2")
            times += [int(each) for each in client.hvals(prefix + b"times")]
        topics: list[bytes] = []
        for prefix in place.keys.retained:
            assert client.hgetall(prefix + b"ret2") == client.hgetall(prefix + b"ret")
            topics += client.hkeys(prefix + b"ret2")
    assert sorted(ids) == [each.encode() for each in CLIENTS]
    assert sum(times) - len(CLIENTS) <= again
    assert sorted(topics) == [each.encode() for each in TOPICS]
    assert place.layout() == "2"


async def test_nodes_of_other_layouts_say_what_to_do(place: Place, previous: Release) -> None:
    line = place.refused(NEXT)
    assert "has layout 1" in line and "has layout 2" in line and "`rookery store migrate`" in line
    node = place.node()
    node.start()
    try:
        told = place.run(NEXT, "migrate", status=1)
        assert "node a:" in told and "stop all nodes" in told
        assert place.layout() == "1"
    finally:
        node.stop()
    told = place.run(NEXT, "migrate", status=1, die="raise:3")
    assert "a failure" in told
    # Nobody need wait after a failure.
    place.run(NEXT, "migrate")
    check(place, again=3)
    before = place.without_progress()
    line = place.refused()
    assert place.without_progress() == before, "a node of another layout writes nothing"
    assert "has layout 2" in line and "newer version" in line
    assert "newer version" in place.run(OWN, "migrate", status=1)
    with pytest.raises(BrokerFailed, match="layout version 2, this broker has 1"):
        previous.node(place.folder / "previous", place.url).start()


async def test_a_killed_node_is_waited_for_and_then_dead(place: Place) -> None:
    """By a user of the store with the rights of a node."""
    with place.client() as client:
        client.execute_command("ACL", *documented_user("rookery:", "secret"))
        # What the migration of this test itself calls; that of a release is in the library of nodes.
        client.execute_command("ACL", "SETUSER", "rookery", "+zrange", "+hscan", "+zcard", "+hlen", "+hincrby")
    place.url = place.url.replace("//", "//rookery:secret@")
    node = place.node()
    node.start()
    node.kill()
    assert "node a:" in place.run(NEXT, "migrate", status=1)
    with place.client() as client:
        [member] = client.zrange(place.keys.members + b"nodes", 0, -1)
        client.zadd(place.keys.members + b"nodes", {member: 1})  # its lease is over
        assert "the lease of node a:" in place.run(NEXT, "migrate")
        assert client.zrange(place.keys.members + b"dead", 0, -1) == [member]
        name, _, incarnation = member.rpartition(b":")
        for prefix in (*place.keys.partitions, *place.keys.retained, place.keys.routes):
            assert client.hget(prefix + b"fence", b"f:" + name) == incarnation
    check(place)


async def test_a_node_is_not_taken_for_dead_after_an_outage_of_its_store(place: Place) -> None:
    """All leases are over when the store is back, and nodes come back one after the other."""
    node = place.node()
    node.start()
    try:
        os.kill(node.pid, signal.SIGSTOP)
        with place.client() as client:
            [member] = client.zrange(place.keys.members + b"nodes", 0, -1)
        place.store.restart()
        with place.client() as client:
            client.zadd(place.keys.members + b"nodes", {member: 1})
        command, environment = commanded(NEXT, "migrate", "--store", place.url)
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as migration:
            assert migration.stdout is not None
            assert b"waiting 6 s whether it comes back" in migration.stdout.readline()
            os.kill(node.pid, signal.SIGCONT)
            assert b"node a:" in (told := migration.stdout.read()) and b"stop all nodes" in told
        assert migration.returncode == 1
        assert place.layout() == "1"
        await expect_all(node)
    finally:
        node.stop()


def test_what_was_watched_has_to_be_there_all_the_time(tmp_path: Path) -> None:
    with redis_server(aof=True) as store:
        place = Place(tmp_path, store)
        prefix = place.keys.members
        with place.client() as client:
            client.function_load(source(), replace=True)
            client.hset(prefix + b"meta", mapping={"layout": "1", "partitions": "16"})
            client.zadd(prefix + b"nodes", {"a:7": 1})

            def begin(*watched: object) -> list[bytes]:
                fixed = ("me", 30_000, "1", "1>2", "9")
                return list(client.fcall("rk1_layout_begin", 1, prefix, *fixed, *watched))

            [word, now, seen, member] = begin("", 0, 0, 6000)
            assert (word, member) == (b"watch", b"a:7")
            long_ago, soon = int(now) - 6000, int(now) + 60_000
            assert begin("", long_ago, soon, 6000)[0] == b"watch", "nobody watched"
            assert begin(seen, int(now), soon, 60_000)[0] == b"watch", "not long enough"
            assert begin(seen, long_ago, int(now) - 1, 6000)[0] == b"watch", "the store stood still"
            client.zadd(prefix + b"nodes", {"a:7": 2})
            assert begin(seen, long_ago, soon, 6000)[0] == b"watch", "it came back"
            client.zadd(prefix + b"nodes", {"a:7": 1})
            client.zadd(prefix + b"nodes", {"b:8": 1})
            assert begin(seen, long_ago, soon, 6000)[0] == b"watch", "another one"
            client.zrem(prefix + b"nodes", "b:8")
            place.store.restart()
        with place.client() as client:
            assert begin(seen, long_ago, soon, 6000)[0] == b"watch", "another process of the store"
            assert client.hget(prefix + b"meta", "layout") == b"1"
            seen = begin("", 0, 0, 6000)[2]
            assert begin(seen, long_ago, soon, 6000)[0] == b"begun"
            # A node that the store does not know, as its data is older than that: it has not the layout of now.
            beat = ["a", 99, 6000, 1, 16, 0, 0, 1]
            assert client.fcall("rk1_beat", 1, prefix, *beat)[1] == 3
            assert client.hget(prefix + b"meta", "layout") == b"1>2"
            assert client.zcard(prefix + b"nodes") == 0


async def test_counting_may_take_longer_than_the_lock(place: Place) -> None:
    assert "layout 2: done" in place.run(NEXT, "migrate", die="slow:0")
    check(place)


async def test_somebody_else_went_on(place: Place) -> None:
    """One that stood still for too long does nothing any more, nor do its calls that come late."""
    place.run(NEXT, "migrate", status=1, die="lost:2")
    # Its last call may be on its way.
    assert "is at it" in place.run(NEXT, "migrate", status=1)
    with place.client() as client:
        [who] = client.hmget(place.keys.members + b"mig", "who")
        place.pass_time()
        place.run(NEXT, "migrate")
        assert client.fcall("rk1_layout_keep", 1, place.keys.members, who, 1000, "step", "sessions") == 0
        assert client.fcall("rk1_layout_finish", 1, place.keys.members, who, 7) == 0
        assert client.exists(place.keys.members + b"mig") == 0
        with pytest.raises(redis.ResponseError, match="LATE"):
            client.fcall("next_sessions", 1, place.keys.partitions[0], 1, "")
    check(place, again=3)


async def test_status(place: Place) -> None:
    with place.client() as client:
        client.function_load(b"#!lua name=rk0\nredis.register_function('rk0_x', function() return 1 end)")
    nodes = [place.node(name="a"), place.node(name="b")]
    for node in nodes:
        node.start()
    try:
        shown = json.loads(place.run(OWN, "status", "--json"))
        assert (shown["layout"], shown["own_layout"], shown["partitions"], shown["level"]) == (
            "1",
            1,
            16,
            layout.FEATURES,
        )
        assert [(each["node"], each["version"], each["library"]) for each in shown["members"]] == [
            ("a", __version__, NAME),
            ("b", __version__, NAME),
        ]
        assert all(0 < each["lease_s"] <= 6 for each in shown["members"]) and shown["generation"][0] >= 1
        [libraries] = shown["libraries"].values()
        assert libraries == {"rk0": "of another version", NAME: "of this version"}
        told = place.run(OWN, "status")
        assert (
            "layout         1 (this version: 1)" in told and f"b:{shown['members'][1]['incarnation']} version" in told
        )
        assert "is the function library of this version" in place.run(OWN, "remove-library", NAME, status=1)
        assert "no function library of Rookery" in place.run(OWN, "remove-library", "mine", status=1)
        members = place.keys.members
        with place.client() as client:
            client.zadd(members + b"nodes", {"ghost:99": 9e12})
            client.hset(members + b"build", "ghost:99", "0.0.9 rk0")
            assert "rk0 is called by ghost" in place.run(OWN, "remove-library", "rk0", status=1)
            client.zrem(members + b"nodes", "ghost:99")
            assert "removed rk0" in place.run(OWN, "remove-library", "rk0")
            assert [each[1] for each in client.function_list("rk0")] == []
            client.hdel(members + b"build", "ghost:99")
        assert "no server has" in place.run(OWN, "remove-library", "rk0", status=1)
    finally:
        for node in nodes:
            node.stop()
    shown = json.loads(place.run(OWN, "status", "--json"))
    assert shown["members"] == [] and shown["level"] is None
    with place.client() as client:
        assert client.hlen(place.keys.members + b"build") == 0


def test_status_of_an_empty_store(tmp_path: Path) -> None:
    with redis_server() as store:
        place = Place(tmp_path, store)
        assert "none: no data yet" in place.run(OWN, "status")
        for arguments in ((), ("--dry-run",)):
            told = place.run(NEXT, "migrate", "--namespace", "roocery", *arguments, status=1)
            assert "there is no data in the namespace 'roocery'" in told
        with place.client() as client:
            assert client.keys() == []
            client.hset(place.keys.members + b"meta", "layout", "abc")
        assert "unknown layout 'abc'" in place.run(NEXT, "migrate", status=1)


async def test_embedded(tmp_path: Path) -> None:
    """No node runs: the command starts the server itself."""
    arguments = ("--store", "embedded", "--data-dir", str(tmp_path / "node" / "data"))
    node = _Node(tmp_path / "node", "embedded", arguments=("--node-name", "a"))
    node.start()
    await furnish(node)
    assert "member         a:" in rookery(OWN, "status", *arguments)
    assert "is a member" in rookery(NEXT, "migrate", *arguments, status=1)
    node.stop()
    assert "no members" in rookery(OWN, "status", *arguments)
    rookery(NEXT, "migrate", *arguments, status=-signal.SIGKILL, die="after:4")
    rookery(NEXT, "migrate", *arguments, status=1)
    node.module = NEXT
    with pytest.raises(BrokerFailed, match="run it again if it was interrupted"):
        node.start()


@pytest.fixture(scope="module")
def servers() -> Iterator[ServerCluster]:
    with server_cluster() as made:
        yield made


async def test_redis_cluster(servers: ServerCluster, tmp_path: Path) -> None:
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{each.address.port}" for each in servers.servers)
    node = _Node(tmp_path / "node", url, arguments=("--node-name", "a"))
    node.start()
    await furnish(node)
    node.stop()
    shown = json.loads(rookery(OWN, "status", "--json", "--store", url))
    assert len(shown["libraries"]) > 1 and all(
        each == {NAME: "of this version"} for each in shown["libraries"].values()
    )
    told = rookery(NEXT, "migrate", "--store", url)
    assert f"sessions: {len(CLIENTS)} entries done" in told and f"retained messages: {len(TOPICS)} entries done" in told
    with pytest.raises(BrokerFailed, match="start a newer version"):
        node.start()
    node.module = NEXT
    node.start()
    try:
        await expect_all(node)
    finally:
        node.stop()


def test_the_library_is_of_layout_1() -> None:
    """A layout of its own has a library of its own name."""
    assert source().startswith(b"#!lua name=rk1\n")
