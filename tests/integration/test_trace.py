"""Traces of real connections: TLS, WebSocket, several workers, and a client that is fast."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from broker.codec.packets import Connect, Publish
from tests.integration import mosquitto
from tests.kit.api import ADMIN_ARGUMENTS, admin_of
from tests.kit.broker_process import BrokerProcess
from tests.kit.certificates import Chain
from tests.kit.mqtt_client import MqttClient
from tests.kit.websocket_client import WebSocketClient

#: Messages of the fast client.
COUNT = 20_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrokerProcess, Chain]]:
    """A node with all kinds of listeners."""
    chain = Chain(tmp_path_factory.mktemp("chain"))
    server = chain.server()
    files = f"?certfile={quote(str(server.certfile), safe='/')}&keyfile={quote(str(server.keyfile), safe='/')}"
    listen = ("tcp://127.0.0.1:0", f"tls://127.0.0.1:0{files}", "ws://127.0.0.1:0")
    process = BrokerProcess(
        tmp_path_factory.mktemp("trace") / "n", "memory", listen=listen, http="127.0.0.1:0", arguments=ADMIN_ARGUMENTS
    )
    process.start()
    try:
        yield process, chain
        assert "Traceback" not in process.log()
    finally:
        process.stop()


def port_of(process: BrokerProcess, scheme: str) -> int:
    [url] = [url for url in process.listeners if url.startswith(scheme + "://")]
    return int(url.rpartition(":")[2].partition("/")[0])


def start(api: httpx.Client, **arguments: object) -> str:
    answer = api.post("/traces", json=arguments)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def finish(api: httpx.Client, trace_id: str) -> list[dict[str, Any]]:
    """Stop it; all lines of packets."""
    assert api.post(f"/traces/{trace_id}/stop").json()["running"] is False
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = api.get(f"/traces/{trace_id}/lines", params={"cursor": cursor, "limit": 1000}).json()
        found += page["items"]
        cursor = page["cursor"]
    return found


def packets(lines: list[dict[str, Any]]) -> list[str]:
    return [f"{line['direction']} {line['details']['type']}" for line in lines if line["kind"] == "packet"]


def test_a_client_over_tls(node: tuple[BrokerProcess, Chain]) -> None:
    process, chain = node
    with admin_of(process) as api:
        trace_id = start(api, client_id="secured", payload=True)
        told = [
            "-u",
            "u",
            "-P",
            "hush",
            "-h",
            "localhost",
            "-p",
            str(port_of(process, "tls")),
            "--cafile",
            str(chain.ca),
        ]
        done = mosquitto.run(
            "mosquitto_pub",
            process,
            *told,
            "-i",
            "secured",
            "-t",
            "t",
            "-m",
            "hello",
            "-q",
            "2",
            "-u",
            "u",
            "-P",
            "hush",
        )
        assert done.returncode == 0, done.stderr
        lines = finish(api, trace_id)
    assert packets(lines)[:6] == [
        "in CONNECT",
        "out CONNACK",
        "in PUBLISH",
        "out PUBREC",
        "in PUBREL",
        "out PUBCOMP",
    ]
    assert any(line["details"].get("payload") == "hello" for line in lines)
    assert "hush" not in str(lines)


def test_a_client_over_websocket(node: tuple[BrokerProcess, Chain]) -> None:
    process, _ = node
    with admin_of(process) as api:
        trace_id = start(api, ip="127.0.0.0/8")
        with WebSocketClient(port_of(process, "ws")) as client:
            client.connect("web")
            client.send(client.wire.binary(b"\xc0\x00"))
            assert client.take(2) == b"\xd0\x00"
        with WebSocketClient(port_of(process, "ws")) as client:  # the other has gone
            client.connect("web")
        lines = finish(api, trace_id)
    assert packets(lines)[:4] == ["in CONNECT", "out CONNACK", "in PINGREQ", "out PINGRESP"]
    assert lines[0]["kind"] == "connection" and lines[0]["peer"].startswith("127.0.0.1:")


async def test_a_fast_client_loses_nothing(node: tuple[BrokerProcess, Chain]) -> None:
    process, _ = node
    with admin_of(process) as api:
        trace_id = start(api, client_id="fast")
        async with (
            await MqttClient.open(process.host, process.port, 4) as subscriber,
            await MqttClient.open(process.host, process.port, 4) as fast,
            trio.open_nursery() as nursery,
        ):
            await subscriber.connect(Connect(4, "subscriber", True))
            await subscriber.subscribe("t", qos=0)
            await fast.connect(Connect(4, "fast", True))

            async def send() -> None:
                for first in range(0, COUNT, 500):
                    await fast.send(*(Publish("t", b"%d" % number) for number in range(first, first + 500)))

            nursery.start_soon(send)
            for number in range(COUNT):
                message = await subscriber.expect(Publish)
                assert int(message.payload) == number
        lines = finish(api, trace_id)
        [known] = [each for each in api.get("/traces").json()["items"] if each["id"] == trace_id]
    assert len(lines) <= 10_000 and known["lines"] + known["left_out"] > 2 * COUNT
    assert sum(line["details"]["left_out"] for line in lines if "were left out" in line["text"]) <= known["left_out"]
    assert known["left_out"] > 0


def test_workers(tmp_path: Path) -> None:
    process = BrokerProcess(
        tmp_path / "n", "embedded", http="127.0.0.1:0", arguments=("--workers", "2", *ADMIN_ARGUMENTS)
    )
    process.start()
    try:
        with admin_of(process) as api:
            trace_id = start(api, topic_filter="#")
            done = mosquitto.run("mosquitto_pub", process, "-i", "p", "-t", "t", "-m", "x", "-q", "1")
            assert done.returncode == 0, done.stderr
            lines = finish(api, trace_id)
        [route] = [line for line in lines if line["kind"] == "route"]
        assert route["client_id"] == "p"
        assert len({line["node"] for line in lines if line["kind"] == "trace"}) == 2
    finally:
        process.stop()
