"""Tokens that are signed as they should be and mean mischief: odd claims, sizes, ends, names of others (G19)."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from broker.codec.packets import V5, Connack, Connect, Disconnect, Publish
from tests.abuse.test_tokens import KEY, claims, key_file, part
from tests.abuse.trespass import DENIED, WRONG, trespassing
from tests.abuse.world import SETTLE_S, AbusedNode, new_name
from tests.kit.mqtt_client import ConnectionClosed, MqttClient

__all__ = ["key_file"]


@pytest.fixture
def arguments(key_file: object) -> tuple[str, ...]:
    option = f"jwt?public_key={key_file}&audience=mqtt"
    return ("--authentication", option, "--allow-anonymous", "--login-failures-limit", "0")


@pytest.fixture(autouse=True)
async def harmless(node: AbusedNode) -> AsyncIterator[None]:
    async with trespassing(node):
        yield


@pytest.fixture
async def inside(node: AbusedNode, harmless: None) -> AsyncIterator[list[MqttClient]]:
    """Connections that are closed before the test is looked back on."""
    made: list[MqttClient] = []
    yield made
    for client in made:
        await client.close()


async def enter(
    node: AbusedNode, inside: list[MqttClient], token: str, username: str | None = "ann", client_id: str = ""
) -> tuple[MqttClient, int]:
    client = await node.open()
    inside.append(client)
    await client.send(Connect(V5, client_id or new_name(), True, 0, username=username, password=token.encode()))
    return client, (await client.expect(Connack)).reason_code


def signed(payload: bytes, **headers: object) -> str:
    """A token whose payload is exactly this."""
    text = f"{part({'alg': 'RS256', **headers})}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}"
    signature = KEY.sign(text.encode(), PKCS1v15(), SHA256())
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def token(**more: object) -> str:
    return jwt.encode({**claims(), "aud": "mqtt", **more}, KEY, "RS256")


def _text(**more: object) -> str:
    return json.dumps({**claims(), "aud": "mqtt", **more})


LATER = int(time.time()) + 3600

REFUSED = {
    "for somebody else": token(aud="web"),
    "for nobody": jwt.encode(claims(), KEY, "RS256"),
    "for a number": token(aud=1),
    "for a table": token(aud={"mqtt": True}),
    "for a list of others": token(aud=["web", "MQTT", "mqtt "]),
    "for a list of lists": token(aud=[["mqtt"]]),
    "for nobody at all": token(aud=[]),
    "that ended, in its last word": signed((_text(exp=LATER)[:-1] + ', "exp": 1}').encode()),
    "for somebody else, in its last word": signed((_text()[:-1] + ', "aud": "web"}').encode()),
    "that ends at a truth": token(exp=True),
    "that ends at no number": signed(_text(exp="@").replace('"@"', "NaN").encode()),
    "that ends after everything": signed(_text(exp="@").replace('"@"', "1e999").encode()),
    "that ends at a large number": signed(_text(exp="@").replace('"@"', "9" * 400).encode()),
    "that begins at a text": token(nbf="now"),
    "that begins later": token(nbf=LATER),
    "with deep claims": signed(_text(x="@").replace('"@"', "[" * 3000 + "]" * 3000).encode()),
    "with deep rules": signed(_text(acl="@").replace('"@"', '{"pub": ' * 500 + "1" + "}" * 500).encode()),
    "with a rule about a shared subscription": token(acl={"sub": ["$share/g/#"]}),
    "with rules that are a number": token(acl=1),
    "with a rule that is no filter": token(acl={"pub": ["a#"]}),
    "with a placeholder that nobody knows": token(acl={"pub": ["${password}/#"]}),
    "that is a list": signed(b"[]"),
    "that is a text": signed(b'"ann"'),
    "that is no JSON": signed(b"\xff\xfe{}"),
    "with something after it": signed(_text().encode() + b"{}"),
    "with a key id that is a URL": signed(_text().encode() + b" ", kid="http://127.0.0.1:1/key", crit=["kid"]),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_g19_a_token(node: AbusedNode, inside: list[MqttClient], name: str) -> None:
    client, code = await enter(node, inside, REFUSED[name])
    assert code == WRONG
    await client.expect_closed()
    assert (await enter(node, inside, token()))[1] == 0


async def test_g19_a_token_as_large_as_it_can_be(node: AbusedNode, inside: list[MqttClient]) -> None:
    """A stranger may send 16 KiB."""
    large = token(x="x" * 9000)
    assert len(large) > 12_000
    assert (await enter(node, inside, large[:-3] + "AAA"))[1] == WRONG
    with pytest.raises(AssertionError, match="closed"):
        await enter(node, inside, token(x="x" * 40_000))


@pytest.mark.parametrize("sub", ["Ann", "ann ", "\u0430nn"])
async def test_g19_who_has_a_token_is_who_it_names(node: AbusedNode, inside: list[MqttClient], sub: str) -> None:
    """Whatever name CONNECT claims: a session of `ann` is not reached by a token of somebody else."""
    client_id = new_name()
    mine, code = await enter(node, inside, token(sub="ann"), "ann", client_id)
    assert code == 0
    for claimed in ("ann", sub, None, "root"):
        assert (await enter(node, inside, token(sub=sub), claimed, client_id))[1] in (WRONG, DENIED)
    # Of two claims of a name the last counts (RFC 7519, 4), so there is one user.
    both = signed((_text(sub="ann")[:-1] + ', "sub": "bob"}').encode())
    assert (await enter(node, inside, both, "ann", client_id))[1] == DENIED
    await mine.expect_nothing()


async def test_g19_rules_of_a_token_count_for_its_client_only(node: AbusedNode, inside: list[MqttClient]) -> None:
    level = new_name()
    mine, _ = await enter(node, inside, token(acl={"all": [f"{level}/#"]}))
    other, _ = await enter(node, inside, token(acl={"all": [f"{level}x/#"]}))
    assert (await mine.subscribe(f"{level}/#", qos=1)).reason_codes == [1]
    assert (await other.subscribe(f"{level}/#", f"$share/g/{level}/#", "#", "+/x")).reason_codes == [DENIED] * 4
    assert await other.publish(f"{level}/x", b"boo", 1) == DENIED
    await mine.expect_nothing()


async def test_g19_a_token_ends_whatever_its_client_does(node: AbusedNode, inside: list[MqttClient]) -> None:
    client, code = await enter(node, inside, token(exp=int(time.time()) + 2))
    assert code == 0
    ended = trio.Event()

    async def flood() -> None:
        packets = [Publish(f"flood/{client.client_id}", b"x" * 100)] * 50
        while not ended.is_set():
            await client.send(*packets)
            await trio.lowlevel.checkpoint()

    with trio.fail_after(SETTLE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            try:
                told = await client.receive(SETTLE_S)
                assert isinstance(told, Disconnect) and told.reason_code >= 0x80
            except ConnectionClosed:
                pass  # RST for what came after the DISCONNECT may overtake it
            ended.set()
    assert (await enter(node, inside, token(exp=int(time.time()) - 1)))[1] == WRONG
