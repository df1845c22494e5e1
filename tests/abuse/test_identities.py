"""Being somebody else: sessions of others, names that look alike, exchanges that are recorded or changed (G19)."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from broker.codec.packets import V5, V311, Auth, Connack, Connect, Disconnect, Publish, Will
from tests.abuse.siege import meanwhile
from tests.abuse.trespass import DENIED, WRONG, code, enter, knock, trespassing
from tests.abuse.world import SETTLE_S, AbusedNode, new_name
from tests.integration.scram import METHOD, Scram, answer, scram_connect
from tests.kit.broker_process import ROOT
from tests.kit.mqtt_client import MqttClient, properties

#: Everybody's password is the name and this.
SECRET = "-secret"
NAMES = ("ann", "bob", "Ann")


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("identities") / "users"
    for name in NAMES:
        subprocess.run(
            [sys.executable, "-m", "broker", "passwd", "--scram", "--stdin", str(path), name],
            input=f"{name}{SECRET}\n", env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, check=True,
            capture_output=True, timeout=60,
        )  # fmt: skip
    return path


@pytest.fixture
def arguments(users: Path) -> tuple[str, ...]:
    return ("--authentication", f"password_file?path={users}", "--allow-anonymous", "--login-failures-limit", "0")


@pytest.fixture(autouse=True)
async def harmless(node: AbusedNode) -> AsyncIterator[None]:
    async with trespassing(node):
        yield


def secret(name: str | None) -> bytes | None:
    return None if name is None else f"{name}{SECRET}".encode()


async def come(node: AbusedNode, name: str | None, client_id: str, expiry_s: int = 60) -> MqttClient:
    return await enter(node, name, client_id, secret(name), expiry_s)


# -- sessions


@pytest.mark.parametrize("version", [V311, V5])
@pytest.mark.parametrize(("owner", "thief"), [("ann", "bob"), ("ann", None), (None, "bob"), ("ann", "Ann")])
async def test_g19_the_client_id_of_somebody_who_is_connected(
    node: AbusedNode, owner: str | None, thief: str | None, version: int
) -> None:
    client_id, topic = new_name(), new_name()
    mine = await come(node, owner, client_id)
    await mine.subscribe(topic, qos=1)
    for clean_start in (False, True):
        for will in (None, Will(topic, b"boo", 1, False)):
            other, connack = await knock(
                node, thief, client_id, secret(thief), clean_start=clean_start, will=will, version=version
            )
            assert (connack.reason_code, connack.session_present) == (DENIED, False)
            await other.expect_closed()
    await mine.expect_nothing()  # neither disconnected nor told anything, and no will
    await mine.send(Publish(topic, b"mine"))
    await mine.take(b"mine")


async def test_g19_a_queue_of_nobody_is_ended_and_not_shown(node: AbusedNode) -> None:
    """By a clean start of somebody who proved who it is: as after authentication was switched on."""
    client_id, topic = new_name(), new_name()
    nobody = await come(node, None, client_id)
    await nobody.subscribe(topic, qos=1)
    await nobody.abort()
    sender = await come(node, "bob", new_name())
    await sender.publish(topic, b"1", 1)
    assert await code(node, "bob", client_id, secret("bob"), clean_start=False, expiry_s=60) == DENIED
    other, connack = await knock(node, "bob", client_id, secret("bob"), clean_start=True, expiry_s=60)
    assert (connack.reason_code, connack.session_present) == (0, False)
    await sender.publish(topic, b"2", 1)
    await other.expect_nothing()
    assert await code(node, None, client_id, clean_start=True, expiry_s=60) == DENIED


@pytest.mark.parametrize(("owner", "thief"), [("ann", "bob"), ("ann", None), (None, "bob")])
async def test_g19_the_queue_of_somebody_who_is_away(node: AbusedNode, owner: str | None, thief: str | None) -> None:
    client_id, topic = new_name(), new_name()
    mine = await come(node, owner, client_id)
    await mine.subscribe(topic, qos=1)
    await mine.abort()
    sender = await come(node, thief, new_name())
    for number in range(3):
        await sender.publish(topic, b"%d" % number, 1)
        for clean_start in (False, True)[: 1 if owner is None else 2]:
            assert await code(node, thief, client_id, secret(thief), clean_start=clean_start, expiry_s=1) == DENIED
    mine = await come(node, owner, client_id)
    assert mine.connack is not None and mine.connack.session_present
    for number in range(3):
        await mine.take(b"%d" % number)
    await mine.expect_nothing()


async def test_g19_a_session_that_is_over_leaves_nothing_to_its_successor(node: AbusedNode) -> None:
    client_id, topic = new_name(), new_name()
    mine = await come(node, "ann", client_id, 1)
    await mine.subscribe(topic, qos=1)
    await mine.abort()
    sender = await come(node, "ann", new_name())
    await sender.publish(topic, b"hers", 1)
    with trio.fail_after(SETTLE_S):
        while True:
            other, connack = await knock(node, "bob", client_id, secret("bob"), clean_start=False, expiry_s=60)
            if connack.reason_code == 0:
                break
            assert connack.reason_code == DENIED
            await trio.sleep(0.05)
    assert not connack.session_present
    await sender.publish(topic, b"hers", 1)
    await other.expect_nothing()
    # Now it is his.
    assert await code(node, "ann", client_id, secret("ann")) == DENIED


async def test_g19_a_siege_of_the_owner(node: AbusedNode) -> None:
    client_id, topic = new_name(), new_name()
    mine = await come(node, "ann", client_id)
    await mine.subscribe(topic, qos=1)

    async def attack() -> None:
        async with trio.open_nursery() as nursery:
            for clean_start in (False, True) * 4:
                nursery.start_soon(steal, clean_start)

    async def steal(clean_start: bool) -> None:
        # Busy (0x88) is an answer to a crowd, too.
        assert await code(node, "bob", client_id, secret("bob"), clean_start=clean_start) in (DENIED, 0x88)

    await meanwhile(node, attack)
    await mine.send(Publish(topic, b"mine"))
    await mine.take(b"mine")


async def test_g19_a_client_id_that_is_nearly_the_same(node: AbusedNode) -> None:
    client_id, topic = f"Ab{new_name()}", new_name()
    mine = await come(node, "ann", client_id)
    await mine.subscribe(topic, qos=1)
    await mine.abort()
    sender = await come(node, "ann", new_name())
    await sender.publish(topic, b"hers", 1)
    for near in (client_id.lower(), client_id.upper(), f"{client_id} ", f" {client_id}", f"{client_id}\u200b"):
        other = await come(node, "bob", near)
        assert other.connack is not None and not other.connack.session_present
        await other.expect_nothing()


# -- names


@pytest.mark.parametrize(
    "name",
    ["ANN", "ann ", " ann", "\u0430nn", "ann:", "ann\t", "a\u0301nn", "*", "a*", "%", "_nn", "ann,bob", "ann\nbob",
     "ann' OR '1'='1", "${username}", "ann\u200c\u202e"],
)  # fmt: skip
async def test_g19_a_user_name_that_is_nearly_the_same(node: AbusedNode, name: str) -> None:
    for password in ("ann", "bob", "Ann", name):
        assert await code(node, name, "", secret(password)) == WRONG


async def test_g19_invisible_letters_make_no_other_user(node: AbusedNode) -> None:
    """SASLprep takes them out: it is Ann, with her password and nobody else's, and under her own name."""
    client_id = new_name()
    await come(node, "ann", client_id)
    for name in ("ann\u200b", "\u00adann", "\uff41nn"):
        assert await code(node, name, client_id, secret("bob")) == WRONG
        assert await code(node, name, client_id, secret("ann")) == 0
        await come(node, "ann", client_id)


