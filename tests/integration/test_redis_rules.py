"""Rules of clients in a real Redis that is not the cluster's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.codec.packets import Disconnect
from tests.integration import mosquitto
from tests.integration.logins import TIMEOUT, UNAVAILABLE, WELCOME, connect, login, login_when_back, node_with
from tests.kit.broker_process import BrokerProcess
from tests.kit.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """With users as EMQX keeps them there, and their rules."""
    with redis_server(options=["--appendonly", "yes"], password="not the store's") as redis:
        with redis.client() as client:
            for name in ("ann", "kim"):
                client.hset(f"mqtt_user:{name}", mapping={"password_hash": name, "is_superuser": "0"})
            client.hset("mqtt_user:root", mapping={"password_hash": "root", "is_superuser": "1"})
            client.hset(
                "mqtt_acl:ann",
                mapping={
                    "a/#": "all",
                    "a/closed": '{"permission": "deny", "action": "publish"}',
                    "${clientid}/once": '{"action": "publish", "qos": [1], "retain": false}',
                },
            )
            client.hset("mqtt_acl:kim", "k/#", "all")
        yield redis


@pytest.fixture(scope="module")
def node(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """Asks it about both."""
    url = f"redis://127.0.0.1:{server.address.port}/0"
    common = {"type": "redis", "url": url, "password": server.password, "timeout": TIMEOUT, "pool": 2}
    process = node_with(
        tmp_path_factory.mktemp("redis"), [{"algorithm": "plain", **common}], [{"refresh": "300ms", **common}]
    )
    process.start()
    yield process
    process.stop()


def test_rules(node: BrokerProcess) -> None:
    """What denies is asked before what allows; superusers are not asked."""
    ann = ["-u", "ann", "-P", "ann"]
    with mosquitto.Subscriber(node, ["a/#"], *ann) as subscriber:
        mosquitto.publish(node, "a/closed", "refused", *ann)
        mosquitto.publish(node, "a/b", "refused", "-u", "kim", "-P", "kim")
        mosquitto.publish(node, "a/b", "hers", *ann)
        mosquitto.publish(node, "a/closed", "superusers may", "-u", "root", "-P", "root")
        assert subscriber.payloads(2) == ["hers", "superusers may"]


async def test_conditions(node: BrokerProcess) -> None:
    """Placeholders, QoS and retain."""
    client, connack = await connect(node, "ann", "ann", client_id="c1")
    assert connack.reason_code == WELCOME
    assert await client.publish("c1/once", b"x", qos=1) < 0x80
    assert await client.publish("c1/once", b"x", qos=1, retain=True) == 0x87
    assert await client.publish("c1/once", b"x", qos=2) == 0x87
    assert await client.publish("c2/once", b"x", qos=1) == 0x87
    await client.close()


async def test_rules_that_change(node: BrokerProcess, server: RedisServer) -> None:
    """They are read again while a client is connected; when Redis is away, the old ones count."""
    client, connack = await connect(node, "kim", "kim")
    assert connack.reason_code == WELCOME
    assert [code < 0x80 for code in (await client.subscribe("k/sub/#")).reason_codes] == [True]
    server.kill()
    assert await login(node, "kim", "kim") == UNAVAILABLE
    assert await client.publish("k/a", b"x", qos=1) < 0x80
    server.start()
    assert await login_when_back(node, "kim", "kim") == WELCOME
    with server.client() as redis:
        redis.delete("mqtt_acl:kim")
    assert (await client.expect(Disconnect)).reason_code == 0x87
    await client.close()
