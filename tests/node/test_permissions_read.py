"""G18: what a client may subscribe to and what it gets: live, retained, queued, shared and delayed messages."""

from __future__ import annotations

import pytest
import trio

from broker.codec.encode import encode
from broker.codec.packets import Connack, Puback, Pubcomp, Publish, Pubrel, Suback, Unsuback, Unsubscribe
from broker.message import Message
from tests.node.access_kit import Rules, everything, nothing, ruled
from tests.node.kit import Peer, World


def reads(*topics: bytes) -> Rules:
    return Rules(read=lambda topic: topic in topics)


async def _publish(client: Peer, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
    await client.send(Publish(topic, payload, qos, retain, False, 1 if qos else 0))
    await client.received()
    if qos == 2:
        await client.send(Pubrel(1))
        await client.expect(Pubcomp)


@pytest.mark.parametrize("version", [3, 4, 5])
async def test_g18_a_filter_that_is_not_allowed(autojump_clock: trio.abc.Clock, version: int) -> None:
    rules = Rules(subscribe=lambda topic_filter: topic_filter == "yes/#")
    async with ruled(c=rules) as world:
        client = await world.connect("c", version)
        await client.subscribe("yes/#", "no/#", "$share/g/yes/#", "$share/g/no", "#")
        refused = 0x87 if version == 5 else 0x80
        suback = await client.expect(Suback)
        assert list(suback.reason_codes) == [2, refused, 2, refused, refused]
        subscriber = next(iter(world.server.dispatch.subscribers.values()))
        assert set(subscriber.subscriptions) == {"yes/#", "$share/g/yes/#"}


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_g18_live_messages(autojump_clock: trio.abc.Clock, qos: int, expiry_s: int) -> None:
    async with ruled(c=reads(b"t/yes")) as world:
        client = await world.subscriber("c", "t/#", expiry_s=expiry_s)
        sender = await world.connect("sender")
        for number in range(6):
            await _publish(sender, ("t/no", "t/yes")[number % 2], b"%d" % number, qos)
        assert [message.payload for message in await client.consume()] == [b"1", b"3", b"5"]
        assert world.metrics.dropped == {"not_authorized": 3}
        [session] = [each for each in world.cluster._sessions.values() if each.client_id == "c"]
        assert not session.queue


async def test_g18_covered_subscriptions_take_the_direct_way(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules(read=nothing, covers=lambda topic_filter: topic_filter in ("a/#", "b/+"))
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "a/#", "b/+", qos=0)
        connection = world.server.clients["c"]
        assert connection.plain == 5
        sender = await world.connect("sender")
        await _publish(sender, "a/x", b"finds its route", 0)
        await client.received()
        await _publish(sender, "a/x", b"covered", 0)
        assert await client.payloads() == [b"covered"]  # although nothing may be read: it was not asked
        await client.subscribe("c/#", qos=0)
        await client.expect(Suback)
        assert connection.plain == 0
        await _publish(sender, "a/x", b"looked at", 0)
        await client.nothing()
        await client.send(Unsubscribe(9, ["c/#"]))
        await client.expect(Unsuback)
        assert connection.plain == 5


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_g18_retained_messages(autojump_clock: trio.abc.Clock, qos: int, expiry_s: int) -> None:
    async with ruled(c=reads(b"t/yes")) as world:
        sender = await world.connect("sender")
        await _publish(sender, "t/no", b"no", 1, True)
        await _publish(sender, "t/yes", b"yes", 1, True)
        client = await world.subscriber("c", "t/#", qos=qos, expiry_s=expiry_s)
        assert [message.payload for message in await client.consume()] == [b"yes"]
        assert world.metrics.dropped == {"not_authorized": 1}


@pytest.mark.parametrize("qos", [1, 2])
async def test_g18_queued_messages(autojump_clock: trio.abc.Clock, qos: int) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "t/#", expiry_s=100)
        client.socket.reset()
        sender = await world.connect("sender")
        for number in range(6):
            await _publish(sender, ("t/no", "t/yes")[number % 2], b"%d" % number, qos)
        rules.read = lambda topic: topic == b"t/yes"
        client = await world.connect("c", clean_start=False, expiry_s=100)
        assert [message.payload for message in await client.consume()] == [b"1", b"3", b"5"]
        assert world.metrics.dropped == {"not_authorized": 3}
        client.socket.reset()
        client = await world.connect("c", clean_start=False, expiry_s=100)
        await client.nothing()


