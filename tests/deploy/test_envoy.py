"""The shipped configuration of Envoy, in Envoy."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy import ways
from tests.deploy.composed import Balancer, World, envoy, envoy_binary, envoy_text, fetch
from tests.kit.redis_server import wait_until


@pytest.fixture(scope="module")
def balancer(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    with envoy(world, tmp_path_factory.mktemp("envoy") / "run") as found:
        yield found


def test_envoy_finds_no_fault(world: World, tmp_path: Path) -> None:
    text = envoy_text(world, Balancer("", tmp_path))
    (tmp_path / "envoy.yaml").write_text(text)
    command = [envoy_binary(), "--mode", "validate", "-l", "warning", "-c", str(tmp_path / "envoy.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "envoy.yaml' OK" in told, told
    assert "deprecated" not in told.lower(), told


@pytest.mark.parametrize("way", [ways.MQTT, ways.MQTTS, ways.PASSED, ways.WS, ways.WSS])
def test_ways_in(world: World, balancer: Balancer, way: ways.Way) -> None:
    ways.check(world, balancer, way)


def test_a_node_that_drains_gets_nobody(world: World, balancer: Balancer) -> None:
    def healthy(node: int) -> bool:
        status, body = fetch(f"http://127.0.0.1:{balancer.ports['9901']}/clusters")
        return status == 200 and f"mqtt::127.0.1.{node}:{world.ports['1883']}::health_flags::healthy" in body

    for node in (1, 2, 3):
        wait_until(lambda node=node: healthy(node), 60)  # type: ignore[misc]
    with world.api(world.nodes["rookery-2"].http or "") as api:
        assert api.post("/nodes/rookery-2/drain").status_code < 300
        wait_until(lambda: not healthy(2), 60)
        # Its threads hear of it one after the other.
        wait_until(lambda: all(ways.enter(world, balancer, ways.MQTT)["node"] != "rookery-2" for _ in range(4)), 60)
        for _ in range(4):
            assert ways.enter(world, balancer, ways.MQTT)["node"] != "rookery-2"
        assert api.post("/nodes/rookery-2/undrain").status_code < 300
    wait_until(lambda: healthy(2), 60)
