"""G18: users, rules and bans that change while clients are connected; credentials that expire."""

from __future__ import annotations

import pytest
import trio

from broker.auth.api import Principal
from broker.codec.packets import Connack, Disconnect, Pingreq, Pingresp, Properties, Publish, Will
from broker.guard import NoGuard
from broker.recheck import WORKERS
from tests.node.access_kit import FakeAccess, Rules, everything, nothing, ruled
from tests.node.kit import Peer, World


async def _recheck(world: World) -> None:
    world.server.recheck()
    await world.settle()


async def _gone(client: Peer, reason_code: int) -> str:
    """The reason string of the DISCONNECT."""
    packet = await client.expect(Disconnect)
    assert packet.reason_code == reason_code
    assert client.closed()
    return (packet.properties.reason_string if packet.properties is not None else None) or ""


async def test_g18_users_that_are_gone(autojump_clock: trio.abc.Clock) -> None:
    access = FakeAccess()
    async with ruled(access) as world:
        anna = await world.connect("a", username="anna")
        bert = await world.connect("b", username="bert")
        access.chain.invalid.add("anna")
        await _recheck(world)
        await _gone(anna, 0x87)
        await bert.send(Pingreq())
        await bert.expect(Pingresp)


async def test_g18_clients_that_are_banned(autojump_clock: trio.abc.Clock) -> None:
    class Bans(NoGuard):
        def ban_of(self, principal: Principal) -> str | None:
            return "banned for a test" if principal.client_id == "a" else None

    async with ruled() as world:
        world.server.guard = Bans()
        first = await world.connect("a")
        second = await world.connect("b")
        await _recheck(world)
        assert await _gone(first, 0x98) == "banned for a test"  # DISCONNECT has no 0x8A
        assert world.metrics.disconnects == {"administrative_action": 1}
        await second.nothing()


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_g18_a_subscription_that_is_not_allowed_any_more(autojump_clock: trio.abc.Clock, expiry_s: int) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "a/#", "b/#", "$share/g/b", expiry_s=expiry_s)
        rules.subscribe = lambda topic_filter: not topic_filter.startswith("b")
        await _recheck(world)
        assert "'b/#'" in await _gone(client, 0x87)
        rules.subscribe = everything
        client = await world.connect("c", clean_start=False, expiry_s=expiry_s)
        names = [name for each in world.server.dispatch.subscribers.values() for name in each.subscriptions]
        assert names == (["a/#"] if expiry_s else [])
        assert not world.server.dispatch.groups


async def test_g18_what_was_known_is_forgotten(autojump_clock: trio.abc.Clock) -> None:
    covered = {"t/#"}
    rules = Rules(covers=covered.__contains__)
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "t/#", qos=0)
        other = await world.subscriber("s", "#", qos=0)
        await client.send(Publish("t/x", b"1"), Publish("t/x", b"2"))
        assert await client.payloads() == await other.payloads() == [b"1", b"2"]
        rules.publish = rules.read = nothing
        covered.clear()
        await _recheck(world)
        assert rules.renewed == 1
        await client.send(Publish("t/x", b"3"))
        await other.nothing()
        sender = await world.connect("sender")
        await sender.send(Publish("t/x", b"4"), Publish("t/x", b"5"))
        assert await other.payloads() == [b"4", b"5"]
        await client.nothing()


@pytest.mark.parametrize("slow", [False, True])
async def test_g18_a_will_that_is_not_allowed_any_more(autojump_clock: trio.abc.Clock, slow: bool) -> None:
    rules = Rules()
    rules.slow = {b"w"} if slow else set()
    rules.gate.set()
    async with ruled(c=rules) as world:
        other = await world.subscriber("s", "#")
        client = await world.connect("c", will=Will("w", b"x", 1, True))
        await _recheck(world)
        await client.nothing()
        rules.publish = nothing
        await _recheck(world)
        await _gone(client, 0x87)
        await other.nothing()


