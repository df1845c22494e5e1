"""Floods of connections and messages, limits and bans, and the ways round them (G15, G19)."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from broker.codec.encode import encode
from broker.codec.packets import V5, V311, Auth, Connack, Connect, Disconnect, Pingreq, Pingresp, Publish
from tests.abuse.conftest import Nodes, attended
from tests.abuse.siege import CONNACK_V3, Door, Raw, Siege, connect_packet, door, limited, meanwhile, rejected, siege
from tests.abuse.world import DEFECTS, SETTLE_S, AbusedNode, disconnects, in_parallel, new_name
from tests.integration.guarded import rookery
from tests.kit.mqtt_client import ConnectionClosed, MqttClient
from tests.kit.redis_server import redis_server
from tests.kit.websocket_client import frame

BELIEVED = "proxy_protocol=on&trusted_proxies=127.0.0.1"
BANNED = 0x8A
CLOSED = -1

LIMITED = ("--max-connections", "40", "--connect-timeout", "1s")


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with redis_server() as server:
        yield f"redis://127.0.0.1:{server.address.port}"


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everybody's password is `right`; cheap to check, so that failures are counted and not the hash."""
    path = tmp_path_factory.mktemp("users") / "users"
    for name in ("anna", "bob"):
        rookery("passwd", "--stdin", "--iterations", "1000", str(path), name, text="right\n")
    return path


@pytest.fixture(scope="module")
def two(store: str, users: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AbusedNode, AbusedNode]]:
    """Two nodes of one cluster, which end before their store. Everybody on their second listener is from where they
    say."""
    made = Nodes(tmp_path_factory.mktemp("two"))
    options = (
        "--listen", f"tcp://127.0.0.1:0?{BELIEVED}&name=far&anonymous=false",
        "--listen", "ws://127.0.0.1:0/mqtt?trusted_proxies=127.0.0.1&name=web",
        "--authentication", f"password_file?path={users}&name=users", "--allow-anonymous",
        "--login-failures-limit", "6", "--flapping-limit", "6", "--flapping-window", "10m",
        "--max-connections-per-user", "3", "--max-connections-per-ip", "6",
    )  # fmt: skip
    a, b = [made.get("--node-name", name, *options, store=store) for name in "ab"]
    yield a, b
    log = made.new_log()
    made.stop()
    assert DEFECTS.search(log) is None, log[-4000:]


@pytest.fixture
async def pair(two: tuple[AbusedNode, AbusedNode]) -> AsyncIterator[tuple[AbusedNode, AbusedNode]]:
    """Both with bystanders."""
    async with attended(two[0]), attended(two[1]):
        yield two


async def knock(
    attack: Siege,
    node: AbusedNode,
    client_id: str,
    host: str,
    username: str | None = "anna",
    password: bytes = b"right",
) -> tuple[MqttClient, int]:
    """A client from `host`, and the reason code of its CONNACK or CLOSED."""
    raw = await attack.dial(door(node, "tcp", 1))
    client = MqttClient(raw.stream, V5)
    family = "TCP6 {0} ::1" if ":" in host else "TCP4 {0} 127.0.0.1"
    await client.send_raw(f"PROXY {family.format(host)} 4000 1883\r\n".encode())
    await client.send(Connect(V5, client_id, True, 0, username=username, password=password))
    try:
        packet = await client.receive(SETTLE_S)
    except ConnectionClosed:
        return client, CLOSED
    assert isinstance(packet, Connack)
    return client, packet.reason_code


async def until(
    attack: Siege, node: AbusedNode, code: int, host: str, client_id: str = "", username: str = "anna"
) -> None:
    """Knocks until that is the answer; by default as somebody new each time."""
    with trio.fail_after(SETTLE_S):
        while True:
            client, found = await knock(attack, node, client_id or new_name(), host, username)
            await client.close()
            if found == code:
                return
            await trio.sleep(0.02)


def bans(store: str, *arguments: str) -> None:
    """`rookery ctl bans`."""
    rookery("ctl", "bans", arguments[0], "--store", store, *arguments[1:])


# -- connections


async def test_g15_a_flood_of_connects(nodes: Nodes) -> None:
    async with attended(nodes.get()) as node, siege(node) as attack:

        async def come(_number: int) -> None:
            attacker = await attack.dial(Door(node.host, node.port))
            await attacker.send(connect_packet(new_name()) + b"\xe0\0")
            assert (await attacker.until_closed())[:4] == CONNACK_V3

        async def flood() -> None:
            await in_parallel(200, come)

        await meanwhile(node, flood, 5)