async def test_g18_delayed_messages(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "t/#")
        sender = await world.connect("sender")
        await _publish(sender, "$delayed/5/t/x", b"x")
        rules.read = nothing
        await trio.sleep(10)
        await client.nothing()
        assert world.metrics.dropped == {"not_authorized": 1}


async def test_g18_waiting_messages_of_an_ephemeral_session(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "t", receive_maximum=1)
        sender = await world.connect("sender")
        for number in range(3):
            await _publish(sender, "t", b"%d" % number)
        [first] = await client.publishes()
        rules.read = nothing
        await client.send(Puback(first.packet_id))
        await client.nothing()
        assert world.metrics.dropped == {"not_authorized": 2}


# -- sessions that are resumed


@pytest.mark.parametrize("version", [4, 5])
async def test_g18_a_resumed_session_loses_what_is_not_allowed_any_more(
    autojump_clock: trio.abc.Clock, version: int
) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.connect("c", version, clean_start=False, expiry_s=100)
        await client.subscribe("a", "b", "$share/g/b")
        await client.expect(Suback)
        client.socket.reset()
        await world.settle()
        rules.subscribe = lambda topic_filter: topic_filter == "a"
        client = await world.connect("c", version, clean_start=False, expiry_s=100)
        assert client.connack is not None
        assert client.connack.session_present
        sender = await world.connect("sender")
        await _publish(sender, "a", b"a")
        await _publish(sender, "b", b"b")
        assert [message.payload for message in await client.consume()] == [b"a"]
        client.socket.reset()
        await world.settle()
        rules.subscribe = everything
        await world.connect("c", version, clean_start=False, expiry_s=100)
        [subscriber] = [each for each in world.server.dispatch.subscribers.values() if each.client_id == "c"]
        assert list(subscriber.subscriptions) == ["a"]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_g18_a_session_about_which_nobody_can_be_asked_stays_as_it_is(
    autojump_clock: trio.abc.Clock, version: int, expiry_s: int
) -> None:
    """The client has to come again; even one that would end its session with the connection."""
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "a", "b", expiry_s=100)
        client.socket.reset()
        await world.settle()
        rules.away = True
        client = world.connecting("c", version, clean_start=False, expiry_s=expiry_s)
        connack = await client.expect(Connack)
        assert (connack.reason_code, connack.session_present) == (0x88, False)
        assert client.closed()
        sender = await world.connect("sender")
        await sender.send(Publish("a", b"1", 1, False, False, 1), Publish("b", b"2", 1, False, False, 2))
        rules.away = False
        client = await world.connect("c", version, clean_start=False, expiry_s=expiry_s)
        assert client.connack is not None and client.connack.session_present
        assert await client.payloads() == [b"1", b"2"]


async def test_g18_without_its_rules_nobody_gets_in(autojump_clock: trio.abc.Clock) -> None:
    async with ruled() as world:
        world.server.access.unavailable = True  # type: ignore[attr-defined]
        client = world.connecting("c")
        assert (await client.expect(Connack)).reason_code == 0x88


# -- shared subscriptions


async def _members(
    world: World, count: int, expiry_s: int, topic_filter: str = "$share/g/t/#", qos: int = 2
) -> list[Peer]:
    return [await world.subscriber(f"m{number}", topic_filter, qos=qos, expiry_s=expiry_s) for number in range(count)]


