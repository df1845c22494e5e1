"""Dead nodes leave nothing behind in the store for good."""

from __future__ import annotations

from typing import cast

import pytest

from cluster.api import NodeTarget
from cluster.policy import ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import message, served
from tests.kit.redis_server import RedisServer
from tests.kit.store_functions import Functions, load_library


@pytest.fixture
def functions(store: RedisServer) -> Functions:
    client = store.client()
    load_library(client)
    return Functions(client)


def reap(f: Functions, node: str, inc: int = 1, *forget_ms: int) -> None:
    assert f.call("reap", node, inc, 0, 100, 164, 0, *forget_ms) == 0


def fields(f: Functions) -> set[str]:
    """Of the fence, those that are about nodes."""
    return {each.decode() for each in cast("list[bytes]", f.client.hkeys(f.key("fence").decode())) if each[1:2] == b":"}


def retain(f: Functions, node: str, inc: int = 1) -> int:
    """The status of an adding call."""
    status = f.lane("retain", node, "t", b"\x01x", inc=inc)[0]
    assert isinstance(status, int)
    return status


def test_a_dead_node_is_remembered_for_a_while(functions: Functions) -> None:
    f = functions
    assert retain(f, "a") == 0
    reap(f, "a")
    reap(f, "b")
    assert fields(f) == {"f:a", "z:a", "f:b", "z:b"}
    assert retain(f, "a") == 3


def test_and_then_forgotten_when_another_dies(functions: Functions) -> None:
    f = functions
    for number in range(50):
        reap(f, f"pod-{number}", 1, 600_000)
    assert len(fields(f)) == 100
    f.client.hset(f.key("fence").decode(), mapping={f"z:pod-{number}": f.now_ms() - 600_001 for number in range(49)})
    assert retain(f, "alive") == 0
    reap(f, "late", 1, 600_000)
    assert fields(f) == {"f:pod-49", "z:pod-49", "f:late", "z:late", "l:alive"}


def test_one_that_came_back_goes_on(functions: Functions) -> None:
    f = functions
    reap(f, "a")
    assert retain(f, "a", 2) == 0
    f.client.hset(f.key("fence").decode(), "z:a", f.now_ms() - 3_600_001)
    reap(f, "b", 7)
    assert fields(f) == {"l:a", "f:b", "z:b"}
    assert retain(f, "a", 2) == 0


def test_the_route_table_forgets_too(functions: Functions) -> None:
    f = functions
    f.call("reap_routes", "a", 1, 100)
    assert fields(f) == {"f:a", "z:a"}
    f.client.hset(f.key("fence").decode(), "z:a", f.now_ms() - 3_600_001)
    f.call("reap_routes", "b", 1, 100)
    assert fields(f) == {"f:b", "z:b"}


async def test_the_stream_of_a_node_forgets_who_wrote_to_it(store: RedisServer) -> None:
    a, b = (RedisCluster(store.address, name, ClusterLimits(), "forget", 16) for name in "ab")
    with store.client() as client:
        async with served(a) as one:

            def writers() -> list[bytes]:
                found = cast("list[bytes]", client.hkeys(f"forget:{{n:{a._member.member.decode()}}}:fence"))
                return [each for each in found if each.startswith(b"l:")]

            async with served(b) as other:
                await other.publish(message(), nodes=[NodeTarget(a._member.member)])
                assert writers() == [b"l:b"]
            await one.events.within(lambda: not writers())
