"""G16: a node that cannot reach its store promises nothing, and goes on by itself when the store is back."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import trio

from broker.codec.packets import (
    V5,
    V311,
    Connack,
    Connect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from tests.integration.conftest import PeersOf, StartNode
from tests.integration.exchange import kill_store, payloads
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import ConnectionClosed, MqttClient
from tests.kit.redis_server import RedisServer, redis_server

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def store() -> Iterator[RedisServer]:
    """A Redis server of the test's own, with its data on disk."""
    with redis_server(aof=True) as server:
        yield server


@pytest.fixture
def grace() -> str:
    """How long the node keeps its clients without its store."""
    return "1h"


@pytest.fixture
def node(start_node: StartNode, store: RedisServer, grace: str) -> Iterator[BrokerProcess]:
    """A node on that server; it stops before the server does."""
    process = start_node("--store-grace", grace, store=f"redis://127.0.0.1:{store.address.port}")
    yield process
    process.stop()


class Outage:
    """The store away and back again, in one of the ways that happens."""

    def __init__(self, store: RedisServer, way: str) -> None:
        self.store = store
        self.way = way
        self.under_way = False

    def begin(self) -> None:
        """The store is away from now on."""
        self.under_way = True
        if self.way == "paused":
            self.store.pause()
        else:
            self.store.kill()

    def end(self) -> None:
        """The store is back."""
        self.under_way = False
        if self.way == "paused":
            self.store.resume()
        else:
            self.store.start()


@pytest.fixture(params=["paused", "killed"])
def outage(request: pytest.FixtureRequest, store: RedisServer) -> Iterator[Outage]:
    """Both ways; the store is left running, so that the node can be stopped."""
    made = Outage(store, request.param)
    yield made
    if made.under_way:
        made.end()


async def refused(client: MqttClient, client_id: str) -> None:
    """CONNECT is refused with Server unavailable, or closed, but never accepted."""
    await client.send(Connect(client.version, client_id, True, 0))
    try:
        answer = await client.receive(30)
    except ConnectionClosed:
        return
    assert isinstance(answer, Connack)
    assert answer.reason_code == 0x88
    await client.expect_closed()


async def connected_again(peers_of: PeersOf, node: BrokerProcess, client_id: str) -> MqttClient:
    """Connect as soon as the node accepts clients again."""
    peers = peers_of(node)
    with trio.fail_after(40):
        while True:
            client = await peers.open()
            try:
                connack = await client.connect(Connect(V5, client_id, False, 0))
            except (AssertionError, ConnectionClosed):
                continue
            if connack.reason_code == 0:
                return client
            assert connack.reason_code == 0x88


async def test_g16_nothing_is_acked_while_the_store_is_away(
    node: BrokerProcess, outage: Outage, peers_of: PeersOf, topic: str
) -> None:
    peers = peers_of(node)
    reader = await peers.connect(client_id="r", persistent=True)
    await reader.subscribe(f"{topic}/#")
    live = await peers.subscriber(f"{topic}/live", qos=0)
    one = await peers.connect()
    two = await peers.connect(client_id="two", persistent=True)
    old = await peers.connect(V311)
    retainer = await peers.connect()
    await one.publish(f"{topic}/1", b"before", 1)
    await reader.take(b"before")
    outage.begin()
    await one.send(Publish(f"{topic}/1", b"one", 1, False, False, 11))
    await two.send(Publish(f"{topic}/2", b"two", 2, False, False, 12))
    await old.send(Publish(f"{topic}/3", b"old", 1, False, False, 13))
    await retainer.send(Publish(f"kept/{topic}", b"kept", 1, True, False, 14))
    # QoS 0 between clients of the node goes on.
    await one.send(Publish(f"{topic}/live", b"at most once"))
    assert (await live.expect(Publish)).payload == b"at most once"
    for version in (V5, V311):
        await refused(await peers.open(version), f"new{version}")
    # That took its time, and still nobody was told that anything is safe.
    for client in (one, two, retainer, old):
        await silent(client)
    outage.end()
    # Everything goes on without a restart, on the same connections.
    assert (await one.expect(Puback, 40)).packet_id == 11
    assert (await two.expect(Pubrec, 40)).packet_id == 12
    assert (await old.expect(Puback, 40)).packet_id == 13
    assert (await retainer.expect(Puback, 40)).packet_id == 14
    await two.send(Pubrel(12))
    await two.expect(Pubcomp)
    reader.auto_ack = True
    got: set[bytes] = set()
    while not got >= {b"one", b"two", b"old"}:
        packet = await reader.receive(40)
        if isinstance(packet, Publish):
            assert packet.payload not in got or packet.dup
            got.add(packet.payload)
    await connected_again(peers_of, node, "new")
    late = await peers_of(node).connect()
    await late.subscribe(f"kept/{topic}")
    await late.take(b"kept")


async def silent(client: MqttClient) -> None:
    """The connection lives, and nothing was acknowledged on it.

    A version 5 publisher may not be read from while the store is away; so this looks at what has come already.
    """
    with trio.move_on_after(0.2):
        packet = await client.receive(5)
        raise AssertionError(f"{packet} while the store is away")