@pytest.mark.parametrize(
    "strategy", ["round_robin", "random", "least_inflight", "sticky", "hash_topic", "hash_clientid"]
)
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_g14_who_may_not_read_is_passed_over(
    autojump_clock: trio.abc.Clock, strategy: str, qos: int, expiry_s: int
) -> None:
    async with ruled(m0=reads(), m1=reads(b"t/yes"), m2=reads(), strategy_of=lambda name: strategy) as world:
        members = await _members(world, 3, expiry_s)
        sender = await world.connect("sender")
        for number in range(12):
            await _publish(sender, ("t/no", "t/yes")[number % 2], b"%d" % number, qos)
        got = [[message.payload for message in await member.consume()] for member in members]
        assert got == [[], [b"1", b"3", b"5", b"7", b"9", b"11"], []]
        assert world.metrics.dropped == {"not_authorized": 6}
        [group] = world.server.dispatch.groups.values()
        assert not group._here
        assert not group._waiting


async def test_g14_what_only_a_busy_member_may_read_waits_for_it(autojump_clock: trio.abc.Clock) -> None:
    async with ruled(m0=reads(b"t/a"), m1=reads(b"t/b")) as world:
        first = await world.subscriber("m0", "$share/g/t/#", receive_maximum=1)
        second = await world.subscriber("m1", "$share/g/t/#", receive_maximum=100)
        sender = await world.connect("sender")
        for number in range(3):
            await _publish(sender, "t/a", b"a%d" % number)
        [message] = await first.publishes()
        await second.nothing()
        await first.send(Puback(message.packet_id))
        assert [each.payload for each in await first.consume()] == [b"a1", b"a2"]
        await second.nothing()
        assert world.metrics.dropped == {}


async def test_g14_entries_of_a_member_that_left_go_to_one_that_may_read(autojump_clock: trio.abc.Clock) -> None:
    rules = reads(b"t/x")
    async with ruled(m0=rules, m1=reads(), m2=reads(b"t/x")) as world:
        first = await world.subscriber("m0", "$share/g/t/#")
        sender = await world.connect("sender")
        for number in range(3):
            await _publish(sender, "t/x", b"%d" % number)
        assert len(await first.publishes()) == 3
        second = await world.subscriber("m1", "$share/g/t/#")
        third = await world.subscriber("m2", "$share/g/t/#")
        first.socket.reset()
        assert [message.payload for message in await third.consume()] == [b"0", b"1", b"2"]
        await second.nothing()
        third.socket.reset()
        await _publish(sender, "t/x", b"nobody")
        await second.nothing()
        assert world.metrics.dropped == {"not_authorized": 1}


# -- messages of other nodes


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_g18_messages_of_other_nodes(autojump_clock: trio.abc.Clock, expiry_s: int) -> None:
    async with ruled(c=reads(b"t/yes")) as world:
        client = await world.subscriber("c", "t/#", "$share/g/t/#", expiry_s=expiry_s)
        [subscriber] = world.server.dispatch.subscribers.values()
        [group_id] = world.server.dispatch.groups
        for topic in (b"t/no", b"t/yes"):
            frame = bytes(encode(Publish(topic.decode(), b"frame"), 5))
            world.server.deliver_frame(5, frame)
            for qos in (0, 1):
                world.server.deliver(Message(topic, b"live", qos, False), True, [group_id] if not qos else [])
            world.server.deliver_stored(subscriber.session_id, 0, Message(topic, b"stored", 0, False), 0, False, ())
            world.reactor.wake()
        got = await client.consume()
        assert {message.topic_name for message in got} == {"t/yes"}
        payloads = [b"frame", b"live", b"live", b"live"] if not expiry_s else [b"live"]
        assert [message.payload for message in got] == [*payloads, b"stored"]
        assert world.metrics.dropped == {"not_authorized": len(got)}


async def test_g18_rules_are_told_of_filters_that_nothing_is_left_of(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "a/#", "$share/g/a/#", "b")
        await client.send(Unsubscribe(1, ["a/#"]))
        await client.expect(Unsuback)
        assert rules.dropped == []
        await client.send(Unsubscribe(2, ["$share/g/a/#", "b"]))
        await client.expect(Unsuback)
        assert rules.dropped == ["a/#", "b"]
