"""Forged tokens, and names in good ones that mean to be more than names: refused, and nobody notices (G18, G19)."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.codec.packets import V5, Connack, Connect
from tests.abuse.conftest import Counted
from tests.abuse.world import AbusedNode, new_name
from tests.kit.mqtt_client import MqttClient

KEY = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

#: How many forged tokens a storm has, and what the node may have grown by after the second.
STORM = 500
GROWTH_BYTES = 4 << 20


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "ann", "exp": int(time.time()) + 600, **more}


def good(headers: Mapping[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(claims(**more), KEY, "RS256", dict(headers or {}))


def forged(header: Mapping[str, Any], signature: str = "") -> str:
    return f"{part(header)}.{part(claims(sub='root'))}.{signature}"


def confused(algorithm: str, secret: bytes) -> str:
    signed = forged({"alg": algorithm, "typ": "JWT"})[:-1]
    mac = hmac.digest(secret, signed.encode(), f"sha{algorithm[2:]}")
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def with_own_key(**headers: Any) -> str:
    return jwt.encode(claims(), OTHER, "RS256", headers)


FORGED = {
    "alg none": forged({"alg": "none"}),
    "alg None": forged({"alg": "None"}),
    "alg NONE": forged({"alg": "NONE"}),
    "alg nOnE with a signature": forged({"alg": "nOnE"}, "AAAA"),
    "alg empty": forged({"alg": ""}),
    "alg null": forged({"alg": None}),
    "alg a list": forged({"alg": ["RS256", "none"]}),
    "alg unknown": forged({"alg": "RS1"}, "AAAA"),
    "signature left out": good().rpartition(".")[0] + ".",
    "signature and its dot left out": good().rpartition(".")[0],
    "signature of another token": good().rpartition(".")[0] + "." + good(more=1).rpartition(".")[2],
    "signature of zeros": forged({"alg": "RS256"}, "A" * 342),
    "HS256 with the public key in PEM": confused("HS256", PEM),
    "HS256 with the public key in PEM without its line end": confused("HS256", PEM.strip()),
    "HS384 with the public key in PEM": confused("HS384", PEM),
    "HS512 with the public key in DER": confused("HS512", DER),
    "HS256 with an empty secret": confused("HS256", b""),
    "a key of its own in the header": with_own_key(
        jwk=json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER.public_key()))
    ),
    "a key of its own behind a URL": with_own_key(jku="http://127.0.0.1:1/keys"),
    "a certificate of its own": with_own_key(x5u="http://127.0.0.1:1/chain", x5c=["AAAA"]),
    "a key id that is a path": with_own_key(kid="../../../../dev/null"),
    "a key id that is a query": with_own_key(kid="x' UNION SELECT 'secret"),
    "an extension that nobody knows": good({"crit": ["exp"]}),
    "a payload that is not encoded": forged({"alg": "RS256", "b64": False, "crit": ["b64"]}, "AAAA"),
    "encrypted": ".".join((part({"alg": "RSA-OAEP", "enc": "A256GCM"}), "AA", "AA", "AA", "AA")),
    "over": good(exp=int(time.time()) - 5),
    "over long ago, in the future as text": good(exp="99999999999"),
    "over at infinity": good(exp=float("inf")),
    "without an end": jwt.encode({"sub": "ann"}, KEY, "RS256"),
    "not yet begun": good(nbf=int(time.time()) + 3600),
    "a name of no characters": good(sub=""),
    "a name with NUL": good(sub="ann\0"),
    "a name that is half a character": good(sub="\ud800"),
    "a name that is a list": jwt.encode({**claims(), "sub": ["ann"]}, KEY, "RS256"),
    "rules that are text": good(acl="#"),
    "rules with a condition that is not known": good(acl=[{"permission": "allow", "topic": "#", "zone": "x"}]),
    "more rules than allowed": good(acl={"pub": ["a"], "sub": ["x/#/y"]}),
    "a deep payload of another key": f"{part({'alg': 'RS256'})}.{base64.urlsafe_b64encode(b'[' * 9000).decode()}.AAAA",
}


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    path.write_bytes(PEM)
    return path


@pytest.fixture
def arguments(key_file: Path) -> tuple[str, ...]:
    return ("--authentication", f"jwt?public_key={key_file}", "--allow-anonymous", "--login-failures-limit", "0")


async def enter(node: AbusedNode, token: str) -> tuple[MqttClient, int]:
    client = await node.open()
    await client.send(Connect(V5, new_name(), True, 0, username="ann", password=token.encode()))
    return client, (await client.expect(Connack)).reason_code


@pytest.mark.parametrize("name", FORGED)
async def test_g19_a_forged_token(node: AbusedNode, moved: Counted, name: str) -> None:
    client, code = await enter(node, FORGED[name])
    assert code == 0x86
    await client.expect_closed()
    assert moved('mqtt_connects_total{result="bad_user_name_or_password"}') == 1
    # The same answer for all: it does not tell what was wrong.
    assert client.last_raw.count(b"token") == 0
    client, code = await enter(node, good())
    assert code == 0


@pytest.mark.parametrize("sub", ["#", "+", "a/b", "+/x", "$SYS", "a/#", "/", "${clientid}", "ann/../bob"])
async def test_g18_a_name_that_is_a_filter(node: AbusedNode, sub: str) -> None:
    rules = {"all": ["home/${username}/#", "${username}/x"]}
    client, code = await enter(node, good(sub=sub, acl=rules))
    assert code == 0
    literal = sub == "${clientid}"  # only a name: what is in a value is not looked at again
    filters = (
        "#",
        "+/x",
        "home/#",
        "home/+/#",
        "home/ann/#",
        "$SYS/#",
        "$SYS/x",
        f"home/{client.client_id}/#",
        "bob/x",
    )
    for topic_filter in filters:
        assert (await client.subscribe(topic_filter)).reason_codes == [0x87], topic_filter
    for topic in ("home/ann/x", "bob/x", "$SYS/x", "home"):
        assert await client.publish(topic, b"x", 1) == 0x87, topic
    if literal:
        assert (await client.subscribe("home/${clientid}/#")).reason_codes != [0x87]


async def test_g15_a_storm_of_forged_tokens(node: AbusedNode) -> None:
    texts = list(FORGED.values())

    async def storm() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(some, number)

    async def some(first: int) -> None:
        for number in range(first, STORM, 10):
            client, code = await enter(node, texts[number % len(texts)])
            assert code == 0x86
            await client.close()

    await storm()
    await node.until_gauge("mqtt_connections", 2)
    before, open_before = node.rss_bytes(), node.descriptors()
    await storm()
    await node.until_gauge("mqtt_connections", 2)
    assert node.rss_bytes() - before < GROWTH_BYTES
    await node.until(lambda: node.descriptors() <= open_before, f"the closing of all but {open_before} descriptors")
