"""MQTT over WebSocket against a node, with the clients of others and by hand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes

from tests.integration import mosquitto
from tests.integration.javascript import JavaScript
from tests.integration.paho_client import Paho, properties
from tests.integration.test_aiomqtt import run
from tests.integration.web import At, at
from tests.integration.web_proxy import web_proxy
from tests.kit.broker_process import BrokerProcess
from tests.kit.certificates import Chain, Issued
from tests.kit.websocket_client import WebSocketClient, frame

PING = b"\xc0\0"
PONG = b"\xd0\0"

TCP, WS, WSS, ORIGINS, TRUSTING, PROXIED = range(6)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Who issues the certificates."""
    return Chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def client_certificate(chain: Chain) -> Issued:
    return chain.client("device-1")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, chain: Chain) -> Iterator[BrokerProcess]:
    """A node with a listener of each kind."""
    server = chain.server()
    process = BrokerProcess(
        tmp_path_factory.mktemp("web") / "n",
        listen=(
            "tcp://127.0.0.1:0",
            "ws://127.0.0.1:0/mqtt",
            (
                f"wss://127.0.0.1:0/mqtt?certfile={server.certfile}&keyfile={server.keyfile}&ca_certs={chain.ca}"
                "&client_certificates=optional"
            ),
            "ws://127.0.0.1:0/other?origins=https://app.example&require_subprotocol=false&handshake_timeout=1s",
            "ws://127.0.0.1:0/mqtt?trusted_proxies=127.0.0.0/8",
            "ws://127.0.0.1:0/mqtt?trusted_proxies=127.0.0.0/8&proxy_protocol=on",
        ),
        arguments=("--log-level", "debug"),
    )
    process.start()
    yield process
    process.stop()


