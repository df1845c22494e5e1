"""Guessing passwords: what it costs whom, who is kept out for it and who is not, and what is remembered (G15, G18)."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from broker.auth.api import ConnectRequest
from broker.auth.chain import Chain
from broker.auth.hashes import make_pbkdf2
from broker.auth.stored_users import StoredUserAccounts, UserDocument
from broker.codec.packets import V5, V311, Connack, Connect
from broker.errors import PeerError
from broker.options.authentication import StoredUsers
from broker.options.listener import ListenerOptions
from broker.peer import Peer
from cluster.memory.registry import MemoryRegistry
from cluster.registry import USERS
from tests.abuse.conftest import Nodes
from tests.abuse.conftest import attended as attended_by_bystanders
from tests.abuse.siege import Door, door, meanwhile
from tests.abuse.trespass import WRONG, code, nodes_of_a_module, trespassing
from tests.abuse.world import SETTLE_S, AbusedNode, new_name
from tests.integration.guarded import CLOSED, PROXIED, knock, leave, rookery
from tests.integration.guarded import code as code_from
from tests.kit.redis_server import RedisServer, redis_server

__all__ = ["leave"]

BUSY, BANNED = 0x88, 0x8A
LIMIT = 5


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("passwords") / "users"
    path.write_text("".join(f"{name}:{make_pbkdf2('right', 20_000)}\n" for name in ("ann", "bob", "carl")))
    return f"password_file?path={path}"


@pytest.fixture
def arguments(users: str) -> tuple[str, ...]:
    return ("--authentication", users, "--allow-anonymous", "--login-failures-limit", "0")


# -- what a check costs


@pytest.mark.parametrize(
    ("username", "password"),
    [("ann", b"x"), ("off", b"right"), ("off", b"x"), ("locked", b""), ("nobody", b"right"), ("ann", b""),
     ("ann", None), ("ann", b"\xff"), ("ann", b"x" * 60000), ("nobody" * 5000, b"x"), ("\ud7ff\u202e", b"x")],
)  # fmt: skip
async def test_g18_all_refusals_cost_one_hash(
    monkeypatch: pytest.MonkeyPatch, username: str, password: bytes | None
) -> None:
    registry = MemoryRegistry()
    documents = {
        "ann": UserDocument(make_pbkdf2("right", 30)),
        "off": UserDocument(make_pbkdf2("right", 30), disabled=True),
        "locked": UserDocument(),
    }
    await registry.change(USERS, {name: each.write() for name, each in documents.items()})
    accounts = StoredUserAccounts(StoredUsers(), registry)
    await accounts.refresh()
    chain = Chain(False, [accounts])
    costs: list[int] = []
    real = hashlib.pbkdf2_hmac

    def counted(name: str, password: bytes, salt: bytes, iterations: int, size: int | None = None) -> bytes:
        costs.append(iterations)
        return real(name, password, salt, iterations, size)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counted)
    with pytest.raises(PeerError) as caught:
        await chain.authenticate(ConnectRequest("c", username, password, Peer("192.0.2.1")), ListenerOptions())
    assert (caught.value.reason_code, str(caught.value)) == (WRONG, "bad user name or password")
    assert costs == [30]


async def test_g15_a_flood_of_passwords(node: AbusedNode) -> None:
    """Two checks are made at a time and 64 wait for them; messages do not."""
    said: set[int] = set()

    async def guess(number: int) -> None:
        said.add(await code(node, ("ann", "nobody")[number % 2], "", b"guess%d" % number))

    async def attack() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(80):
                nursery.start_soon(guess, number)

    async with trespassing(node):
        await meanwhile(node, attack, 10)
        assert said <= {WRONG, BUSY} and WRONG in said
        assert await code(node, "ann", "", b"right") == 0


# -- odd passwords


@pytest.mark.parametrize(
    "password",
    [b"", b"righ", b"right ", b" right", b"Right", b"right\0", b"right\n", b"right\0x", b"\xef\xbb\xbfright",
     b"\xff\xfe", b"x" * 15000, b"$7$101$", b"right" * 1000, "r\u0456ght".encode(), b"%s", b"*"],
    ids=range(16),
)  # fmt: skip
async def test_g18_a_password_that_is_nearly_right(node: AbusedNode, password: bytes) -> None:
    async with trespassing(node):
        assert await code(node, "ann", "", password) == WRONG
        assert await code(node, "nobody", "", password) == WRONG


async def test_g18_half_of_the_credentials(node: AbusedNode) -> None:
    async with trespassing(node):
        assert await code(node, "ann") == WRONG
        assert await code(node, "ann", version=V311) == WRONG
        assert await code(node, None, "", b"right") == 0  # claims no name: a stranger, as strangers are let in here
        assert await code(node, "", "", b"right") == WRONG
        assert await code(node, "", "", b"") == WRONG
        # A password without a name is no packet in version 3.1.1 [MQTT-3.1.2-22].
        client = await node.open(V311)
        await client.send_raw(b"\x10\x13\0\4MQTT\4\x42\0\0\0\0\0\5right")
        await client.expect_closed()
        await client.close()


async def test_g15_a_password_as_large_as_it_can_be(node: AbusedNode) -> None:
    async with trespassing(node):
        for _ in range(20):
            client = await node.open()
            await client.send(Connect(V5, new_name(), True, 0, username="ann", password=b"x" * 65535))
            with pytest.raises(AssertionError, match="closed"):  # more than a stranger may send
                await client.expect(Connack)
            await client.close()


# -- two nodes on one store


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, store: RedisServer) -> Iterator[Nodes]:
    with nodes_of_a_module(tmp_path_factory.mktemp("own")) as running:
        yield running


class Pair:
    """Two nodes, and what they say to clients from any address."""

    def __init__(self, nodes: Nodes, store: RedisServer, *arguments: str) -> None:
        self.url = f"redis://127.0.0.1:{store.address.port}/0"
        self.nodes = [
            nodes.get("--node-name", name, "--allow-anonymous", "--listen", PROXIED, *arguments, store=self.url)
            for name in ("a", "b")
        ]
        self.doors = [door(node, "tcp", 1) for node in self.nodes]

    async def guess(self, host: str, username: str, count: int) -> None:
        for number in range(count):
            assert await code_from(self.doors[number % 2], "", username, b"wrong", host=host) == WRONG

    async def until(self, wanted: int, *arguments: object, **named: object) -> None:
        for each in self.doors:
            await until_said(each, wanted, *arguments, **named)


async def until_said(at: Door, wanted: int, *arguments: object, **named: object) -> None:
    """Knocks until that is the answer: what a node is told, it knows within a second."""
    with trio.fail_after(SETTLE_S):
        while await code_from(at, *arguments, **named) != wanted:
            await trio.sleep(0.05)


#: Each test has addresses of its own: bans stay.
@pytest.fixture
async def pair(own: Nodes, store: RedisServer, users: str) -> AsyncIterator[Pair]:
    made = Pair(own, store, "--authentication", users, "--login-failures-limit", str(LIMIT))
    async with attended_by_bystanders(made.nodes[0]), trespassing(made.nodes[0]):
        yield made


async def test_g18_guesses_at_two_nodes_count_together(pair: Pair) -> None:
    inside, _ = await knock(pair.doors[0], new_name(), "ann", host="192.0.2.8")
    await pair.guess("192.0.2.8", new_name(), LIMIT + 1)
    await pair.until(CLOSED, "", "ann", host="192.0.2.8")
    # By no other spelling of the address, and with no other name or password.
    for host in ("::ffff:192.0.2.8", "::ffff:c000:208", "0:0:0:0:0:FFFF:192.0.2.8"):
        for username in ("ann", "bob", None):
            assert await code_from(pair.doors[0], "", username, host=host) == CLOSED
    # Whoever is somewhere else comes in with the name that was guessed at, and who was inside stays.
    for at in pair.doors:
        assert await code_from(at, "", "ann", host="192.0.2.9") == 0
    await inside.publish("t", b"", 1)
    await inside.close()


async def test_g18_nobody_is_locked_out_by_guesses_from_everywhere(pair: Pair) -> None:
    for host in (20, 21):
        await pair.guess(f"192.0.2.{host}", "ann", LIMIT)
    for at in pair.doors:
        assert await code_from(at, "", "ann", host="192.0.2.30") == 0
    # Nor by guesses from the same address that stop in time.
    assert await code_from(pair.doors[0], "", "ann", host="192.0.2.20") == 0


async def test_g18_a_neighbour_of_a_banned_ipv6_address(pair: Pair) -> None:
    """A client has a /64, so it is banned with it, and nobody else."""
    for number in range(LIMIT + 1):
        host = f"2001:db8::{number + 1:x}"
        assert await code_from(pair.doors[number % 2], "", new_name(), b"wrong", host=host) == WRONG
    await pair.until(CLOSED, "", "ann", host="2001:db8::ffff")
    assert await code_from(pair.doors[0], "", "ann", host="2001:DB8:0:0:1234::") == CLOSED
    assert await code_from(pair.doors[0], "", "ann", host="2001:db8:0:1::1") == 0


@pytest.mark.parametrize(
    ("text", "host"), [("::ffff:192.0.2.77", "192.0.2.77"), ("::ffff:192.0.2.96/123", "192.0.2.99")]
)
async def test_g18_a_ban_that_is_written_as_a_mapped_address(pair: Pair, text: str, host: str) -> None:
    rookery("ctl", "bans", "add", "--ip", text, "--store", pair.url)
    await pair.until(CLOSED, "", "ann", host=host)
    assert await code_from(pair.doors[0], "", "ann", host=f"::ffff:{host}") == CLOSED
    assert await code_from(pair.doors[0], "", "ann", host="192.0.2.200") == 0


async def test_g18_a_banned_name_in_other_letters(pair: Pair) -> None:
    rookery("ctl", "bans", "add", "--username", "carl", "--store", pair.url)
    await pair.until(BANNED, "", "carl", host="192.0.2.50")
    # Letters that SASLprep takes out make it Carl again, who is banned; letters that it leaves make it nobody.
    assert await code_from(pair.doors[0], "", "carl\u200b", host="192.0.2.50") == BANNED
    assert await code_from(pair.doors[0], "", "c\uff41rl", host="192.0.2.50") == BANNED
    for name in ("CARL", "carl ", "c\u0430rl"):
        assert await code_from(pair.doors[0], "", name, host="192.0.2.50") == WRONG


@pytest.fixture
async def remembering(own: Nodes, store: RedisServer) -> AsyncIterator[Pair]:
    made = Pair(
        own, store, "--authentication", "store", "--authentication-cache", "1h", "--namespace", "remembering",
        "--login-failures-limit", "0",
    )  # fmt: skip
    async with attended_by_bystanders(made.nodes[0]), trespassing(made.nodes[0]):
        yield made


@pytest.mark.parametrize("change", [("remove", "zoe"), ("disable", "zoe"), ("passwd", "zoe", "--stdin")])
async def test_g18_what_is_remembered_does_not_outlive_the_user(remembering: Pair, change: tuple[str, ...]) -> None:
    where = ("--store", remembering.url, "--namespace", "remembering")
    rookery("ctl", "users", "add", "zoe", "--stdin", "--iterations", "1000", *where, text="right\n")
    try:
        for at in remembering.doors * 2:
            assert await code_from(at, "", "zoe", host="192.0.2.60") == 0
        rookery("ctl", "users", *change, *where, text="other\n")
        await remembering.until(WRONG, "", "zoe", host="192.0.2.60")
        for at in remembering.doors * 2:
            assert await code_from(at, "", "zoe", host="192.0.2.60") == WRONG
    finally:
        if change[0] != "remove":
            rookery("ctl", "users", "remove", "zoe", *where)
