"""What the contract suite runs against: the memory and a real Redis."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest

from cluster.api import Cluster
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from cluster.redis.store import RedisCluster
from tests.kit.cluster_world import Maker
from tests.kit.redis_server import RedisServer, redis_server

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def store() -> Iterator[RedisServer]:
    with redis_server(unix=True) as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def implementation(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make_cluster(implementation: str, request: pytest.FixtureRequest) -> Maker:
    def make(**limits: float) -> Cluster:
        chosen = dataclasses.replace(ClusterLimits(), **limits)  # type: ignore[arg-type]
        if implementation == "memory":
            return MemoryCluster("a", chosen)
        server: RedisServer = request.getfixturevalue("store")
        return RedisCluster(server.address, "a", chosen, f"t{next(_numbers)}", 16)

    return make
