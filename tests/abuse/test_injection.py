"""Names that mean to be more than names: for the store's keys, the log, the topics of others and web services (G18)."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.codec.packets import Publish, Will
from tests.abuse.conftest import Nodes
from tests.abuse.conftest import attended as attended_by_bystanders
from tests.abuse.trespass import DENIED, WRONG, enter, knock, nodes_of_a_module, trespassing
from tests.abuse.world import AbusedNode, new_name
from tests.kit.mqtt_client import ConnectionClosed, properties
from tests.kit.redis_server import RedisServer, redis_server
from tests.kit.web_server import WebServer

#: In every name of these tests, to be looked for.
MARK = "zq9x"

NAMES = {
    "a hash tag": f"{{{MARK}}}",
    "a hash tag that closes": f"a}}{MARK}{{p0}}",
    "a command": f"{MARK}\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "a glob": f"{MARK}*?[a-z]",
    "Lua": f"{MARK}']]) redis.call('FLUSHALL') --[[",
    "a format": f"{MARK}%s%n{{0}}{{0.__class__}}",
    "a colour": f"{MARK}\x1b[2J\x1b[31m",
    "another line": f"{MARK}\n2026-01-01T00:00:00.000000Z info    node.{MARK} forged=yes",
    "another line of JSON": f'{MARK}"}}\n{{"timestamp": "2026", "level": "info", "event": "node.{MARK}"}}',
    "another field": f'{MARK} reason=success detail="x" client_id=admin',
    "a metric": f'{MARK}"}} 1\nmqtt_forged{{x="y',
    "separators of lines": f"{MARK}\u2028x\u2029x\x85x\x0b\x0cx",
    "right to left": f"{MARK}\u202e\u2066",
    "a path": f"../../{MARK}/%2e%2e/etc",
    "a colon": f"{MARK}:session:{MARK}:*",
    "quotes": f"{MARK}'\"`\\",
    "long": MARK + "x" * 5000,
}


#: Where a key lies is decided by the broker's own hash tag; names are in it as digests.
_KEY = re.compile(rb"(text|json):\{(p\d+|t\d+|[a-z]+|n:[a-z0-9-]+:\d+)\}", re.DOTALL)


@pytest.fixture(scope="module")
def store() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, store: RedisServer) -> Iterator[Nodes]:
    with nodes_of_a_module(tmp_path_factory.mktemp("own")) as running:
        yield running


@pytest.fixture(params=["text", "json"])
async def node(request: pytest.FixtureRequest, own: Nodes, store: RedisServer) -> AsyncIterator[AbusedNode]:
    """One with each kind of log, on one Redis."""
    options = ("--namespace", request.param, "--log-format", request.param, "--log-level", "debug")
    url = f"redis://127.0.0.1:{store.address.port}/0"
    async with attended_by_bystanders(own.get(*options, store=url)) as node:
        yield node


def _keys(store: RedisServer) -> list[bytes]:
    with store.client() as client:
        return list(client.scan_iter(count=1000))


def _forged(log: str) -> list[str]:
    """Lines that begin with what a client sent, and characters that a terminal would obey."""
    found = [line for line in log.split("\n") if line.startswith(("2026-01-01", MARK, '{"timestamp": "2026"'))]
    return found + [line for line in log.split("\n") if any(not c.isprintable() for c in line)]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
async def test_g18_names_are_nothing_but_names(node: AbusedNode, store: RedisServer, name: str) -> None:
    level = name.replace("+", "").replace("#", "")
    share = level.replace("/", "")
    begun = len(node.whole_log())
    reader, connack = await knock(node, name, name, clean_start=False, expiry_s=60)
    if connack.reason_code:  # control characters may be refused altogether
        assert connack.reason_code >= 0x80
    else:
        for topic_filter in (f"{level}/+", f"$share/{share}/{level}/#"):
            [granted] = (await reader.subscribe(topic_filter, qos=1)).reason_codes
            assert granted in (1, 0x8F)
        await reader.abort()
        sender = await enter(node, name)
        assert await sender.publish(f"{level}/t", b"queued", 1, retain=True) < 0x80
        assert await sender.publish(f"$delayed/600/{level}/d", b"later", 1) < 0x80
        assert await sender.publish(f"{level}/t", b"exactly", 2) < 0x80
        will = Will(f"{level}/w", b"will", 1, True, properties(will_delay_interval=30))
        assert (await knock(node, name, f"{name}w"[-60000:], will=will, expiry_s=60))[1].reason_code == 0
        # What is in the store belongs to nobody else.
        for near in (name[:-1] or "x", name + "x"):
            other, connack = await knock(node, name, near, clean_start=False)
            assert not connack.session_present
            await other.expect_nothing()
        with store.client() as client:
            assert client.dbsize() > 0
        assert not [key for key in _keys(store) if MARK.encode() in key or not _KEY.match(key) or len(key) > 100]
        reader = await enter(node, name, name, expiry_s=60)
        assert reader.connack is not None and reader.connack.session_present
        got = {(await reader.take()).payload for _ in range(2)}
        assert got == {b"queued", b"exactly"}
        await sender.publish(f"{level}/t", b"", 1, retain=True)
    # A refusal names its client: the line is where a name would get out.
    bad = await enter(node, name, new_name())
    await bad.send(Publish(f"$SYS/{level}", b"", 0))
    await bad.send_raw(b"\xf0\xff\xff\xff\xff")
    while True:
        try:
            await bad.receive()
        except ConnectionClosed:
            break
    log = node.whole_log()[begun:]
    assert not _forged(log), _forged(log)[:3]
    if "json" in node.arguments:
        for line in log.splitlines():
            assert isinstance(json.loads(line), dict)
    await node.goes_on(2)
    assert not [sample for sample in node.counters() if MARK in sample or "forged" in sample]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with WebServer(tmp_path_factory.mktemp("web")) as server:
        yield server


def _blocks(web: WebServer, where: str) -> dict[str, Any]:
    name, password = "username=${username}", "password=${password}"
    match where:
        case "path":
            return {"url": f"{web.url}/auth/${{clientid}}/in?{name}&{password}", "method": "get", "body": ""}
        case "query":
            return {"url": f"{web.url}/auth?{name}&{password}&id=${{clientid}}", "method": "get", "body": ""}
        case "json":
            return {"url": f"{web.url}/auth", "method": "post", "body": f"{name}&{password}&id=${{clientid}}"}
        case _:
            return {"url": f"{web.url}/auth?{name}&{password}", "method": "get", "body": "",
                    "headers": ["X-User: ${username}"]}  # fmt: skip


@pytest.mark.parametrize("where", ["path", "query", "json", "header"])
async def test_g18_questions_to_web_services_carry_names_as_they_are(
    nodes: Nodes, web: WebServer, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    path: Path = tmp_path_factory.mktemp(where) / "rookery.toml"
    values = {"type": "http", **_blocks(web, where)}
    lines = ["allow_anonymous = true", "login_failures_limit = 0", "[[authentication]]"]
    path.write_text("\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in values.items())]) + "\n")
    names = [each for key, each in NAMES.items() if key != "long"]
    names += [
        "a&password=x",
        "a?x=y",
        "a#b",
        "a/../admin",
        "..",
        ".",
        "%2e%2e%2f",
        "a b+c",
        "a;b",
        "\u00e9\u4e2d",
        "a\tb",
    ]
    web.users({name: {"password": "right"} for name in [*names, "admin"]})
    async with attended_by_bystanders(nodes.get("--config", str(path))) as node, trespassing(node):
        for name in names:
            before = len(web.questions())
            _, connack = await knock(node, name, name if where == "path" else new_name(), b"right")
            asked = web.questions()[before:]
            if not asked:  # what cannot be sent as it is is not sent
                assert connack.reason_code == WRONG, name
                assert where in ("path", "header"), name
                continue
            assert connack.reason_code == 0, name
            assert [each["asked"]["username"] for each in asked] == [name]
            assert set(asked[0]["asked"]) <= {"username", "password", "id"}
            assert asked[0]["path"].count("/") == (3 if where == "path" else 1)
            if where == "header":
                assert asked[0]["headers"]["x-user"] == name.strip()
            assert not set(asked[0]["headers"]) - {
                "host", "x-user", "accept", "accept-encoding", "connection", "user-agent", "content-length",
                "content-type", "x-forwarded-for",
            }  # fmt: skip
        # The password of one name lets nobody in under another.
        _, connack = await knock(node, "admin&username=a#b", new_name(), b"right")
        assert connack.reason_code in (WRONG, DENIED)
