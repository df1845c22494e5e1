"""What a client was promised survives `kill -9` of the node and of its embedded store."""

from __future__ import annotations

import pytest

from broker.codec.packets import (
    V5,
    V311,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    SubscriptionRequest,
    Will,
)
from tests.conformance.peers import Peers
from tests.integration import mosquitto
from tests.integration.conftest import PeersOf, StartNode
from tests.integration.exchange import gather, kill_store, numbered, payloads, publish_many
from tests.integration.paho_client import Paho
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient, properties

pytestmark = pytest.mark.timeout(60)


#: At most so many messages of a session are sent again: the window and 64 (GUARANTEES G9).
RESENT = 100 + 64


def crash(node: BrokerProcess) -> None:
    """Kill -9 the store and its node, and start the node again over the same data."""
    kill_store(node)
    node.kill()
    node.start()


@pytest.fixture
def node(start_node: StartNode) -> BrokerProcess:
    """A node with the embedded store, whatever the other tests run on."""
    return start_node("--will-failover-grace", "2s", store="embedded")


@pytest.mark.parametrize("version", [V311, V5])
async def test_a_thousand_queued_messages(node: BrokerProcess, peers_of: PeersOf, topic: str, version: int) -> None:
    before = peers_of(node)
    away = await before.connect(version, client_id="away", persistent=True)
    await away.subscribe(f"{topic}/+")
    await away.disconnect()
    one, two = await before.connect(), await before.connect()
    await publish_many(one, f"{topic}/1", numbered("one", 500), 1)
    await publish_many(two, f"{topic}/2", numbered("two", 500), 2)
    crash(node)
    after = peers_of(node)
    back = await after.connect(version, client_id="away", persistent=True)
    assert back.connack is not None and back.connack.session_present
    got = await gather(back, 1000)
    assert [(m.payload, m.qos) for m in got] == [(payload, 1) for payload in numbered("one", 500)] + [
        (payload, 2) for payload in numbered("two", 500)
    ]
    # The store was killed: how far it had been sent may be among what it lost, so that far it is taken for sent (G9).
    assert not any(message.dup for message in got[RESENT:])
    await back.expect_nothing()
    await back.disconnect()
    back = await after.connect(version, client_id="away", persistent=True)
    await back.expect_nothing()


async def test_in_the_middle_of_the_queue(node: BrokerProcess, peers_of: PeersOf, topic: str) -> None:
    """A client that has some, holds some and misses some, at every stage of QoS 2."""
    before = peers_of(node)
    client = await before.connect(client_id="c", persistent=True, receive_maximum=60)
    await client.subscribe(topic)
    publisher = await before.connect()
    await publish_many(publisher, topic, numbered("m", 300), 2)
    first = await client.collect(Publish, 60)
    assert payloads(first) == numbered("m", 60)
    for message in first[:50]:
        await client.send(Pubrec(message.packet_id))
    released = await client.collect(Pubrel, 50)
    for release in released[:30]:
        await client.send(Pubcomp(release.packet_id))
    # 30 are complete, so 30 more come; 20 are released, 40 are sent, the rest waits.
    second = await client.collect(Publish, 30)
    assert payloads(second) == numbered("m", 90)[60:]
    crash(node)
    after = peers_of(node)
    client = await after.connect(client_id="c", persistent=True, receive_maximum=60)
    seen = {message.packet_id for message in (*first, *second)}
    completed = {release.packet_id for release in released[:30]}
    handled = {message.payload for message in (*first, *second)}
    got: list[bytes] = []
    releases: set[int] = set()
    client.auto_ack = True
    while len(handled) < 300:
        packet = await client.receive()
        if isinstance(packet, Pubrel):
            releases.add(packet.packet_id)
            seen.discard(packet.packet_id)
        else:
            assert isinstance(packet, Publish)
            if packet.packet_id in seen:
                assert packet.dup  # known: the client has it already and only answers again
                continue
            assert packet.payload not in handled
            handled.add(packet.payload)
            got.append(packet.payload)
    assert got == numbered("m", 300)[90:]
    # Those past PUBREC were not sent again; what was complete may be released again if its end was not stored yet.
    assert {release.packet_id for release in released[30:]} <= releases | completed
    await client.drain()


