"""Headers that say a request is somebody else's: at the HTTP port they count from proxies only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.kit.api import ADMIN, client_of
from tests.kit.broker_process import BrokerProcess

RATE = 5


@pytest.fixture(params=["127.0.0.0/8", "10.0.0.0/8"])
def trusted(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def node(tmp_path: Path, trusted: str) -> Iterator[BrokerProcess]:
    """It takes this machine for a proxy, or not."""
    made = BrokerProcess(
        tmp_path, http="127.0.0.1:0", arguments=("--http-rate", str(RATE), "--http-trusted-proxies", trusted)
    )
    made.start()
    yield made
    made.stop()


def refused(client: httpx.Client, told: list[str]) -> list[int]:
    """Numbers of the requests that were too many, of those with these X-Forwarded-For."""
    answers = [client.get("/openapi.json", headers={"X-Forwarded-For": each}).status_code for each in told]
    assert set(answers) <= {200, 429}
    return [number for number, status in enumerate(answers) if status == 429]


def test_addresses_and_tls_count_from_proxies_only(node: BrokerProcess, trusted: str) -> None:
    believed = trusted.startswith("127.")
    many = [f"192.0.2.{number}" for number in range(40)]
    with client_of(node) as client:
        # 40 clients of a proxy; of anybody else one who pretends.
        assert bool(refused(client, many)) == (not believed)
        if believed:  # what a client itself sent stands left of what the proxy knows
            assert refused(client, [f"{each}, 198.51.100.1" for each in many])
            assert not refused(client, ["198.51.100.1, 198.51.100.2"])


def test_what_makes_a_cookie_secure(node: BrokerProcess, trusted: str) -> None:
    name, secret = ADMIN
    given = {"name": name, "secret": secret}
    with client_of(node) as client:
        told = client.post("/login", json=given, headers={"X-Forwarded-Proto": "https"})
        plain = client.post("/login", json=given)
    assert told.status_code == plain.status_code == 200
    assert ("Secure" in told.headers["set-cookie"]) == trusted.startswith("127.")
    assert "Secure" not in plain.headers["set-cookie"]
