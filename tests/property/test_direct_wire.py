"""The direct ways do what the general way does: one conversation with two servers.

Clients of all kinds publish, subscribe and answer at random, in chunks that are cut anywhere. The bytes that one server
was sent, which may take the direct ways, are sent to another that has none. Every client gets the same from both, in
the same order, and both have counted the same.
"""

from __future__ import annotations

import random
from typing import Final

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import broker.connection as connection_module
from broker.codec.encode import encode
from broker.codec.packets import (
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    Packet,
    Pingreq,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
    Unsubscribe,
)
from broker.codec.runs import topic_bounds
from broker.routes import TO_CLIENTS, TO_NODES, TO_QUEUES
from broker.session.quotas import Quotas
from tests.kit.mqtt_client import describe
from tests.node.faulty_cluster import node_route
from tests.node.kit import Peer, World, count_general, serving

TOPICS: Final = ("t/0", "t/1", "t/2", "u/0", "nobody")

#: Name, version, and the options of its CONNECT.
CLIENTS: Final[tuple[tuple[str, int, dict[str, object]], ...]] = (
    ("five", 5, {}),
    ("four", 4, {}),
    ("narrow", 5, {"receive_maximum": 2}),
    ("small", 5, {"maximum_packet_size": 200}),
    ("aliases", 5, {"topic_alias_maximum": 2}),
    ("kept", 5, {"expiry_s": 100}),
)

_SUBSCRIBED: Final = (
    ("five", SubscriptionRequest("t/0", 2)),
    ("four", SubscriptionRequest("t/1", 2)),
    ("narrow", SubscriptionRequest("t/+", 2)),
    ("small", SubscriptionRequest("u/#", 2)),
    ("aliases", SubscriptionRequest("u/0", 1)),
)

_OTHERS: Final = (
    SubscriptionRequest("t/0", 1),
    SubscriptionRequest("t/1", 2),
    SubscriptionRequest("t/2", 0),
    SubscriptionRequest("t/#", 2),
    SubscriptionRequest("t/2", 2, no_local=True),
    SubscriptionRequest("u/0", 2),
    SubscriptionRequest("$share/g/t/1", 1),
)

WAYS: Final = (TO_CLIENTS, TO_QUEUES, TO_NODES)

Log = list[tuple[int, bytes]]


