"""WebSocket as the transport: section 6."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.conformance.conftest import TARGET, Nodes
from tests.conformance.statements import statement
from tests.kit.websocket_client import WebSocketClient, frame

WEB = ("websocket",)
PING = b"\xc0\0"
PONG = b"\xd0\0"


@pytest.fixture
def web(nodes: Nodes, store: str) -> Iterator[WebSocketClient]:
    """A network connection to the WebSocket listener, before the request."""
    if TARGET is not None:
        pytest.skip("where the target serves WebSocket is not known")
    url = next(url for url in nodes.get(store).listeners if url.startswith("ws:"))
    port = urlsplit(url).port
    assert port is not None
    with WebSocketClient(port) as client:
        yield client


@statement(v5="MQTT-6.0.0-1", v311="MQTT-6.0.0-1", stores=WEB)
@pytest.mark.parametrize("opcode", [0x81, 0x01])
def test_text_closes(web: WebSocketClient, version: int, opcode: int) -> None:
    web.connect("text", version)
    web.send(frame(b"text", opcode))
    assert web.until_closed() == b""
    assert web.wire.code == 1003


@statement(v5="MQTT-6.0.0-2", v311="MQTT-6.0.0-2", stores=WEB)
def test_packets_and_frames_need_not_be_aligned(web: WebSocketClient, version: int) -> None:
    web.connect("aligned", version)
    web.send(frame(PING + PING[:1]) + frame(PING[1:] + PING) + frame(PING[:1], 0x02) + frame(PING[1:], 0x80))
    assert web.take(8) == 4 * PONG


@statement(v5="MQTT-6.0.0-4", v311="MQTT-6.0.0-4", stores=WEB)
def test_the_subprotocol_is_mqtt(web: WebSocketClient, version: int) -> None:
    assert web.open(subprotocols=["chat", "mqtt"]) == 101
    assert web.wire.subprotocol == "mqtt"
