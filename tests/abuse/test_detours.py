"""More ways round the rules: what changes meanwhile, names that are nearly the same, second tries (G18).

Nobody is asked for passwords here: who says `editor` is the editor, who may do everything.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from broker.codec.packets import Disconnect, Puback, Pubcomp, Publish, Pubrec, Pubrel, SubscriptionRequest, Will
from tests.abuse.trespass import DENIED, enter, knock, trespassing
from tests.abuse.world import SETTLE_S, AbusedNode, new_name
from tests.kit.believing import BELIEVING
from tests.kit.mqtt_client import MqttClient, properties

COMPOSED = unicodedata.normalize("NFC", "Ångström")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)

#: Topics of the greatest length that differ in their last byte.
LONG_DENIED = "open/" + "x" * 65529 + "y"
LONG_ALLOWED = "open/" + "x" * 65529 + "z"

RULES: list[dict[str, object]] = [
    {"permission": "allow", "username": "editor", "topics": ["#", "$SYS/#", "$delayed/#"]},
    {"permission": "deny", "topics": ["secret/#", "exact", "empty//level", f"{COMPOSED}/#", LONG_DENIED]},
    {"permission": "deny", "action": "publish", "retain": True, "topics": ["open/fleeting/#"]},
    {"permission": "allow", "action": "publish", "qos": 0, "topics": ["low/#"]},
    {"permission": "allow", "action": "subscribe", "qos": 0, "topics": ["low/#"]},
    {"permission": "deny", "topics": ["low/#"]},
    {"permission": "allow", "action": "subscribe", "username": "reader", "topics": ["#"]},
    {"permission": "allow", "topics": ["open/#", "bystander/#"]},
]


def toml(rules: list[dict[str, object]]) -> str:
    lines: list[str] = []
    for rule in rules:
        lines.append("[[rule]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in rule.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("detours")
    (path / "rules.toml").write_text(toml(RULES))
    (path / "moving.toml").write_text("")
    return path


@pytest.fixture
def arguments(folder: Path) -> tuple[str, ...]:
    return (
        *BELIEVING,
        "--authorization", f"rules_file?path={folder}/moving.toml&name=moving",
        "--authorization", f"rules_file?path={folder}/rules.toml",
    )  # fmt: skip


@pytest.fixture(autouse=True)
async def harmless(node: AbusedNode) -> AsyncIterator[None]:
    async with trespassing(node):
        yield


class Moving:
    """Rules before the others, which a test changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: What the test denies, and where it is about to learn that this is so.
        self.topic = new_name()

    async def deny(self, *clients: MqttClient, topics: tuple[str, ...] = ()) -> None:
        """To everybody but the editor; returns when it is so for these clients."""
        mark = new_name()
        self._path.write_text(
            toml(
                [
                    {"permission": "allow", "username": "editor", "topics": ["#"]},
                    {"permission": "deny", "topics": list(topics) or [f"open/{self.topic}/#"]},
                    {"permission": "allow", "action": "publish", "topics": [mark]},
                ]
            )
        )
        for client in clients:
            await allowed(client, mark)

    def clear(self) -> None:
        self._path.write_text("")


async def allowed(client: MqttClient, topic: str) -> None:
    """Tries until the client may publish there; that it was not allowed before is the point."""
    with trio.fail_after(SETTLE_S):
        while await client.publish(topic, b"", 1) == DENIED:
            await trio.sleep(0.02)


@pytest.fixture
async def moving(folder: Path, harmless: None) -> AsyncIterator[Moving]:
    made = Moving(folder / "moving.toml")
    yield made
    made.clear()


@pytest.fixture
async def witness(node: AbusedNode, harmless: None) -> AsyncIterator[MqttClient]:
    """Sees whatever gets to a closed topic: nothing may, whatever a test does."""
    client = await enter(node, "editor")
    filters = ("secret/#", "exact/#", "empty/#", f"{COMPOSED}/#", "$SYS/forged/#", "low/closed", LONG_DENIED)
    assert max((await client.subscribe(*filters, qos=1)).reason_codes) == 1
    yield client
    await client.expect_nothing()


