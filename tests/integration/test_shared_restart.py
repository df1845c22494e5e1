"""Shared subscriptions whose node is killed while a QoS 2 message is on its way to the member that gets it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis
import trio

from broker.codec.packets import Publish
from cluster.keys import GROUP_KEPT, GROUP_QUEUE, session_id
from cluster.layout import LAYOUT
from cluster.records import pack_arguments
from tests.integration.conftest import PeersOf, StartNode
from tests.kit.broker_process import BrokerProcess
from tests.kit.redis_server import RedisServer, redis_server
from tests.kit.store_functions import execute

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def node(start_node: StartNode, store: RedisServer) -> Iterator[BrokerProcess]:
    """A node on that server; it stops before the server does."""
    process = start_node(store=f"redis://127.0.0.1:{store.address.port}")
    yield process
    process.stop()


def left(store: RedisServer) -> tuple[list[bytes], dict[bytes, bytes]]:
    """The key of the group's queue if there is anything in it, and whose the messages are."""
    with store.client() as client:
        queues = [key for key in client.scan_iter(b"*:" + GROUP_QUEUE + b"*") if client.xlen(key)]
        owners = [
            cast("dict[bytes, bytes]", client.hgetall(key)) for key in client.scan_iter(b"*:" + GROUP_KEPT + b"*")
        ]
    return queues, {name: owner for each in owners for name, owner in each.items()}


async def until_nobody_has_it(client: redis.Redis, queue: bytes) -> None:
    """The node may have taken it for a member that was leaving, and gives it back."""
    prefix, _, group_id = queue.partition(GROUP_QUEUE)
    with trio.fail_after(10):
        while cast("list[int]", execute(client, "FCALL", "rk1_group_info", 1, prefix, group_id))[1]:
            await trio.lowlevel.checkpoint()


def keep_and_die(client: redis.Redis, queue: bytes) -> None:
    """Another node takes the message, writes down whose it is, and does not live to see it queued."""
    prefix, _, group_id = queue.partition(GROUP_QUEUE)
    members = prefix[: prefix.index(b"{")] + b"{c}:"

    def call(name: str, key: bytes, *arguments: object) -> list[Any]:
        return cast("list[Any]", execute(client, "FCALL", f"rk1_{name}", 1, key, *arguments))

    _, inc, *_ = call("join", members, "ghost", LAYOUT, 16, 60_000, 1)
    batch = pack_arguments([[b"g" * 16, 1, 0, 10]])
    _, _, entries = call("group_members", prefix, group_id, "ghost", inc, "round_robin", batch)
    kept = [entries[0], session_id("owner")]
    call("group_settle", prefix, "ghost", inc, pack_arguments([[group_id, [], [], kept]]))
    execute(client, "FCALL", "rk1_leave", 1, members, b"ghost:%d" % inc)


@pytest.mark.parametrize("who", ["owner first", "other first"])
@pytest.mark.parametrize("moment", ["before it was queued", "after it was queued", "after it was acknowledged"])
async def test_g14_a_killed_node_gives_it_to_no_second_member(
    node: BrokerProcess, store: RedisServer, peers_of: PeersOf, topic: str, moment: str, who: str
) -> None:
    """[MQTT-4.8.2-5]"""
    peers = peers_of(node)
    owner = await peers.connect(client_id="owner", persistent=True)
    other = await peers.connect(client_id="other", persistent=True)
    for member in (owner, other):
        await member.subscribe(f"$share/g/{topic}", qos=2)
    await other.disconnect()
    publisher = await peers.connect()
    with store.client() as client:
        if moment == "before it was queued":
            await owner.disconnect()
        else:
            client.execute_command("ACL", "SETUSER", "default", "-xack")  # the node does not get so far
        await publisher.publish(topic, b"x", 2)
        if moment == "after it was queued":
            await owner.expect(Publish)
        elif moment == "after it was acknowledged":
            await owner.take(b"x")
            # Its next connection waits until the store has all of that.
            await peers.connect(client_id="owner", persistent=True)
        if moment == "before it was queued":
            await until_nobody_has_it(client, left(store)[0][0])
        node.kill()
        client.execute_command("ACL", "SETUSER", "default", "+xack")
        if moment == "before it was queued":
            keep_and_die(client, left(store)[0][0])
        _, owners = left(store)
        assert list(owners.values()) == [session_id("owner")]
    node.start()
    peers = peers_of(node)
    for name in ("owner", "other") if who == "owner first" else ("other", "owner"):
        member = await peers.connect(client_id=name, persistent=True)
        assert member.connack is not None
        assert member.connack.session_present
        if name == "owner" and moment != "after it was acknowledged":
            await member.take(b"x")
        await member.expect_nothing()
    assert node.terminate() == 0
    assert left(store) == ([], {})