class Client:
    """What a client has open, as far as it goes by the rules."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.got: list[Packet] = []
        self.due: list[Packet] = []
        self.last_id = 0

    def look(self) -> None:
        self.peer._collect()
        for packet in self.peer.inbox:
            self.got.append(packet)
            if isinstance(packet, Publish) and packet.qos:
                self.due.append(Puback(packet.packet_id) if packet.qos == 1 else Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrec):
                self.due.append(Pubrel(packet.packet_id))
            elif isinstance(packet, Pubrel):
                self.due.append(Pubcomp(packet.packet_id))
        self.peer.inbox.clear()

    def publishes(self, choose: random.Random) -> list[Packet]:
        topic = choose.choice(TOPICS)
        qos = choose.choice((0, 1, 1, 1, 2, 2, 2))
        size = choose.choice((0, 1, 60, 110, 130, 300)) if choose.random() < 0.95 else 17_000
        found: list[Packet] = []
        for _ in range(choose.choice((1, 1, 3, 9))):
            self.last_id = self.last_id % 40 + 1
            packet = Publish(topic, choose.randbytes(size), qos, packet_id=self.last_id if qos else 0)
            rare = choose.random()
            if rare < 0.03 and qos:
                packet.dup = True
            elif rare < 0.06:
                packet.retain = True
            elif rare < 0.10 and self.peer.version == 5:
                packet.properties = Properties()
                packet.properties.content_type = "x"
            found.append(packet)
        return found

    def answers(self, choose: random.Random) -> list[Packet]:
        if choose.random() < 0.1:
            choose.shuffle(self.due)
        count = choose.choice((1, 2, len(self.due)))
        found, self.due = self.due[:count], self.due[count:]
        for packet in found:
            if choose.random() < 0.03 and self.peer.version == 5 and isinstance(packet, Puback | Pubrec):
                packet.reason_code = 0x80
        return found

    def oddities(self, choose: random.Random) -> list[Packet]:
        packet_id = choose.choice((1, 2, 3, 57345, 65535))
        self.last_id = self.last_id % 40 + 1
        return [
            choose.choice(
                (
                    Pingreq(),
                    Pingreq(),
                    Subscribe(100, [choose.choice(_OTHERS)]),
                    Subscribe(100, [choose.choice(_OTHERS)]),
                    Unsubscribe(101, [choose.choice(_OTHERS).topic_filter]),
                    Puback(packet_id),
                    Pubrec(packet_id),
                    Pubrel(packet_id),
                    Pubcomp(packet_id),
                )
            )
        ]


async def _begin(world: World, way: int) -> list[Client]:
    clients: dict[str, Client] = {}
    for name, version, options in CLIENTS:
        kept = {"expiry_s": 100} if way == TO_QUEUES else {}
        clients[name] = Client(await world.connect(name, version, **{**options, **kept}))
    for name, request in _SUBSCRIBED:
        await clients[name].peer.subscribe(request)
    if way == TO_NODES:
        world.cluster.single = False
        world.cluster.relaying = True
        world.cluster.change_routes(*(node_route(b"b:1", topic) for topic in (*TOPICS[-2:], "t/2")))
    await world.settle()
    return list(clients.values())


def _outcome(world: World, clients: list[Client], way: int) -> dict[str, object]:
    """What is the same whatever way was taken. A client's own messages and the acknowledgements of what it publishes
    have no order between them."""
    found: dict[str, object] = {}
    for client, (name, _, _) in zip(clients, CLIENTS, strict=True):
        client.look()
        for kind in (PUBACK, PUBREC, PUBREL, PUBCOMP):
            found[f"{name} {kind}"] = [describe(packet) for packet in client.got if packet.kind == kind]
        messages = [
            (packet.topic_name, packet.payload, packet.qos, packet.packet_id, packet.retain, packet.dup)
            for packet in client.got
            if isinstance(packet, Publish)
        ]
        if way == TO_QUEUES:  # at QoS 0 they do not wait for the store
            messages.sort(key=lambda each: each[2] > 0)
        found[f"{name} messages"] = messages
        found[f"{name} order"] = [  # [MQTT-4.6.0-2], [MQTT-4.6.0-3]
            packet.packet_id for packet in client.got if isinstance(packet, Puback | Pubrec)
        ]
        found[f"{name} others"] = [
            describe(packet)
            for packet in client.got
            if not isinstance(packet, Publish | Puback | Pubrec | Pubrel | Pubcomp)
        ]
        found[f"{name} closed"] = client.peer.closed()
        session = world.server.clients[name].session if name in world.server.clients else None
        found[f"{name} window"] = None if session is None else (session.owed(), session.waiting())
    frames = [(frame[topic_bounds(frame)[1] :], family) for _, family, frame in world.cluster.forwarded]
    found["to nodes"] = sorted(
        [payload for *_, payload in world.cluster.pushed] + [rest[family == 5 :] for rest, family in frames]
    )
    metrics = world.metrics
    for connection in world.server.clients.values():
        metrics.messages_sent[0] += connection.sent_qos0
        connection.sent_qos0 = 0
    for field in ("packets_received", "packets_sent", "messages_received", "messages_sent", "redelivered", "dropped"):
        found[field] = getattr(metrics, field)
    return found


async def _converse(seed: int, steps: int, quotas: Quotas, way: int) -> tuple[dict[str, object], Log, int]:
    choose = random.Random(seed)
    log: Log = []
    async with serving(quotas) as world:
        clients = await _begin(world, way)
        general = count_general(world)
        for _ in range(steps):
            index = choose.randrange(len(clients))
            client = clients[index]
            packets: list[Packet] = []
            for _ in range(choose.choice((1, 2, 4))):
                kind = choose.random()
                if kind < 0.45 or (kind < 0.95 and not client.due):
                    packets += client.publishes(choose)
                elif kind < 0.95:
                    packets += client.answers(choose)
                else:
                    packets += client.oddities(choose)
            data = b"".join(bytes(encode(packet, client.peer.version)) for packet in packets)
            cut = choose.randrange(len(data) + 1) if choose.random() < 0.3 else len(data)
            for piece in filter(None, (data[:cut], data[cut:])):
                log.append((index, piece))
                client.peer.socket.feed(piece)
                # Else the answers of the store come in other turns: not where what is sent again overtakes what waits.
                if choose.random() < 0.7 or way == TO_QUEUES or CLIENTS[index][0] == "kept":
                    await world.settle()
            await world.settle()
            for each in clients:
                each.look()
        return _outcome(world, clients, way), log, general[0]


async def _repeat(log: Log, quotas: Quotas, way: int) -> tuple[dict[str, object], int]:
    async with serving(quotas) as world:
        clients = await _begin(world, way)
        general = count_general(world)
        for index, piece in log:
            clients[index].peer.socket.feed(piece)
            await world.settle()
        return _outcome(world, clients, way), general[0]


def _compare(seed: int, steps: int, quotas: Quotas, way: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns how many messages took a direct way."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    outcome, log, general = trio.run(_converse, seed, steps, quotas, way, clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(connection_module, "PLAIN", frozenset())
        patch.setattr(connection_module, "_PLAIN_ACKS", frozenset())
        clock = trio.testing.MockClock(autojump_threshold=0)
        repeated, all_general = trio.run(_repeat, log, quotas, way, clock=clock)
    for name in outcome:
        assert outcome[name] == repeated[name], name
    return all_general - general


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 60), receive_maximum=st.sampled_from((3, 20, 1000)))
def test_the_direct_ways_do_what_the_general_way_does(way: int, seed: int, steps: int, receive_maximum: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        _compare(seed, steps, Quotas(receive_maximum=receive_maximum, max_queued_messages=10), way, monkeypatch)


@pytest.mark.parametrize("way", WAYS)
def test_the_direct_ways_are_taken(way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    least = 100 if way == TO_CLIENTS else 20
    assert sum(_compare(seed, 40, Quotas(), way, monkeypatch) for seed in range(5)) > least