async def topics_of(client: MqttClient, last: str) -> list[str]:
    """The topics of what a client gets, up to one that it has to get."""
    found: list[str] = []
    while not found or found[-1] != last:
        found.append((await client.take()).topic_name)
    return found


# -- wills


@pytest.mark.parametrize(
    "topic", ["$SYS/forged/x", "$share/g/secret/x", "$delayed/0/secret/x", "$delayed/1/$SYS/forged/x", "low/closed"]
)
async def test_g18_a_will_by_a_detour(node: AbusedNode, witness: MqttClient, topic: str) -> None:
    client, connack = await knock(node, will=Will(topic, b"boo", 1, False))
    assert connack.reason_code >= 0x80
    await client.expect_closed()


async def test_g18_a_retained_will_where_nothing_may_be_retained(node: AbusedNode) -> None:
    topic = f"open/fleeting/{new_name()}"
    client, connack = await knock(node, will=Will(topic, b"boo", 0, True))
    assert connack.reason_code == DENIED
    await client.expect_closed()
    assert (await knock(node, will=Will(topic, b"", 0, False)))[1].reason_code == 0


async def test_g18_a_will_whose_readers_lose_the_right_before_it_comes(node: AbusedNode, moving: Moving) -> None:
    editor, reader = await enter(node, "editor"), await enter(node, "reader")
    topic = f"open/{moving.topic}/will"
    await editor.subscribe(f"open/{moving.topic}/#", qos=1)
    await reader.subscribe("open/+/#", qos=1)
    will = Will(topic, b"late", 1, False, properties(will_delay_interval=1))
    client, connack = await knock(node, will=will, expiry_s=60)
    assert connack.reason_code == 0
    await client.abort()
    await moving.deny(reader)
    await editor.take(b"late")
    await reader.expect_nothing()


# -- retained messages


@pytest.mark.parametrize("prefix", ["", "$delayed/0/"])
async def test_g18_nothing_is_retained_where_rules_say_so(node: AbusedNode, prefix: str) -> None:
    client, topic = await enter(node), f"open/fleeting/{new_name()}"
    alias = properties(topic_alias=3)
    assert await client.publish(prefix + topic, b"1", 1, properties=alias) < 0x80
    for qos in (1, 2):
        assert await client.publish(prefix + topic, b"2", qos, retain=True) == DENIED
        assert await client.publish("", b"3", qos, retain=True, properties=alias) == DENIED
    await client.publish(prefix + topic, b"4", 0, retain=True)
    await client.publish("", b"5", 0, retain=True, properties=alias)
    await client.subscribe(topic)
    await client.expect_nothing()


@pytest.mark.parametrize("topic", ["secret/kept", "open/fleeting/kept"])
async def test_g18_nobody_clears_what_he_may_not_retain(node: AbusedNode, topic: str) -> None:
    editor, client = await enter(node, "editor"), await enter(node)
    await editor.publish(topic, b"kept", 1, retain=True)
    for prefix in ("", "$delayed/0/"):
        for qos in (1, 2):
            assert await client.publish(prefix + topic, b"", qos, retain=True) == DENIED
        await client.publish(prefix + topic, b"", 0, retain=True)
    await editor.subscribe(topic)
    assert (await editor.take(b"kept")).retain
    await (await enter(node, "editor")).publish(topic, b"", 1, retain=True)


async def test_g18_retained_messages_of_a_wide_filter_after_a_change(node: AbusedNode, moving: Moving) -> None:
    editor, reader = await enter(node, "editor"), await enter(node, "reader")
    topic, other = f"open/{moving.topic}/r", f"open/{new_name()}/r"
    for each in (topic, other):
        await editor.publish(each, b"kept", 1, retain=True)
    await reader.subscribe("open/+/r", qos=1)
    assert {(await reader.take()).topic_name for _ in range(2)} == {topic, other}
    await moving.deny(reader)
    for _ in range(2):  # retained messages come with each SUBSCRIBE
        await reader.subscribe("open/+/r", qos=1)
        assert await topics_of(reader, other) == [other]
        await reader.expect_nothing()
    for each in (topic, other):
        await editor.publish(each, b"", 1, retain=True)