async def test_g19_letters_of_another_case_are_another_user(node: AbusedNode) -> None:
    assert await code(node, "Ann", "", secret("ann")) == WRONG
    assert await code(node, "ann", "", secret("Ann")) == WRONG
    assert await code(node, "Ann", "", secret("Ann")) == 0


async def test_g19_a_name_that_nobody_confirmed(node: AbusedNode) -> None:
    """Where strangers are let in, a claimed name is not anonymous: it has to be proved."""
    for password in (None, b"", b"x"):
        assert await code(node, "ann", "", password) == WRONG
        assert await code(node, "nobody", "", password) == WRONG
        assert await code(node, "", "", password) == WRONG
    assert await code(node) == 0


# -- SCRAM and AUTH


async def begin(node: AbusedNode, scram: Scram, client_id: str = "") -> tuple[MqttClient, bytes]:
    """CONNECT with the first message; returns the server's."""
    client = await node.open()
    values = properties(authentication_method=scram.method, authentication_data=scram.first())
    await client.send(Connect(V5, client_id or new_name(), True, 0, properties=values))
    challenge = await client.expect(Auth)
    assert challenge.properties is not None and challenge.properties.authentication_data is not None
    return client, challenge.properties.authentication_data


@pytest.fixture
async def closing(node: AbusedNode, harmless: None) -> AsyncIterator[list[MqttClient]]:
    """Clients that are closed before the test is looked back on."""
    made: list[MqttClient] = []
    yield made
    for client in made:
        await client.close()


