"""When a will is sent, and when it is not."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, V31, V311, Disconnect, Publish, Will
from tests.conformance.peers import Peers
from tests.integration.conftest import PeersOf, StartNode
from tests.kit.mqtt_client import MqttClient, properties

VERSIONS = [V31, V311, V5]


def will(topic: str, payload: bytes = b"gone", delay_s: int | None = None, *, retain: bool = False) -> Will:
    """A will at QoS 1."""
    return Will(topic, payload, 1, retain, None if delay_s is None else properties(will_delay_interval=delay_s))


@pytest.fixture
async def watcher(peers: Peers, topic: str) -> MqttClient:
    """Sees every will of the test."""
    return await peers.subscriber(f"{topic}/#")


async def nothing_within(peers: Peers, watcher: MqttClient, seconds: int) -> None:
    """No will comes although so much time passes."""
    await peers.elapse(seconds)
    await watcher.expect_nothing()


async def test_keep_alive(peers: Peers, watcher: MqttClient, topic: str) -> None:
    silent = [await peers.connect(version, keep_alive_s=1, will=will(f"{topic}/w")) for version in VERSIONS]
    for client in silent:
        await watcher.take(b"gone")
        await client.expect_disconnect(0x8D)


async def test_a_normal_disconnect_has_none(peers: Peers, watcher: MqttClient, topic: str) -> None:
    for version in VERSIONS:
        client = await peers.connect(version, will=will(f"{topic}/w"))
        await client.disconnect()
    delayed = await peers.connect(will=will(f"{topic}/w", delay_s=1), session_expiry_interval=600)
    await delayed.disconnect()
    await nothing_within(peers, watcher, 2)


async def test_disconnect_with_will(peers: Peers, watcher: MqttClient, topic: str) -> None:
    client = await peers.connect(will=will(f"{topic}/w"))
    await client.disconnect(Disconnect(0x04))
    await watcher.take(b"gone")
    delayed = await peers.connect(will=will(f"{topic}/w", b"later", 1), session_expiry_interval=600)
    await delayed.disconnect(Disconnect(0x04))
    await watcher.take(b"later")


async def test_an_error_of_the_client(peers: Peers, watcher: MqttClient, topic: str) -> None:
    client = await peers.connect(will=will(f"{topic}/w"))
    await client.send_raw(b"\xf8\x00")
    await watcher.take(b"gone")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("clean", [False, True])
async def test_takeover_sends_a_will_without_delay(
    peers: Peers, watcher: MqttClient, topic: str, version: int, clean: bool
) -> None:
    name = peers.client_id()
    older = await peers.connect(version, client_id=name, will=will(f"{topic}/w"))
    await peers.connect(version, client_id=name, clean_start=clean, will=will(f"{topic}/w", b"of the newer"))
    await watcher.take(b"gone")
    await older.expect_disconnect(0x8E)
    await watcher.expect_nothing()


async def test_takeover_cancels_a_delayed_will_if_the_session_goes_on(
    peers: Peers, watcher: MqttClient, topic: str
) -> None:
    name = peers.client_id()
    await peers.connect(client_id=name, will=will(f"{topic}/w", delay_s=1), session_expiry_interval=600)
    await peers.connect(client_id=name, clean_start=False, session_expiry_interval=600)
    await nothing_within(peers, watcher, 2)


async def test_takeover_sends_a_delayed_will_if_the_session_ends(peers: Peers, watcher: MqttClient, topic: str) -> None:
    name = peers.client_id()
    await peers.connect(client_id=name, will=will(f"{topic}/w", delay_s=600), session_expiry_interval=600)
    await peers.connect(client_id=name, clean_start=True)
    await watcher.take(b"gone")
    await watcher.expect_nothing()


async def test_a_clean_start_ends_a_session_whose_will_waits(peers: Peers, watcher: MqttClient, topic: str) -> None:
    name = peers.client_id()
    client = await peers.connect(client_id=name, will=will(f"{topic}/w", delay_s=600), session_expiry_interval=600)
    await client.abort()
    await peers.connect(client_id=name, clean_start=True)
    await watcher.take(b"gone")


async def test_the_delay_and_the_end_of_the_session(peers: Peers, watcher: MqttClient, topic: str) -> None:
    """The will goes out after its delay or when the session ends, whichever comes first."""
    delayed = await peers.connect(will=will(f"{topic}/w", b"after its delay", 2), session_expiry_interval=600)
    ended = await peers.connect(will=will(f"{topic}/w", b"at the end", 600), session_expiry_interval=1)
    at_once = await peers.connect(will=will(f"{topic}/w", b"no session", 600))
    for client in (delayed, ended, at_once):
        await client.abort()
    await watcher.take(b"no session")
    assert {(await watcher.take()).payload for _ in range(2)} == {b"after its delay", b"at the end"}
    await watcher.expect_nothing()


async def test_a_resumed_session_has_a_new_will(peers: Peers, watcher: MqttClient, topic: str) -> None:
    name = peers.client_id()
    first = await peers.connect(client_id=name, will=will(f"{topic}/w", b"first", 2), session_expiry_interval=600)
    await first.abort()
    second = await peers.connect(
        client_id=name, clean_start=False, will=will(f"{topic}/w", b"second", 1), session_expiry_interval=600
    )
    await second.abort()
    await watcher.take(b"second")
    await nothing_within(peers, watcher, 1)


async def test_a_retained_will_reaches_everybody(peers: Peers, watcher: MqttClient, topic: str) -> None:
    away = await peers.connect(client_id=peers.client_id(), persistent=True)
    await away.subscribe(f"{topic}/w", qos=1)
    await away.disconnect()
    member = await peers.connect()
    await member.subscribe(f"$share/g/{topic}/w", qos=1)
    client = await peers.connect(will=will(f"{topic}/w", retain=True))
    await client.abort()
    assert not (await watcher.take(b"gone")).retain
    await member.take(b"gone")
    late = await peers.connect()
    await late.subscribe(f"{topic}/w")
    assert (await late.take(b"gone")).retain
    back = await peers.connect(client_id=away.client_id, persistent=True)
    await back.take(b"gone")
    await back.expect_nothing()


async def test_a_drain_leaves_wills_to_their_delay(start_node: StartNode, peers_of: PeersOf, topic: str) -> None:
    """A stopped node does not declare its clients dead: a client that comes back at once had no will sent."""
    node = start_node("--will-failover-grace", "3s", store="embedded")
    before = peers_of(node)
    watcher = await before.connect(client_id="w", persistent=True)
    await watcher.subscribe(f"{topic}/#")
    await before.connect(client_id="back", persistent=True, will=will(f"{topic}/w", b"back"))
    await before.connect(client_id="lost", persistent=True, will=will(f"{topic}/w", b"lost"))
    node.terminate()
    node.start()
    after = peers_of(node)
    await after.connect(client_id="back", persistent=True)
    watcher = await after.connect(client_id="w", persistent=True)
    assert (await watcher.expect(Publish, 20)).payload == b"lost"