async def test_a_qos_2_publisher_goes_on(node: BrokerProcess, peers_of: PeersOf, topic: str) -> None:
    before = peers_of(node)
    reader = await before.connect(client_id="r", persistent=True)
    await reader.subscribe(topic)
    await reader.disconnect()
    publisher = await before.connect(client_id="p", persistent=True)
    for packet_id in range(1, 31):
        await publisher.send(Publish(topic, b"%d" % packet_id, 2, False, False, packet_id))
        await publisher.expect(Pubrec)
    for packet_id in range(1, 11):
        await publisher.send(Pubrel(packet_id))
        await publisher.expect(Pubcomp)
    crash(node)
    after = peers_of(node)
    publisher = await after.connect(client_id="p", persistent=True)
    assert publisher.connack is not None and publisher.connack.session_present
    for packet_id in range(11, 31):  # as if no PUBREC had come
        await publisher.send(Publish(topic, b"%d" % packet_id, 2, False, True, packet_id))
        assert (await publisher.expect(Pubrec)).packet_id == packet_id
    for packet_id in range(11, 31):
        await publisher.send(Pubrel(packet_id))
        assert (await publisher.expect(Pubcomp)).reason_code == 0
    await publisher.send(Pubrel(1))  # complete before
    assert (await publisher.expect(Pubcomp)).reason_code == 0x92
    reader = await after.connect(client_id="r", persistent=True)
    assert payloads(await gather(reader, 30)) == [b"%d" % number for number in range(1, 31)]
    await reader.expect_nothing()


async def test_retained_messages(node: BrokerProcess, peers_of: PeersOf, topic: str) -> None:
    before = peers_of(node)
    publisher = await before.connect()
    for number in range(60):
        await publisher.publish(f"{topic}/{number}", b"old", 1, retain=True)
    for number in range(0, 60, 2):
        await publisher.publish(
            f"{topic}/{number}",
            b"new",
            2,
            retain=True,
            properties=properties(user_properties=[("n", str(number))], message_expiry_interval=900),
        )
    for number in range(0, 60, 3):
        await publisher.publish(f"{topic}/{number}", b"", 1, retain=True)
    crash(node)
    after = peers_of(node)
    reader = await after.connect()
    await reader.subscribe(f"{topic}/#")
    wanted = {n: b"old" if n % 2 else b"new" for n in range(60) if n % 3}
    got = await gather(reader, len(wanted))
    assert {int(message.topic_name.rpartition("/")[2]): message.payload for message in got} == wanted
    for message in got:
        assert message.retain
        if message.payload == b"new":
            assert message.qos == 2 and message.properties is not None
            assert message.properties.user_properties == [("n", message.topic_name.rpartition("/")[2])]
            assert 800 < (message.properties.message_expiry_interval or 0) <= 900
    await reader.expect_nothing()


async def test_subscriptions_with_their_options(node: BrokerProcess, peers_of: PeersOf, topic: str) -> None:
    before = peers_of(node)
    client = await before.connect(client_id="c", persistent=True)
    await client.subscribe(
        SubscriptionRequest(f"{topic}/+", 1, no_local=True, retain_as_published=True),
        properties=properties(subscription_identifiers=[7]),
    )
    await client.subscribe(f"{topic}/a", qos=2, properties=properties(subscription_identifiers=[8]))
    await client.subscribe(f"{topic}/gone")
    await client.unsubscribe(f"{topic}/gone")
    await client.disconnect()
    publisher = await before.connect()
    await publisher.publish(f"{topic}/a", b"queued before", 2, retain=True)
    crash(node)
    after = peers_of(node)
    publisher = await after.connect()
    await publisher.publish(f"{topic}/a", b"queued after", 2, retain=True)
    client = await after.connect(client_id="c", persistent=True)
    for payload in (b"queued before", b"queued after"):
        message = await client.take(payload)
        assert (message.qos, message.retain) == (2, True)
        assert message.properties is not None and sorted(message.properties.subscription_identifiers) == [7, 8]
    assert await client.publish(f"{topic}/b", b"mine", 1) == 0
    await client.expect_nothing()  # No Local
    await publisher.publish(f"{topic}/gone", b"only by the wildcard", 1)
    message = await client.take(b"only by the wildcard")
    assert message.properties is not None and list(message.properties.subscription_identifiers) == [7]
    await client.expect_nothing()


async def test_ephemeral_sessions_end(node: BrokerProcess, peers_of: PeersOf, topic: str) -> None:
    before = peers_of(node)
    client = await before.connect(client_id="c")
    await client.subscribe(topic)
    crash(node)
    after = peers_of(node)
    publisher = await after.connect()
    assert await publisher.publish(topic, b"nobody", 1) == 0x10
    client = await after.connect(client_id="c", clean_start=False)
    assert client.connack is not None and not client.connack.session_present