async def test_g18_who_cannot_be_asked_takes_nothing_back(autojump_clock: trio.abc.Clock) -> None:
    """Neither subscriptions nor the will; what is known to be denied still goes."""
    rules = Rules()
    rules.slow = {b"w"}
    rules.gate.set()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "a", "b", qos=0, will=Will("w", b"x", 1, False))
        rules.away = True
        await _recheck(world)
        await client.nothing()
        sender = await world.connect("sender")
        await sender.send(Publish("a", b"1"), Publish("b", b"2"))
        assert await client.payloads() == [b"1", b"2"]
        rules.publish = nothing
        rules.slow.clear()
        await _recheck(world)
        await _gone(client, 0x87)


@pytest.mark.parametrize("how", ["removed", "banned"])
@pytest.mark.parametrize("delay_s", [0, 10])
async def test_g18_who_is_thrown_out_has_no_last_word(autojump_clock: trio.abc.Clock, how: str, delay_s: int) -> None:
    class Bans(NoGuard):
        def ban_of(self, principal: Principal) -> str | None:
            return "banned for a test" if how == "banned" and principal.client_id == "a" else None

    access = FakeAccess()
    async with ruled(access) as world:
        other = await world.subscriber("s", "#")
        properties = Properties()
        properties.will_delay_interval = delay_s
        client = await world.connect("a", username="anna", expiry_s=100, will=Will("w", b"x", 1, True, properties))
        world.server.guard = Bans()
        if how == "removed":
            access.chain.invalid.add("anna")
        await _recheck(world)
        assert client.closed()
        await trio.sleep(20)
        await other.nothing()
        late = await world.subscriber("late", "#")
        await late.nothing()


async def test_g18_a_client_without_rules_gets_some(autojump_clock: trio.abc.Clock) -> None:
    access = FakeAccess()
    async with ruled(access) as world:
        client = await world.subscriber("c", "t/#", qos=0)
        assert world.server.clients["c"].permissions is None
        access.rules["c"] = Rules(publish=nothing, read=nothing)
        await _recheck(world)
        sender = await world.connect("sender")
        await sender.send(Publish("t/x", b"1"), Publish("t/x", b"2"))
        await client.send(Publish("t/x", b"3"))
        await client.nothing()
        assert world.metrics.dropped == {"not_authorized": 3}


async def test_g18_rules_of_one_client_change(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "t")
        rules.subscribe = nothing
        assert rules.changed is not None
        rules.changed()
        await world.settle()
        await _gone(client, 0x87)
        assert not rules.renewed


async def test_g18_a_change_during_a_recheck_begins_another(autojump_clock: trio.abc.Clock) -> None:
    class Slow(Rules):
        async def renew(self) -> bool:
            renewed = await super().renew()
            await self.gate.wait()
            return renewed

    rules = {f"c{number}": Slow() for number in range(2 * WORKERS)}
    async with ruled(FakeAccess(**rules)) as world:
        clients = [await world.subscriber(name, "t") for name in rules]
        await _recheck(world)
        assert sum(each.renewed for each in rules.values()) == WORKERS
        for each in rules.values():
            each.subscribe = nothing
        await _recheck(world)
        assert sum(each.renewed for each in rules.values()) == WORKERS
        for each in rules.values():
            each.gate.set()
        await world.settle()
        for client in clients:
            await _gone(client, 0x87)


async def test_g18_rules_that_change_while_a_client_connects(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "t", expiry_s=100)
        client.socket.reset()
        await world.settle()
        world.cluster.attaching.shut()
        client = world.connecting("c", clean_start=False, expiry_s=100)
        await world.settle()
        await _recheck(world)
        assert [rules.renewed] == [0]
        world.cluster.attaching.open()
        await client.received()
        assert rules.renewed == 1


async def test_g18_rules_that_change_while_a_client_subscribes(autojump_clock: trio.abc.Clock) -> None:
    class Slow(Rules):
        async def may_subscribe(self, topic_filter: str, qos: int) -> bool:
            allowed = await super().may_subscribe(topic_filter, qos)
            await self.gate.wait()
            return allowed

    rules = Slow()
    async with ruled(c=rules) as world:
        client = await world.connect("c")
        await client.subscribe("t")
        rules.subscribe = nothing
        await _recheck(world)
        rules.gate.set()
        packets = await client.received()
        assert isinstance(packets[-1], Disconnect)
        assert packets[-1].reason_code == 0x87


