"""acl_file against Mosquitto itself: who may publish what, and who gets what, with the same file on both."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import NamedTuple

import pytest

from broker.auth.acl_file import read_acl
from broker.auth.api import ALLOW, ANONYMOUS, PUBLISH, READ, SUBSCRIBE, Principal
from broker.codec.packets import V5, Connect, Publish
from broker.peer import Peer
from tests.integration.guarded import users_file
from tests.kit.broker_process import BrokerProcess
from tests.kit.mosquitto_broker import MosquittoBroker
from tests.kit.mqtt_client import MqttClient

#: Publishes everything, so that what others may read shows.
EDITOR = "user the editor\ntopic write #\ntopic write $s/#\n"

CLIENTS: list[tuple[str, str | None]] = [
    ("c1", None),
    ("c1", "ann"),
    ("c2", "ann"),
    ("c2", "Ben O. Smith"),
    ("ann", "nobody"),
    ("plus+", "ann"),
    ("c3", "a#"),
]
TOPICS = [
    "a",
    "b",
    "a/",
    "/a",
    "/",
    "a/b",
    "a//b",
    "a/b/c",
    "b/c1",
    "c1",
    "c2/ann",
    "ann",
    "ann/c1/x",
    "x/Ben O. Smith",
]
TOPICS += ["$s", "$s/a", "$s/a/b", "$s/c1", "a/b/ann/c2"]


class Answers(NamedTuple):
    """Pairs of client and topic."""

    published: set[tuple[int, str]]
    received: set[tuple[int, str]]


def some_acl(seed: int) -> str:
    """Lines at random, valid ones."""
    rng = random.Random(seed)

    def topic_filter(levels: list[str]) -> str:
        chosen = [rng.choice(levels) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.4:
            chosen.append("#")
        if rng.random() < 0.15:
            chosen.insert(0, "$s")
        return "/".join(chosen) if any(chosen) else "#"

    lines = ["# made at random"]
    for user in [None, *rng.sample(["ann", "Ben O. Smith", "nobody", "ann", "a#"], 4)]:
        if user is not None:
            lines.append(f"user {user}")
        for _ in range(rng.randint(0, 4)):
            access = rng.choice(["read ", "write ", "readwrite ", "deny ", ""])
            lines.append(f"topic {access}{topic_filter(['a', 'b', 'c1', 'ann', '+', '+', ''])}")
        if rng.random() < 0.5:
            access = rng.choice(["read ", "write ", "readwrite ", "deny ", ""])
            lines.append(f"pattern {access}{topic_filter(['a', 'x', '%c', '%u', '%c', '+'])}")
    return "\n".join(lines) + "\n" + EDITOR


async def asked(port: int) -> Answers:
    """What a broker lets the clients do."""
    published: set[tuple[int, str]] = set()
    received: set[tuple[int, str]] = set()
    for number, (client_id, username) in enumerate(CLIENTS):
        async with (
            await MqttClient.open("127.0.0.1", port) as client,
            await MqttClient.open("127.0.0.1", port) as editor,
        ):
            secret = None if username is None else b"right"
            await client.connect(Connect(V5, client_id, True, 0, username=username, password=secret))
            await editor.connect(Connect(V5, "editor", True, 0, username="the editor", password=b"right"))
            for topic_filter in ("#", "$s/#"):
                await client.subscribe(topic_filter, qos=0)
            for topic in TOPICS:
                assert await editor.publish(topic, b"", 1) in (0, 0x10)
            for packet in await client.drain():
                assert isinstance(packet, Publish)
                received.add((number, packet.topic_name))
            await client.unsubscribe("#", "$s/#")
            for topic in TOPICS:
                code = await client.publish(topic, b"", 1)
                assert code in (0, 0x10, 0x87)
                if code != 0x87:
                    published.add((number, topic))
    return Answers(published, received)


def judged(path: Path) -> Answers:
    """What our rules say of the same questions."""
    acl = read_acl(path)
    published: set[tuple[int, str]] = set()
    received: set[tuple[int, str]] = set()
    for number, (client_id, username) in enumerate(CLIENTS):
        judge = acl.judge(Principal(username or ANONYMOUS, client_id, Peer("127.0.0.1", 1), username))
        for topic in TOPICS:
            topic_filter = "$s/#" if topic.startswith("$") else "#"
            if judge.decide(PUBLISH, topic, 1, False) == ALLOW:
                published.add((number, topic))
            if judge.decide(READ, topic, 0, False) == ALLOW:
                received.add((number, topic))
                assert judge.decide(SUBSCRIBE, topic_filter, 0, False) == ALLOW
    return Answers(published, received)


def mosquitto(folder: Path, acl: Path) -> MosquittoBroker:
    return MosquittoBroker(folder, [f"acl_file {acl}", "allow_anonymous true"])


@pytest.mark.parametrize("seed", range(30))
async def test_rules_at_random(tmp_path: Path, seed: int) -> None:
    acl = tmp_path / "acl"
    acl.write_text(some_acl(seed))
    with mosquitto(tmp_path / "mosquitto", acl) as broker:
        told = await asked(broker.port)
    ours = judged(acl)
    assert ours.published == told.published, acl.read_text()
    assert ours.received == told.received, acl.read_text()


@pytest.mark.parametrize("seed", [100, 101, 102])
async def test_nodes_with_rules_at_random(tmp_path: Path, seed: int) -> None:
    acl = tmp_path / "acl"
    acl.write_text(some_acl(seed))
    with mosquitto(tmp_path / "mosquitto", acl) as broker:
        told = await asked(broker.port)
    config = tmp_path / "rookery.toml"
    config.write_text(f'[[authorization]]\ntype = "acl_file"\npath = {json.dumps(str(acl))}\n')
    names = {name for _, name in CLIENTS if name is not None}
    users = users_file(tmp_path, "the editor", *sorted(names))  # only a name that was proved is one
    arguments = ("--config", str(config), "--authentication", users, "--allow-anonymous")
    node = BrokerProcess(tmp_path / "node", "memory", arguments=arguments)
    node.start()
    try:
        ours = await asked(node.port)
    finally:
        node.stop()
    assert ours == told, acl.read_text()
