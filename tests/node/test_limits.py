"""Who is kept out: the guard on a cluster of one process and a clock that jumps."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

import pytest
import trio

from broker.auth.api import ConnectRequest, Principal
from broker.config import Settings, load
from broker.connection import Connection
from broker.errors import ConfigError, PeerError, StoreUnavailable
from broker.limits.bans import CLIENT_ID, IP, USERNAME, Ban
from broker.limits.guard import LimitsGuard
from broker.limits.places import RECOUNT_AGAIN_S, RECOUNT_S, origin_of
from broker.metrics import Metrics
from broker.options.listener import Listener
from broker.peer import Peer
from broker.transport.api import Stream
from cluster.api import AttachRequest
from cluster.memory import MemoryCluster
from cluster.policy import ClusterLimits
from cluster.registry import BANS, Occupied

LISTENER = load({"listen": ["tcp://127.0.0.1:0"]}, {}).settings.listen[0]


class World:
    """A guard, and clients that come and go."""

    def __init__(self, cluster: MemoryCluster | None = None, **given: object) -> None:
        self.cluster = cluster or MemoryCluster("a", ClusterLimits())
        self.metrics = Metrics()
        self.tasks: list[Callable[[], Awaitable[None]]] = []
        self.settings = settings(**given)
        self.guard = LimitsGuard(self.settings, self.cluster, self.metrics, self.tasks.append, trio.current_time)

    async def run(self) -> None:
        """What was spawned."""
        while self.tasks:
            await self.tasks.pop(0)()

    def now_s(self) -> float:
        return self.cluster.now_ms() / 1000

    async def come(
        self,
        client_id: str = "c",
        identity: str = "anna",
        host: str = "192.0.2.1",
        *,
        username: str | None = None,
        listener: Listener = LISTENER,
        attributes: dict[str, str] | None = None,
    ) -> Connection:
        """Accepted, screened, admitted."""
        peer = Peer(host, 1, "l")
        stream = cast(Stream, _Socket(peer))
        connection = cast(Connection, _Client(stream, client_id, listener))
        reason = self.guard.accepts(stream, listener)
        assert not reason, reason
        try:
            await self.guard.screen(ConnectRequest(client_id, username or identity or None, None, peer))
            connection.principal = Principal(
                identity, client_id, peer, username or identity or None, attributes=attributes or {}
            )
            await self.guard.admit(connection)
        except BaseException:
            self.guard.left(connection)
            raise
        return connection

    async def go(self, connection: Connection, reason: str = "normal") -> None:
        connection.close_reason = reason
        self.guard.left(connection)
        await self.run()

    async def ban(self, ban: Ban) -> None:
        await self.cluster.registry.change(BANS, {ban.name: ban.document()})
        await self.guard.refresh()

    async def bans(self) -> list[str]:
        return sorted(await self.cluster.registry.documents(BANS))


class _Socket:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer


class _Client:
    """What the guard sees of a connection."""

    def __init__(self, stream: Stream, client_id: str, listener: Listener) -> None:
        self.stream = stream
        self.client_id = client_id
        self.listener = listener
        self.principal: Principal | None = None
        self.meter = None
        self.ref = object()
        self.close_reason = ""


def settings(**given: object) -> Settings:
    return load(given, {}).settings


async def refused(world: World, code: int, *arguments: str, **named: object) -> None:
    with pytest.raises(PeerError) as caught:
        await world.come(*arguments, **named)  # type: ignore[arg-type]
    assert caught.value.reason_code == code
    assert "why" not in caught.value.text


# Bans


async def test_banned_clients_are_refused(autojump_clock: trio.abc.Clock) -> None:
    world = World()
    await world.ban(Ban(CLIENT_ID, "c", None, "why"))
    await world.ban(Ban(USERNAME, "bob", None, "why"))
    await refused(world, 0x8A, "c")
    await refused(world, 0x8A, "d", "bob")
    # By what it claims, before it is authenticated; and by what was proved.
    await refused(world, 0x8A, "d", "anna", username="bob")
    world.guard.left(await world.come("d"))
    assert world.metrics.limits == {"banned_client_id": 1, "banned_username": 2}


async def test_names_that_authentication_gave(autojump_clock: trio.abc.Clock) -> None:
    world = World()
    await world.ban(Ban(USERNAME, "proved"))
    await refused(world, 0x8A, "d", "proved", username="claimed")


async def test_a_banned_address_is_not_even_read(autojump_clock: trio.abc.Clock) -> None:
    world = World()
    await world.ban(Ban(IP, "192.0.2.0/24", world.now_s() + 60))
    stream = cast(Stream, _Socket(Peer("192.0.2.77", 1, "l")))
    assert world.guard.bans_address("192.0.2.77")
    assert world.guard.accepts(stream, LISTENER) == "banned"
    await trio.sleep(61)
    assert world.guard.accepts(stream, LISTENER) is None


async def test_connected_clients_that_are_banned(autojump_clock: trio.abc.Clock) -> None:
    world = World()
    connection = await world.come()
    principal = connection.principal
    assert principal is not None
    assert world.guard.ban_of(principal) is None
    for ban in (Ban(IP, "192.0.2.1"), Ban(CLIENT_ID, "c"), Ban(USERNAME, "anna")):
        await world.ban(ban)
        assert world.guard.ban_of(principal) == "banned"
        await world.cluster.registry.change(BANS, {ban.name: None})
        await world.guard.refresh()
        assert world.guard.ban_of(principal) is None
    await world.ban(Ban(IP, "192.0.2.1", new_only=True))
    assert world.guard.ban_of(principal) is None


async def test_bans_that_are_over_are_removed(autojump_clock: trio.abc.Clock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        await nursery.start(world.guard.serve)
        await world.ban(Ban(CLIENT_ID, "c", world.now_s() + 10))
        await world.ban(Ban(CLIENT_ID, "d"))
        await world.cluster.registry.change(BANS, {"nonsense": b"x"})
        await trio.sleep(RECOUNT_S + 1)
        assert await world.bans() == ["client_id:d", "nonsense"]
        nursery.cancel_scope.cancel()


# Places


async def test_connections_of_a_user(autojump_clock: trio.abc.Clock) -> None:
    world = World(max_connections_per_user=2)
    first = await world.come("c1")
    await world.come("c2")
    await refused(world, 0x97, "c3")
    await world.come("c3", "bob")
    await world.go(first)
    await world.come("c3")
    assert world.metrics.limits == {"places_user": 1}
    # Those that nobody checked have no name.
    for number in range(5):
        await world.come(f"x{number}", "", username="anna")


async def test_connections_of_an_address(autojump_clock: trio.abc.Clock) -> None:
    world = World(max_connections_per_ip=1)
    await world.come("c1", host="2001:db8::1")
    await refused(world, 0x97, "c2", host="2001:db8::2")
    await world.come("c3", host="2001:db8:0:1::1")
    for number in range(3):
        await world.come(f"u{number}", host="")


async def test_those_that_do_not_say_connect_count(autojump_clock: trio.abc.Clock) -> None:
    world = World(max_connections_per_ip=2)
    sockets = [cast(Stream, _Socket(Peer("192.0.2.1", number, "l"))) for number in range(5)]
    assert [world.guard.accepts(each, LISTENER) for each in sockets] == [None] * 3 + ["max_connections_per_ip"] * 2
    for each in sockets[:3]:
        connection = cast(Connection, _Client(each, "", LISTENER))
        world.guard.left(connection)
        world.guard.left(connection)  # as where it ended while `admit` was under way
    assert [world.guard.accepts(each, LISTENER) for each in sockets[:3]] == [None] * 3


async def test_a_client_that_comes_again_takes_its_own_place(autojump_clock: trio.abc.Clock) -> None:
    world = World(max_connections_per_user=1)
    old = await world.come()
    await world.cluster.attach(AttachRequest("c", False, 60, None, "anna"))
    new = await world.come()
    await refused(world, 0x97, "c")
    await refused(world, 0x97, "d")
    await world.go(old)
    await refused(world, 0x97, "d")
    await world.go(new)
    await world.come("d")


async def test_what_the_store_does_not_answer_is_not_taken(autojump_clock: trio.abc.Clock) -> None:
    world = World(max_connections_per_user=1)
    registry = world.cluster.registry

    async def fails(_: object) -> str | None:
        raise StoreUnavailable("away")

    right, registry.occupy = registry.occupy, fails  # type: ignore[assignment,method-assign]
    with pytest.raises(StoreUnavailable):
        await world.come()
    registry.occupy = right  # type: ignore[method-assign]
    await world.come()


async def test_a_recount_mends_what_was_lost(autojump_clock: trio.abc.Clock) -> None:
    world = World(max_connections_per_user=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.guard.serve)
        await world.come()
        await world.cluster.registry.recount({"user:anna": 9, "user:bob": 9})
        await refused(world, 0x97, "d", "bob")
        await trio.sleep(RECOUNT_S + 1)
        await world.come("d", "bob")
        await refused(world, 0x97, "e", "anna")
        nursery.cancel_scope.cancel()


async def test_a_recount_while_a_place_is_refused(autojump_clock: trio.abc.Clock) -> None:
    """It counts what is under way: what is refused then has to be given back."""
    world = World(max_connections_per_user=1)
    registry = world.cluster.registry
    right = registry.occupy

    async def slow(places: Sequence[Occupied]) -> str | None:
        full = await right(places)
        await trio.sleep(3)
        return full

    async with trio.open_nursery() as nursery:
        await nursery.start(world.guard.serve)
        first = await world.come()
        registry.occupy = slow  # type: ignore[method-assign]
        await trio.sleep(RECOUNT_S - 1)
        await refused(world, 0x97, "d")
        registry.occupy = right  # type: ignore[method-assign]
        await world.go(first)
        await world.go(await world.come("d"))
        nursery.cancel_scope.cancel()


async def test_places_that_were_given_back_without_the_store(autojump_clock: trio.abc.Clock) -> None:
    """They are free as soon as it is there again; where it does not answer then, soon after."""
    world = World(max_connections_per_user=1)
    registry = world.cluster.registry
    right = registry.recount
    fails = 0

    async def recount(taken: Mapping[str, int]) -> None:
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise StoreUnavailable("away")
        await right(taken)

    async with trio.open_nursery() as nursery:
        await nursery.start(world.guard.serve)
        registry.recount = recount  # type: ignore[method-assign]
        for failing in (0, 2):
            await registry.recount({"user:anna": 1})
            await refused(world, 0x97)
            fails = failing
            world.guard.store_available()
            await trio.sleep(1 + failing * RECOUNT_AGAIN_S)
            await world.go(await world.come())
        nursery.cancel_scope.cancel()


def test_what_is_one_address() -> None:
    assert origin_of("192.0.2.1") == "192.0.2.1"
    assert origin_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert origin_of("2001:db8::dead:beef") == "2001:db8::/64"
    assert origin_of("") == ""


# Too often


async def test_flapping_clients_are_banned(autojump_clock: trio.abc.Clock) -> None:
    world = World(flapping_limit=3, flapping_window_s="1m", flapping_ban_s="5m")
    for _ in range(3):
        await world.go(await world.come())
    assert await world.bans() == []
    await world.go(await world.come())
    assert await world.bans() == ["client_id:c"]
    found = json.loads((await world.cluster.registry.documents(BANS))["client_id:c"])
    assert found["by"] == "flapping"
    assert 299 < found["until"] - world.now_s() <= 300
    await refused(world, 0x8A, "c")
    await world.come("other")
    await trio.sleep(301)
    await world.come()


async def test_what_is_no_flapping(autojump_clock: trio.abc.Clock) -> None:
    world = World(flapping_limit=3, flapping_window_s="1m")
    for _ in range(10):
        await world.go(await world.come(), "server_shutting_down")
        await trio.sleep(20)
        await world.go(await world.come())
        # Somebody who never had the session cannot have its client id banned.
        stranger = await world.come(identity="bob")
        stranger.ref = None
        await world.go(stranger)
    assert await world.bans() == []


async def fail(world: World, host: str, username: str | None = "anna", code: int = 0x86) -> float:
    """A login that fails; returns how long the answer took."""
    before = trio.current_time()
    await world.guard.failed(ConnectRequest("c", username, b"wrong", Peer(host, 1, "l")), PeerError(code, "no"))
    return trio.current_time() - before


async def test_who_guesses_passwords_is_banned(autojump_clock: trio.abc.Clock) -> None:
    world = World(login_failures_limit=5)
    for number in range(5):
        await fail(world, "192.0.2.1", f"user{number}")
        await fail(world, f"2001:db8::{number}", f"other{number}", 0x87)
    assert await world.bans() == []
    await fail(world, "192.0.2.1", "user6")
    await fail(world, "2001:db8::ffff", "other6")
    assert await world.bans() == ["ip:192.0.2.1", "ip:2001:db8::/64"]
    assert world.guard.bans_address("2001:db8::7")
    assert world.metrics.limits == {"ban_login_failures": 2}
    # Again and again it is not written.
    version = await world.cluster.registry.version()
    await fail(world, "192.0.2.1", "user6")
    assert await world.cluster.registry.version() == version


async def test_whom_guessing_does_not_ban(autojump_clock: trio.abc.Clock) -> None:
    world = World(login_failures_limit=2, listen=["tcp://127.0.0.1:0?proxy_protocol=on&trusted_proxies=10.0.0.0/24"])
    for number in range(20):
        for host in ("127.0.0.1", "::1", "", "10.0.0.7"):
            await fail(world, host, f"u{number}{host}")
        await fail(world, "192.0.2.1", "anna", 0x88)  # nobody could be asked
    assert await world.bans() == []


async def test_a_name_that_is_tried_often_is_answered_slowly(autojump_clock: trio.abc.Clock) -> None:
    """And is not banned: whoever knows a name could lock its user out."""
    world = World(login_failures_limit=5)
    took = [await fail(world, f"192.0.2.{number}") for number in range(40)]
    assert took[:5] == [0.0] * 5
    assert took[5] > 0
    assert max(took) <= 2.0
    assert await world.bans() == []
    await world.come()


async def test_another_spelling_of_a_name_is_no_new_start(autojump_clock: trio.abc.Clock) -> None:
    world = World(login_failures_limit=5)
    names = ("anna", "ANNA", "an\u200bna", "\uff41nna")
    took = [await fail(world, f"192.0.2.{number}", names[number % 4]) for number in range(8)]
    assert took[:5] == [0.0] * 5
    assert min(took[5:]) > 0


async def test_where_nothing_is_configured_nothing_is_counted(autojump_clock: trio.abc.Clock) -> None:
    world = World(login_failures_limit=0)
    registry = world.cluster.registry

    async def never(*_: object) -> int:
        raise AssertionError

    registry.count = never  # type: ignore[method-assign,assignment]
    registry.occupy = never  # type: ignore[method-assign,assignment]
    connection = await world.come()
    assert connection.meter is None
    await world.go(connection)
    await fail(world, "192.0.2.1")


async def test_settings_may_change(autojump_clock: trio.abc.Clock) -> None:
    world = World()
    first = await world.come()
    world.guard.take_settings(settings(max_connections_per_user=1, message_rate=5))
    connection = await world.come("d")
    assert connection.meter is not None
    await refused(world, 0x97, "e")
    await world.go(first)


# Rates


async def test_rates_of_the_listener_win(autojump_clock: trio.abc.Clock) -> None:
    world = World(message_rate=5)
    listener = settings(listen=["tcp://127.0.0.1:0?message_rate=50"]).listen[0]
    now = trio.current_time()
    for where, rate in ((LISTENER, 5), (listener, 50)):
        meter = (await world.come(listener=where)).meter
        assert meter is not None
        assert meter.budget(now) == rate


async def test_tenants_share_a_rate(autojump_clock: trio.abc.Clock) -> None:
    world = World(tenant="${client_attrs.tenant}", tenant_message_rate=100)
    other = World(world.cluster, tenant="${client_attrs.tenant}", tenant_message_rate=100)
    async with trio.open_nursery() as nursery:
        for each in (world, other):
            await nursery.start(each.guard.serve)
        one = await world.come("c1", attributes={"tenant": "x"})
        two = await other.come("c2", attributes={"tenant": "x"})
        free = await world.come("c3", attributes={"tenant": "y"})
        nobody = await world.come("c4")
        assert nobody.meter is None
        sent = {one: 0, two: 0}
        started = trio.current_time()
        while trio.current_time() < started + 20:
            now = trio.current_time()
            for connection in sent:
                meter = connection.meter
                assert meter is not None
                count = min(7, meter.budget(now))
                if count:
                    meter.take(count, 100 * count, now)
                    sent[connection] += count
            await trio.sleep(0.01)
        assert 0.9 * 2000 <= sum(sent.values()) <= 2000 + 200
        assert min(sent.values()) > 0
        assert free.meter is not None
        assert free.meter.budget(trio.current_time())
        assert world.metrics.limits["paused_tenant"] == 0
        assert one.meter is not None
        while not one.meter.wait_s(trio.current_time()):
            one.meter.take(10, 0, trio.current_time())
        assert world.metrics.limits["paused_tenant"] == 1
        await world.go(one)
        nursery.cancel_scope.cancel()


async def test_a_store_that_is_away_stops_no_tenant(autojump_clock: trio.abc.Clock) -> None:
    world = World(tenant="${username}", tenant_byte_rate=1000)

    async def away(*_: object) -> int:
        raise StoreUnavailable("away")

    world.cluster.registry.draw = away  # type: ignore[assignment,method-assign]
    async with trio.open_nursery() as nursery:
        await nursery.start(world.guard.serve)
        meter = (await world.come()).meter
        assert meter is not None
        sent = 0
        for _ in range(1000):
            if meter.budget(trio.current_time()):
                meter.take(1, 50, trio.current_time())
                sent += 50
            await trio.sleep(0.01)
        assert 8000 < sent < 12000
        nursery.cancel_scope.cancel()


def test_a_wrong_template() -> None:
    with pytest.raises(ConfigError, match=r"tenant"):
        World(tenant="${nonsense}", tenant_message_rate=1)