@pytest.mark.parametrize("outage", ["killed"], indirect=True)
async def test_g16_a_subscription_is_not_acked_while_the_store_is_away(
    node: BrokerProcess, outage: Outage, peers_of: PeersOf, topic: str
) -> None:
    peers = peers_of(node)
    client = await peers.connect(client_id="s", persistent=True)
    outage.begin()
    await client.send(Subscribe(15, [SubscriptionRequest(topic, 1)]))
    with trio.move_on_after(1.0):
        packet = await client.receive(30)
        raise AssertionError(f"{packet} while the store is away")
    outage.end()
    assert list((await client.expect(Suback, 40)).reason_codes) == [1]
    publisher = await peers_of(node).connect()
    await publisher.publish(topic, b"heard", 1)
    await client.take(b"heard")


async def test_g16_messages_that_need_no_store_are_not_acked_after_two_seconds(
    node: BrokerProcess, outage: Outage, peers_of: PeersOf, topic: str
) -> None:
    peers = peers_of(node)
    reader = await peers.subscriber(topic, qos=0)
    publisher = await peers.connect()
    outage.begin()
    last_acked = 0
    # Until the node knows that it has not heard of its store for too long.
    for packet_id in count(1):
        await publisher.send(Publish(topic, b"%d" % packet_id, 1, False, False, packet_id))
        answer = None
        with trio.move_on_after(1.0):
            answer = await publisher.receive(30)
        if answer is None:
            break
        assert isinstance(answer, Puback)
        last_acked = answer.packet_id
    with trio.move_on_after(1.0):
        packet = await publisher.receive(30)
        raise AssertionError(f"{packet} while the store is away")
    outage.end()
    assert (await publisher.expect(Puback, 40)).packet_id == last_acked + 1
    got = payloads(await reader.collect(Publish, last_acked + 1))
    assert got == [b"%d" % number for number in range(1, last_acked + 2)]


async def test_g16_the_session_of_a_client_that_left_meanwhile(
    node: BrokerProcess, outage: Outage, peers_of: PeersOf, topic: str
) -> None:
    peers = peers_of(node)
    client = await peers.connect(client_id="c", persistent=True)
    await client.subscribe(topic)
    publisher = await peers.connect()
    await publisher.publish(topic, b"unanswered", 2)
    message = await client.expect(Publish)
    outage.begin()
    await client.send(Pubrec(message.packet_id))  # the store cannot know of it: no PUBREL
    await silent(client)
    await client.abort()
    await publisher.send(Publish(topic, b"meanwhile", 2, False, False, 77))
    await silent(publisher)
    outage.end()
    assert (await publisher.expect(Pubrec, 40)).packet_id == 77
    client = await connected_again(peers_of, node, "c")
    assert client.connack is not None and client.connack.session_present
    first = await client.receive()
    if isinstance(first, Publish):  # sent again with DUP, or released if the store heard of the PUBREC after all
        assert (first.payload, first.packet_id, first.dup) == (b"unanswered", message.packet_id, True)
        await client.send(Pubrec(first.packet_id))
        first = await client.expect(Pubrel)
    assert isinstance(first, Pubrel) and first.packet_id == message.packet_id
    await client.send(Pubcomp(first.packet_id))
    await client.take(b"meanwhile")
    await client.expect_nothing()


@pytest.mark.parametrize("grace", ["1s"])
@pytest.mark.parametrize("outage", ["killed"], indirect=True)
async def test_g16_after_the_grace_clients_are_sent_away(
    node: BrokerProcess, outage: Outage, peers_of: PeersOf, topic: str
) -> None:
    peers = peers_of(node)
    new = await peers.connect(client_id="new", persistent=True)
    old = await peers.connect(V311, client_id="old", persistent=True)
    await new.subscribe(topic)
    outage.begin()
    await new.expect_disconnect(0x89, 60)
    await old.expect_closed(60)
    outage.end()
    client = await connected_again(peers_of, node, "new")
    assert client.connack is not None and client.connack.session_present
    publisher = await peers_of(node).connect()
    await publisher.publish(topic, b"again", 1)
    await client.take(b"again")


async def test_g16_an_embedded_store_that_dies_is_started_again(
    start_node: StartNode, peers_of: PeersOf, topic: str
) -> None:
    node = start_node("--store-grace", "1h", store="embedded")
    peers = peers_of(node)
    away = await peers.connect(client_id="away", persistent=True)
    await away.subscribe(topic)
    await away.disconnect()
    publisher = await peers.connect()
    for number in range(3):
        await publisher.publish(topic, b"%d" % number, 1)
        kill_store(node, number + 1)
    packet_id = publisher.next_packet_id()
    await publisher.send(Publish(topic, b"3", 1, False, False, packet_id))
    assert (await publisher.expect(Puback, 40)).packet_id == packet_id
    away = await connected_again(peers_of, node, "away")
    missing = {b"0", b"1", b"2", b"3"}
    while missing:
        missing.discard((await away.take()).payload)
