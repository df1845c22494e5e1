"""The node as a subscriber of its own, and what only nodes may use."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from broker.admin.api import AdminError
from broker.admin.inside import PRIVATE, STORE_S, WAITING_MAX
from broker.codec.packets import Connack, Connect, Puback, Publish, Suback, Subscribe, SubscriptionRequest
from broker.errors import StoreUnavailable
from broker.message import Message
from cluster.api import SessionRef, StoredSubscription
from tests.node.kit import serving


async def test_messages_of_clients_and_of_other_nodes(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        async with world.server.inside.subscription("a/+") as watching, world.server.inside.subscription("#") as all_of:
            await sender.send(Publish("a/b", b"1", 0), Publish("a/b", b"2", 0), Publish("b", b"3", 0))
            await sender.send(Publish("a/c", b"4", 1, False, False, 1))
            world.cluster.events.deliver(Message(b"a/d", b"5", 0, False), True, ())
            await world.settle()
            assert [(await watching.receive()).payload for _ in range(4)] == [b"1", b"2", b"4", b"5"]
            assert [(await all_of.receive()).payload for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]


async def test_nothing_of_it_stays(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        async with world.server.inside.subscription("a"), world.server.inside.subscription("a"):
            pass
        await sender.send(Publish("a", b"1", 1, False, False, 1))
        [answer] = await sender.received()
        assert isinstance(answer, Puback)
        assert answer.reason_code == 0x10, "nobody subscribes"
        assert not world.server.dispatch.route(b"a").entries


async def test_two_who_watch_the_same(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        async with world.server.inside.subscription("a") as first:
            async with world.server.inside.subscription("a") as second:
                await sender.send(Publish("a", b"1", 0))
                await world.settle()
                assert (await second.receive()).payload == b"1"
            await sender.send(Publish("a", b"2", 0))
            await world.settle()
            assert [(await first.receive()).payload for _ in range(2)] == [b"1", b"2"]


async def test_one_that_does_not_read_loses_only_its_own(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        async with world.server.inside.subscription("a") as watching:
            for _ in range(WAITING_MAX // 100 + 1):
                await sender.send(*[Publish("a", b"x", 0) for _ in range(100)])
                await world.settle()
            assert watching.dropped == 100
            await sender.nothing()


async def test_a_store_that_lost_its_data_ends_the_watching(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        async with world.server.inside.subscription("a") as watching:
            world.server.store_emptied()
            with pytest.raises(AdminError):
                await watching.receive()
            assert not world.server.dispatch.route(b"a").entries
        sender = await world.connect("sender")
        async with world.server.inside.subscription("a") as watching:
            await sender.send(Publish("a", b"1", 0))
            await world.settle()
            assert (await watching.receive()).payload == b"1"


async def test_a_node_that_was_taken_for_dead_ends_the_watching(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        async with world.server.inside.subscription("a") as watching:
            await sender.send(Publish("a", b"1", 0))
            await world.settle()
            world.server.abandon("fenced")
            assert [each.payload for each in [await watching.receive()]] == [b"1"], "what came is read first"
            with pytest.raises(AdminError) as caught:
                async for _ in watching:
                    raise AssertionError("told")
            assert caught.value.status == 503
        with pytest.raises(StoreUnavailable):
            async with world.server.inside.subscription("a"):
                raise AssertionError("entered")


async def test_without_the_store_there_is_an_error_and_nothing_is_left(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.fail()
        with pytest.raises(StoreUnavailable):
            async with world.server.inside.subscription("a"):
                raise AssertionError("entered")
        assert not world.server.dispatch.route(b"a").entries


async def test_a_store_that_does_not_answer(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        inside = world.server.inside
        sender = await world.connect("sender")
        async with inside.subscription("known"):
            pass
        world.cluster.subscribing.shut()
        began = trio.current_time()
        with pytest.raises(StoreUnavailable):
            async with inside.subscription("a"):
                raise AssertionError("entered")
        assert trio.current_time() == began + STORE_S
        with trio.move_on_after(1):
            async with inside.subscription("b"):
                raise AssertionError("entered")
        # One gives up while another one comes for the same.
        async with trio.open_nursery() as nursery:
            heard: list[bytes] = []

            async def watch() -> None:
                async with inside.subscription("b") as watching:
                    heard.append((await watching.receive()).payload)

            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            world.cluster.subscribing.open()
            await world.settle()
            await sender.send(Publish("b", b"1", 0))
        assert heard == [b"1"]
        await world.settle()
        assert not inside._watching and not inside._known and not inside._changed
        for topic in (b"a", b"b", b"known"):
            assert not world.server.dispatch.route(topic).entries


async def test_many_at_once_are_told_together(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        inside = world.server.inside
        calls: list[int] = []
        subscribe = world.cluster.subscribe

        async def counted(ref: SessionRef, subscriptions: Sequence[StoredSubscription], persistent: bool) -> None:
            calls.append(len(subscriptions))
            await trio.sleep(0.01)
            await subscribe(ref, subscriptions, persistent)

        world.cluster.subscribe = counted  # type: ignore[method-assign]

        async def watch(topic_filter: str) -> None:
            async with inside.subscription(topic_filter):
                pass

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(watch, f"t/{number}")
        assert sum(calls) == 100 and len(calls) <= 3


async def test_private_topics_are_heard(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        heard: list[bytes] = []
        world.server.inside.listen(PRIVATE + "x", lambda message: heard.append(message.payload))
        world.cluster.events.deliver(Message(PRIVATE.encode() + b"x", b"1", 0, False), True, ())
        await world.settle()
        assert heard == [b"1"]
        world.server.store_emptied()
        world.cluster.events.deliver(Message(PRIVATE.encode() + b"x", b"2", 0, False), True, ())
        assert heard == [b"1", b"2"]


async def test_clients_can_use_nothing_of_it(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        heard: list[bytes] = []
        world.server.inside.listen(PRIVATE + "x", lambda message: heard.append(message.payload))
        peer = await world.connect("c")
        names = ["$rookery/#", "$rookery/x", "$share/g/$rookery/x", "$rookery", "$rookery/+/y"]
        await peer.send(Subscribe(1, [SubscriptionRequest(name) for name in names]))
        assert (await peer.expect(Suback)).reason_codes == [0x87] * len(names)
        await peer.send(Publish(PRIVATE + "x", b"1", 1, False, False, 1))
        [answer] = await peer.received()
        assert isinstance(answer, Puback)
        assert answer.reason_code == 0x87
        await peer.send(Publish(PRIVATE + "x", b"1", 0))
        await world.settle()
        assert not heard
        everything = await world.subscriber("all", "#")
        world.cluster.events.deliver(Message(PRIVATE.encode() + b"x", b"2", 0, False), True, ())
        await everything.nothing()
        other = world.accept()
        await other.send(Connect(5, PRIVATE + "mine", True))
        assert (await other.expect(Connack)).reason_code == 0x85
