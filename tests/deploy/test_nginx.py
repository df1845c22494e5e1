"""The shipped configuration of nginx, in nginx."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.deploy import ways
from tests.deploy.composed import Balancer, World, nginx, nginx_text


@pytest.fixture(scope="module")
def balancer(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    """With a path for the dashboard, as its comment says."""
    with nginx(world, tmp_path_factory.mktemp("nginx") / "run", _with_path) as found:
        yield found


def _with_path(text: str) -> str:
    found = re.search(r"# (location /rookery/ \{ proxy_pass http://api/;) \.\.\. \}", text)
    assert found is not None
    end = text.rindex("}", 0, text.rindex("}"))  # of the server
    return text[:end] + f"{found[1]} }}\n" + text[end:]


def test_nginx_finds_no_fault(world: World, tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text(nginx_text(world, Balancer("", tmp_path)))
    done = subprocess.run(
        ["/usr/sbin/nginx", "-t", "-c", str(tmp_path / "nginx.conf")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "test is successful" in done.stderr, done.stderr


@pytest.mark.parametrize("way", [ways.MQTT, ways.MQTTS, ways.PASSED, ways.WSS])
def test_ways_in(world: World, balancer: Balancer, way: ways.Way) -> None:
    ways.check(world, balancer, way)


@pytest.mark.parametrize("prefix", ["/", "/rookery/"])
def test_dashboard_and_api(world: World, balancer: Balancer, prefix: str) -> None:
    context = ssl.create_default_context(cafile=str(world.chain.ca))
    base = f"https://localhost:{balancer.ports['8084']}"
    with httpx.Client(base_url=base, verify=context, trust_env=False) as client:
        page = client.get(prefix)
        assert page.status_code == 200 and "<html" in page.text
        needed = re.findall(r'(?:href|src)="([^"#:]+)"', page.text)
        assert len(needed) > 3
        for each in needed:  # all that it needs lies below the path
            place = urljoin(prefix, each)
            assert place.startswith(prefix) and client.get(place).status_code == 200, place
        answer = client.post(f"{prefix}api/v1/login", json={"name": "admin", "secret": world.admin})
        assert answer.status_code == 200 and "Secure" in answer.headers["set-cookie"]
        assert client.get(f"{prefix}api/v1/whoami").json()["name"] == "admin"
        assert client.get("/metrics").status_code == 404


def test_a_node_that_is_gone_is_passed_over(world: World, balancer: Balancer) -> None:
    gone = world.nodes["rookery-3"]
    gone.terminate()
    try:
        for _ in range(4):
            ways.check(world, balancer, ways.MQTT)
    finally:
        gone.start()
