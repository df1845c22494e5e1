"""The way from CONNECT to CONNACK on which no task is started: it does what the other one does, and gives way to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from broker.codec.packets import Connack, Pingreq, Pingresp, Publish, Will
from broker.errors import NotOwner, StoreFull, StoreUnavailable
from broker.straight import WAIT_S
from broker.transport.reactor import TICK_S
from cluster.api import AttachRequest, AttachThen
from tests.node.access_kit import FakeAccess, ruled
from tests.node.kit import World, serving


def _tasks(world: World) -> list[object]:
    """The tasks that are started from now on."""
    started: list[object] = []
    before = world.server.start

    def start(work: Callable[[], Awaitable[None]]) -> None:
        started.append(work)
        before(work)

    world.server.start = start  # type: ignore[method-assign]
    return started


async def test_no_task_is_started(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        tasks = _tasks(world)
        for expiry_s, clean_start in ((0, True), (100, True), (0, False)):
            await world.connect(f"c{expiry_s}{clean_start}", expiry_s=expiry_s, clean_start=clean_start)
        assert len(tasks) == 0
        assert world.metrics.connects["success"] == 3
        assert world.metrics.authentication["anonymous,allow"] == 3


async def test_a_session_goes_on_with_its_subscriptions(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        first = await world.subscriber("c", "a/b", qos=1, expiry_s=100)
        first.socket.finish()
        await world.settle()
        sender = await world.connect("s")
        await sender.send(Publish("a/b", b"1", 1, False, False, 1))
        tasks = _tasks(world)
        again = await world.connect("c", clean_start=False, expiry_s=100)
        assert again.connack is not None and again.connack.session_present
        assert len(tasks) <= 1, "its queue is read"
        assert (await again.expect(Publish)).payload == b"1"


async def test_it_gives_way_where_somebody_is_asked(autojump_clock: trio.abc.Clock) -> None:
    async with ruled(FakeAccess()) as world:
        tasks = _tasks(world)
        await world.connect("c")
        assert len(tasks) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailable("away"), 0x88),
        (StoreFull("full"), 0x97),
        (NotOwner("another"), 0x87),
        (KeyError("a defect"), 0x83),
    ],
)
async def test_what_the_store_says_is_answered(error: Exception, code: int, autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        attach_then = world.cluster.attach_then

        def refuse(request: AttachRequest, then: AttachThen) -> None:
            attach_then(request, lambda outcome: then(error))

        world.cluster.attach_then = refuse  # type: ignore[method-assign]
        peer = world.connecting("c")
        assert (await peer.expect(Connack)).reason_code == code
        await world.settle()
        assert peer.closed()
        assert not world.server.clients
        world.cluster.attach_then = attach_then  # type: ignore[method-assign]
        await world.connect("c")


async def test_a_client_leaves_before_the_answer(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.unanswered = True
        peer = world.connecting("c", expiry_s=100)
        await world.settle()
        assert "c" in world.server.clients
        peer.socket.finish()
        await world.settle()
        assert "c" in world.server.clients, "nobody else has it before the store has answered"
        world.cluster.unanswered = False
        world.reactor.wake()
        await world.settle()
        assert not world.server.clients
        again = await world.connect("c", clean_start=False, expiry_s=100)
        assert again.connack is not None and again.connack.session_present


async def test_a_store_that_takes_too_long(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        world.cluster.unanswered = True
        peer = world.connecting("c")
        await trio.sleep(WAIT_S + 2 * TICK_S)
        assert (await peer.expect(Connack)).reason_code == 0x88
        await world.settle()
        assert peer.closed()
        newer = world.connecting("c")
        other = world.connecting("d")
        await world.settle()
        world.cluster.unanswered = False
        world.reactor.wake()
        assert (await newer.expect(Connack)).reason_code == 0
        assert (await other.expect(Connack)).reason_code == 0
        await world.settle()
        assert set(world.server.clients) == {"c", "d"}
        assert world.metrics.connects["server_unavailable"] == 1


async def test_a_second_connection_takes_over_what_is_being_opened(autojump_clock: trio.abc.Clock) -> None:
    """[MQTT-3.1.4-3]"""
    async with serving() as world:
        world.cluster.unanswered = True
        first = world.connecting("c", expiry_s=100)
        second = world.connecting("c", clean_start=False, expiry_s=100)
        await world.settle()
        world.cluster.unanswered = False
        world.reactor.wake()
        assert (await second.expect(Connack)).reason_code == 0
        assert first.closed()
        assert world.server.clients["c"].session is not None


async def test_rules_that_change_meanwhile(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        renewed: list[object] = []

        async def renew(connection: object) -> None:
            renewed.append(connection)

        world.cluster.unanswered = True
        peer = world.connecting("c")
        await world.settle()
        world.server.rechecking.renew = renew  # type: ignore[method-assign]
        world.server.rechecking.version += 1
        world.cluster.unanswered = False
        world.reactor.wake()
        await peer.expect(Connack)
        await world.settle()
        assert renewed == [world.server.clients["c"]]
        await peer.send(Pingreq())
        await peer.expect(Pingresp)


async def test_a_will_that_cannot_be(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        peer = world.connecting("c", will=Will("$rookery/x", b"", 0, False))
        assert (await peer.expect(Connack)).reason_code >= 0x80
        await world.settle()
        assert peer.closed()
        assert not world.server.clients


async def test_a_subscription_that_is_not_allowed_any_more(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        first = await world.subscriber("c", "$SYS/#", "a", expiry_s=100)
        first.socket.finish()
        await world.settle()
        await world.settle()
        world.server.system_open = False
        again = await world.connect("c", clean_start=False, expiry_s=100)
        assert again.connack is not None and again.connack.session_present
        subscriber = world.server.clients["c"].subscriber
        assert subscriber is not None
        assert list(subscriber.subscriptions) == ["a"]