# -- shared subscriptions


@pytest.mark.parametrize("username", [None, "reader"])
@pytest.mark.parametrize(
    "topic_filter",
    ["$share//secret/#", "$share/g", "$share/g/", "$share/+/secret/x", "$share/#/secret/x", "$share/g#/secret/x",
     "$SHARE/g/secret/#", "$share/$share/secret/#", "$share/g/$share/g/#", "$share/../secret/#", "$share/g/$SYS/#",
     "$share/g/$delayed/#", "$share/secret/#/", "$queue/secret/#", "$exclusive/secret/x"],
)  # fmt: skip
async def test_g18_an_odd_shared_subscription(
    node: AbusedNode, witness: MqttClient, username: str | None, topic_filter: str
) -> None:
    editor, client = await enter(node, "editor"), await enter(node, username)
    try:
        [granted] = (await client.subscribe(topic_filter)).reason_codes
    except AssertionError:  # a filter that is none ends the connection
        return
    assert granted >= 0x80
    await editor.publish("open/x", b"", 1)
    await client.expect_nothing()


async def test_g18_members_with_different_rights(node: AbusedNode) -> None:
    editor, reader, sender = await enter(node, "editor"), await enter(node, "reader"), await enter(node, "editor")
    level, count = new_name(), 20
    for member in (editor, reader):
        assert (await member.subscribe(f"$share/{level}/+/{level}", qos=1)).reason_codes == [1]
    for number in range(count):
        await sender.publish(f"secret/{level}", b"%d" % number, 1)
    for number in range(count):
        assert (await editor.take(b"%d" % number)).topic_name == f"secret/{level}"
    await reader.expect_nothing()
    # With the only one who may read it gone it is dropped, not given to who is left.
    await editor.disconnect()
    await sender.publish(f"secret/{level}", b"boo", 1)
    await sender.publish(f"open/{level}", b"open", 1)
    assert (await reader.take()).topic_name == f"open/{level}"
    await reader.expect_nothing()


# -- topics of the server


@pytest.mark.parametrize("topic", ["$SYS/forged/x", "$SYS/", "$SYS", "$share/g/secret/x", "$share/", "$delayed/5"])
async def test_g18_topics_of_the_server_are_not_published_to_by_anybody(
    node: AbusedNode, witness: MqttClient, topic: str
) -> None:
    client = await enter(node, "editor")
    if topic == "$SYS":  # a name like any other that begins with $: no rule allows it
        client = await enter(node)
    for qos in (1, 2):
        assert await client.publish(topic, b"boo", qos) >= 0x80
    raw = await enter(node, "editor")
    await raw.send(Publish("$SYS/forged/x", b"boo", 0, False, False, 0))


async def test_g18_a_plus_matches_no_topic_of_the_server(node: AbusedNode) -> None:
    reader = await enter(node, "reader")
    for topic_filter in ("$SYS/#", "$SYS/+/x", "$SYS/broker/uptime", "$delayed/#", "$delayed/+/x", "$x/#"):
        assert (await reader.subscribe(topic_filter)).reason_codes == [DENIED], topic_filter
    editor, level = await enter(node, "editor"), new_name()
    await reader.subscribe(f"+/{level}", f"+/+/+/{level}", f"+/+/{level}/#", qos=1)
    await editor.publish(f"$delayed/0/open/{level}", b"", 1)
    assert (await reader.take()).topic_name == f"open/{level}"
    await reader.expect_nothing()


