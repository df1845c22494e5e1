"""Tokens, certificates and web services as credentials, with the clients of others; keys and signatures by openssl."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from broker.auth.hashes import make_pbkdf2
from broker.codec.packets import V5, V311, Connack, Connect, Publish
from tests.conformance.peers import Peers
from tests.integration import mosquitto
from tests.integration.conftest import PeersOf, StartNode
from tests.integration.paho_client import Paho
from tests.kit.broker_process import BrokerFailed, BrokerProcess
from tests.kit.certificates import Chain
from tests.kit.mqtt_client import MqttClient, properties
from tests.kit.web_server import WebServer


def openssl(*arguments: str, data: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=True).stdout


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """An RSA key and the tokens that it signs, with nothing but openssl."""

    def __init__(self, folder: Path, key_id: str) -> None:
        self.key_id = key_id
        self.private = folder / f"{key_id}.key"
        self.public = folder / f"{key_id}.pem"
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(self.private))
        openssl("pkey", "-in", str(self.private), "-pubout", "-out", str(self.public))

    def jwk(self) -> dict[str, str]:
        modulus = openssl("rsa", "-pubin", "-in", str(self.public), "-modulus", "-noout").decode().partition("=")[2]
        return {"kty": "RSA", "kid": self.key_id, "n": base64url(bytes.fromhex(modulus)), "e": "AQAB", "use": "sig"}

    def token(self, sub: str = "ann", lives_s: float = 600, **claims: Any) -> str:
        header = {"alg": "RS256", "kid": self.key_id}
        body = {"sub": sub, "exp": int(time.time() + lives_s), **claims}
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, body))
        return f"{signed}.{base64url(openssl('dgst', '-sha256', '-sign', str(self.private), data=signed.encode()))}"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(tmp_path_factory.mktemp("keys"), "first")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with WebServer(tmp_path / "web") as server:
        yield server


def configured(start_node: StartNode, tmp_path: Path, text: str) -> BrokerProcess:
    path = tmp_path / "rookery.toml"
    path.write_text(text)
    return start_node("--config", str(path), store="memory")


async def connect(
    peers: Peers, token: str, version: int = V5, client_id: str = "", **more: Any
) -> tuple[MqttClient, int]:
    """A client, and the reason code of its CONNACK."""
    client = await peers.open(version)
    await client.send(Connect(version, client_id, True, 0, username="x", password=token.encode(), **more))
    connack = await client.expect(Connack)
    return client, connack.reason_code


RULES = {"pub": ["up/${username}"], "sub": ["down/${clientid}/#"], "all": ["both"]}


def test_clients_of_others_with_tokens(start_node: StartNode, tmp_path: Path, signer: Signer) -> None:
    node = configured(start_node, tmp_path, f'[[authentication]]\ntype = "jwt"\npublic_key = "{signer.public}"\n')
    token = signer.token(acl=RULES)
    login = ["-u", "anybody", "-P", token, "-i", "c1"]
    with mosquitto.Subscriber(node, ["both", "down/c1/x"], *login) as subscriber:
        mosquitto.publish(node, "both", "allowed", "-u", "x", "-P", token, qos=1)
        assert subscriber.take().payload == "allowed"
        mosquitto.publish(node, "up/ann", "allowed", "-u", "x", "-P", token, qos=1)
        denied = mosquitto.run("mosquitto_pub", node, "-t", "up/bob", "-m", "x", "-q", "1", *login[:4])
        assert "not authori" in (denied.stdout + denied.stderr).lower()
    for wrong in (token + "x", token.rpartition(".")[0] + ".", "e30.e30.e30"):
        done = mosquitto.run("mosquitto_pub", node, "-t", "both", "-m", "x", "-u", "ann", "-P", wrong)
        assert done.returncode != 0
    paho = Paho(node, client_id="c2")
    paho.client.username_pw_set("anybody", token)
    with paho:
        paho.connect()
        assert paho.reason is not None and paho.reason.value == 0
        assert paho.subscribe("both", 1) == [1]
        assert paho.subscribe("down/c1/x", 1) == [0x87]
        assert paho.subscribe("#", 1) == [0x87]
        assert paho.publish("up/ann", "x", 1) in (0, 0x10)
        assert paho.publish("up/bob", "x", 1) == 0x87


@pytest.mark.parametrize("version", [V5, V311])
async def test_a_connection_ends_with_its_token(
    start_node: StartNode, peers_of: PeersOf, tmp_path: Path, signer: Signer, version: int
) -> None:
    node = configured(start_node, tmp_path, f'[[authentication]]\ntype = "jwt"\npublic_key = "{signer.public}"\n')
    peers = peers_of(node)
    client, code = await connect(peers, signer.token(lives_s=2), version)
    assert code == 0
    lasting, code = await connect(peers, signer.token(lives_s=600), version)
    assert code == 0
    if version == V5:
        await client.expect_disconnect(0xA0)
    else:
        await client.expect_closed()
    await lasting.expect_nothing()
    assert (await connect(peers, signer.token(lives_s=-1), version))[1] == 0x86


async def test_keys_of_a_web_server(
    start_node: StartNode, peers_of: PeersOf, tmp_path: Path, signer: Signer, web: WebServer
) -> None:
    second, stranger = Signer(tmp_path, "second"), Signer(tmp_path, "first")
    url = web.file("keys.json", json.dumps({"keys": [signer.jwk()]}))
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), "bob", "sesame"], check=True)
    node = configured(
        start_node,
        tmp_path,
        f'[[authentication]]\ntype = "jwt"\njwks_url = "{url}"\ntimeout = "2s"\n'
        f'[[authentication]]\ntype = "password_file"\npath = "{passwords}"\n',
    )
    peers = peers_of(node)
    client, code = await connect(peers, signer.token())
    assert code == 0
    assert (await connect(peers, stranger.token()))[1] == 0x86
    # A password that is no token is for the file behind.
    mosquitto.publish(node, "t", "x", "-u", "bob", "-P", "sesame", qos=1)
    web.file("keys.json", json.dumps({"keys": [second.jwk()]}))
    assert (await connect(peers, second.token()))[1] == 0
    assert (await connect(peers, signer.token()))[1] == 0x86
    await client.expect_nothing()
    web.stop()
    assert (await connect(peers, second.token()))[1] == 0
    mosquitto.publish(node, "t", "x", "-u", "bob", "-P", "sesame", qos=1)
    assert "authentication.keys" in node.log()


async def test_without_keys_nobody_knows(
    start_node: StartNode, peers_of: PeersOf, tmp_path: Path, signer: Signer
) -> None:
    node = configured(
        start_node, tmp_path, '[[authentication]]\ntype = "jwt"\njwks_url = "http://127.0.0.1:1/k"\ntimeout = "1s"\n'
    )
    assert (await connect(peers_of(node), signer.token()))[1] == 0x88


async def test_a_web_service_decides(start_node: StartNode, peers_of: PeersOf, tmp_path: Path, web: WebServer) -> None:
    acl = [{"permission": "deny", "action": "publish", "topic": "a/secret"}, {"permission": "allow", "topic": "a/#"}]
    soon = int(time.time()) + 3
    web.users(
        {
            "ann": {"password": "pw", "answer": {"acl": acl, "clientid": "assigned"}},
            "root": {"password": "pw", "answer": {"is_superuser": True}},
            "brief": {"password": "pw", "answer": {"expire_at": soon}},
        }
    )
    node = configured(start_node, tmp_path, f'[[authentication]]\ntype = "http"\nurl = "{web.url}/auth"\n')
    peers = peers_of(node)

    async def enter(name: str, password: bytes = b"pw") -> tuple[MqttClient, Connack]:
        client = await peers.open()
        await client.send(Connect(V5, "mine", True, 0, username=name, password=password))
        return client, await client.expect(Connack)

    brief, connack = await enter("brief")
    assert connack.reason_code == 0
    await brief.expect_disconnect(0xA0)
    ann, connack = await enter("ann")
    assert connack.reason_code == 0 and connack.properties is not None
    assert connack.properties.assigned_client_identifier == "assigned"
    assert (await ann.subscribe("a/#")).reason_codes == [2]
    assert (await ann.subscribe("#")).reason_codes == [0x87]
    assert await ann.publish("a/secret", b"x", 1) == 0x87
    root, connack = await enter("root")
    assert connack.reason_code == 0
    assert (await root.subscribe("#")).reason_codes == [2]
    await root.send(Publish("a/1", b"for ann"))
    await ann.take(b"for ann")
    assert (await enter("ann", b"wrong"))[1].reason_code == 0x86
    assert (await enter("nobody"))[1].reason_code == 0x86
    web.stop()
    assert (await enter("ann"))[1].reason_code == 0x88
    await root.send(Publish("a/2", b"still"))
    await ann.take(b"still")


async def test_a_web_service_is_asked_about_topics(
    start_node: StartNode, peers_of: PeersOf, tmp_path: Path, web: WebServer
) -> None:
    web.acl(
        [
            ("ann", "publish", "open", "allow"),
            ("ann", "publish", "again", "allow"),
            ("ann", "subscribe", "s/#", "allow"),
            ("ann", "publish", "s/1", "allow"),
            ("ann", "publish", "will", "deny"),
        ]
    )
    web.users({"ann": {"password": "pw"}})
    node = configured(
        start_node,
        tmp_path,
        f'[[authentication]]\ntype = "http"\nurl = "{web.url}/auth"\n'
        f'[[authorization]]\ntype = "http"\nurl = "{web.url}/acl"\nmethod = "get"\ntimeout = "2s"\n',
    )
    peers = peers_of(node)
    client = await peers.open()
    await client.send(Connect(V5, "c1", True, 0, username="ann", password=b"pw"))
    assert (await client.expect(Connack)).reason_code == 0
    for qos in (1, 2) * 10:
        assert await client.publish("open", b"x", qos) in (0, 0x10)
        assert await client.publish("other", b"x", 2) == 0x87
    assert (await client.subscribe("s/#")).reason_codes == [2]
    assert (await client.subscribe("t/#")).reason_codes == [0x87]
    await client.send(Publish("s/1", b"read"))
    await client.take(b"read")
    # Each answer counts for a while, and for each QoS, as the question does not tell it.
    topics = [each["asked"]["topic"] for each in web.questions("/acl")]
    assert sorted(set(topics)) == ["open", "other", "s/#", "s/1", "t/#"] and len(topics) == 5
    web.stop()
    assert await client.publish("again", b"x", 1) == 0x83  # nobody said no
    assert await client.publish("open", b"x", 1) in (0, 0x10)
    web.start()
    assert await client.publish("again", b"x", 1) in (0, 0x10)


async def test_a_session_outlasts_a_web_service_that_is_away(
    start_node: StartNode, peers_of: PeersOf, tmp_path: Path, web: WebServer
) -> None:
    web.acl([("ann", "subscribe", "s", "allow"), ("ann", "publish", "s", "allow")])
    (tmp_path / "users").write_text(f"ann:{make_pbkdf2('pw', 1)}\n")
    node = configured(
        start_node,
        tmp_path,
        f'[[authentication]]\ntype = "password_file"\npath = "{tmp_path / "users"}"\n'
        f'[[authorization]]\ntype = "http"\nurl = "{web.url}/acl"\nmethod = "get"\ntimeout = "2s"\n',
    )
    peers = peers_of(node)

    async def again(clean_start: bool) -> tuple[MqttClient, Connack]:
        client = await peers.open()
        session = properties(session_expiry_interval=100)
        await client.send(Connect(V5, "c1", clean_start, 0, "ann", b"pw", None, session))
        return client, await client.expect(Connack)

    client, _ = await again(True)
    assert (await client.subscribe("s")).reason_codes == [2]
    web.stop()
    client, refused = await again(False)
    assert (refused.reason_code, refused.session_present) == (0x88, False)
    web.start()
    client, connack = await again(False)
    assert (connack.reason_code, connack.session_present) == (0, True)
    await client.send(Publish("s", b"read"))
    await client.take(b"read")


async def test_names_from_certificates(start_node: StartNode, tmp_path: Path) -> None:
    chain = Chain(tmp_path / "ca")
    server, device = chain.server(), chain.client("d1", subject="/O=Example/CN=d1", names="URI:urn:dev:1")
    path = tmp_path / "rookery.toml"
    path.write_text(
        '[[authentication]]\ntype = "certificate"\nusername = "cn"\nclient_id = "san_uri"\nmatch = "require"\n'
        f'[[listen]]\nurl = "tcp://127.0.0.1:0"\n'
        f'[[listen]]\nurl = "tls://127.0.0.1:0"\ncertfile = "{server.certfile}"\nkeyfile = "{server.keyfile}"\n'
        f'ca_certs = "{chain.ca}"\nclient_certificates = "optional"\nmountpoint = "of/${{username}}/"\n'
    )
    node = BrokerProcess(tmp_path / "n", "memory", listen=(), arguments=("--config", str(path)))
    node.start()
    try:
        [secure] = [url for url in node.listeners if url.startswith("tls")]
        port = secure.rpartition(":")[2]
        tls = ["-p", port, "--cafile", str(chain.ca)]
        mine = [*tls, "--cert", str(device.certfile), "--key", str(device.keyfile), "-i", "urn:dev:1"]
        with mosquitto.Subscriber(node, ["t"], *mine, qos=1) as subscriber:
            pass
        assert subscriber.lines
        done = mosquitto.run("mosquitto_pub", node, "-t", "t", "-m", "x", "-q", "1", *mine, "-u", "root", "-P", "x")
        assert done.returncode == 0, done.stderr
        for wrong in ([*mine[:-1], "urn:dev:2"], tls, [*tls, "-u", "d1", "-P", "x"], ["-u", "d1", "-P", "x"]):
            done = mosquitto.run("mosquitto_pub", node, "-t", "t", "-m", "x", "-q", "1", *wrong)
            assert done.returncode != 0, wrong
    finally:
        node.stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "one of secret"),
        ('secret = "short"', "at least 32"),
        ('public_key = "absent.pem"', "absent.pem"),
        ('secret = "0123456789012345678901234567890123456789"\nclaims = ["a=${nobody}"]', "nobody"),
        ('jwks_url = "ftp://host/"', "jwks_url"),
    ],
)
def test_what_is_wrong_is_told_at_the_start(start_node: StartNode, tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(BrokerFailed, match=message):
        configured(start_node, tmp_path, f'[[authentication]]\ntype = "jwt"\n{options}\n')


async def test_no_secret_is_logged(start_node: StartNode, peers_of: PeersOf, tmp_path: Path, web: WebServer) -> None:
    web.users({"ann": {"password": "the-password"}})
    path = tmp_path / "rookery.toml"
    path.write_text(
        f'[[authentication]]\ntype = "http"\nmethod = "get"\nurl = "{web.url}/auth"\nheaders = ["X-Key: the-key"]\n'
    )
    node = start_node("--config", str(path), "--log-level", "debug", store="memory")
    client = await peers_of(node).open()
    await client.send(Connect(V5, "c1", True, 0, username="ann", password=b"the-password"))
    assert (await client.expect(Connack)).reason_code == 0
    await client.send(Publish("t", b"x"))
    assert web.questions()[0]["headers"]["x-key"] == "the-key"
    assert "the-password" not in node.log() and "the-key" not in node.log()


async def test_a_connection_ends_with_its_certificate(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "ca")
    server = chain.server()
    end = time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + 4))
    device = chain.client("brief", end=end)
    path = tmp_path / "rookery.toml"
    path.write_text(
        '[[authentication]]\ntype = "certificate"\n'
        f'[[listen]]\nurl = "tls://127.0.0.1:0"\ncertfile = "{server.certfile}"\nkeyfile = "{server.keyfile}"\n'
        f'ca_certs = "{chain.ca}"\nclient_certificates = "required"\n'
    )
    node = BrokerProcess(tmp_path / "n", "memory", listen=(), arguments=("--config", str(path)))
    node.start()
    try:
        context = ssl.create_default_context(cafile=str(chain.ca))
        context.load_cert_chain(device.certfile, device.keyfile)
        raw = await trio.open_tcp_stream("127.0.0.1", int(node.listeners[0].rpartition(":")[2]))
        stream = trio.SSLStream(raw, context, server_hostname="localhost")
        client = MqttClient(stream)  # type: ignore[arg-type]
        assert (await client.connect(Connect(V5, "c", True, 0))).reason_code == 0
        await client.expect_disconnect(0xA0)
        await client.close()
    finally:
        node.stop()


async def test_a_resumed_session_is_asked_about_again(
    start_node: StartNode, peers_of: PeersOf, tmp_path: Path, web: WebServer
) -> None:
    web.users({"ann": {"password": "pw"}, "root": {"password": "pw", "answer": {"is_superuser": True}}})
    web.acl([("ann", "subscribe", "s/#", "allow"), ("ann", "subscribe", "t/#", "allow")])
    node = configured(
        start_node,
        tmp_path,
        f'[[authentication]]\ntype = "http"\nurl = "{web.url}/auth"\n'
        f'[[authorization]]\ntype = "http"\nurl = "{web.url}/acl"\n',
    )
    peers = peers_of(node)

    async def enter(name: str) -> MqttClient:
        client = await peers.open()
        given = properties(session_expiry_interval=600)
        await client.send(Connect(V5, f"{name}-1", False, 0, username=name, password=b"pw", properties=given))
        assert (await client.expect(Connack)).reason_code == 0
        return client

    root = await enter("root")
    ann = await enter("ann")
    assert (await ann.subscribe("s/#")).reason_codes == [2]
    assert (await ann.subscribe("t/#")).reason_codes == [2]
    await ann.disconnect()
    await ann.close()
    await root.publish("s/1", b"waited", 1)
    await root.publish("t/1", b"waited too", 1)
    ann = await enter("ann")
    ann.auto_ack = True
    await ann.take(b"waited")
    await ann.take(b"waited too")
    await ann.disconnect()
    await ann.close()
    web.acl([("ann", "subscribe", "s/#", "allow")])
    await root.publish("t/1", b"not for ann any more", 1)
    await root.publish("s/1", b"still for ann", 1)
    ann = await enter("ann")
    ann.auto_ack = True
    assert (await ann.expect(Publish)).payload == b"still for ann"
    await ann.expect_nothing()