async def test_g15_a_reconnect_war_about_one_client_id(nodes: Nodes) -> None:
    """Each takes the session over from the one before: in the end there is one, and nothing of the others."""
    name = new_name()
    async with attended(nodes.get()) as node, siege(node) as attack:

        async def war(_number: int) -> None:
            for _ in range(10):
                attacker = await attack.dial(Door(node.host, node.port))
                await attacker.send(connect_packet(name))
                assert await attacker.some() in (CONNACK_V3, b"")  # it may be out before it is in

        before = node.counter("mqtt_connections")
        await in_parallel(30, war)
        await node.until(lambda: node.counter("mqtt_connections") <= before + 1, "the end of all but one")


async def test_g15_connections_that_say_nothing_fill_the_node(nodes: Nodes) -> None:
    """They take all places; whoever has one stays, and others get in as those time out."""
    async with attended(nodes.get(*LIMITED)) as node, siege(node) as attack:
        for _ in range(80):
            await attack.dial(Door(node.host, node.port))
        await node.until(lambda: node.counter(rejected("max_connections")) >= 30, "a full house")
        with trio.fail_after(SETTLE_S):
            while True:
                attacker = await attack.dial(Door(node.host, node.port))
                await attacker.send(connect_packet(new_name()))
                if await attacker.some() == CONNACK_V3:
                    break
        assert node.counter(disconnects("connect_timeout")) >= 30


async def test_g15_more_connections_a_second_than_allowed_wait(nodes: Nodes) -> None:
    """And those who are in do not."""
    async with attended(nodes.get("--connection-rate", "50")) as node, siege(node) as attack:
        before = node.counter("mqtt_connections")
        attackers = [await attack.dial(Door(node.host, node.port)) for _ in range(120)]
        await in_parallel(120, lambda number: _connected(attackers[number]))
        await node.until_gauge("mqtt_connections", before + 120)


async def _connected(attacker: Raw) -> None:
    await attacker.send(connect_packet(new_name()))
    assert await attacker.exactly(4) == CONNACK_V3