async def test_g19_a_recorded_proof(node: AbusedNode, closing: list[MqttClient]) -> None:
    scram = Scram("ann", f"ann{SECRET}")
    client, challenge = await begin(node, scram)
    closing.append(client)
    proof = scram.final(challenge)
    await answer(client, proof)
    assert (await client.expect(Connack)).reason_code == 0
    for _ in range(3):  # the same first message, so that the client's nonce is the same
        client, again = await begin(node, scram)
        closing.append(client)
        assert again != challenge
        await answer(client, proof)
        assert (await client.expect(Connack)).reason_code == DENIED


def _wrong_proofs(scram: Scram, challenge: bytes) -> dict[str, bytes]:
    good = scram.final(challenge)
    without, _, proof = good.rpartition(b",p=")
    nonce = without.partition(b"r=")[2]
    return {
        "of zeros": without + b",p=" + base64.b64encode(bytes(32)),
        "short": without + b",p=" + base64.b64encode(base64.b64decode(proof)[:-1]),
        "long": without + b",p=" + base64.b64encode(base64.b64decode(proof) + b"\0"),
        "empty": without + b",p=",
        "left out": without,
        "no base64": without + b",p=!!!!",
        "of another binding": good.replace(b"c=biws", b"c=eSws"),
        "of another identity": good.replace(b"c=biws", b"c=" + base64.b64encode(b"n,a=bob,")),
        "of the client's half of the nonce": good.replace(b"r=" + nonce, b"r=" + nonce[:24]),
        "with more nonce": good.replace(b"r=" + nonce, b"r=" + nonce + b"x"),
        "twice": good + b",p=" + proof,
        "with an extension that has to be known": good.replace(b"c=biws", b"m=x,c=biws"),
        "with NUL": good + b"\0",
        "of another packet": b"",
        "no text": b"\xff\xfe" * 20,
        "large": without + b",x=" + b"A" * 15000 + b",p=" + proof,
    }


_KINDS = (
    "of zeros", "short", "long", "empty", "left out", "no base64", "of another binding", "of another identity",
    "of the client's half of the nonce", "with more nonce", "twice", "with an extension that has to be known",
    "with NUL", "of another packet", "no text", "large",
)  # fmt: skip


@pytest.mark.parametrize("kind", _KINDS)
async def test_g19_a_proof_that_is_changed(node: AbusedNode, closing: list[MqttClient], kind: str) -> None:
    scram = Scram("ann", f"ann{SECRET}")
    client, challenge = await begin(node, scram)
    closing.append(client)
    await answer(client, _wrong_proofs(scram, challenge)[kind])
    assert (await client.expect(Connack)).reason_code >= 0x80
    await client.expect_closed()