@pytest.mark.parametrize("when", ["authentication", "permissions"])
async def test_g18_a_user_that_is_removed_during_the_login(autojump_clock: trio.abc.Clock, when: str) -> None:
    gate = trio.Event()

    class Slow(FakeAccess):
        async def permissions(self, principal: Principal) -> Rules:
            if when == "permissions":
                await gate.wait()
            return await super().permissions(principal)

    access = Slow()
    async with ruled(access) as world:

        async def login(principal: Principal) -> None:
            if when == "authentication":  # the password was compared; the answer is under way
                await gate.wait()

        access.chain.login = login
        client = world.connecting("c", username="anna")
        await world.settle()
        access.chain.invalid.add("anna")
        await _recheck(world)
        gate.set()
        assert (await client.expect(Connack)).reason_code == 0x87
        assert client.closed()


async def test_g18_the_others_are_served_during_a_recheck(autojump_clock: trio.abc.Clock) -> None:
    rules = {f"c{number}": Rules() for number in range(200)}
    async with ruled(FakeAccess(**rules)) as world:
        for name in rules:
            await world.connect(name)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            world.server.recheck()
            while any(not each.renewed for each in rules.values()):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert turns >= len(rules) / WORKERS


async def test_g18_nobody_waits_for_those_who_have_to_be_asked_about(autojump_clock: trio.abc.Clock) -> None:
    """A service that does not answer keeps neither users who were removed nor rules that are known from counting."""

    class Slow(Rules):
        async def may_subscribe(self, topic_filter: str, qos: int) -> bool:
            if topic_filter in self.slow_filters:
                await self.gate.wait()
            return await super().may_subscribe(topic_filter, qos)

    rules = {f"c{number}": Slow() for number in range(2 * WORKERS)}
    access = FakeAccess(**rules)
    async with ruled(access) as world:
        clients = [await world.subscriber(name, "ask", username=name) for name in rules]
        other = await world.subscriber("other", "t", username="other")
        last = await world.subscriber("last", "t", username="last")
        for each in rules.values():
            each.slow_filters = {"ask"}
        await _recheck(world)
        for _ in range(3):
            access.chain.invalid = {"other"}
            access.rules["last"] = Rules(subscribe=nothing)
            await _recheck(world)
        await _gone(other, 0x87)
        await _gone(last, 0x87)
        rules["c1"].subscribe = nothing
        for each in rules.values():
            each.gate.set()
        await world.settle()
        for number, client in enumerate(clients):
            assert client.closed() is (number == 1)


async def test_g18_who_did_not_answer_is_asked_again(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "ask", "b")
        rules.slow_filters = {"ask"}
        rules.away = True
        await _recheck(world)
        await trio.sleep(100)
        await client.nothing()
        rules.subscribe = lambda topic_filter: topic_filter != "ask"
        rules.away = False
        await trio.sleep(10)
        assert "'ask'" in await _gone(client, 0x87)
        await trio.sleep(10)
        assert not world.tasks()


async def test_g18_what_is_known_to_be_denied_goes_whoever_is_away(autojump_clock: trio.abc.Clock) -> None:
    rules = Rules()
    async with ruled(c=rules) as world:
        client = await world.subscriber("c", "ask", "b", expiry_s=100)
        rules.slow_filters = {"ask"}
        rules.away = True
        rules.subscribe = lambda topic_filter: topic_filter != "b"
        await _recheck(world)
        assert "'b'" in await _gone(client, 0x87)
        names = [name for each in world.server.dispatch.subscribers.values() for name in each.subscriptions]
        assert names == ["ask"]


# -- credentials that expire


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("keep_alive_s", [0, 3600])
async def test_a_connection_ends_with_its_credentials(
    autojump_clock: trio.abc.Clock, version: int, keep_alive_s: int
) -> None:
    access = FakeAccess()
    async with ruled(access) as world:

        async def login(principal: Principal) -> None:
            principal.expires_at_s = world.cluster.now_ms() / 1000 + 30

        access.chain.login = login
        client = await world.connect("c", version, keep_alive_s=keep_alive_s)
        await trio.sleep(29)
        await client.nothing()
        await trio.sleep(2)
        if version == 5:
            await _gone(client, 0xA0)
        await world.settle()
        assert client.closed()
        assert world.metrics.disconnects == {"maximum_connect_time": 1}