async def test_the_queue_of_a_group(node: BrokerProcess, peers_of: PeersOf, topic: str) -> None:
    before = peers_of(node)
    for name in ("a", "b"):
        client = await before.connect(client_id=name, persistent=True)
        await client.subscribe(f"$share/g/{topic}", qos=1)
        await client.disconnect()
    publisher = await before.connect()
    await publish_many(publisher, topic, numbered("m", 250), 1)
    holder = await before.connect(client_id="a", persistent=True)
    held = payloads(await holder.collect(Publish, 100))
    assert held == numbered("m", 100)
    crash(node)
    after = peers_of(node)
    other = await after.connect(client_id="b", persistent=True)
    assert payloads(await gather(other, 250)) == numbered("m", 250)
    await other.expect_nothing()
    holder = await after.connect(client_id="a", persistent=True)
    await holder.expect_nothing()


async def test_the_will_of_a_client_that_does_not_come_back(node: BrokerProcess, peers_of: PeersOf, topic: str) -> None:
    before = peers_of(node)
    await connect_with_will(before, topic, "lost")
    await connect_with_will(before, topic, "back")
    watcher = await before.connect(client_id="w", persistent=True)
    await watcher.subscribe(f"{topic}/will/#")
    crash(node)
    after = peers_of(node)
    await connect_with_will(after, topic, "back")
    watcher = await after.connect(client_id="w", persistent=True)
    await watcher.take(b"lost")
    await after.elapse(1)
    await watcher.expect_nothing()  # not again, and not that of the client that came back within the grace
    late = await after.connect()
    await late.subscribe(f"{topic}/will/#")
    assert (await late.take(b"lost")).retain


async def test_a_delayed_will_that_was_on_its_way(node: BrokerProcess, peers_of: PeersOf, topic: str) -> None:
    before = peers_of(node)
    watcher = await before.connect(client_id="w", persistent=True)
    await watcher.subscribe(f"{topic}/will/#")
    for name in ("lost", "back"):
        client = await connect_with_will(before, topic, name, delay_s=2)
        await client.abort()
    crash(node)
    after = peers_of(node)
    await connect_with_will(after, topic, "back", delay_s=2)
    watcher = await after.connect(client_id="w", persistent=True)
    await watcher.take(b"lost")
    await after.elapse(1)
    await watcher.expect_nothing()


async def connect_with_will(peers: Peers, topic: str, name: str, delay_s: int = 0) -> MqttClient:
    will = Will(f"{topic}/will/{name}", name.encode(), 1, True, properties(will_delay_interval=delay_s))
    return await peers.connect(client_id=name, persistent=True, will=will)


async def test_a_stop_tells_the_clients_and_keeps_their_sessions(
    node: BrokerProcess, peers_of: PeersOf, topic: str
) -> None:
    before = peers_of(node)
    new = await before.connect(client_id="new", persistent=True)
    old = await before.connect(V311, client_id="old", persistent=True)
    for client in (new, old):
        await client.subscribe(topic)
    publisher = await before.connect()
    await publisher.publish(topic, b"unanswered", 1)
    sent = [await client.expect(Publish) for client in (new, old)]
    assert node.terminate() == 0
    await new.expect_disconnect(0x8B)
    await old.expect_closed()
    node.start()
    after = peers_of(node)
    for name, version, message in (("new", V5, sent[0]), ("old", V311, sent[1])):
        client = await after.connect(version, client_id=name, persistent=True)
        again = await client.expect(Publish)
        assert (again.payload, again.packet_id, again.dup) == (message.payload, message.packet_id, True)
        await client.send(Puback(again.packet_id))
        await client.expect_nothing()


def test_foreign_clients_over_a_crash(node: BrokerProcess, topic: str) -> None:
    """The same with the clients of others: mosquitto_pub before, paho and mosquitto_sub after."""
    for version, name in ((3, "three"), (4, "four"), (5, "five")):
        done = mosquitto.run("mosquitto_sub", node, "-t", topic, "-q", "2", "-E", "-c", "-i", name, version=version)
        assert done.returncode == 0, done.stdout
    lines = [f"line {number}" for number in range(500)]
    for qos in (1, 2):
        done = mosquitto.run(
            "mosquitto_pub", node, "-t", topic, "-l", "-q", str(qos), text="".join(f"{line}\n" for line in lines)
        )
        assert done.returncode == 0, done.stderr
    crash(node)
    for version, name in ((3, "three"), (5, "five")):
        again = mosquitto.Subscriber(node, [topic], "-C", "1000", "-c", "-i", name, version=version, subscribed=False)
        status, messages = again.end()
        assert status == 0
        for qos in (1, 2):
            assert [message.payload for message in messages if message.qos == qos] == lines
    with Paho(node, 4, "four", clean=False) as client:
        client.connect()
        assert client.flags is not None and client.flags.session_present
        got = [client.take() for _ in range(1000)]
        for qos in (1, 2):
            assert [message.payload.decode() for message in got if message.qos == qos] == lines