@pytest.mark.parametrize(
    "first",
    [b"", b"n,,", b"n,,n=ann", b"n,,n=ann,r=", b"n,,n=,r=abc", b"n,a=bob,n=ann,r=abc", b"y,,n=ann,r=abc",
     b"p=tls-unique,,n=ann,r=abc", b"n,,n=ann=2Cr=x,r=abc", b"n,,n=ann=3D=XX,r=abc", b"n,,m=x,n=ann,r=abc",
     b"n,,n=ann,r=a\0c", b"n,,n=ann,r=" + b"a" * 15000, b"n,,n=" + b"a" * 15000 + b",r=abc", b"\xff" * 30,
     b"n,,n=ann,n=bob,r=abc", b"n,,n=nobody,r=abc", b"n,,n=ANN,r=abc", b"n,,n=ann\xc2\xad,r=abc"],
    ids=range(19),
)  # fmt: skip
async def test_g19_a_first_message_that_is_changed(node: AbusedNode, closing: list[MqttClient], first: bytes) -> None:
    client = await node.open()
    closing.append(client)
    values = properties(authentication_method=METHOD, authentication_data=first)
    await client.send(Connect(V5, new_name(), True, 0, properties=values))
    packet = await client.receive()
    if isinstance(packet, Auth):  # an unknown user is told as late as a wrong password
        await answer(client, b"c=biws,r=abc,p=" + base64.b64encode(bytes(32)))
        packet = await client.receive()
    assert isinstance(packet, Connack) and packet.reason_code >= 0x80


async def test_g19_one_exchange_with_the_proof_of_another(node: AbusedNode, closing: list[MqttClient]) -> None:
    his, hers = Scram("bob", f"bob{SECRET}"), Scram("ann", f"ann{SECRET}")
    bobs, challenge = await begin(node, his)
    anns, _ = await begin(node, hers)
    closing += [bobs, anns]
    proof = his.final(challenge)
    await answer(anns, proof)
    assert (await anns.expect(Connack)).reason_code == DENIED
    await answer(bobs, proof)
    assert (await bobs.expect(Connack)).reason_code == 0


async def test_g19_a_session_by_another_way_of_logging_in(node: AbusedNode, closing: list[MqttClient]) -> None:
    """SCRAM and passwords prove the same users: who has a session counts, not how."""
    client_id = new_name()
    mine = await come(node, "ann", client_id)
    other = await node.open()
    closing.append(other)
    assert (await scram_connect(other, Scram("bob", f"bob{SECRET}"), client_id)).reason_code == DENIED
    await mine.expect_nothing()
    again = await node.open()
    closing.append(again)
    assert (await scram_connect(again, Scram("ann", f"ann{SECRET}"), client_id)).reason_code == 0
    assert (await mine.expect(Disconnect)).reason_code == 0x8E


async def test_g19_to_become_somebody_else_later(node: AbusedNode, closing: list[MqttClient]) -> None:
    client = await node.open()
    closing.append(client)
    assert (await scram_connect(client, Scram("ann", f"ann{SECRET}"), new_name())).reason_code == 0
    his = Scram("bob", f"bob{SECRET}")
    await answer(client, his.first(), 0x19)
    packet = await client.receive()
    if isinstance(packet, Auth):
        assert packet.properties is not None
        await answer(client, his.final(packet.properties.authentication_data))
        packet = await client.receive()
    assert isinstance(packet, Disconnect) and packet.reason_code == DENIED
    await client.expect_closed()


@pytest.mark.parametrize("reason_code", [0x00, 0x18, 0x19])
@pytest.mark.parametrize("method", [None, METHOD, "SCRAM-SHA-512", "PLAIN", ""])
async def test_g19_auth_that_nobody_asked_for(node: AbusedNode, reason_code: int, method: str | None) -> None:
    """Who came with a password has no method, so no AUTH is in place: a method cannot be put in afterwards."""
    client = await come(node, "ann", new_name())
    block = None if method is None else properties(authentication_method=method, authentication_data=b"n,,n=bob,r=abc")
    await client.send(Auth(reason_code, block))
    told = await client.expect(Disconnect)
    assert told.reason_code in (0x81, 0x82, 0x8C, DENIED)
    await client.expect_closed()


@pytest.mark.parametrize("method", [None, "SCRAM-SHA-512", "PLAIN"])
async def test_g19_another_method_half_way(node: AbusedNode, closing: list[MqttClient], method: str | None) -> None:
    scram = Scram("ann", f"ann{SECRET}")
    client, challenge = await begin(node, scram)
    closing.append(client)
    data = scram.final(challenge)
    block = properties(authentication_data=data)
    if method is not None:
        block.authentication_method = method
    await client.send(Auth(0x18, block if method is not None else None))
    packet = await client.receive()
    assert isinstance(packet, (Connack, Disconnect)) and packet.reason_code >= 0x80
