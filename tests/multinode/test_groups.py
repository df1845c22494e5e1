"""G14 between three nodes: shared subscriptions with members everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from broker.codec.packets import Puback, Publish, Pubrec, Pubrel, Suback, Subscribe, SubscriptionRequest
from tests.history import groups
from tests.history.client import Profile
from tests.history.run import always, recorded, require
from tests.history.timeline import Timeline
from tests.integration.exchange import gather, numbered, payloads, publish_many
from tests.multinode.conftest import NAMES, Everywhere, StartCluster, session
from tests.multinode.nodes import Nodes

pytestmark = pytest.mark.timeout(60)

STRATEGIES = ("round_robin", "random", "sticky", "hash_topic", "hash_clientid", "local", "least_inflight")


@pytest.mark.parametrize("qos", [1, 2])
async def test_g14_members_on_all_nodes_share_the_load(nodes: Nodes, topic: str, tmp_path: Path, qos: int) -> None:
    name = f"$share/{topic}/{topic}/+"
    async with recorded(nodes, tmp_path) as run:
        for index in range(6):
            expiry_s = 600 if index % 2 else 0
            run.client(f"{topic}-m{index}", NAMES[index % 3], Profile(expiry_s=expiry_s, subscriptions=((name, qos),)))
        publishers = [run.client(f"{topic}-p{node}", node, Profile(window=50)) for node in NAMES]
        await run.ready()
        for number in range(300):
            for publisher in publishers:
                publisher.publish(f"{topic}/{number % 5}", qos)
        timeline = await run.drain()
        require(always(timeline, groups_exactly=True))
        shares = groups.shares(timeline, name)
        assert sum(shares.values()) == 900
        assert len(shares) == 6 and min(shares.values()) > 50, shares


async def test_g14_every_strategy_gives_each_message_to_one_member(
    start_cluster: StartCluster, topic: str, tmp_path: Path
) -> None:
    arguments: list[str] = []
    for strategy in STRATEGIES:
        arguments += ["--shared-strategies", f"{strategy}={strategy}"]
    nodes = await start_cluster(*arguments)
    async with recorded(nodes, tmp_path) as run:
        for strategy in STRATEGIES:
            name = f"$share/{strategy}/{strategy}/+"
            for node in NAMES:
                run.client(f"{strategy}-m{node}", node, Profile(subscriptions=((name, 1),)))
        publishers = [run.client(f"p{node}", node, Profile(window=50)) for node in NAMES]
        await run.ready()
        for number in range(60):
            for strategy in STRATEGIES:
                for publisher in publishers:
                    publisher.publish(f"{strategy}/{number % 10}", 1)
        timeline = await run.drain()
        require(always(timeline, groups_exactly=True))
        given = {strategy: groups.shares(timeline, f"$share/{strategy}/{strategy}/+") for strategy in STRATEGIES}
        assert all(sum(shares.values()) == 180 for shares in given.values()), given
        for strategy in ("round_robin", "random", "local", "least_inflight"):
            assert min(given[strategy].values()) > 10, given
        assert sorted(given["sticky"].values()) == [0, 0, 180], given
        # Local: each publisher's messages are taken by the member on its own node.
        assert given["local"] == {f"local-m{node}": 60 for node in NAMES}, given
        by_member: dict[tuple[str, str], set[str]] = {}
        for session_ in timeline.sessions:
            for event in session_.taken():
                strategy = event.topic.partition("/")[0]
                if strategy == "hash_topic":
                    by_member.setdefault((strategy, event.topic), set()).add(session_.client)
                elif strategy == "hash_clientid":
                    by_member.setdefault((strategy, event.payload.partition(":")[0]), set()).add(session_.client)
        assert all(len(members) == 1 for members in by_member.values()), by_member


async def test_g14_what_a_member_leaves_goes_to_the_others(at: Everywhere, topic: str) -> None:
    name = f"$share/g/{topic}"
    first = await at("a").connect(receive_maximum=30)
    await first.subscribe(name, qos=1)
    publisher = await at("b").connect()
    await publish_many(publisher, topic, numbered("m", 60), 1)
    held = await first.collect(Publish, 30)
    second = await at("c").connect(receive_maximum=30)
    await second.send(Subscribe(second.next_packet_id(), [SubscriptionRequest(name, 1)]))
    second.auto_ack = True
    rest: list[Publish] = []
    answered = False
    while len(rest) < 30 or not answered:  # messages may come before the SUBACK
        packet = await second.receive()
        answered = answered or isinstance(packet, Suback)
        if isinstance(packet, Publish):
            rest.append(packet)
    assert sorted(payloads([*held, *rest])) == sorted(numbered("m", 60))
    for message in held[:10]:
        await first.send(Puback(message.packet_id))
    await first.expect_nothing()
    await first.abort()
    again = await gather(second, 20)
    assert sorted(payloads(again)) == sorted(payloads(held[10:]))
    await second.expect_nothing()


async def test_g14_messages_wait_while_no_member_is_online(at: Everywhere, topic: str) -> None:
    name = f"$share/g/{topic}"
    ids = [at(node).client_id() for node in NAMES]
    for node, client_id in zip(NAMES, ids, strict=True):
        member = await session(at(node), client_id)
        await member.subscribe(name, qos=1)
        await member.disconnect()
    publisher = await at("c").connect()
    await publish_many(publisher, topic, numbered("m", 50), 1)
    member = await session(at("b"), ids[0], True)
    assert payloads(await gather(member, 50)) == numbered("m", 50)
    await member.expect_nothing()


async def test_g14_a_qos_2_message_stays_with_its_session(at: Everywhere, topic: str) -> None:
    name = f"$share/g/{topic}"
    ids = [at(node).client_id() for node in NAMES]
    first = await session(at("a"), ids[0])
    await first.subscribe(name, qos=2)
    publisher = await at("b").connect()
    await publish_many(publisher, topic, numbered("m", 10), 2)
    held = await first.collect(Publish, 10)
    second = await session(at("c"), ids[1])
    await second.subscribe(name, qos=2)
    await first.send(Pubrec(held[0].packet_id))
    await first.expect(Pubrel)
    await first.abort()
    await second.expect_nothing()
    await publisher.publish(topic, b"another", 2)
    await second.take(b"another")
    first = await session(at("b"), ids[0], True)
    first.auto_ack = True
    got: list[bytes] = []
    while len(got) < 9:
        packet = await first.receive()
        if isinstance(packet, Publish):
            assert packet.dup
            got.append(packet.payload)
    assert got == payloads(held[1:])
    await second.expect_nothing()


async def test_g14_a_killed_node_hands_over_what_its_members_had(
    start_cluster: StartCluster, at_own: Everywhere, topic: str
) -> None:
    nodes = at_own.nodes = await start_cluster()
    one, two = f"$share/one/{topic}/1", f"$share/two/{topic}/2"
    here = [await at_own("a").connect(), await session(at_own("a"), "persistent")]
    there = await at_own("b").connect()
    for member in (*here, there):
        await member.subscribe(one, qos=1)
    owner = await session(at_own("a"), "owner")
    await owner.subscribe(two, qos=2)
    publisher = await at_own("c").connect()
    await publish_many(publisher, f"{topic}/1", numbered("m", 90), 1)
    await publish_many(publisher, f"{topic}/2", numbered("q", 10), 2)
    late = await at_own("c").connect()
    await late.subscribe(two, qos=2)
    held = await owner.collect(Publish, 10)
    taken = [await member.collect(Publish, 30) for member in (*here, there)]
    assert all(len(messages) == 30 for messages in taken)
    for member, messages in zip(here, taken, strict=False):
        for message in messages[:5]:
            await member.send(Puback(message.packet_id))
        await member.expect_nothing()
    for message in taken[2]:
        await there.send(Puback(message.packet_id))
    nodes.kill("a")
    there.auto_ack = True
    expected = set(payloads(taken[0])[5:] + payloads(taken[1])[5:])
    got: set[bytes] = set()
    with trio.fail_after(30):
        while not expected <= got:
            packet = await there.receive(30)
            assert isinstance(packet, Publish)
            got.add(packet.payload)
    # Acknowledgements of the last milliseconds may have died with the node.
    assert got <= set(payloads([*taken[0], *taken[1]]))
    # QoS 2: nobody else gets them; the session has them, wherever it comes back.
    await late.expect_nothing()
    owner = await session(at_own("b"), "owner", True)
    again = await owner.collect(Publish, 10)
    assert payloads(again) == payloads(held)


async def test_g14_members_and_a_node_come_and_go(start_cluster: StartCluster, topic: str, tmp_path: Path) -> None:
    nodes = await start_cluster()
    async with recorded(nodes, tmp_path) as run:
        for qos in (1, 2):
            for index in range(4):
                run.client(
                    f"m{qos}{index}",
                    NAMES[index % 3],
                    Profile(expiry_s=600, subscriptions=((f"$share/g{qos}/{qos}/#", qos),), hold=index),
                )
        publishers = [run.client(f"p{number}", profile=Profile(expiry_s=600)) for number in range(2)]
        await run.ready()
        for turn in range(8):
            for _ in range(50):
                for qos in (1, 2):
                    publishers[turn % 2].publish(f"{qos}/t", qos)
            with trio.fail_after(30):
                await publishers[turn % 2].settled()
            if turn == 4:
                run.history.fault("kill", "b")
                nodes.kill("b")
            else:
                run.clients[f"m{1 + turn % 2}{turn % 4}"].drop()
        require(always(await run.drain()))
        assert len(Timeline(run.history).publications) == 800
