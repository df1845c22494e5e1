"""What a node sends to others, and what it does with what they send and change. The other node is the test."""

from __future__ import annotations

import pytest
import trio

from broker.codec.packets import (
    Connack,
    Disconnect,
    Properties,
    Puback,
    Publish,
    Pubrec,
    Suback,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
)
from broker.message import Message
from cluster import keys
from cluster.api import NodeRoute, Route, StoredSubscription, shared_group_id
from tests.node.faulty_cluster import node_route
from tests.node.kit import Peer, World, serving

B = b"b:1"
C = b"c:7"
SHARED = "$share/g/t"


def _not_alone(world: World) -> None:
    world.cluster.single = False


async def _publish(world: World, payload: bytes, qos: int = 1, topic: str = "t", retain: bool = False) -> int:
    """From a client of its own; returns the reason code of the answer, or -1 if there is none."""
    sender = await world.connect("sender")
    await sender.send(Publish(topic, payload, qos, retain, False, 1 if qos else 0))
    answers = [packet for packet in await sender.received() if isinstance(packet, Puback | Pubrec)]
    await sender.send(Disconnect())
    return answers[0].reason_code if answers else -1


def _message(payload: bytes, qos: int = 1, retain: bool = False, publisher: bytes = b"", topic: str = "t") -> Message:
    return Message(topic.encode(), payload, qos, retain, publisher=publisher)


# -- what leaves


