"""G18: what a client may publish is checked at PUBLISH, and at CONNECT for its will."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from broker.codec.packets import (
    Connack,
    Disconnect,
    Pingreq,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Will,
)
from broker.message import Message
from broker.session.quotas import Quotas
from tests.node.access_kit import FakeAccess, Rules, nothing, ruled
from tests.node.kit import World, serving


def only(*topics: bytes) -> Rules:
    return Rules(publish=lambda topic, qos, retain: topic in topics)


def _publish(topic: str, qos: int, packet_id: int = 1, payload: bytes = b"x", retain: bool = False) -> Publish:
    return Publish(topic, payload, qos, retain, False, packet_id if qos else 0)


@pytest.mark.parametrize("version", [3, 4, 5])
async def test_g18_a_publish_that_is_not_allowed(autojump_clock: trio.abc.Clock, version: int) -> None:
    async with ruled(c=only(b"yes")) as world:
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c", version)
        code = 0x87 if version == 5 else 0
        await client.send(_publish("no", 0))
        await client.nothing()
        await client.send(_publish("no", 1))
        assert (await client.expect(Puback)).reason_code == code
        await client.send(_publish("no", 2))
        assert (await client.expect(Pubrec)).reason_code == code
        if version != 5:  # [MQTT-4.3.3-4]: a PUBREC of version 3 is always followed by PUBREL
            await client.send(Pubrel(1))
            await client.expect(Pubcomp)
        await subscriber.nothing()
        assert world.metrics.dropped == {"not_authorized": 3}
        await client.send(_publish("yes", 2))  # the packet id is free
        assert (await client.expect(Pubrec)).reason_code == 0
        await client.send(_publish("yes", 0), Pubrel(1))
        await client.expect(Pubcomp)
        assert len(await subscriber.consume()) == 2


async def test_g18_acknowledgements_stay_in_order(autojump_clock: trio.abc.Clock) -> None:
    async with ruled(c=only(b"yes")) as world:
        await world.subscriber("s", "yes", expiry_s=100)
        client = await world.connect("c")
        await client.send(*(_publish(("yes", "no")[number % 2], 1, number + 1) for number in range(10)))
        packets = await client.received()
        assert [(packet.packet_id, packet.reason_code) for packet in packets if isinstance(packet, Puback)] == [
            (number + 1, 0x87 * (number % 2)) for number in range(10)
        ]


async def test_g18_the_direct_way_is_for_allowed_topics(autojump_clock: trio.abc.Clock) -> None:
    rules = only(b"yes")
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#", qos=0)
        client = await world.connect("c")
        await client.send(*(_publish(topic, 0) for topic in ("yes", "no", "yes", "no", "yes")))
        assert len(await subscriber.publishes()) == 3
        assert rules.cleared == {b"yes": 1}
        rules.publish = nothing
        await rules.renew()
        await client.send(_publish("yes", 0))
        await subscriber.nothing()
        assert world.metrics.dropped == {"not_authorized": 3}
        assert world.metrics.messages_received[0] == 6


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 5])
async def test_g18_a_refused_publish_may_end_the_connection(
    autojump_clock: trio.abc.Clock, version: int, qos: int
) -> None:
    async with ruled(c=only(b"yes"), quotas=Quotas(deny_disconnects=True)) as world:
        client = await world.connect("c", version)
        await client.send(_publish("no", qos))
        if version == 5:
            assert (await client.expect(Disconnect)).reason_code == 0x87
        await client.nothing()
        assert client.closed()
        assert world.metrics.disconnects == {"not_authorized": 1}


@pytest.mark.parametrize("topic", ["$SYS/x", "$delayed/5/$SYS/x", "$delayed/0/$SYS/x"])
@pytest.mark.parametrize("rules", [None, Rules()])
async def test_g18_nobody_publishes_to_the_servers_topics(
    autojump_clock: trio.abc.Clock, topic: str, rules: Rules | None
) -> None:
    async with ruled(FakeAccess(**({"c": rules} if rules else {}))) as world:
        subscriber = await world.subscriber("s", "$SYS/#")
        client = await world.connect("c")
        await client.send(_publish(topic, 0), _publish(topic, 0, retain=True), _publish(topic, 1))
        assert (await client.expect(Puback)).reason_code == 0x87
        await trio.sleep(10)
        await subscriber.nothing()
        refused = world.connecting("w", will=Will(topic, b"x", 0, False))
        assert (await refused.expect(Connack)).reason_code == 0x87


async def test_g18_no_topic_begins_with_share(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        client = await world.connect("c")
        await client.send(_publish("$share/g/t", 1))
        assert (await client.expect(Puback)).reason_code == 0x90


async def test_g18_rules_are_asked_about_the_topic_of_a_delayed_message(autojump_clock: trio.abc.Clock) -> None:
    rules = only(b"yes")
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c")
        await client.send(_publish("$delayed/5/no", 1), _publish("$delayed/5/yes", 1, 2))
        assert (await client.expect(Puback)).reason_code == 0x87
        assert (await client.expect(Puback)).reason_code == 0
        await trio.sleep(10)
        assert [message.topic_name for message in await subscriber.consume()] == ["yes"]


# -- waiting for an answer


async def test_g18_a_client_waits_for_the_answer_about_its_message(autojump_clock: trio.abc.Clock) -> None:
    rules = only(b"slow", b"quick")
    rules.slow = {b"slow", b"never"}
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c", topic_alias_maximum=5)
        other = await world.connect("other")
        before = world.metrics.packets_received[3]
        alias = Properties()
        alias.topic_alias = 1
        await client.send(
            _publish("quick", 0, payload=b"1"),
            Publish("slow", b"2", 1, False, False, 7, alias),
            _publish("quick", 0, payload=b"3"),
            _publish("never", 2, 8, b"4"),
            Publish("", b"5", 0, False, False, 0, alias),
            Pingreq(),
        )
        assert await subscriber.payloads() == [b"1"]
        await other.send(_publish("other", 0, payload=b"o"))
        assert await subscriber.payloads() == [b"o"]
        await client.nothing()
        rules.gate.set()
        assert (await client.expect(Puback)).packet_id == 7
        recorded = await client.expect(Pubrec)
        assert (recorded.packet_id, recorded.reason_code) == (8, 0x87)
        await client.expect(Pingresp)
        assert [message.payload for message in await subscriber.consume()] == [b"2", b"3", b"5"]
        assert rules.asked == [b"slow", b"never", b"slow"]
        assert world.metrics.packets_received[3] - before == 6
        assert world.metrics.messages_received == [4, 1, 1]


async def test_g18_what_comes_while_a_client_waits_stays_in_order(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    rules.slow = {b"slow"}
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c")
        for number in range(20):
            await client.send(_publish("slow" if number % 3 == 0 else "quick", 1, number + 1, b"%d" % number))
        rules.gate.set()
        messages = await subscriber.consume()
        assert [message.payload for message in messages] == [b"%d" % number for number in range(20)]
        acks = [packet.packet_id for packet in await client.received() if isinstance(packet, Puback)]
        assert acks == list(range(1, 21))


async def test_g18_a_client_may_leave_while_its_message_is_asked_about(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    rules.slow = {b"slow"}
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c")
        await client.send(_publish("slow", 1))
        client.socket.reset()
        await world.settle()
        rules.gate.set()
        await subscriber.nothing()
        assert len(world.server.connections) == 1


async def test_g18_a_question_that_fails_is_a_refusal(autojump_clock: trio.abc.Clock) -> None:
    class Broken(Rules):
        async def ask_publish(self, topic: bytes, qos: int, retain: bool) -> bool:
            raise RuntimeError("a defect")

    rules = Broken()
    rules.slow = {b"slow"}
    async with ruled(c=rules) as world:
        client = await world.connect("c")
        await client.send(_publish("slow", 1), Pingreq())
        assert (await client.expect(Puback)).reason_code == 0x87
        await client.expect(Pingresp)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 5])
async def test_g18_a_message_about_which_nobody_can_be_asked(
    autojump_clock: trio.abc.Clock, version: int, qos: int
) -> None:
    """It is not taken: a client of version 3, which cannot be told, sends it again on its next connection."""
    rules = Rules()
    rules.slow = {b"slow"}
    rules.gate.set()
    rules.away = True
    async with ruled(c=rules) as world:
        world.server.take_quotas(Quotas(deny_disconnects=True))  # that is about what is denied
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c", version)
        await client.send(_publish("slow", qos), _publish("quick", 0))
        if version == 4 and qos:
            await client.nothing()
            assert client.closed()
        else:
            codes = [packet.reason_code for packet in await client.received()]  # type: ignore[union-attr]
            assert codes == ([0x83] if qos else [])
            assert [message.topic_name for message in await subscriber.publishes()] == ["quick"]
        assert world.metrics.dropped == {"authorization_unavailable": 1}


async def test_g18_a_repeated_message_about_which_nobody_can_be_asked(autojump_clock: trio.abc.Clock) -> None:
    """It may be published already: nothing is said of it, and the client asks again."""
    rules = Rules()
    rules.gate.set()
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c", expiry_s=100)
        await client.send(_publish("t", 2))
        client.socket.reset()
        rules.slow, rules.away = {b"t"}, True
        client = await world.connect("c", clean_start=False, expiry_s=100)
        await client.send(Publish("t", b"x", 2, False, True, 1))
        assert (await client.expect(Disconnect)).reason_code == 0x89
        rules.away = False
        client = await world.connect("c", clean_start=False, expiry_s=100)
        await client.send(Publish("t", b"x", 2, False, True, 1), Pubrel(1))
        assert (await client.expect(Pubrec)).reason_code == 0
        await client.expect(Pubcomp)
        assert len(await subscriber.consume()) == 1


@pytest.mark.parametrize("version", [4, 5])
async def test_g18_a_subscription_about_which_nobody_can_be_asked(autojump_clock: trio.abc.Clock, version: int) -> None:
    rules = Rules()
    rules.away = True
    async with ruled(c=rules) as world:
        client = await world.connect("c", version)
        await client.subscribe("a", "b")
        assert (await client.expect(Suback)).reason_codes == [0x83 if version == 5 else 0x80] * 2
        await client.send(Pingreq())
        await client.expect(Pingresp)


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_g3_a_repeated_qos_2_message_is_not_asked_about_again(
    autojump_clock: trio.abc.Clock, expiry_s: int
) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "t")
        client = await world.connect("c", expiry_s=expiry_s)
        await client.send(_publish("t", 2))
        assert (await client.expect(Pubrec)).reason_code == 0
        rules.publish = nothing
        await client.send(Publish("t", b"x", 2, False, True, 1))
        assert (await client.expect(Pubrec)).reason_code == 0
        await client.send(Pubrel(1))
        await client.expect(Pubcomp)
        assert len(await subscriber.consume()) == 1


# -- hooks


class _Hooks(SimpleNamespace):
    """See `broker.clearance.Hooks`."""

    connects = publishes = delivers = disconnects = False


def _with_hooks(world: World, **methods: object) -> None:
    hooks = _Hooks(**methods)
    for flag, method in (("publishes", "publish"), ("delivers", "delivered"), ("disconnects", "disconnected")):
        setattr(hooks, flag, method in methods)
    world.server.hooks = hooks


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_hooks_may_change_and_refuse_messages(autojump_clock: trio.abc.Clock, qos: int) -> None:
    async def publish(principal: object, message: Message) -> Message | None:
        await trio.sleep(0.1)
        if message.payload == b"secret":
            return None
        if message.payload == b"astray":
            message.topic = b"$SYS/x"
        elif message.payload == b"move":
            message.topic, message.payload = b"moved", b"moved"
        return message

    async with serving() as world:
        _with_hooks(world, publish=publish)
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c")
        for number, payload in enumerate((b"plain", b"secret", b"move", b"astray")):
            client.put(_publish("t", qos, number + 1, payload))
        await trio.sleep(5)
        codes = [packet.reason_code for packet in await client.received()]  # type: ignore[union-attr]
        assert codes == ([0, 0x87, 0, 0x87] if qos else [])
        messages = [(message.topic_name, message.payload) for message in await subscriber.consume()]
        assert messages == [("t", b"plain"), ("moved", b"moved")]
        assert world.metrics.dropped == {"hook": 2}


async def test_hooks_are_told_of_deliveries_and_of_the_end(autojump_clock: trio.abc.Clock) -> None:
    told: list[tuple[str, bytes]] = []
    ended: list[tuple[str, str]] = []

    def delivered(principal: object, message: Message) -> None:
        told.append((principal.client_id, message.payload))  # type: ignore[attr-defined]

    def disconnected(principal: object, reason: str) -> None:
        ended.append((principal.client_id, reason))  # type: ignore[attr-defined]

    async with serving() as world:
        _with_hooks(world, delivered=delivered, disconnected=disconnected)
        await world.subscriber("s", "#")
        client = await world.connect("c")
        await client.send(_publish("t", 0, payload=b"0"), _publish("t", 1, payload=b"1"))
        assert told == [("s", b"0"), ("s", b"1")]
        await client.send(Pingreq())
        client.socket.finish()
        await world.settle()
        assert ended == [("c", "connection_lost")]


# -- wills


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("slow", [False, True])
async def test_g18_a_will_that_is_not_allowed(autojump_clock: trio.abc.Clock, version: int, slow: bool) -> None:
    rules = Rules(publish=lambda topic, qos, retain: topic == b"yes" and not retain)
    rules.slow = {b"yes", b"no"} if slow else set()
    rules.gate.set()
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#")
        for topic, retain in (("no", False), ("yes", True), ("$delayed/1/no", False)):
            client = world.connecting("c", version, will=Will(topic, b"x", 0, retain))
            connack = await client.expect(Connack)
            assert connack.reason_code == 0x87
            assert client.closed()
        client = await world.connect("c", version, will=Will("yes", b"x", 0, False))
        client.socket.reset()
        assert [message.topic_name for message in await subscriber.publishes()] == ["yes"]
        assert world.cluster.owned("c") == 0


@pytest.mark.parametrize("version", [4, 5])
async def test_g18_a_will_about_which_nobody_can_be_asked(autojump_clock: trio.abc.Clock, version: int) -> None:
    rules = Rules()
    rules.slow, rules.away = {b"w"}, True
    rules.gate.set()
    async with ruled(c=rules) as world:
        client = world.connecting("c", version, will=Will("w", b"x", 0, False))
        assert (await client.expect(Connack)).reason_code == 0x88
        assert client.closed()


async def test_g18_an_answer_is_about_one_message_alone(autojump_clock: trio.abc.Clock) -> None:
    """Between question and answer the topic became too long for clients: the answer is not that of the next message."""
    rules = Rules(publish=lambda topic, qos, retain: topic == b"a/slow")
    rules.slow = {b"a/slow", b"no"}
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#")
        client = await world.connect("c")
        await client.send(_publish("a/slow", 1, 1), _publish("no", 1, 2))
        world.server.take_quotas(Quotas(max_topic_levels=1))
        rules.gate.set()
        assert (await client.expect(Puback)).reason_code == 0x90
        assert (await client.expect(Puback)).reason_code == 0x87
        await subscriber.nothing()
        assert rules.asked == [b"a/slow", b"no"]


@pytest.mark.parametrize("free", [False, True])
async def test_g18_an_answer_counts_for_its_own_message_only(autojump_clock: trio.abc.Clock, free: bool) -> None:
    rules = only(b"t")
    rules.slow = {b"t"}
    async with ruled(c=rules) as world:
        subscriber = await world.subscriber("s", "#", qos=0)
        client = await world.connect("c")
        await client.send(_publish("t", 0, payload=b"asked"))
        await world.settle()
        [connection] = [each for each in world.server.connections if each.client_id == "c"]
        rules.cleared[b"t"] = 1  # rules changed while it waits: the direct way would be open to it
        if free:
            connection.permit(None, None)
        rules.gate.set()
        assert await subscriber.payloads() == [b"asked"]
        if free:
            connection.permit(rules, None)
        await client.send(_publish("secret", 0), _publish("secret", 1))
        assert (await client.expect(Puback)).reason_code == 0x87
        await subscriber.nothing()


async def test_g18_nothing_is_kept_for_a_client_that_left(autojump_clock: trio.abc.Clock) -> None:
    rules = only(b"t")
    async with ruled(c=rules) as world:
        client = await world.connect("c", expiry_s=100)
        [connection] = world.server.connections
        client.socket.reset()
        await world.settle()
        assert rules.closed
        assert connection.permissions is None
        assert connection.gate is None