@pytest.mark.parametrize(
    "topic",
    ["$delayed/0/$SYS/forged/x", "$delayed/5/$SYS/forged/x", "$delayed/5/$share/g/secret/x",
     "$delayed/1/$delayed/2/secret/x", "$delayed/0/$delayed/0/secret/x", "$delayed//secret/x", "$delayed/-1/secret/x",
     "$delayed/ 1/secret/x", "$delayed/1e0/secret/x", "$delayed/\u0663/secret/x", "$delayed/0000000000/secret/x",
     "$delayed/99999999/secret/x", "$delayed/0/", "$delayed/0", "$Delayed/0/secret/x", "$delayed/0//secret/x",
     "$delayed/0/secret"],
)  # fmt: skip
async def test_g18_a_delayed_message_to_a_closed_topic(node: AbusedNode, witness: MqttClient, topic: str) -> None:
    client = await enter(node)
    for qos in (1, 2):
        assert await client.publish(topic, b"boo", qos) >= 0x80
        assert await client.publish(topic, b"boo", qos, retain=True) >= 0x80


# -- what was allowed when it began


async def test_g18_messages_queued_before_the_right_was_lost(node: AbusedNode, moving: Moving) -> None:
    editor, client_id = await enter(node, "editor"), new_name()
    reader = await enter(node, "reader", client_id, expiry_s=60)
    await reader.subscribe("open/+/#", qos=1)
    await reader.disconnect()
    await editor.publish(f"open/{moving.topic}/q", b"closed", 1)
    await editor.publish(f"open/{new_name()}/q", b"open", 1)
    await moving.deny(await enter(node, "reader"))
    reader = await enter(node, "reader", client_id, expiry_s=60)
    await reader.take(b"open")
    await reader.expect_nothing()


async def test_g18_a_subscription_of_a_session_whose_right_was_lost(node: AbusedNode, moving: Moving) -> None:
    editor, client_id = await enter(node, "editor"), new_name()
    reader = await enter(node, "reader", client_id, expiry_s=60)
    await reader.subscribe(f"open/{moving.topic}/#", f"$share/g/open/{moving.topic}/#", qos=1)
    await reader.disconnect()
    await editor.publish(f"open/{moving.topic}/q", b"closed", 1)
    await moving.deny(await enter(node, "reader"))
    reader = await enter(node, "reader", client_id, expiry_s=60)
    await editor.publish(f"open/{moving.topic}/q", b"closed", 1)
    await reader.expect_nothing()
    # The right comes back, the subscription does not.
    moving.clear()
    await allowed(reader, f"open/{moving.topic}/x")
    await editor.publish(f"open/{moving.topic}/q", b"closed", 1)
    await reader.expect_nothing()


async def test_g18_a_delayed_message_whose_reader_loses_the_right(node: AbusedNode, moving: Moving) -> None:
    editor, reader = await enter(node, "editor"), await enter(node, "reader")
    await editor.subscribe(f"open/{moving.topic}/#", qos=1)
    await reader.subscribe("open/+/d", qos=1)
    assert await editor.publish(f"$delayed/1/open/{moving.topic}/d", b"late", 1) < 0x80
    await moving.deny(reader)
    await editor.take(b"late")
    await reader.expect_nothing()


async def test_g18_an_alias_of_a_topic_whose_right_was_lost(node: AbusedNode, moving: Moving) -> None:
    editor, client = await enter(node, "editor"), await enter(node)
    topic, alias = f"open/{moving.topic}/a", properties(topic_alias=1)
    await editor.subscribe(topic, qos=1)
    for qos in (0, 1):
        assert await client.publish(topic, b"1", qos, properties=alias) < 0x80
        await editor.take(b"1")
    await moving.deny(client)
    assert await client.publish("", b"boo", 1, properties=alias) == DENIED
    await client.publish("", b"boo", 0, properties=alias)
    await editor.expect_nothing()