@pytest.mark.parametrize("what", ["user", "ip"])
async def test_g15_places_are_never_exceeded_by_two_nodes(pair: tuple[AbusedNode, AbusedNode], what: str) -> None:
    """Forty connects at the same moment, half of them at each node."""
    limit = 3 if what == "user" else 6
    accepted: list[MqttClient] = []
    refused = []
    async with siege(pair[0]) as attack:

        async def come(number: int) -> None:
            host = f"192.0.2.{number + 1}" if what == "user" else "198.51.100.1"
            user = ("bob", "anna")[number // 2 % 2] if what == "ip" else "bob"
            client, code = await knock(attack, pair[number % 2], new_name(), host, user)
            if code == 0:
                accepted.append(client)
            else:
                refused.append(code)

        await in_parallel(40, come)
        # Those that come at the same moment may refuse each other, but are never more.
        assert 0 < len(accepted) <= limit
        assert set(refused) <= {0x97, CLOSED}
        while accepted:
            await accepted.pop().disconnect()
        host = "192.0.2.99" if what == "user" else "198.51.100.1"
        await until(attack, pair[1], 0, host, username="bob")


# -- bans


async def test_g19_bans_and_ways_round_them(pair: tuple[AbusedNode, AbusedNode], store: str) -> None:
    """By client id, user, address and network: on the other node, mapped into IPv6, over WebSocket."""
    root = new_name()
    bans(store, "add", "--client-id", f"{root}x")
    bans(store, "add", "--username", "bob")
    bans(store, "add", "--ip", "203.0.113.5")
    bans(store, "add", "--ip", "203.0.113.128/25")
    bans(store, "add", "--ip", "2001:db8:1::/48")
    try:
        async with siege(pair[0]) as attack:
            for node in pair:
                await until(attack, node, BANNED, "192.0.2.1", f"{root}x")
                await until(attack, node, BANNED, "192.0.2.1", username="bob")
                for host in (
                    "203.0.113.5", "203.0.113.200", "::ffff:203.0.113.5", "::FFFF:CB00:7105",
                    "0:0:0:0:0:ffff:203.0.113.200", "2001:db8:1:ffff::1", "2001:0DB8:0001:0000::1",
                ):  # fmt: skip
                    await until(attack, node, CLOSED, host)
                assert (await knock(attack, node, new_name(), "203.0.113.6"))[1] == 0
                assert (await knock(attack, node, f"{root}X", "192.0.2.1"))[1] == 0
                for told in (b"203.0.113.5", b"::ffff:203.0.113.5", b"203.0.113.5, 127.0.0.1", b"[2001:db8:1::7]:80"):
                    assert not await _over_websocket(attack, node, told)
                assert await _over_websocket(attack, node, b"203.0.113.5, 203.0.113.7")
    finally:
        for arguments in (
            ("--client-id", f"{root}x"), ("--username", "bob"), ("--ip", "203.0.113.5"),
            ("--ip", "203.0.113.128/25"), ("--ip", "2001:db8:1::/48"),
        ):  # fmt: skip
            bans(store, "remove", *arguments)


async def _over_websocket(attack: Siege, node: AbusedNode, told: bytes) -> bool:
    """Whether a client with this X-Forwarded-For gets in."""
    attacker = await attack.dial(door(node, "ws"))
    await attacker.send(
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\nX-Forwarded-For: %s\r\n\r\n"
        % told
    )
    await attacker.send(frame(connect_packet(new_name())))
    while await attacker.some():
        if CONNACK_V3 in attacker.received:
            return True
    return False


async def test_g19_guessing_at_two_nodes_gives_no_more_guesses(pair: tuple[AbusedNode, AbusedNode], store: str) -> None:
    host = "198.18.0.1"
    async with siege(pair[0]) as attack:
        codes = [
            (await knock(attack, pair[number % 2], new_name(), host, f"user{number}", b"wrong"))[1]
            for number in range(7)
        ]
        assert codes == [0x86] * 7
        for node in pair:
            await until(attack, node, CLOSED, host)
            # Nor is it somebody else when it writes its address in another way.
            await until(attack, node, CLOSED, f"::ffff:{host}")
            assert (await knock(attack, node, new_name(), "198.18.0.2", "anna"))[1] == 0
    bans(store, "remove", "--ip", host)


async def test_g19_many_addresses_of_one_network_are_one_guesser(
    pair: tuple[AbusedNode, AbusedNode], store: str
) -> None:
    """An IPv6 client has 2**64 addresses."""
    async with siege(pair[0]) as attack:
        for number in range(7):
            await knock(attack, pair[number % 2], new_name(), f"2001:db8:5::{number + 1}", f"user{number}", b"wrong")
        await until(attack, pair[0], CLOSED, "2001:db8:5::ffff")
        assert (await knock(attack, pair[0], new_name(), "2001:db8:5:1::1"))[1] == 0
    bans(store, "remove", "--ip", "2001:db8:5::/64")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.9.9.9", "::ffff:127.0.0.1"])
async def test_g19_failures_never_ban_loopback_or_a_proxy(pair: tuple[AbusedNode, AbusedNode], host: str) -> None:
    """Else whoever is behind the same proxy could lock out everybody."""
    async with siege(pair[0]) as attack:
        for number in range(12):
            client, code = await knock(attack, pair[number % 2], new_name(), host, f"user{number}", b"wrong")
            assert code == 0x86
            await client.close()
        await until(attack, pair[0], 0, host)


async def test_g15_flapping_between_two_nodes(pair: tuple[AbusedNode, AbusedNode], store: str) -> None:
    name = new_name()
    async with siege(pair[0]) as attack:
        for number in range(7):
            client, code = await knock(attack, pair[number % 2], name, "192.0.2.50")
            assert code == 0
            await client.disconnect()
        for node in pair:
            await until(attack, node, BANNED, "192.0.2.50", name)
        assert (await knock(attack, pair[0], new_name(), "192.0.2.50"))[1] == 0
    bans(store, "remove", "--client-id", name)


# -- messages


async def test_g15_a_flooder_is_slowed_and_nobody_else(nodes: Nodes) -> None:
    """It is read from more slowly: its keep-alive does not end it, and no message of it is lost."""
    topic = new_name()
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(attended(nodes.get("--message-rate", "200")))
        reader = await node.client()
        await reader.subscribe(topic, qos=0)
        attack = await stack.enter_async_context(siege(node))
        attacker = await attack.dial(Door(node.host, node.port))
        await attacker.send(connect_packet(new_name(), keep_alive_s=1))
        await attacker.exactly(4)
        await attacker.send(b"".join(bytes(encode(Publish(topic, b"%d" % n), V311)) for n in range(500)))
        await node.goes_on(10)
        assert [int((await reader.expect(Publish, SETTLE_S)).payload) for _ in range(500)] == list(range(500))
        assert node.counter(limited("paused_messages")) >= 1
        await attacker.send(b"\xc0\0")
        assert await attacker.exactly(2) == b"\xd0\0"


async def test_g15_a_flooder_of_bytes_is_slowed(nodes: Nodes) -> None:
    async with attended(nodes.get("--byte-rate", "512KiB")) as node, siege(node) as attack:
        attackers = [await attack.dial(Door(node.host, node.port)) for _ in range(5)]

        async def push(number: int) -> None:
            attacker = attackers[number]
            await attacker.send(connect_packet(new_name()))
            await attacker.exactly(4)
            with trio.move_on_after(1):
                while await attacker.send(bytes(encode(Publish("nobody", bytes(100_000)), V311))):
                    pass

        before = node.counter("mqtt_bytes_received_total")
        await in_parallel(5, push)
        assert node.counter(limited("paused_bytes")) >= 5
        # Five of them for a second, and what each may send at once.
        assert node.counter("mqtt_bytes_received_total") - before < 5 * 4 * 512 * 1024
        for attacker in attackers:
            attacker.reset()  # or what is on its way would be read at that rate


async def test_g15_a_tenant_does_not_starve_another(nodes: Nodes) -> None:
    """Many clients share what one tenant may send; the other has its own."""
    topic = new_name()
    async with AsyncExitStack() as stack:
        attribute = "attribute?name=tenant&value=${clientid}&match=^([a-z]*)-"
        rate = ("--tenant", "${client_attrs.tenant}", "--tenant-message-rate", "500")
        node = nodes.get(*rate, "--client-attributes", attribute)
        await stack.enter_async_context(attended(node))
        reader = await node.client()
        await reader.subscribe(f"{topic}/good", qos=0)
        attack = await stack.enter_async_context(siege(node))

        async def push(_number: int) -> None:
            attacker = await attack.dial(Door(node.host, node.port))
            await attacker.send(connect_packet(f"greedy-{new_name()}"))
            await attacker.exactly(4)
            await attacker.send(bytes(encode(Publish(f"{topic}/bad", b""), V311)) * 120)

        await in_parallel(10, push)
        attacker = await attack.dial(Door(node.host, node.port))
        await attacker.send(connect_packet(f"good-{new_name()}"))
        await attacker.exactly(4)
        for number in range(20):
            await attacker.send(bytes(encode(Publish(f"{topic}/good", b"%d" % number), V311)))
            assert (await reader.expect(Publish, SETTLE_S)).payload == b"%d" % number
        assert node.counter(limited("paused_tenant")) >= 1


@pytest.mark.parametrize("kind", ["PINGREQ", "AUTH"])
async def test_g15_a_flood_of_small_packets(nodes: Nodes, kind: str) -> None:
    async with attended(nodes.get()) as node, siege(node):

        async def flood() -> None:
            client = await node.client()
            if kind == "PINGREQ":
                await client.send(*[Pingreq()] * 5000)
                await client.collect(Pingresp, 5000)
            else:
                await client.send(*[Auth(0x19)] * 5000)
                assert isinstance(await client.receive(), Disconnect)
                await client.expect_closed()
            await client.close()

        await meanwhile(node, flood)


# -- the socket file


@pytest.mark.parametrize(("mode", "theirs"), [("0600", False), ("0660", False), ("0666", True)])
async def test_g19_a_unix_socket_is_not_for_everybody(nodes: Nodes, mode: str, theirs: bool) -> None:
    """It has the permissions that were asked for: another user of the machine cannot connect, and cannot remove it."""
    path = Path("/tmp") / f"rookery-{new_name()}"  # a folder that others may look into
    async with attended(nodes.get("--listen", f"unix://{path}?mode={mode}")) as node, siege(node):
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
        if os.geteuid() == 0:
            command = ["test", "-w", str(path)]
            done = subprocess.run(command, user=65534, group=65534, extra_groups=[], cwd="/", check=False)
            assert (done.returncode == 0) == theirs


async def test_g15_a_flood_over_the_unix_socket(nodes: Nodes) -> None:
    path = Path("/tmp") / f"rookery-{new_name()}"
    async with attended(nodes.get("--listen", f"unix://{path}")) as node, siege(node):

        async def come(_number: int) -> None:
            stream = await trio.open_unix_socket(str(path))
            async with stream:
                await stream.send_all(connect_packet(new_name()))
                assert await stream.receive_some(100) == CONNACK_V3

        async def flood() -> None:
            await in_parallel(100, come)

        await meanwhile(node, flood)
