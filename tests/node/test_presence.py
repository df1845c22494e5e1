"""What a node tells of clients that come and go."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from broker.codec.packets import Disconnect, Publish, Unsuback, Unsubscribe
from broker.extensions.presence import CAUGHT_UP_S, MARK, STORED_S, escaped
from broker.message import Message
from tests.node.kit import Peer, World, serving

ALL = "$SYS/brokers/+/clients/+/+"
OPEN: Any = {"node_name": "n", "system_open": True}


async def _events(peer: Peer) -> list[tuple[str, dict[str, Any]]]:
    """Topic below that of the node's clients, and what is told."""
    return [(each.topic_name.removeprefix("$SYS/brokers/n/clients/"), json.loads(each.payload))
            for each in await peer.consume()]  # fmt: skip


async def _names(peer: Peer) -> list[str]:
    return [topic for topic, _ in await _events(peer)]


async def test_a_client_comes_and_goes(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", ALL)
        client = await world.connect("c", keep_alive_s=60, expiry_s=9, clean_start=False)
        await client.send(Disconnect(4))
        (came_to, came), (gone_to, gone) = await _events(spy)
        assert (came_to, gone_to) == ("c/connected", "c/disconnected")
        shared = {"clientid", "username", "ipaddress", "port", "protocol", "proto_ver", "node", "listener", "epoch"}
        assert set(came) - shared == {"connected_at", "keepalive", "clean_start", "session_present", "expiry_interval"}
        assert set(gone) - shared == {"connected_at", "disconnected_at", "reason", "reason_code"}
        assert {key: came[key] for key in shared} == {key: gone[key] for key in shared}
        assert came["clientid"] == "c" and came["node"] == "n" and came["proto_ver"] == 5
        assert (came["keepalive"], came["clean_start"], came["session_present"]) == (60, False, False)
        assert came["expiry_interval"] == 9
        assert gone["reason_code"] == 4 and gone["connected_at"] == came["connected_at"] <= gone["disconnected_at"]
        again = await world.connect("c", clean_start=False)
        [(_, back)] = await _events(spy)
        assert back["session_present"] and back["epoch"] > came["epoch"]
        again.socket.reset()
        [(_, lost)] = await _events(spy)
        assert lost["reason"] not in ("", "normal") and "reason_code" not in lost


async def test_a_takeover_is_an_end_and_a_beginning(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", ALL)
        for _ in range(3):
            await world.connect("c")
        events = await _events(spy)
        assert [topic for topic, _ in events] == ["c/connected", "c/disconnected"] * 2 + ["c/connected"]
        epochs = [told["epoch"] for _, told in events]
        assert epochs == sorted(epochs) and len(set(epochs)) == 3
        assert {told["reason"] for topic, told in events if topic == "c/disconnected"} == {"session_taken_over"}


async def test_a_session_that_is_away_misses_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", ALL, qos=1, expiry_s=100)
        await spy.send(Disconnect(0))
        for number in range(20):
            client = await world.connect(f"c{number}")
            await client.send(Disconnect(0))
        spy = await world.connect("spy", clean_start=False, expiry_s=100)
        names = await _names(spy)
        expected = [f"c{number}/{what}" for number in range(20) for what in ("connected", "disconnected")]
        assert [name for name in names if not name.startswith("spy/")] == expected


@pytest.mark.parametrize(
    "topic_filter, seen",
    [
        ("$SYS/#", 2),
        ("$SYS/brokers/n/clients/c/+", 2),
        ("$SYS/brokers/+/clients/+/connected", 1),
        ("$SYS/brokers/n/+/c/disconnected", 1),
        ("$share/g/$SYS/brokers/+/clients/#", 2),
        ("$SYS/brokers/other/clients/#", 0),
        ("$SYS/broker/#", 0),
        ("#", 0),
    ],
)
async def test_filters(autojump_clock: trio.abc.Clock, topic_filter: str, seen: int) -> None:
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", topic_filter)
        await spy.received()  # values of the node
        client = await world.connect("c")
        await client.send(Disconnect(0))
        found = [
            each for each in await spy.consume() if "/clients/" in each.topic_name and "/brokers/" in each.topic_name
        ]
        assert len(found) == seen


async def test_nothing_is_made_for_nobody(autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", ALL, "a")

        def fail(*_: object) -> None:
            raise AssertionError("nobody wants to know")

        await spy.send(Unsubscribe(9, [ALL]))
        await spy.expect(Unsuback)
        monkeypatch.setattr(world.server.presence, "_common", fail)
        client = await world.connect("c")
        await client.send(Disconnect(0))
        assert not await spy.publishes()


@pytest.mark.parametrize(
    "client_id, level",
    [("a/b", "a%2Fb"), ("+", "%2B"), ("#", "%23"), ("100%", "100%25"), ("ä ö", "ä ö"), ("x" * 9000, "x" * 4096)],
)
async def test_client_ids(autojump_clock: trio.abc.Clock, client_id: str, level: str) -> None:
    assert escaped(client_id) == level
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", "$SYS/brokers/+/clients/+/connected")
        await world.connect(client_id)
        [(topic, told)] = await _events(spy)
        assert topic == f"{level}/connected" and told["clientid"] == client_id


async def test_nobody_else_publishes_them(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        spy = await world.subscriber("spy", ALL)
        client = await world.connect("c")
        await spy.consume()
        await client.send(Publish("$SYS/brokers/n/clients/x/connected", b"{}", 1, False, False, 1))
        assert [topic for topic, _ in await _events(spy)] in ([], ["c/disconnected"])


async def test_a_drain_tells_of_all_who_go(autojump_clock: trio.abc.Clock) -> None:
    async with serving(**OPEN) as world:
        for number in range(5):
            await world.connect(f"c{number}")
        spy = await world.subscriber("spy", ALL, expiry_s=100)
        await _drain(world)
        spy = await _back(world)
        names = {name for name in await _names(spy) if name.startswith("c")}
        assert names == {f"c{number}/disconnected" for number in range(5)}


async def _drain(world: World) -> None:
    world.server.send_away(1000)
    await trio.sleep(1)
    world.server.welcome()


async def _back(world: World) -> Peer:
    return await world.connect("spy", clean_start=False, expiry_s=100)


async def _marked(world: World) -> None:
    """What this node sent to itself comes back."""
    mark = next(payload for node, _, _, payload in reversed(world.cluster.pushed) if node == b"a:1")
    world.cluster.events.deliver(Message(MARK.encode(), mark, 0, False), True, ())
    await world.settle()


@pytest.mark.parametrize("qos", [0, 1])
async def test_what_other_nodes_told_comes_first(autojump_clock: trio.abc.Clock, qos: int) -> None:
    async with serving(node_name="a", system_open=True) as world:
        world.cluster.single = False
        spy = await world.subscriber("spy", ALL, qos=qos)
        await world.connect("c")
        await _marked(world)
        await spy.consume()
        await world.connect("c")
        # The end of the connection before was told at once, the new one waits for what is on its way.
        assert [each.topic_name for each in await spy.consume()] == ["$SYS/brokers/a/clients/c/disconnected"]
        other = "$SYS/brokers/b/clients/c/disconnected"
        world.cluster.events.deliver(Message(other.encode(), b"{}", 1, False), True, ())
        await _marked(world)
        names = [each.topic_name for each in await spy.consume()]
        assert names == [other, "$SYS/brokers/a/clients/c/connected"]


async def test_an_end_follows_its_beginning_that_waits(autojump_clock: trio.abc.Clock) -> None:
    async with serving(node_name="a", system_open=True) as world:
        world.cluster.single = False
        spy = await world.subscriber("spy", ALL)
        for _ in range(3):
            client = await world.connect("c")
            await client.send(Disconnect(0))
            await trio.sleep(STORED_S + 0.01)  # then it is given back, told or not
        while not (found := await spy.consume()):
            await _marked(world)
        await _marked(world)
        found += await spy.consume()
        told = [(each.topic_name.rpartition("/")[2], json.loads(each.payload)["epoch"]) for each in found]
        epochs = sorted({epoch for _, epoch in told})
        assert told == [(what, epoch) for epoch in epochs for what in ("connected", "disconnected")]
        assert len(epochs) == 3


async def test_it_does_not_wait_for_ever(autojump_clock: trio.abc.Clock) -> None:
    async with serving(node_name="a", system_open=True) as world:
        world.cluster.single = False
        spy = await world.subscriber("spy", ALL)
        await world.connect("c")
        await spy.nothing()
        await trio.sleep(CAUGHT_UP_S + 0.1)
        assert [each.topic_name for each in await spy.consume()] == ["$SYS/brokers/a/clients/c/connected"]


async def test_a_session_is_kept_until_its_end_is_stored(autojump_clock: trio.abc.Clock) -> None:
    async with serving(node_name="a", system_open=True) as world:
        world.cluster.single = False
        await world.subscriber("spy", ALL, expiry_s=100)
        client = await world.connect("c", expiry_s=100)
        await trio.sleep(CAUGHT_UP_S + 0.1)
        world.cluster.held = True
        await client.send(Disconnect(0))
        assert "c" in world.server.clients, "another node cannot have it yet"
        world.cluster.held = False
        world.reactor.wake()
        await world.settle()
        assert "c" not in world.server.clients


async def test_what_other_nodes_stored_comes_first(autojump_clock: trio.abc.Clock) -> None:
    async with serving(node_name="a", system_open=True) as world:
        world.cluster.single = False
        spy = await world.subscriber("spy", ALL, qos=1, expiry_s=100)
        await trio.sleep(CAUGHT_UP_S + 0.1)
        await spy.consume()
        world.cluster.put("spy", b"of another node, which has not told of it yet")
        await world.connect("c")
        await _marked(world)
        first, second = await spy.consume()
        assert first.payload.startswith(b"of another node")
        assert second.topic_name == "$SYS/brokers/a/clients/c/connected"