async def test_qos0_goes_to_each_node_with_a_match_once(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        _not_alone(world)
        here = await world.subscriber("here", "t", "a")
        world.cluster.change_routes(node_route(B, "t"), node_route(B, "+"), node_route(C, "#"), node_route(C, "x"))
        await _publish(world, b"1", 0)
        await _publish(world, b"2", 0)  # the direct way
        assert await here.payloads() == [b"1", b"2"]
        assert sorted(world.cluster.pushed) == [(B, True, [], b"1"), (C, True, [], b"1")]
        [(nodes, family, frame)] = world.cluster.forwarded
        assert (sorted(nodes), family, frame[-1:]) == ([B, C], 5, b"2")
        world.cluster.change_routes(node_route(B, "t", True), node_route(B, "+", True))
        world.cluster.events.node_gone(C)
        await _publish(world, b"3", 0)
        await _publish(world, b"4", 0)
        assert await here.payloads() == [b"3", b"4"]
        assert len(world.cluster.pushed) == 2
        assert len(world.cluster.forwarded) == 1
        assert not world.server.dispatch.nodes


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("qos", [0, 1])
async def test_a_persistent_session_elsewhere_gets_qos0(autojump_clock: trio.abc.Clock, qos: int, alone: bool) -> None:
    async with serving() as world:
        world.cluster.single = alone
        session_id = world.cluster.elsewhere("away", "t", options=0)
        for payload in (b"1", b"2"):
            await _publish(world, payload, qos)
        assert world.cluster.passed_on == ([] if alone else [(session_id, b"1"), (session_id, b"2")])
        assert not world.metrics.dropped


async def test_a_message_for_nodes_only_has_subscribers(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        _not_alone(world)
        assert await _publish(world, b"1") == 0x10
        world.cluster.change_routes(node_route(B, "t"))
        assert await _publish(world, b"2") == 0
        assert await _publish(world, b"3", 2) == 0
        assert world.cluster.pushed == [(B, True, [], b"2"), (B, True, [], b"3")]
        world.cluster.events.node_gone(B)
        assert await _publish(world, b"4") == 0x10


async def test_a_message_is_stored_for_a_session_elsewhere(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        _not_alone(world)
        world.cluster.elsewhere("away", "t", "+")
        assert await _publish(world, b"1") == 0
        assert world.cluster.queue_length("away") == 1
        taken = await world.connect("away", clean_start=False, expiry_s=100)
        assert [message.payload for message in await taken.consume()] == [b"1"]


async def test_routes_found_while_a_message_is_on_its_way(autojump_clock: trio.abc.Clock) -> None:
    """G5: who subscribed before the message came gets it."""
    async with serving() as world:
        _not_alone(world)
        world.cluster.elsewhere("first", "t")
        here = await world.subscriber("here", "t", expiry_s=100)
        sender = await world.connect("sender")
        world.cluster.held = True
        await sender.send(Publish("t", b"1", 1, False, False, 1))
        world.cluster.elsewhere("other", "u")
        found = world.cluster.change_routes()
        assert found == [None], "nothing that concerns it has changed"
        world.cluster.elsewhere("second", "+", "t")
        found = world.cluster.change_routes(node_route(B, "t"), node_route(C, SHARED))
        assert found[0] is not None
        assert not found[0].targets, "it was added by the change before"
        assert [group.group_id for group in found[0].groups] == [shared_group_id(SHARED)]
        assert [node.node for node in found[0].nodes] == [B]
        assert world.cluster.change_routes(node_route(B, "#")) == [None], "has it already"
        await sender.nothing()
        world.cluster.held = False
        world.reactor.wake()
        assert (await sender.expect(Puback)).reason_code == 0
        assert [message.payload for message in await here.consume()] == [b"1"]
        assert world.cluster.queue_length("first") == world.cluster.queue_length("second") == 1
        assert world.cluster.pushed == [(B, True, [], b"1")]
        assert world.cluster.queue_length("other") == 0


@pytest.mark.parametrize("qos", [0, 1])
async def test_whether_a_session_still_wants_a_message(autojump_clock: trio.abc.Clock, qos: int) -> None:
    async with serving() as world:
        _not_alone(world)
        world.cluster.elsewhere("away", "t", "+")
        sender = await world.connect("sender")
        world.cluster.held = True
        await sender.send(Publish("t", b"1", qos, False, False, qos))
        [publication] = world.cluster.under_way()
        [target] = publication.targets
        world.cluster.change_routes(world.cluster.session_route("away", "t", removed=True))
        assert publication.wants(target)
        world.cluster.change_routes(world.cluster.session_route("away", "+", removed=True))
        assert not publication.wants(target)


# -- what comes


async def test_messages_of_other_nodes_are_for_ephemeral_sessions(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        kept = await world.subscriber("kept", "t", expiry_s=100)
        low = await world.subscriber("low", "t", "+", qos=1)
        as_published = await world.connect("as_published")
        identifier = Properties()
        identifier.subscription_identifiers = [7]
        await as_published.subscribe(SubscriptionRequest("t", 0, retain_as_published=True))
        await as_published.expect(Suback)
        world.cluster.change_routes(node_route(B, "t"))
        events = world.cluster.events
        events.deliver(_message(b"1", 2), True, [])
        events.deliver(_message(b"2", 1, True), True, [])
        events.deliver(_message(b"3", 2), False, [])
        events.deliver(_message(b"4", 2, topic="other/x"), True, [])
        world.reactor.wake()
        await kept.nothing()
        assert [(message.payload, message.qos, message.retain) for message in await low.consume()] == [
            (b"1", 1, False),
            (b"2", 1, False),
        ]
        assert [(message.payload, message.qos, message.retain) for message in await as_published.publishes()] == [
            (b"1", 0, False),
            (b"2", 0, True),
        ]
        assert not world.cluster.pushed, "what came from another node is not sent on"


async def test_no_local_holds_for_messages_of_other_nodes(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.connect("c")
        await peer.subscribe(SubscriptionRequest("t", 1, no_local=True))
        await peer.expect(Suback)
        world.cluster.events.deliver(_message(b"own", publisher=keys.session_id("c")), True, [])
        world.cluster.events.deliver(_message(b"other", publisher=keys.session_id("d")), True, [])
        world.reactor.wake()
        assert await peer.payloads() == [b"other"]


async def test_packets_of_other_nodes_are_for_ephemeral_sessions(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        five = await world.subscriber("five", "t")
        four = await world.subscriber("four", "t", version=4)
        await world.subscriber("kept", "t", expiry_s=100)
        small = await world.subscriber("small", "t", maximum_packet_size=20)
        numbered = await world.connect("numbered")
        await numbered.subscribe_with_identifier("t", 7)
        events = world.cluster.events
        events.deliver_frame(5, b"\x30\x05\x00\x01t\x005")
        events.deliver_frame(4, b"\x30\x04\x00\x01t4")
        events.deliver_frame(4, b"\x30\xcb\x01\x00\x01t" + b"x" * 200)
        events.deliver_frame(4, b"\x30\x04\x00\x01u4")
        world.reactor.wake()
        for peer in (five, four, numbered):
            messages = await peer.publishes()
            assert [message.payload for message in messages] == [b"5", b"4", b"x" * 200]
            assert {message.qos for message in messages} == {0}
        assert messages[0].properties is not None
        assert messages[0].properties.subscription_identifiers == [7]
        assert await small.payloads() == [b"5", b"4"]
        kept = world.server.clients["kept"]
        assert not kept.sent_qos0


async def test_messages_that_others_stored_are_sent_as_they_come(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        _not_alone(world)
        peer = await world.subscriber("c", "t", expiry_s=100, receive_maximum=10)
        sid = keys.session_id("c")
        events = world.cluster.events
        world.cluster.put("c", b"1")
        seq2, two = world.cluster.put("c", b"2")
        assert await _publish(world, b"3") == 0
        assert await peer.payloads() == [b"3"], "told of by its answer"
        events.deliver_stored(sid, seq2, two, 1, False, (5,))
        events.deliver_stored(sid, 0, _message(b"qos0", 0), 0, False, ())
        world.reactor.wake()
        messages = await peer.publishes()
        assert [message.payload for message in messages] == [b"2", b"qos0"]
        assert messages[0].properties is not None
        assert messages[0].properties.subscription_identifiers == [5]
        await trio.sleep(3)
        assert await peer.payloads() == [b"1"], "nobody told of it: it is looked for after a second"
        world.cluster.put("c", b"4")
        events.deliver_stored(sid, 0, None, 0, False, ())
        world.reactor.wake()
        assert await peer.payloads() == [b"4"]


@pytest.mark.parametrize("look", [False, True])
async def test_what_is_stored_while_a_session_is_opened(autojump_clock: trio.abc.Clock, look: bool) -> None:
    """Told of after the store answered `attach`, before its connection knew."""
    async with serving() as world:
        world.cluster.elsewhere("c", "t")
        world.cluster.attached.shut()
        peer = world.connecting("c", clean_start=False, expiry_s=100)
        await world.settle()
        seq, message = world.cluster.put("c", b"1")
        if look:
            world.cluster.events.deliver_stored(keys.session_id("c"), 0, None, 0, False, ())
        else:
            world.cluster.events.deliver_stored(keys.session_id("c"), seq, message, 1, False, ())
        world.cluster.attached.open()
        await peer.expect(Connack)
        assert await peer.payloads() == [b"1"]


# -- the route table


def _route(client_id: str, birth: int, topic_filter: str) -> Route:
    return Route(keys.session_id(client_id), client_id, birth, StoredSubscription(topic_filter, 1))


def _filters(world: World, client_id: str) -> set[str]:
    subscriber = world.server.dispatch.subscribers.get(keys.session_id(client_id))
    return set(subscriber.subscriptions) if subscriber is not None else set()


async def test_of_two_lives_of_a_session_the_younger_counts(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        events, change = world.cluster.events, world.cluster.route_change
        events.routes_changed([change(_route("c", 5, "a")), change(_route("c", 5, "b")), change(_route("c", 4, "x"))])
        assert _filters(world, "c") == {"a", "b"}
        events.routes_changed([change(_route("c", 6, "d"))])
        assert _filters(world, "c") == {"d"}
        events.routes_changed([change(_route("c", 5, "d"), True)])
        assert _filters(world, "c") == {"d"}, "the older one is gone; this is the younger one's"
        events.routes_changed([change(_route("c", 6, "d"), True)])
        assert not world.server.dispatch.subscribers


async def test_the_table_at_start(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.events.restore(
            [_route("c", 1, "a"), _route("c", 1, SHARED)], [NodeRoute(B, "a"), NodeRoute(B, SHARED)]
        )
        dispatch = world.server.dispatch
        assert _filters(world, "c") == {"a", SHARED}
        [group] = dispatch.groups.values()
        assert (group.nodes, list(group.members), group.online) == ([B], [keys.session_id("c")], [])
        world.cluster.events.node_gone(B)
        assert dispatch.groups
        world.cluster.events.routes_changed([world.cluster.route_change(_route("c", 1, SHARED), True)])
        assert not dispatch.groups
        assert not dispatch.nodes


async def test_a_newer_owner_changes_subscriptions_before_the_older_one_has_gone(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with serving() as world:
        peer = await world.subscriber("c", "a", "b", expiry_s=100)
        world.cluster.events.routes_changed(
            [world.cluster.session_route("c", "b", removed=True), world.cluster.session_route("c", "new")]
        )
        assert _filters(world, "c") == {"a", "b"}
        peer.socket.reset()
        await world.settle()
        assert _filters(world, "c") == {"a", "new"}


async def test_what_attach_finds_is_in_force(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.elsewhere("c", "a", "b")
        world.cluster.change_routes(world.cluster.session_route("c", "old"))
        await world.connect("c", clean_start=False, expiry_s=100)
        assert _filters(world, "c") == {"a", "b"}


# -- sessions


async def test_a_client_connects_to_another_node(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        assert not world.cluster.events.session_wanted("c")
        peer = await world.connect("c", expiry_s=100)
        assert world.cluster.events.session_wanted("c")
        assert (await peer.expect(Disconnect)).reason_code == 0x8E
        assert world.cluster.owned("c") == 0
        assert not world.cluster.events.session_wanted("c")


async def test_a_session_wanted_while_a_client_here_opens_it(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.attaching.shut()
        peer = world.connecting("c")
        await world.settle()
        assert not world.cluster.events.session_wanted("c")
        world.cluster.attaching.open()
        assert (await peer.expect(Connack)).reason_code == 0


@pytest.mark.parametrize("persistent", [False, True])
async def test_subscriptions_of_a_session_that_was_taken_away(autojump_clock: trio.abc.Clock, persistent: bool) -> None:
    """It goes on elsewhere, although this connection's interval says that it ends."""
    async with serving() as world:
        if persistent:
            world.cluster.elsewhere("c", "t")
        peer = await world.connect("c", clean_start=False)
        await peer.subscribe("u")
        await peer.expect(Suback)
        connection = world.server.clients["c"]
        assert connection.ref is not None
        world.cluster.steal("c")
        world.cluster.events.session_lost(connection.ref)
        assert (await peer.expect(Disconnect)).reason_code == 0x8E
        assert _filters(world, "c") == ({"t", "u"} if persistent else set())


# -- SUBSCRIBE and UNSUBSCRIBE


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_a_subscription_is_in_force_here_first(autojump_clock: trio.abc.Clock, expiry_s: int) -> None:
    """Another node may match it as soon as the table has it, before this one has its answer."""
    async with serving() as world:
        peer = await world.connect("c", expiry_s=expiry_s)
        world.cluster.subscribing.shut()
        await peer.subscribe("t", qos=1)
        assert await _publish(world, b"1") == 0
        assert await peer.payloads() == [b"1"]
        world.cluster.subscribing.open()
        assert (await peer.expect(Suback)).reason_codes == [1]


async def _refused(world: World, peer: Peer) -> None:
    world.cluster.full = True
    await peer.subscribe("new", "known", SHARED, qos=0)
    assert (await peer.expect(Suback)).reason_codes == [0x97] * 3
    world.cluster.full = False


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_what_the_store_refuses_is_as_before(autojump_clock: trio.abc.Clock, expiry_s: int) -> None:
    async with serving() as world:
        peer = await world.subscriber("c", "known", qos=1, expiry_s=expiry_s)
        await _refused(world, peer)
        assert _filters(world, "c") == {"known"}
        assert await _publish(world, b"1", topic="known") == 0
        assert [message.qos for message in await peer.publishes()] == [1]
        await world.settle()
        assert not world.server.dispatch.groups


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_unsubscribing_a_lost_session_changes_nothing(autojump_clock: trio.abc.Clock, expiry_s: int) -> None:
    async with serving() as world:
        peer = await world.subscriber("c", "t", expiry_s=expiry_s)
        world.cluster.unsubscribing.shut()
        await peer.send(Unsubscribe(9, ["t"]))
        assert _filters(world, "c") == set()
        world.cluster.steal("c")
        world.cluster.unsubscribing.open()
        assert (await peer.expect(Disconnect)).reason_code == 0x8E
        assert _filters(world, "c") == ({"t"} if expiry_s else set())


async def test_unsubscribing_takes_effect_here_first(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.subscriber("c", "t")
        world.cluster.unsubscribing.shut()
        await peer.send(Unsubscribe(9, ["t", "t", "u"]))
        assert await _publish(world, b"1") == 0x10
        await peer.nothing()
        world.cluster.unsubscribing.open()
        assert (await peer.expect(Unsuback)).reason_codes == [0, 0x11, 0x11]


async def test_an_ephemeral_session_that_ends_while_it_subscribes(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = await world.connect("c")
        world.cluster.subscribed.shut()
        await peer.subscribe("t", SHARED)
        peer.socket.reset()
        await world.settle()
        world.cluster.subscribed.open()
        await world.settle()
        assert not world.server.dispatch.subscribers
        assert not world.server.dispatch.groups
        assert await _publish(world, b"1") == 0x10


# -- draining


async def test_clients_are_told_where_to_go(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        five, four = await world.connect("five"), await world.connect("four", 4)
        await world.server.drain(100, 10, "other.example:1883")
        goodbye = await five.expect(Disconnect)
        assert goodbye.reason_code == 0x8B
        assert goodbye.properties is not None
        assert goodbye.properties.server_reference == "other.example:1883"
        await four.nothing()
        assert four.closed()