async def test_g18_subscriptions_that_come_and_go_while_rules_change(node: AbusedNode, moving: Moving) -> None:
    editor = await enter(node, "editor")
    closed = f"open/{moving.topic}/s"
    client = await enter(node, "reader")
    codes: set[int] = set()
    with trio.fail_after(SETTLE_S):
        await moving.deny()
        while DENIED not in codes:  # SUBSCRIBE races the recheck; whoever is caught by it has to go
            try:
                codes.update((await client.subscribe(closed, qos=1)).reason_codes)
                await client.unsubscribe(closed)
            except AssertionError:
                client = await enter(node, "reader")
    assert (await client.subscribe(closed, f"$share/g/{closed}", "open/+/s", qos=1)).reason_codes == [DENIED, DENIED, 1]
    await editor.publish(closed, b"boo", 1)
    await client.expect_nothing()


# -- topic aliases


@pytest.mark.parametrize(("alias", "reason"), [(0, 0x94), (65, 0x94), (65535, 0x94), (7, 0x82)])
async def test_g18_an_alias_that_is_none(node: AbusedNode, witness: MqttClient, alias: int, reason: int) -> None:
    """The last was set by somebody else, on a connection of its own."""
    editor, client = await enter(node, "editor"), await enter(node)
    await editor.publish("open/x", b"", 1, properties=properties(topic_alias=7))
    await client.send(Publish("", b"boo", 1, False, False, 1, properties(topic_alias=alias)))
    await client.expect_disconnect(reason)


async def test_g18_an_alias_outlives_no_connection(node: AbusedNode) -> None:
    client_id = new_name()
    client = await enter(node, None, client_id, expiry_s=60)
    alias = properties(topic_alias=1)
    await client.publish("open/x", b"", 1, properties=alias)
    await client.abort()
    client = await enter(node, None, client_id, expiry_s=60)
    await client.send(Publish("", b"boo", 1, False, False, 1, alias))
    await client.expect_disconnect(0x82)


async def test_g18_an_alias_set_by_a_denied_message(node: AbusedNode, witness: MqttClient) -> None:
    client, alias = await enter(node), properties(topic_alias=1)
    await client.publish("secret/x", b"boo", 0, properties=alias)
    for qos in (0, 1, 2):
        assert await client.publish("", b"boo", qos, properties=alias) == (DENIED if qos else 0)
    assert await client.publish("open/x", b"", 1, properties=alias) < 0x80
    assert await client.publish("", b"", 1, properties=alias) < 0x80


# -- subscriptions


async def test_g18_overlapping_subscriptions_with_different_rights(node: AbusedNode) -> None:
    editor, reader = await enter(node, "editor"), await enter(node, "reader")
    for number, (topic_filter, granted) in enumerate(
        [("secret/#", DENIED), ("+/over", 1), ("secret/over", DENIED), ("open/over", 1)], start=1
    ):
        ids = properties(subscription_identifiers=[number])
        assert (await reader.subscribe(topic_filter, qos=1, properties=ids)).reason_codes == [granted]
    await editor.publish("secret/over", b"boo", 1)
    await editor.publish("open/over", b"open", 1)
    found = await reader.take(b"open")
    assert found.properties is not None and sorted(found.properties.subscription_identifiers or ()) == [2, 4]
    await reader.expect_nothing()


async def test_g18_a_qos_that_is_not_allowed(node: AbusedNode, witness: MqttClient) -> None:
    editor, client = await enter(node, "editor"), await enter(node)
    for qos in (1, 2):
        assert await client.publish("low/closed", b"boo", qos) == DENIED
        assert (await client.subscribe("low/x", qos=qos)).reason_codes == [DENIED]
        assert (await client.subscribe("$share/g/low/x", qos=qos)).reason_codes == [DENIED]
    assert (await client.subscribe("low/x", qos=0)).reason_codes == [0]
    assert (await client.subscribe("low/x", qos=2)).reason_codes == [DENIED]  # the one before stays as it is
    await client.send(Publish("low/x", b"own", 0, False, False, 0))
    await client.take(b"own")
    await editor.publish("low/x", b"his", 2)
    assert (await client.take(b"his")).qos == 0


