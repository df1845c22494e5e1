"""What the guard is asked and told, and when; and enhanced authentication that renews what a client may do."""

from __future__ import annotations

import pytest
import trio

from broker.auth.api import ALLOW, ConnectRequest, Principal, Step, Verdict
from broker.codec.packets import Auth, Connack, Connect, Disconnect, Properties, Publish
from broker.connection import Connection
from broker.errors import PeerError
from broker.guard import NoGuard
from broker.options.listener import Listener
from broker.transport.api import Stream
from tests.node.access_kit import FakeAccess, Rules, nothing, refused, ruled
from tests.node.kit import Peer, World


class Watchful(NoGuard):
    """Writes down what it is asked; says no where `refuses` says so."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.refuses = ""

    def accepts(self, stream: Stream, listener: Listener) -> str | None:
        self.log.append("accepts")
        return "banned" if self.refuses == "accepts" else None

    async def _asked(self, name: str) -> None:
        await trio.sleep(1)
        self.log.append(name)
        if self.refuses == name:
            raise PeerError(0x8A, "banned for a test")

    async def screen(self, request: ConnectRequest) -> None:
        await self._asked("screen")

    async def failed(self, request: ConnectRequest, error: PeerError) -> None:
        self.log.append(f"failed {error.reason_code:02x}")

    def screens(self, request: ConnectRequest) -> bool:
        return False

    async def admit(self, connection: Connection) -> None:
        await self._asked("admit")

    def admits(self, connection: Connection) -> bool:
        return False

    def store_available(self) -> None:
        self.log.append("store available")

    def left(self, connection: Connection) -> None:
        self.log.append(f"left {connection.close_reason}")


async def _connack(client: Peer) -> int:
    await trio.sleep(5)
    return (await client.expect(Connack)).reason_code


@pytest.mark.parametrize(
    ("refuses", "code", "log"),
    [
        ("", 0, ["accepts", "screen", "admit"]),
        ("screen", 0x8A, ["accepts", "screen", "left banned"]),
        ("admit", 0x8A, ["accepts", "screen", "admit", "left banned"]),
        ("login", 0x86, ["accepts", "screen", "failed 86", "left bad_user_name_or_password"]),
    ],
)
async def test_the_order_of_questions(autojump_clock: trio.abc.Clock, refuses: str, code: int, log: list[str]) -> None:
    access = FakeAccess()
    if refuses == "login":
        access.chain.login = refused(0x86)
    async with ruled(access) as world:
        guard = world.server.guard = Watchful()
        guard.refuses = refuses
        client = world.connecting("c")
        assert await _connack(client) == code
        assert guard.log == log
        if not code:
            await client.send(Disconnect(0))
            assert guard.log[-1] == "left normal"
        assert guard.log.count("left banned") <= 1


async def test_who_is_not_accepted_is_closed_without_a_word(autojump_clock: trio.abc.Clock) -> None:
    async with ruled() as world:
        guard = world.server.guard = Watchful()
        guard.refuses = "accepts"
        client = world.connecting("c")
        await client.nothing()
        assert client.closed()
        assert guard.log == ["accepts"]
        assert world.metrics.rejected == {"banned": 1}


async def test_a_client_that_leaves_while_it_is_admitted(autojump_clock: trio.abc.Clock) -> None:
    async with ruled() as world:
        guard = world.server.guard = Watchful()
        client = world.connecting("c")
        await trio.sleep(1.5)
        client.socket.reset()
        await trio.sleep(5)
        assert guard.log == ["accepts", "screen", "left connection_lost", "admit", "left connection_lost"]
        assert not world.server.clients


async def test_the_store_is_there_again(autojump_clock: trio.abc.Clock) -> None:
    async with ruled() as world:
        guard = world.server.guard = Watchful()
        world.cluster.fail()
        assert guard.log == []
        world.cluster.recover()
        assert guard.log == ["store available"]


# -- authenticating again


class Exchange:
    """Two steps; the verdict is what the test says."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._steps = 0

    async def step(self, data: bytes) -> Step:
        await trio.lowlevel.checkpoint()
        self._steps += 1
        if data == b"wrong":
            raise PeerError(0x87, "no")
        return Step(b"more") if self._steps == 1 else Step(b"done", self._verdict)


