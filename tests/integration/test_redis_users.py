"""Users in a Redis of somebody else's making: of every kind of hash, and of every kind of deployment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bcrypt
import pytest
import redis

from broker.auth.hashes import make_argon2id, make_pbkdf2
from broker.auth.scram import SHA_512, make_verifier
from tests.integration.logins import TIMEOUT, UNAVAILABLE, WELCOME, WRONG, connect, login, node_with, still_serves
from tests.integration.scram import Scram, scram_connect
from tests.kit.broker_process import BrokerProcess
from tests.kit.mqtt_client import MqttClient
from tests.kit.redis_server import (
    RedisServer,
    make_certificate,
    redis_server,
    replicated_server,
    sentinels,
    server_cluster,
)

PASSWORD = "open, sesame"
DIGEST = hashlib.sha256(b"salt" + PASSWORD.encode()).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server(password="of the server") as made:
        yield made


def block(url: str, **options: object) -> dict[str, object]:
    return {"type": "redis", "url": url, "timeout": TIMEOUT, **options}


def url_of(server: RedisServer) -> str:
    return f"redis://127.0.0.1:{server.address.port}/0"


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts nodes, and stops them."""
    with ExitStack() as stack:

        def start(node: BrokerProcess) -> BrokerProcess:
            node.start()
            stack.callback(node.stop)
            return node

        yield start


async def test_every_kind_of_hash(server: RedisServer, started: Any, tmp_path: Path) -> None:
    made = {
        "seven": {"password_hash": make_pbkdf2(PASSWORD, 100)},
        "argon": {"password_hash": make_argon2id(PASSWORD), "is_superuser": "1"},
        "bcrypt": {"password_hash": bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4))},
        "scram": {"password_hash": make_verifier(PASSWORD, 4096, mechanism=SHA_512)},
        "both": {
            "password_hash": make_pbkdf2(PASSWORD, 100),
            "scram_sha_512": make_verifier(PASSWORD, 4096, mechanism=SHA_512),
        },
        "sp ace*?[x]:\u00e9": {"password_hash": make_pbkdf2(PASSWORD, 100)},
    }
    unusable = {
        "none": {"is_superuser": "1"},
        "typo": {"password_hash": "$7$99999999$c2FsdA==$" + "A" * 86 + "=="},
        "binary": {"password_hash": b"\xff\xfe"},
        "plain": {"password_hash": PASSWORD},
    }
    with server.client() as client:
        for name, fields in {**made, **unusable}.items():
            client.hset(f"mqtt_user:{name}", mapping=fields)
        client.set("mqtt_user:text", "not a hash")
    node = started(node_with(tmp_path / "n", [block(url_of(server), password="of the server")]))
    for name in made:
        assert await login(node, name, PASSWORD) == WELCOME, name
        for wrong in ("wrong", "", PASSWORD + "\0"):
            assert await login(node, name, wrong) == WRONG, name
    for name in (*unusable, "text", "nobody", "sev*", "seven\r\n", "..", "{seven}", "a" * 10_000):
        assert await login(node, name, PASSWORD) == WRONG, name
    for name, code in (("scram", 0), ("both", 0), ("seven", 0x87), ("nobody", 0x87)):
        peer = await MqttClient.open(node.host, node.port)
        connack = await scram_connect(peer, Scram(name, PASSWORD, "SCRAM-SHA-512"), "c")
        assert connack.reason_code == code, name
        await peer.close()


async def test_plain_digests_and_keys_of_ones_own(server: RedisServer, started: Any, tmp_path: Path) -> None:
    with server.client() as client:
        client.hset("dev/d1/ann", mapping={"password_hash": DIGEST, "salt": "salt"})
    options = {"key": "dev/${clientid}/${username}", "algorithm": "sha256", "password": "of the server"}
    node = started(node_with(tmp_path / "n", [block(url_of(server), **options)]))
    for name, password, client_id, code in (
        ("ann", PASSWORD, "d1", WELCOME),
        ("ann", PASSWORD, "d2", WRONG),
        ("ann", "wrong", "d1", WRONG),
        ("ann", DIGEST, "d1", WRONG),
    ):
        assert await login(node, name, password, client_id) == code


