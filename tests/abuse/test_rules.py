"""Ways round the rules: wills, retained, shared, queued and delayed messages, `$`-topics, aliases, names (G18)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from broker.codec.packets import V5, Connack, Connect, Publish, Will
from tests.abuse.world import SETTLE_S, AbusedNode, new_name
from tests.kit.believing import BELIEVING
from tests.kit.mqtt_client import ConnectionClosed, MqttClient, properties

DENIED = 0x87

RULES: list[dict[str, object]] = [
    {"permission": "allow", "username": "editor", "topics": ["#", "$SYS/#"]},
    {"permission": "deny", "topics": ["secret/#"]},
    {"permission": "allow", "action": "subscribe", "username": "reader", "topics": ["#"]},
    {"permission": "allow", "topics": ["open/#", "bystander/#", "${clientid}/own", "mine/${clientid}/#"]},
]

#: What the node may have grown by after the second of two equal floods.
GROWTH_BYTES = 4 << 20
FLOOD = 20_000


@pytest.fixture(scope="session")
def rules_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules.toml"
    lines: list[str] = []
    for rule in RULES:
        lines.append("[[rule]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in rule.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def arguments(rules_file: Path) -> tuple[str, ...]:
    return (*BELIEVING, "--authorization", f"rules_file?path={rules_file}")


async def enter(
    node: AbusedNode, username: str | None, client_id: str = "", *, will: Will | None = None, expiry_s: int = 0
) -> MqttClient:
    """Nobody is asked for passwords here: who says `editor` is the editor."""
    client = await node.open()
    packet = Connect(
        V5,
        client_id or new_name(),
        not expiry_s,
        0,
        username=username,
        will=will,
        properties=properties(session_expiry_interval=expiry_s) if expiry_s else None,
    )
    connack = await client.connect(packet)
    assert connack.reason_code == 0
    return client


@pytest.fixture
async def witness(node: AbusedNode) -> AsyncIterator[MqttClient]:
    """Sees whatever gets to a secret topic: nothing may, whatever a test does."""
    client = await enter(node, "editor")
    await client.subscribe("secret/#", "$SYS/forged", qos=1)
    await (await enter(node, "editor")).publish("secret/by/the/editor", b"", 1)
    await client.take()
    yield client
    await client.expect_nothing()


async def test_g18_a_will_at_a_secret_topic(node: AbusedNode, witness: MqttClient) -> None:
    for retain in (False, True):
        client = await node.open()
        await client.send(Connect(V5, new_name(), True, 0, will=Will("secret/x", b"boo", 1, retain)))
        connack = await client.expect(Connack)
        assert connack.reason_code == DENIED
        await client.expect_closed()


async def test_g18_publishing_by_detours(node: AbusedNode, witness: MqttClient) -> None:
    client = await enter(node, None)
    for topic in ("secret/x", "secret", "secret//x", "$delayed/0/secret/x", "$delayed/1/secret"):
        for qos in (1, 2):
            assert await client.publish(topic, b"boo", qos) == DENIED, topic
            assert await client.publish(topic, b"boo", qos, retain=True) == DENIED, topic
        await client.publish(topic, b"boo", 0)
    for topic in ("$SYS/forged", "$share/g/secret/x"):
        assert await client.publish(topic, b"boo", 1) >= 0x80, topic


async def test_g18_a_topic_alias_that_moves(node: AbusedNode, witness: MqttClient) -> None:
    client = await enter(node, None)
    alias = properties(topic_alias=1)
    assert await client.publish("open/x", b"", 1, properties=alias) < 0x80
    assert await client.publish("", b"", 1, properties=alias) < 0x80
    assert await client.publish("secret/x", b"boo", 1, properties=alias) == DENIED
    assert await client.publish("", b"boo", 1, properties=alias) == DENIED


async def test_g18_retained_messages_by_detours(node: AbusedNode) -> None:
    editor = await enter(node, "editor")
    await editor.publish("secret/r", b"secret", 1, retain=True)
    await editor.publish("open/r", b"open", 1, retain=True)
    try:
        reader = await enter(node, "reader")
        for topic_filter in ("secret/#", "secret/r", "secret/+", "$share/g/secret/r"):
            assert (await reader.subscribe(topic_filter)).reason_codes == [DENIED], topic_filter
        for topic_filter in ("#", "+/r", "+/#"):
            assert (await reader.subscribe(topic_filter, qos=0)).reason_codes == [0]
            for packet in await reader.drain():
                assert isinstance(packet, Publish)
                assert not packet.topic_name.startswith("secret"), topic_filter
    finally:
        for topic in ("secret/r", "open/r"):
            await editor.publish(topic, b"", 1, retain=True)


@pytest.mark.parametrize("topic_filter", ["#", "+/+", "+/live"])
@pytest.mark.parametrize("shared", ["", "$share/g/"])
async def test_g18_live_messages_by_detours(node: AbusedNode, topic_filter: str, shared: str) -> None:
    editor, reader = await enter(node, "editor"), await enter(node, "reader")
    assert (await reader.subscribe(shared + topic_filter, qos=0)).reason_codes == [0]
    await editor.publish("secret/live", b"secret", 1)
    await editor.publish("$delayed/0/secret/live", b"secret", 1)
    await editor.publish("open/live", b"open", 1)
    topics: list[str] = []
    while not topics or topics[-1] != "open/live":
        topics.append((await reader.expect(Publish, SETTLE_S)).topic_name)
    assert not any(topic.startswith("secret") for topic in topics)


async def test_g18_queued_messages_by_detours(node: AbusedNode) -> None:
    editor, client_id = await enter(node, "editor"), new_name()
    reader = await enter(node, "reader", client_id, expiry_s=60)
    await reader.subscribe("+/queued", qos=1)
    await reader.disconnect()
    await editor.publish("secret/queued", b"secret", 1)
    await editor.publish("open/queued", b"open", 1)
    reader = await enter(node, "reader", client_id, expiry_s=60)
    assert (await reader.take()).topic_name == "open/queued"
    # As somebody else, under the same client id: the filter is not allowed there at all.
    other = await node.open()
    await other.send(
        Connect(V5, client_id, False, 0, username="mallory", properties=properties(session_expiry_interval=60))
    )
    await other.expect(Connack)
    await editor.publish("secret/queued", b"secret", 1)
    await editor.publish("open/queued", b"open", 1)
    for packet in await _rest(other):
        assert not isinstance(packet, Publish)


async def _rest(client: MqttClient) -> list[object]:
    """What still comes, to the end of the connection or to the answer of a ping."""
    found: list[object] = []
    with suppress(ConnectionClosed):
        found += await client.drain()
    return found


@pytest.mark.parametrize("name", ["+", "#", "a/b", "/", "$SYS", "secret", "+/x", "${clientid}", "..", "\u202esecret"])
async def test_g18_a_client_id_that_is_a_filter(node: AbusedNode, witness: MqttClient, name: str) -> None:
    client = await enter(node, None, name)
    for topic_filter in ("mine/#", "mine/+/#", "mine/other/#", "+/own", "#", "$SYS/own", "$SYS/#", "secret/own"):
        assert (await client.subscribe(topic_filter)).reason_codes == [DENIED], topic_filter
    for topic in ("mine/other/x", "other/own", "secret/own", "$SYS/forged", "$SYS/own"):
        assert await client.publish(topic, b"boo", 1) >= 0x80, topic


async def test_g15_a_flood_of_topics_that_are_asked_about(node: AbusedNode, witness: MqttClient) -> None:
    client = await enter(node, None)

    async def flood() -> None:
        for number in range(0, FLOOD, 500):
            topics = [f"{prefix}/{number + each:050}" for each in range(500) for prefix in ("secret", "open")]
            await client.send(*(Publish(topic, b"", 0, False, False, 0) for topic in topics))
            await client.expect_nothing()

    await flood()
    before = node.rss_bytes()
    await flood()
    assert node.rss_bytes() - before < GROWTH_BYTES


async def test_g15_a_flood_of_filters_that_are_denied(node: AbusedNode) -> None:
    client = await enter(node, None)

    async def flood() -> None:
        for number in range(0, FLOOD // 4, 100):
            filters = [f"closed/{number + each:040}/#" for each in range(100)]
            assert set((await client.subscribe(*filters)).reason_codes) == {DENIED}

    await flood()
    before = node.rss_bytes()
    await flood()
    assert node.rss_bytes() - before < GROWTH_BYTES