class Enhanced(FakeAccess):
    """Knows the method `test`."""

    def __init__(self, **rules: Rules) -> None:
        super().__init__(**rules)
        self.username = "anna"
        self.expires_at_s: float | None = None
        self.chain.begin = self._begin  # type: ignore[attr-defined]
        self.chain.principal = self._principal  # type: ignore[attr-defined]

    def _begin(self, method: str, request: ConnectRequest, options: object) -> tuple[Exchange, str]:
        return Exchange(Verdict(ALLOW, self.username, expires_at_s=self.expires_at_s)), "test"

    def _principal(self, request: ConnectRequest, verdict: Verdict, authenticator: str) -> Principal:
        assert verdict.username is not None
        return Principal(verdict.username, request.client_id, request.peer, expires_at_s=verdict.expires_at_s)


def _auth(code: int, data: bytes = b"") -> Auth:
    properties = Properties()
    properties.authentication_method = "test"
    properties.authentication_data = data
    return Auth(code, properties)


async def _enhanced(world: World) -> Peer:
    client = world.accept()
    properties = Properties()
    properties.authentication_method = "test"
    await client.send(Connect(5, "c", True, 0, None, None, None, properties))
    assert (await client.expect(Auth)).reason_code == 0x18
    await client.send(_auth(0x18))
    assert (await client.expect(Connack)).reason_code == 0
    return client


async def test_authenticating_again_lasts_longer(autojump_clock: trio.abc.Clock) -> None:
    access = Enhanced()
    async with ruled(access) as world:
        access.expires_at_s = world.cluster.now_ms() / 1000 + 20
        client = await _enhanced(world)
        await trio.sleep(10)
        access.expires_at_s += 20
        await client.send(_auth(0x19))
        await client.expect(Auth)
        await client.send(_auth(0x18))
        assert (await client.expect(Auth)).reason_code == 0
        await trio.sleep(25)
        await client.nothing()
        await trio.sleep(10)
        assert (await client.expect(Disconnect)).reason_code == 0xA0


async def test_authenticating_again_brings_other_rules(autojump_clock: trio.abc.Clock) -> None:
    access = Enhanced()
    async with ruled(access) as world:
        client = await _enhanced(world)
        await client.subscribe("a", "b")
        await client.received()
        access.rules["c"] = Rules(publish=nothing, subscribe=lambda topic_filter: topic_filter == "a")
        await client.send(_auth(0x19), _auth(0x18))
        packets = await client.received()
        assert [packet.reason_code for packet in packets if isinstance(packet, Auth)][:1] == [0x18]
        last = packets[-1]
        assert isinstance(last, Disconnect)
        assert last.reason_code == 0x87
        assert last.properties is not None
        assert "'b'" in (last.properties.reason_string or "")


@pytest.mark.parametrize("how", ["wrong", "somebody else", "unavailable"])
async def test_authenticating_again_that_fails(autojump_clock: trio.abc.Clock, how: str) -> None:
    access = Enhanced()
    async with ruled(access) as world:
        guard = world.server.guard = Watchful()
        world.server.guard = NoGuard()
        client = await _enhanced(world)
        world.server.guard = guard
        if how == "somebody else":
            access.username = "bert"
        access.unavailable = how == "unavailable"
        await client.send(_auth(0x19))
        await client.expect(Auth)
        await client.send(_auth(0x18, b"wrong" if how == "wrong" else b""), Publish("t", b"x"))
        assert (await client.expect(Disconnect)).reason_code == (0x89 if how == "unavailable" else 0x87)
        assert client.closed()
        assert [entry for entry in guard.log if "failed" in entry] == (["failed 87"] if how == "wrong" else [])


async def test_g18_a_user_that_is_removed_during_an_exchange(autojump_clock: trio.abc.Clock) -> None:
    access = Enhanced()
    async with ruled(access) as world:
        client = world.accept()
        properties = Properties()
        properties.authentication_method = "test"
        await client.send(Connect(5, "c", True, 0, None, None, None, properties))
        await client.expect(Auth)
        access.chain.invalid.add("anna")
        world.server.recheck()
        await client.send(_auth(0x18))
        assert (await client.expect(Connack)).reason_code == 0x87
        assert client.closed()


async def test_g18_a_user_that_is_removed_while_it_authenticates_again(autojump_clock: trio.abc.Clock) -> None:
    """The credentials of before are those of somebody else, who stays."""
    access = Enhanced()
    async with ruled(access) as world:
        client = await _enhanced(world)
        await client.send(_auth(0x19))
        await client.expect(Auth)
        world.server.recheck()
        await world.settle()
        access.chain.invalid.add("anna")
        await client.send(_auth(0x18))
        packets = await client.received()
        assert isinstance(packets[-1], Disconnect)
        assert packets[-1].reason_code == 0x87
        assert client.closed()