async def test_g18_no_local_does_not_hide_a_shared_subscription(node: AbusedNode) -> None:
    client = await enter(node, "reader")
    with pytest.raises(AssertionError):
        await client.subscribe(SubscriptionRequest("$share/g/open/#", 1, no_local=True))


async def test_g18_a_response_topic_publishes_nothing_by_itself(node: AbusedNode, witness: MqttClient) -> None:
    editor, client = await enter(node, "editor"), await enter(node)
    await editor.subscribe("open/ask", qos=1)
    asking = properties(response_topic="secret/answers", correlation_data=b"1")
    assert await client.publish("open/ask", b"?", 1, properties=asking) < 0x80
    found = await editor.take(b"?")
    assert found.properties is not None and found.properties.response_topic == "secret/answers"
    asking = properties(response_topic="secret/#")
    await client.send(Publish("open/ask", b"?", 1, False, False, 9, asking))
    await client.expect_disconnect(0x82)


# -- second tries


async def test_g18_a_denied_message_again(node: AbusedNode, witness: MqttClient) -> None:
    client = await enter(node, None, new_name(), expiry_s=60)
    for attempt in range(3):
        await client.send(Publish("secret/x", b"boo", 2, False, attempt > 0, 5))
        answer = await client.expect(Pubrec)
        assert (answer.packet_id, answer.reason_code) == (5, DENIED)
        await client.send(Pubrel(5))
        assert (await client.expect(Pubcomp)).reason_code == 0x92
    for attempt in range(3):
        await client.send(Publish("secret/x", b"boo", 1, False, attempt > 0, 6))
        assert (await client.expect(Puback)).reason_code == DENIED


@pytest.mark.parametrize("expiry_s", [0, 60])
async def test_g18_the_packet_id_of_an_allowed_message(node: AbusedNode, witness: MqttClient, expiry_s: int) -> None:
    client_id = new_name()
    client = await enter(node, None, client_id, expiry_s=expiry_s)
    await client.send(Publish("open/x", b"", 2, False, False, 5))
    assert (await client.expect(Pubrec)).reason_code < 0x80
    await client.send(Publish("secret/x", b"boo", 2, False, True, 5))  # a retry adds no message
    await client.expect(Pubrec)
    if expiry_s:
        await client.abort()
        client = await enter(node, None, client_id, expiry_s=expiry_s)
        await client.send(Publish("secret/x", b"boo", 2, False, True, 5))
        assert (await client.expect(Pubrec)).reason_code == DENIED
    await client.send(Pubrel(5))
    await client.expect(Pubcomp)


# -- names


async def test_g18_wildcards_do_not_reach_a_topic_that_is_denied_by_name(node: AbusedNode) -> None:
    editor, reader = await enter(node, "editor"), await enter(node, "reader")
    assert (await reader.subscribe("exact", "$share/g/exact")).reason_codes == [DENIED, DENIED]
    assert set((await reader.subscribe("+", "exact/#", "exact/+", qos=1)).reason_codes) == {1}
    await editor.publish("exact", b"boo", 1)
    await editor.publish("exact/", b"another topic", 1)  # a deny without # is about one topic
    await reader.take(b"another topic")
    await reader.expect_nothing()


@pytest.mark.parametrize("topic", ["/secret/x", "secret/", "secret//", "Secret/x", "SECRET/x", "secret /x",
                                   " secret/x", "\u0455ecret/x", "secret\u200b/x", "\ufeffsecret/x",
                                   "sec\u00adret/x", "/", "//"])  # fmt: skip
async def test_g18_a_name_that_looks_the_same(node: AbusedNode, witness: MqttClient, topic: str) -> None:
    """Names are compared byte by byte: each of these is another one, that nobody was given."""
    client = await enter(node)
    for qos in (1, 2):
        assert await client.publish(topic, b"boo", qos) == DENIED
    assert (await client.subscribe(topic)).reason_codes == [DENIED]
    assert await client.publish("open/x", b"", 1) < 0x80


