"""Shared subscriptions: what becomes of messages when members come, go and hold on to them."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, V31, V311, Disconnect, Puback, Publish, Pubrec, Pubrel
from tests.conformance.peers import Peers
from tests.integration.exchange import gather, numbered, payloads, publish_many

VERSIONS = [V31, V311, V5]


@pytest.mark.parametrize("leaver", VERSIONS)
@pytest.mark.parametrize("stayer", VERSIONS)
@pytest.mark.parametrize("persistent", [False, True])
async def test_another_member_gets_what_one_left_behind(
    peers: Peers, topic: str, leaver: int, stayer: int, persistent: bool
) -> None:
    leaving = await peers.connect(leaver, persistent=persistent)
    staying = await peers.connect(stayer, persistent=persistent)
    for member in (leaving, staying):
        await member.subscribe(f"$share/g/{topic}", qos=1)
    publisher = await peers.connect()
    for payload in numbered("m", 10):
        await publisher.publish(topic, payload, 1)
    held = await leaving.collect(Publish, 5)
    kept = payloads(await gather(staying, 5))
    await leaving.send(Puback(held[0].packet_id))
    await leaving.expect_nothing()
    await leaving.abort()
    again = payloads(await gather(staying, 4))
    assert again == payloads(held[1:])
    assert sorted(kept + again + [held[0].payload]) == numbered("m", 10)
    await staying.expect_nothing()


async def test_messages_wait_while_nobody_is_there(peers: Peers, topic: str) -> None:
    name = peers.client_id()
    member = await peers.connect(client_id=name, persistent=True)
    await member.subscribe(f"$share/g/{topic}", qos=2)
    await member.disconnect()
    publisher = await peers.connect()
    await publish_many(publisher, topic, numbered("a", 150), 1)
    await publish_many(publisher, topic, numbered("b", 150), 2)
    member = await peers.connect(client_id=name, persistent=True, receive_maximum=20)
    assert payloads(await gather(member, 300)) == numbered("a", 150) + numbered("b", 150)
    await member.expect_nothing()


async def test_a_slow_member_does_not_hold_up_the_others(peers: Peers, topic: str) -> None:
    slow = await peers.connect(receive_maximum=2)
    fast = await peers.connect()
    for member in (slow, fast):
        await member.subscribe(f"$share/g/{topic}", qos=1)
    publisher = await peers.connect()
    await publish_many(publisher, topic, numbered("m", 100), 1)
    held = payloads(await slow.collect(Publish, 2))
    rest = payloads(await gather(fast, 98))
    assert sorted(held + rest) == sorted(numbered("m", 100))
    assert rest == [payload for payload in numbered("m", 100) if payload not in held]
    await slow.disconnect(Disconnect())
    assert payloads(await gather(fast, 2)) == held


async def test_qos_2_stays_with_the_session_it_was_given_to(peers: Peers, topic: str) -> None:
    name = peers.client_id()
    one = await peers.connect(client_id=name, persistent=True)
    two = await peers.connect()
    for member in (one, two):
        await member.subscribe(f"$share/g/{topic}")
    publisher = await peers.connect()
    for payload in numbered("m", 4):
        await publisher.publish(topic, payload, 2)
    first = await one.collect(Publish, 2)
    others = payloads(await gather(two, 2))
    await one.abort()
    await two.expect_nothing()
    one = await peers.connect(client_id=name, persistent=True)
    for message in first:
        again = await one.expect(Publish)
        assert (again.payload, again.packet_id, again.dup) == (message.payload, message.packet_id, True)
        await one.send(Pubrec(again.packet_id))
    await one.collect(Pubrel, 2)
    assert sorted(payloads(first) + others) == numbered("m", 4)


@pytest.mark.parametrize("answer", ["puback", "pubrec"])
async def test_a_refused_message_is_discarded(peers: Peers, topic: str, answer: str) -> None:
    qos = 1 if answer == "puback" else 2
    one = await peers.connect()
    two = await peers.connect()
    publisher = await peers.connect()
    await one.subscribe(f"$share/g/{topic}", qos=qos)
    await publisher.publish(topic, b"refused", qos)
    message = await one.expect(Publish)
    await two.subscribe(f"$share/g/{topic}", qos=qos)
    await one.send(Puback(message.packet_id, 0x97) if qos == 1 else Pubrec(message.packet_id, 0x97))
    await one.expect_nothing()
    await one.abort()
    await publisher.publish(topic, b"next", qos)
    await two.take(b"next")
    await two.expect_nothing()


async def test_groups_and_plain_subscriptions_are_separate(peers: Peers, topic: str) -> None:
    everything = await peers.connect()
    await everything.subscribe(topic, f"$share/a/{topic}", f"$share/b/{topic}", f"$share/b/{topic}/#", qos=1)
    publisher = await peers.connect()
    await publisher.publish(topic, b"x", 1)
    assert payloads(await gather(everything, 4)) == [b"x"] * 4
    await everything.expect_nothing()
    await everything.unsubscribe(f"$share/b/{topic}")
    await publisher.publish(topic, b"y", 1)
    assert payloads(await gather(everything, 3)) == [b"y"] * 3
    await everything.expect_nothing()


async def test_the_last_member_takes_the_queue_with_it(peers: Peers, topic: str) -> None:
    member = await peers.connect()
    await member.subscribe(f"$share/g/{topic}", qos=1)
    publisher = await peers.connect()
    await publisher.publish(topic, b"old", 1)
    await member.expect(Publish)
    await member.unsubscribe(f"$share/g/{topic}")
    await member.disconnect()
    assert await publisher.publish(topic, b"nobody", 1) == 0x10
    member = await peers.connect()
    await member.subscribe(f"$share/g/{topic}", qos=1)
    await publisher.publish(topic, b"new", 1)
    await member.take(b"new")
    await member.expect_nothing()
