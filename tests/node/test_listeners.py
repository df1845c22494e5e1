"""What a listener says about its clients: versions, packet size, mountpoint; and topics that are too long."""

from __future__ import annotations

import pytest
import trio

from broker.auth.api import Principal
from broker.codec.packets import (
    Connack,
    Disconnect,
    Properties,
    Puback,
    Publish,
    Pubrec,
    Suback,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.errors import ConfigError
from broker.mount import check_mountpoints
from broker.session.quotas import Quotas
from tests.node.access_kit import FakeAccess, Rules, listener, ruled
from tests.node.kit import serving


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("allowed", [("5",), ("3.1", "3.1.1"), ("3.1.1", "5"), ("3.1",)])
async def test_versions(autojump_clock: trio.abc.Clock, version: int, allowed: tuple[str, ...]) -> None:
    async with serving() as world:
        world.listener = listener(versions=allowed)
        client = world.connecting("c", version)
        ok = {3: "3.1", 4: "3.1.1", 5: "5"}[version] in allowed
        assert (await client.expect(Connack)).reason_code == (0 if ok else 0x84)
        assert client.closed() == (not ok)


async def test_largest_packet_of_a_listener(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.listener = listener(max_packet_size=300)
        client = await world.connect("c")
        assert client.connack is not None
        assert client.connack.properties is not None
        assert client.connack.properties.maximum_packet_size == 300
        await client.send(Publish("t", b"x" * 400))
        assert (await client.expect(Disconnect)).reason_code == 0x95


async def test_topics_of_too_many_levels_or_bytes(autojump_clock: trio.abc.Clock) -> None:
    async with serving(Quotas(max_topic_levels=3, max_topic_bytes=20)) as world:
        client = await world.connect("c")
        for topic in ("a/b/c/d", "x" * 21, "$delayed/5/a/b"):
            await client.send(Publish(topic, b"x", 1, False, False, 1))
            assert (await client.expect(Puback)).reason_code == 0x90
            await client.send(Publish(topic, b"x", 2, False, False, 1))
            assert (await client.expect(Pubrec)).reason_code == 0x90
            will = world.connecting("w", will=Will(topic, b"x", 0, False))
            assert (await will.expect(Connack)).reason_code == 0x90
        await client.subscribe("a/b/c/d", "a/b/#", "$share/group/a/b/c", "$share/g/a/b/c", "x" * 21, "a/+/+/#")
        assert list((await client.expect(Suback)).reason_codes) == [0x8F, 2, 2, 2, 0x8F, 0x8F]
        world.server.take_quotas(Quotas())
        await client.send(Publish("q/b/c/d", b"x", 1, False, False, 1))
        assert (await client.expect(Puback)).reason_code == 0x10
        world.server.take_quotas(Quotas(max_topic_levels=3))
        await client.send(Publish("a/b/c/d", b"x"))
        assert (await client.expect(Disconnect)).reason_code == 0x90


# -- mountpoints


async def test_mountpoint(autojump_clock: trio.abc.Clock) -> None:
    async with ruled(FakeAccess()) as world:
        outside = await world.subscriber("outside", "#")
        world.listener = listener(mountpoint="t/${username}/")
        anna = await world.subscriber("anna", "x/#", "$share/g/s", username="anna")
        second = await world.subscriber("anna2", "x/+", username="anna", qos=1)
        bert = await world.subscriber("bert", "#", username="bert")
        await anna.send(
            Publish("x/0", b"0"),
            Publish("x/1", b"1", 1, False, False, 1),
            Publish("$delayed/3/x/d", b"d", 1, False, False, 2),
            Publish("s", b"s", 1, False, False, 3),
            Publish("x/r", b"r", 1, True, False, 4),
        )
        await trio.sleep(5)
        seen = [("x/0", b"0"), ("x/1", b"1"), ("s", b"s"), ("x/r", b"r"), ("x/d", b"d")]
        packets = [packet for packet in await anna.received() if isinstance(packet, Publish)]
        assert sorted((packet.topic_name, packet.payload) for packet in packets) == sorted(seen)
        assert [each.topic_name for each in await second.consume()] == ["x/0", "x/1", "x/r", "x/d"]
        assert {each.topic_name for each in await outside.consume()} == {f"t/anna/{topic}" for topic, _ in seen}
        await bert.nothing()
        late = await world.subscriber("anna3", "x/#", username="anna")
        assert [(each.topic_name, each.retain) for each in await late.consume()] == [("x/r", True)]
        await anna.send(Unsubscribe(9, ["x/#", "y", "$share/g/s", "$share//"]))
        assert list((await anna.expect(Unsuback)).reason_codes) == [0, 0x11, 0, 0x11]


@pytest.mark.parametrize("version", [4, 5])
async def test_mountpoint_with_aliases_and_wills(autojump_clock: trio.abc.Clock, version: int) -> None:
    async with serving() as world:
        outside = await world.subscriber("outside", "#")
        world.listener = listener(mountpoint="t/${clientid}/")
        client = await world.subscriber("c", "#", version=version, topic_alias_maximum=3)
        if version == 5:
            alias = Properties()
            alias.topic_alias = 1
            await client.send(Publish("a", b"1", 0, properties=alias), Publish("", b"2", 0, properties=alias))
        else:
            await client.send(Publish("a", b"1"), Publish("a", b"2"))
        assert [(each.payload, each.topic_name) for each in await outside.consume()] == [
            (b"1", "t/c/a"),
            (b"2", "t/c/a"),
        ]
        got = await client.publishes()
        assert [each.topic_name for each in got] == (["a", ""] if version == 5 else ["a", "a"])
        leaving = await world.connect("w", version, will=Will("gone", b"w", 1, False))
        leaving.socket.reset()
        assert [each.topic_name for each in await outside.consume()] == ["t/w/gone"]


@pytest.mark.parametrize("username", [None, "", "a/b", "a+", "#", "$SYS"])
async def test_mountpoint_without_a_usable_value(autojump_clock: trio.abc.Clock, username: str | None) -> None:
    async with ruled(FakeAccess()) as world:
        world.listener = listener(mountpoint="${username}/")
        client = world.connecting("c", username=username)
        assert (await client.expect(Connack)).reason_code == 0x87
        assert client.closed()


async def test_mountpoint_of_somebody_whom_nobody_checked(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.listener = listener(mountpoint="t/${username}/")
        client = world.connecting("c", username="anna")
        assert (await client.expect(Connack)).reason_code == 0x87
        assert client.closed()


async def test_mountpoint_and_the_servers_topics(autojump_clock: trio.abc.Clock) -> None:
    async with serving(node_name="n") as world:
        world.listener = listener(mountpoint="m/")
        client = await world.subscriber("c", "$SYS/#", "#", "+/#")
        await client.nothing()
        for topic in ("$SYS/x", "$delayed/1/$SYS/x"):
            await client.send(Publish(topic, b"x", 1, False, False, 1))
            assert (await client.expect(Puback)).reason_code == 0x87
        await client.send(Publish("$share/x/y", b"x", 1, False, False, 1))
        assert (await client.expect(Puback)).reason_code == 0x90
        await client.send(Publish("$delayed/1/", b"x", 1, False, False, 1))
        assert (await client.expect(Puback)).reason_code == 0x90


async def test_mountpoint_of_a_session_that_comes_elsewhere(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        client = await world.subscriber("c", "x/#", expiry_s=100)
        client.socket.reset()
        await world.settle()
        sender = await world.connect("sender")
        await sender.send(Publish("x/1", b"1", 1, False, False, 1), Publish("x/2", b"2", 2, False, False, 2))
        world.listener = listener(mountpoint="x/y/")
        client = await world.connect("c", clean_start=False, expiry_s=100)
        await sender.send(Publish("x/y/3", b"3", 1, False, False, 3), Publish("x/y/", b"4", 1, False, False, 4))
        assert [(each.topic_name, each.payload) for each in await client.consume()] == [("3", b"3")]
        assert world.metrics.dropped == {"outside_mountpoint": 3}
        [session] = [each for each in world.cluster._sessions.values() if each.client_id == "c"]
        assert not session.queue


async def test_g18_rules_are_about_real_topics(autojump_clock: trio.abc.Clock) -> None:
    asked: list[object] = []

    def ask(topic: object, *_: object) -> bool:
        asked.append(topic)
        return True

    async with ruled(c=Rules(publish=ask, read=ask, subscribe=ask)) as world:
        world.listener = listener(mountpoint="m/")
        client = await world.subscriber("c", "a/#", "$share/g/b", will=Will("w", b"", 0, False))
        await client.send(Publish("a/b", b"x"), Publish("$delayed/5/a/c", b"x"))
        assert asked == [b"m/w", "m/a/#", "m/b", b"m/a/b", b"m/a/b", b"m/a/c"]


@pytest.mark.parametrize("text", ["${nobody}/", "a/${", "a", "/a/", "a/+/", "a/#", "$SYS/", "$share/g/", "$delayed/5/"])
def test_mountpoints_that_can_never_be_one(text: str) -> None:
    with pytest.raises(ConfigError, match="mountpoint of tcp://127"):
        check_mountpoints([listener(mountpoint=text)])


def test_mountpoints_that_are_fine() -> None:
    check_mountpoints([listener(), listener(mountpoint="${username}/"), listener(mountpoint="a/${client_attrs.x}/b/")])


# -- who the authenticator says it is


@pytest.mark.parametrize("version", [4, 5])
async def test_another_client_id(autojump_clock: trio.abc.Clock, version: int) -> None:
    access = FakeAccess()

    async def login(principal: Principal) -> None:
        principal.client_id = "real"

    access.chain.login = login
    async with ruled(access) as world:
        client = await world.connect("claimed", version)
        assert list(world.server.clients) == ["real"]
        assert client.connack is not None
        if version == 5:
            assert client.connack.properties is not None
            assert client.connack.properties.assigned_client_identifier == "real"
        await world.connect("again", version)
        assert list(world.server.clients) == ["real"]
        assert client.closed()


# -- G19


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("clean_start", [False, True])
@pytest.mark.parametrize("expiry_s", [0, 100])
@pytest.mark.parametrize("connected", [False, True])
async def test_g19_a_session_of_somebody_else(
    autojump_clock: trio.abc.Clock, version: int, clean_start: bool, expiry_s: int, connected: bool
) -> None:
    if not expiry_s and not connected:
        return
    async with ruled() as world:
        owner = await world.connect("c", username="anna", expiry_s=expiry_s, will=Will("w", b"w", 0, False))
        await owner.subscribe("t")
        await owner.expect(Suback)
        if not connected:
            owner.socket.reset()
            await world.settle()
        for username in ("bert", None):
            other = world.connecting("c", version, username=username, clean_start=clean_start, expiry_s=expiry_s)
            assert (await other.expect(Connack)).reason_code == 0x87
            assert other.closed()
        sender = await world.connect("sender")
        await sender.send(Publish("t", b"x", 1, False, False, 1))
        if not connected:
            owner = await world.connect("c", username="anna", clean_start=False, expiry_s=expiry_s)
            assert owner.connack is not None
            assert owner.connack.session_present
        assert [message.payload for message in await owner.consume()] == [b"x"]
        taken = await world.connect("c", username="anna", clean_start=False, expiry_s=expiry_s)
        assert owner.closed()
        await taken.nothing()


async def test_g19_any_owner(autojump_clock: trio.abc.Clock) -> None:
    async with ruled(session_owner_any=True) as world:
        await world.subscriber("c", "t", expiry_s=100)
        other = await world.connect("c", username="bert", clean_start=False, expiry_s=100)
        assert other.connack is not None
        assert other.connack.session_present


async def test_g19_two_at_once(autojump_clock: trio.abc.Clock) -> None:
    async with ruled() as world:
        first = world.connecting("c", username="anna")
        second = world.connecting("c", username="bert")
        codes = [(await peer.expect(Connack)).reason_code for peer in (first, second)]
        assert sorted(codes) == [0, 0x87]