@pytest.fixture(params=[WS, WSS], ids=["ws", "wss"])
def kind(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def trusting(chain: Chain, mine: Issued | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(chain.ca))
    if mine is not None:
        context.load_cert_chain(mine.certfile, mine.keyfile)
    return context


def opened(node: BrokerProcess, number: int, chain: Chain | None = None) -> WebSocketClient:
    """A client that has sent nothing."""
    where = at(node, number)
    return WebSocketClient(where.port, trusting(chain) if number == WSS and chain is not None else None)


# -- the clients of others


@pytest.mark.parametrize("version", [3, 4, 5])
def test_paho(web: BrokerProcess, chain: Chain, topic: str, version: int, kind: int) -> None:
    with (
        Paho(at(web, kind), version, f"web-{version}-{kind}", transport="websockets") as client,
        Paho(web, version, f"plain-{version}-{kind}") as plain,
    ):
        client.client.ws_set_options(path="/mqtt", headers={"X-Custom": "yes", "Authorization": "Bearer abc"})
        if kind == WSS:
            client.client.tls_set_context(trusting(chain))
        client.connect()
        plain.connect()
        for subscriber, publisher in ((client, plain), (plain, client)):
            subscriber.subscribe(topic, 2)
            for qos in range(3):
                assert publisher.publish(topic, b"%d" % qos + qos * 70_000 * b"x", qos) == 0
            got = [subscriber.take() for _ in range(3)]
            assert sorted((message.qos, len(message.payload)) for message in got) == [(0, 1), (1, 70001), (2, 140001)]
            subscriber.unsubscribe(topic)


def test_a_persistent_session_over_another_transport(web: BrokerProcess, topic: str) -> None:
    lasting = properties(PacketTypes.CONNECT, SessionExpiryInterval=600)
    first = Paho(at(web, WS), 5, "roaming", clean=False, transport="websockets")
    first.connect(connect_properties=lasting)
    first.subscribe(topic, 1)
    first.close()
    mosquitto.publish(web, topic, "kept", qos=1)
    with Paho(web, 5, "roaming", clean=False) as again:
        again.connect(connect_properties=lasting)
        assert again.flags is not None and again.flags.session_present
        assert again.take().payload == b"kept"


@pytest.mark.parametrize("version", [3, 4, 5])
def test_mqttjs(web: BrokerProcess, chain: Chain, topic: str, version: int, kind: int) -> None:
    url = at(web, kind).url.replace("127.0.0.1", "localhost")
    with JavaScript(web, url) as js:
        js.connect(f"js-{version}-{kind}", version, ca=chain.ca.read_text())
        js.do("subscribe", f"js-{version}-{kind}", topic=topic, options={"qos": 2})
        for qos in range(3):
            js.do("publish", f"js-{version}-{kind}", topic=topic, payload=f"at {qos}", options={"qos": qos})
        assert [(event["payload"], event["qos"]) for event in (js.event("message") for _ in range(3))] == [
            ("at 0", 0),
            ("at 1", 1),
            ("at 2", 2),
        ]


def test_aiomqtt(web: BrokerProcess, chain: Chain, topic: str, kind: int) -> None:
    where = at(web, kind)

    async def scenario() -> None:
        async with aiomqtt.Client(
            where.host,
            where.port,
            transport="websockets",
            websocket_path="/mqtt",
            tls_context=trusting(chain) if kind == WSS else None,
        ) as client:
            await client.subscribe(topic, qos=1)
            await asyncio.gather(*(client.publish(topic, str(number), qos=1) for number in range(200)))
            got = []
            async for message in client.messages:
                got.append(bytes(message.payload))
                if len(got) == 200:
                    break
            assert got == [str(number).encode() for number in range(200)]

    run(scenario())


# -- frames by hand


def test_packets_split_and_joined(web: BrokerProcess, chain: Chain, kind: int) -> None:
    with opened(web, kind, chain) as client:
        client.connect("by-hand")
        for byte in 2 * PING:
            client.send(frame(bytes((byte,))))
        assert client.take(4) == 2 * PONG
        del client.wire.messages[:]
        client.send(frame(3 * PING))
        assert client.take(6) == 3 * PONG and client.wire.messages == [6]
        client.send(frame(PING[:1], 0x02) + frame(b"between", 0x89) + frame(PING[1:], 0x80))
        assert client.take(2) == PONG and client.wire.pongs == [b"between"]


@pytest.mark.parametrize(
    "wrong, code",
    [
        (frame(b"text", 0x81), 1003),
        (b"\x82\x02" + PING, 1002),
        (frame(b"\x10\0"), 1002),
        (frame(b"\x30\xff\xff\xff\x7f" + bytes(1000), size=1 << 30), 1009),
        (frame(b"\xe0\0"), 1000),
    ],
)
def test_close_codes(web: BrokerProcess, wrong: bytes, code: int) -> None:
    with opened(web, WS) as client:
        client.connect()
        client.send(wrong)
        client.until_closed()
        assert client.wire.code == code


def test_takeover_and_drain(web: BrokerProcess, tmp_path: Path) -> None:
    with opened(web, WS) as first, opened(web, WS) as second:
        first.connect("twice")
        second.connect("twice")
        assert first.until_closed()[:3:2] == b"\xe0\x8e"
        assert first.wire.code == 1008
    node = BrokerProcess(tmp_path / "n", listen=("ws://127.0.0.1:0/mqtt",))
    node.start()
    try:
        with opened(node, 0) as client:
            client.connect()
            node.stop()
            assert client.until_closed()[:3:2] == b"\xe0\x8b"
            assert client.wire.code == 1001
    finally:
        node.stop()


def test_keep_alive(web: BrokerProcess) -> None:
    with opened(web, WS) as client:
        client.connect(keep_alive_s=1)
        assert client.until_closed()[:3:2] == b"\xe0\x8d"
        assert client.wire.code == 1008


def test_a_will_when_the_page_is_closed(web: BrokerProcess, topic: str) -> None:
    with mosquitto.Subscriber(web, [topic]) as watcher, JavaScript(web, at(web, WS).url) as js:
        js.connect("js-page", will={"topic": topic, "payload": "closed", "qos": 1, "retain": False})
        js.do("break", "js-page")
        assert watcher.payloads(1) == ["closed"]


# -- who is let in


@pytest.mark.parametrize(
    "number, path, subprotocols, headers, status",
    [
        (WS, "/", ["mqtt"], [], 404),
        (WS, "/mqtt?token=1", ["mqttv3.1"], [], 101),
        (WS, "/mqtt", ["chat"], [], 400),
        (WS, "/mqtt", ["mqtt"], [(b"Content-Length", b"0")], 101),
        (WS, "/mqtt", ["mqtt"], [(b"Content-Length", b"5")], 400),
        (WS, "/mqtt", ["mqtt"], [(b"Transfer-Encoding", b"chunked")], 400),
        (WS, "/mqtt", [], [], 400),
        (WS, "/mqtt", ["mqtt"], [(b"Cookie", 10_000 * b"x")], 431),
        (ORIGINS, "/other", [], [], 101),
        (ORIGINS, "/other", ["mqtt"], [(b"Origin", b"https://app.example")], 101),
        (ORIGINS, "/other", ["mqtt"], [(b"Origin", b"https://evil.example")], 403),
        (ORIGINS, "/mqtt", ["mqtt"], [], 404),
    ],
)
def test_requests(
    web: BrokerProcess,
    number: int,
    path: str,
    subprotocols: list[str],
    headers: list[tuple[bytes, bytes]],
    status: int,
) -> None:
    with opened(web, number) as client:
        assert client.open(path, subprotocols, headers) == status
        if status != 101:
            client.until_closed()


def test_slow_handshakes_are_ended(web: BrokerProcess) -> None:
    with opened(web, ORIGINS) as client:
        client.send(b"GET /other HTTP/1.1\r\nHost: x\r\n")
        client.until_closed()


def seen_as(node: BrokerProcess, client: WebSocketClient, headers: list[tuple[bytes, bytes]]) -> str:
    """The address that the node has for this client, out of its log."""
    before = node.log_path.stat().st_size
    assert client.open(headers=headers) == 101
    client.send(frame(b"\x20\0"))  # no CONNECT: logged with the peer's address
    client.until_closed()
    log = node.log_path.read_bytes()[before:].decode()
    [line] = [line for line in log.splitlines() if "connection.refused" in line]
    return line.partition("peer=")[2].split()[0].rpartition(":")[0]


def test_forwarded_addresses(web: BrokerProcess) -> None:
    told = [(b"X-Forwarded-For", b"6.6.6.6, 192.0.2.7, 127.0.0.2")]
    with opened(web, TRUSTING) as client:
        assert seen_as(web, client, told) == "192.0.2.7"
    with opened(web, TRUSTING) as client:
        assert seen_as(web, client, [(b"X-Forwarded-For", b"2001:db8::1")]) == "[2001:db8::1]"
    with opened(web, TRUSTING) as client:
        assert seen_as(web, client, [(b"Forwarded", b"for=6.6.6.6"), (b"X-Real-IP", b"6.6.6.6")]) == "127.0.0.1"
    with opened(web, WS) as client:
        assert seen_as(web, client, told) == "127.0.0.1"


def test_a_proxy_header_before_the_request(web: BrokerProcess) -> None:
    with opened(web, PROXIED) as client:
        client.send(b"PROXY TCP4 198.51.100.9 127.0.0.1 4000 80\r\n")
        assert seen_as(web, client, [(b"X-Forwarded-For", b"6.6.6.6")]) == "198.51.100.9"


def test_behind_haproxy(web: BrokerProcess, tmp_path: Path, topic: str) -> None:
    with web_proxy(tmp_path, at(web, TRUSTING).port, "198.51.100.77") as port:
        with WebSocketClient(port) as client:
            assert seen_as(web, client, [(b"X-Forwarded-For", b"6.6.6.6")]) == "198.51.100.77"
        where = At("127.0.0.1", port, "")
        with Paho(where, 5, "behind", transport="websockets") as client:
            client.client.ws_set_options(path="/mqtt")
            client.connect()
            client.subscribe(topic, 2)
            for qos in range(3):
                client.publish(topic, str(qos), qos)
            assert sorted(client.take().payload for _ in range(3)) == [b"0", b"1", b"2"]


def test_a_client_certificate(web: BrokerProcess, chain: Chain, client_certificate: Issued) -> None:
    where = at(web, WSS)
    with WebSocketClient(where.port, trusting(chain, client_certificate)) as client:
        client.connect("with-certificate")
    stranger = Chain(chain.folder / "stranger", "Stranger").client("nobody")
    with WebSocketClient(where.port, trusting(chain, stranger)) as client, pytest.raises(ssl.SSLError):
        client.open()