async def deployed(url: str, client: Any, started: Any, folder: Path, **options: object) -> None:
    """Users of this deployment get in."""
    for number in range(8):
        client.hset(f"mqtt_user:u{number}", mapping={"password_hash": make_pbkdf2(f"p{number}", 10)})
    node = started(node_with(folder, [block(url, **options)]))
    for number in range(8):
        assert await login(node, f"u{number}", f"p{number}") == WELCOME
        assert await login(node, f"u{number}", "wrong") == WRONG


async def test_tls(started: Any, tmp_path: Path) -> None:
    tls = make_certificate(tmp_path)
    with redis_server(tls=tls, password="p@ss/word") as server:
        port = server.address.port
        with server.client() as client:
            url = f"rediss://:{quote('p@ss/word', safe='')}@localhost:{port}/0?ssl_ca_certs={quote(tls.ca_file)}"
            await deployed(url, client, started, tmp_path / "n")
        # Without its authority the server is not believed.
        other = started(node_with(tmp_path / "m", [block(f"rediss://:{quote('p@ss/word', safe='')}@localhost:{port}")]))
        assert await login(other, "u1", "p1") == UNAVAILABLE
        assert "p@ss" not in other.log() and "p%40ss" not in other.log()


async def test_sentinel(started: Any, tmp_path: Path) -> None:
    with replicated_server() as store, sentinels(store) as address, store.servers[0].client() as client:
        hosts = ",".join(f"{seed.host}:{seed.port}" for seed in address.seeds)
        await deployed(f"redis+sentinel://{hosts}/{address.master}", client, started, tmp_path / "n")


async def test_cluster(started: Any, tmp_path: Path) -> None:
    with server_cluster() as store:
        hosts = ",".join(f"{seed.host}:{seed.port}" for seed in store.address.seeds)
        client = redis.RedisCluster(host="127.0.0.1", port=store.primaries[0].address.port)
        try:
            await deployed(f"redis+cluster://{hosts}", client, started, tmp_path / "n")
        finally:
            client.close()


async def test_a_redis_that_is_gone_or_silent(started: Any, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"watcher:{make_pbkdf2('w', 10)}\n")
    with redis_server() as server:
        with server.client() as client:
            client.hset("mqtt_user:ann", mapping={"password_hash": make_pbkdf2("one", 10)})
        blocks: list[dict[str, object]] = [{"type": "password_file", "path": str(users)}, block(url_of(server))]
        node = started(node_with(tmp_path / "n", blocks))
        assert await login(node, "ann", "one") == WELCOME
        watcher, _ = await connect(node, "watcher", "w", "watcher")
        server.pause()
        await still_serves(node, watcher, "t", [("ann", "one")] * 20)
        server.resume()
        assert await login(node, "ann", "one") == WELCOME
        server.kill()
        # Whoever has to be asked first is there, and others are not asked in the place of who is not.
        assert await login(node, "watcher", "w") == WELCOME
        assert await login(node, "ann", "one") == UNAVAILABLE
        server.start()
        assert await login(node, "ann", "one") == WRONG  # its data is gone
        with server.client() as client:
            client.hset("mqtt_user:ann", mapping={"password_hash": make_pbkdf2("one", 10)})
        assert await login(node, "ann", "one") == WELCOME
        await watcher.close()


async def test_successes_are_remembered_for_a_while(server: RedisServer, started: Any, tmp_path: Path) -> None:
    with server.client() as client:
        client.hset("mqtt_user:cached", mapping={"password_hash": make_pbkdf2("one", 10)})
        node = node_with(tmp_path / "n", [block(url_of(server), password="of the server")])
        node.arguments = (*node.arguments, "--authentication-cache", "60s")
        started(node)
        assert await login(node, "cached", "one") == WELCOME
        client.delete("mqtt_user:cached")
        assert await login(node, "cached", "one") == WELCOME
        assert await login(node, "cached", "two") == WRONG
        assert await login(node, "cached", "one") == WELCOME