async def test_g18_an_empty_level_is_a_level(node: AbusedNode) -> None:
    editor, reader = await enter(node, "editor"), await enter(node, "reader")
    assert (await reader.subscribe("empty//level")).reason_codes == [DENIED]
    assert set((await reader.subscribe("empty/+/level", "empty/#", qos=1)).reason_codes) == {1}
    await editor.publish("empty//level", b"boo", 1)
    await editor.publish("empty/level", b"another topic", 1)
    await reader.take(b"another topic")
    await reader.expect_nothing()


async def test_g18_composed_and_decomposed_letters_are_different(node: AbusedNode, witness: MqttClient) -> None:
    client, reader = await enter(node), await enter(node, "reader")
    for level in (COMPOSED, DECOMPOSED):
        assert await client.publish(f"{level}/x", b"boo", 1) == DENIED
        assert (await client.subscribe(f"{level}/#")).reason_codes == [DENIED]
    assert (await reader.subscribe(f"{COMPOSED}/x")).reason_codes == [DENIED]
    assert (await reader.subscribe("+/x", qos=1)).reason_codes == [1]
    # Who may publish to the other name reaches those who read the other name, and nobody else.
    await (await enter(node, "editor")).publish(f"{DECOMPOSED}/x", b"other", 1)
    assert (await reader.take(b"other")).topic_name == f"{DECOMPOSED}/x"


@pytest.mark.parametrize("topic", [b"open/\0", b"\0secret/x", b"secret/x\0", b"open/\xed\xa0\x80",
                                   b"open/\xc0\xafsecret", b"\xff", b"open/+", b"#", b"open/#/x"])  # fmt: skip
async def test_g18_bytes_that_are_no_topic(node: AbusedNode, witness: MqttClient, topic: bytes) -> None:
    client = await enter(node)
    body = len(topic).to_bytes(2, "big") + topic + b"\0\1\0" + b"boo"
    await client.send_raw(bytes((0x32, len(body))) + body)
    told = await client.expect(Disconnect)
    assert told.reason_code in (0x81, 0x90)
    await client.expect_closed()


@pytest.mark.parametrize("mark", ["\x01", "\x1b[2J", "\x7f", "\x85", "\u2028", "\n", "\r\n"])
async def test_g18_control_characters_open_no_topic(node: AbusedNode, witness: MqttClient, mark: str) -> None:
    client = await enter(node)
    for topic in (f"{mark}secret/x", f"secret{mark}/x", f"secret/x{mark}", f"secret/{mark}/x"):
        await client.send(Publish(topic, b"boo", 1, False, False, 1))
        answer = await client.receive()  # control characters may be refused altogether
        assert isinstance(answer, (Puback, Disconnect)) and answer.reason_code >= 0x80
        if isinstance(answer, Disconnect):
            client = await enter(node)


async def test_g18_a_topic_that_differs_in_its_last_byte(node: AbusedNode, witness: MqttClient) -> None:
    client, reader = await enter(node), await enter(node, "reader")
    assert (await client.subscribe(LONG_DENIED)).reason_codes == [DENIED]
    assert (await reader.subscribe("open/+", qos=0)).reason_codes == [0]
    for qos in (1, 2):
        assert await client.publish(LONG_DENIED, b"boo", qos) == DENIED
    await client.publish(LONG_DENIED, b"boo", 0)
    assert await client.publish(LONG_ALLOWED, b"open", 1) < 0x80
    assert (await reader.take(b"open")).topic_name == LONG_ALLOWED


@pytest.mark.parametrize("levels", [201, 32768])
async def test_g18_a_filter_of_too_many_levels(node: AbusedNode, levels: int) -> None:
    client = await enter(node, "reader")
    for topic_filter in ("/" * (levels - 1), "+/" * (levels - 1) + "#"):
        assert (await client.subscribe(topic_filter)).reason_codes[0] >= 0x80
