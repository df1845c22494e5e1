"""What the contract suite runs against: the memory, a Redis with the least rights, and a Redis Cluster."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest

from cluster.api import Cluster
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from cluster.redis.address import Deployment, StoreAddress
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import Maker, World
from tests.kit.redis_server import RedisServer, ServerCluster, documented_user, redis_server, server_cluster

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def single() -> Iterator[RedisServer]:
    with redis_server(unix=True) as server:
        yield server


@pytest.fixture(scope="session")
def shards() -> Iterator[ServerCluster]:
    with server_cluster(3) as servers:
        yield servers


@pytest.fixture
def store(request: pytest.FixtureRequest) -> RedisServer | ServerCluster:
    """One server; where a module asks for "shards" in its stead, a Redis Cluster."""
    found: RedisServer | ServerCluster = request.getfixturevalue(getattr(request, "param", "single"))
    return found


@pytest.fixture(scope="session")
def limited(single: RedisServer) -> StoreAddress:
    """The login of a user with the rights that docs/redis.md asks for, and no others."""
    with single.client() as client:
        client.execute_command("ACL", *documented_user("t", "secret"))
    return dataclasses.replace(single.address, username="rookery", password="secret")


@pytest.fixture(params=["attach", "attach_then"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are attached by a task, and without one."""
    monkeypatch.setattr(World, "called_back", request.param == "attach_then")


@pytest.fixture(params=["memory", "redis", "shards"])
def implementation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make_cluster(implementation: str, request: pytest.FixtureRequest) -> Maker:
    def make(**limits: float) -> Cluster:
        chosen = dataclasses.replace(ClusterLimits(), **limits)  # type: ignore[arg-type]
        if implementation == "memory":
            return MemoryCluster("a", chosen)
        address: Deployment
        if implementation == "redis":
            address = request.getfixturevalue("limited")
        else:
            servers: ServerCluster = request.getfixturevalue("shards")
            address = servers.address
        return RedisCluster(address, "a", chosen, f"t{next(_numbers)}", 16)

    return make
