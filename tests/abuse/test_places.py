"""Out of one's own place: mountpoints, and names in the patterns of an acl_file (G18)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.codec.packets import V5, Connack, Connect, Disconnect, Puback, Publish, SubscriptionRequest, Will
from tests.abuse.siege import door
from tests.abuse.trespass import DENIED, WRONG, enter, trespassing
from tests.abuse.world import AbusedNode, new_name
from tests.kit.believing import BELIEVING
from tests.kit.mqtt_client import MqttClient

ACL = """
topic readwrite bystander/#
topic readwrite open/#
user spy
topic readwrite #
user ann
topic readwrite private/ann
pattern readwrite users/%u/#
pattern readwrite clients/%c/#
pattern write %u/out
pattern deny closed/%u/#
"""


@pytest.fixture(scope="session")
def acl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("places") / "acl"
    path.write_text(ACL)
    return path


@pytest.fixture
def arguments(request: pytest.FixtureRequest, acl: Path) -> tuple[str, ...]:
    if "pattern" in request.node.name:
        return (*BELIEVING, "--authorization", f"acl_file?path={acl}")
    return (*BELIEVING, "--listen", "tcp://127.0.0.1:0?mountpoint=home/${username}/")


@pytest.fixture(autouse=True)
async def harmless(node: AbusedNode) -> AsyncIterator[None]:
    async with trespassing(node):
        yield


class Homes:
    """The listener with homes: the second, bystanders come in by the first."""

    def __init__(self, node: AbusedNode) -> None:
        self._at = door(node, "tcp", 1)
        self.made: list[MqttClient] = []

    async def knock(self, username: str | None, will: Will | None = None) -> tuple[MqttClient, int]:
        client = await MqttClient.open(self._at.host, self._at.port)
        self.made.append(client)
        await client.send(Connect(V5, new_name(), True, 0, username=username, will=will))
        return client, (await client.expect(Connack)).reason_code

    async def enter(self, username: str) -> MqttClient:
        client, code = await self.knock(username)
        assert code == 0
        return client


@pytest.fixture
async def homes(node: AbusedNode, harmless: None) -> AsyncIterator[Homes]:
    made = Homes(node)
    yield made
    for client in made.made:
        await client.close()


# -- mountpoints


@pytest.mark.parametrize("name", [None, "", "/", "a/b", "../ann", "+", "#", "ann/#", "+/ann", "a+", "x" * 8 + "/"])
async def test_g18_a_home_that_would_be_elsewhere(homes: Homes, name: str | None) -> None:
    client, code = await homes.knock(name)
    assert code == (WRONG if name == "" else DENIED)  # nobody confirms an empty name
    await client.expect_closed()


@pytest.mark.parametrize(
    "name", ["..", ".", "$SYS", "$share", "${clientid}", "%u", " ", "ann ", "\u202eann", "x" * 9000]
)
async def test_g18_a_home_with_an_odd_name(node: AbusedNode, homes: Homes, name: str) -> None:
    spy, ann = await enter(node, "spy"), await homes.enter("ann")
    await spy.subscribe("home/#", qos=1)
    await ann.subscribe("#", qos=1)
    client = await homes.enter(name)
    assert await client.publish("x", b"odd", 1) < 0x80
    assert (await spy.take(b"odd")).topic_name == f"home/{name}/x"
    await ann.expect_nothing()


@pytest.mark.parametrize(
    "topic",
    ["../bert/x", "/x", "//x", "/home/bert/x", "home/bert/x", "..", "./../bert/x", "$delayed/0/../bert/x",
     "$delayed/0//home/bert/x", "$share", "$SYS", "$x/y", "$delayed", "%2e%2e/bert/x", "\\..\\bert", "${username}/x"],
)  # fmt: skip
async def test_g18_publishing_out_of_a_home(node: AbusedNode, homes: Homes, topic: str) -> None:
    name = new_name()
    spy, ann, bert = await enter(node, "spy"), await homes.enter(name), await homes.enter("bert")
    await spy.subscribe(SubscriptionRequest("home/#", 1, retain_handling=2))
    await bert.subscribe("#", "/#", "../#", qos=1)
    inside = topic.removeprefix("$delayed/0/")
    for retain in (False, True):
        assert await ann.publish(topic, b"here", 1, retain=retain) < 0x80
        assert (await spy.take(b"here")).topic_name == f"home/{name}/{inside}"
    client, code = await homes.knock(name, Will(topic, b"will", 1, False))
    assert code == 0
    await client.close()
    assert (await spy.take(b"will")).topic_name == f"home/{name}/{inside}"
    await bert.expect_nothing()


@pytest.mark.parametrize("topic", ["$SYS/x", "$share/g/x", "$delayed/0/$SYS/x", "$delayed/1/$share/g/x",
                                   "$delayed/0/$delayed/0/x", "$delayed/x/y", "$delayed/0"])  # fmt: skip
async def test_g18_topics_of_the_server_from_a_home(node: AbusedNode, homes: Homes, topic: str) -> None:
    spy, ann = await enter(node, "spy"), await homes.enter("ann")
    await spy.subscribe("#", "$SYS/x", qos=0)
    await ann.send(Publish(topic, b"boo", 1, False, False, 1))
    answer = await ann.receive()
    assert isinstance(answer, (Puback, Disconnect)) and answer.reason_code >= 0x80
    assert (await homes.knock("ann", Will(topic, b"boo", 1, False)))[1] >= 0x80
    for packet in await spy.drain():
        assert isinstance(packet, Publish) and packet.payload != b"boo"


@pytest.mark.parametrize(
    "topic_filter",
    ["#", "+/#", "/#", "../#", "../+/x", "home/#", "/home/#", "$share/g/#", "$share/home/#", "$share/g/../#",
     "$share/g//#", "$SYS/#", "$share/g/$SYS/#", "$share/../home/bert/#", "+/+/+", "$delayed/#"],
)  # fmt: skip
async def test_g18_reading_out_of_a_home(node: AbusedNode, homes: Homes, topic_filter: str) -> None:
    outside, ann, bert = await enter(node, "spy"), await homes.enter(new_name()), await homes.enter("bert")
    await outside.publish("home/kept", b"kept", 1, retain=True)
    await outside.publish("home/bert/kept", b"kept", 1, retain=True)
    try:
        [granted] = (await ann.subscribe(topic_filter, qos=1)).reason_codes
        assert granted in (1, 0x8F)
        for topic in ("x", "home", "home/x", "home/ann", "home/bert/x", "../x", "/x"):
            assert await outside.publish(topic, b"boo", 1) < 0x80
        await bert.publish("x", b"boo", 1)
        await ann.expect_nothing()
    finally:
        for topic in ("home/kept", "home/bert/kept"):
            await outside.publish(topic, b"", 1, retain=True)


# -- patterns


@pytest.mark.parametrize("name", ["+", "#", "ann/#", "+/x", "a/b", "/", "bob/../ann", "ann#"])
@pytest.mark.parametrize("where", ["username", "client_id"])
async def test_g18_a_filter_for_a_name_in_a_pattern(node: AbusedNode, name: str, where: str) -> None:
    """Nothing is allowed to it, not even what is to everybody."""
    client = await enter(node, *((name, "") if where == "username" else ("bob", name)))
    for topic_filter in ("users/#", "users/ann/#", "clients/#", "clients/other/x", "#", "+/out", "open/x", "$SYS/#"):
        assert (await client.subscribe(topic_filter)).reason_codes == [DENIED], topic_filter
    for topic in ("users/ann/x", "clients/other/x", "ann/out", "open/x", "closed/ann/x", "private/ann"):
        assert await client.publish(topic, b"boo", 1) == DENIED, topic


@pytest.mark.parametrize("name", ["%u", "%c", "%", "%%u", "${username}", "$SYS", "..", "ann ", "Ann", "x" * 5000])
@pytest.mark.parametrize("where", ["username", "client_id"])
async def test_g18_an_odd_name_in_a_pattern(node: AbusedNode, name: str, where: str) -> None:
    """A name, and nothing but that: what is put in is not looked at again."""
    client_id = "%u" if where == "username" else name
    client = await enter(node, *((name, client_id) if where == "username" else ("%c", name)))
    username = name if where == "username" else "%c"
    for topic in (f"users/{username}/x", f"clients/{client_id}/x"):
        assert await client.publish(topic, b"own", 1) < 0x80, topic
    others = {"ann", "bob", "%u", "%c"} - {username}
    for other in others:
        assert await client.publish(f"users/{other}/x", b"boo", 1) == DENIED, other
    for topic in ("private/ann", "$SYS/out", "open/x", f"closed/{username}/x", "users/x", "clients/x"):
        assert await client.publish(topic, b"boo", 1) >= 0x80, topic
    for topic_filter in ("users/#", "users/+/x", "clients/#", "#", "$SYS/#"):
        granted = (await client.subscribe(topic_filter)).reason_codes[0]
        assert granted == DENIED or topic_filter in ("users/#", "users/+/x", "clients/#", "#")
    spy = await enter(node, "spy")
    for topic in ("users/ann/x", "clients/ann/x", "private/ann"):
        await spy.publish(topic, b"boo", 1)
    await client.expect_nothing()


async def test_g18_no_name_in_a_pattern(node: AbusedNode) -> None:
    client = await enter(node)
    for topic in ("users/x", "users", "users/ann/x", "private/ann", "ann/out", "/x", "users//x", "/out"):
        assert await client.publish(topic, b"boo", 1) == DENIED, topic
