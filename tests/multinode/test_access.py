"""Users and rules between three nodes: whose a session is, rules that change, and groups whose members may not read."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from broker.codec.packets import V5, V311, Connack, Connect, Publish
from tests.integration.exchange import metric
from tests.integration.guarded import users_file
from tests.kit.mqtt_client import MqttClient, properties
from tests.multinode.conftest import NAMES, StartCluster
from tests.multinode.nodes import SOON_S, Nodes

pytestmark = pytest.mark.timeout(90)

RULES = """
[[rule]]
permission = "deny"
action = "subscribe"
username = "bert"
topics = ["group/secret"]

[[rule]]
permission = "allow"
topics = ["#"]
"""


async def _connect(
    nodes: Nodes, node: str, username: str, client_id: str, version: int = V5, *, persistent: bool = False
) -> tuple[MqttClient, Connack]:
    client = await MqttClient.open(nodes[node].host, nodes[node].port, version)
    sent = properties(session_expiry_interval=600) if persistent and version == V5 else None
    packet = Connect(version, client_id, not persistent, 0, username, b"right", properties=sent)
    await client.send(packet)
    return client, await client.expect(Connack)


@pytest.mark.parametrize("version", [V311, V5])
async def test_g19_a_session_is_refused_to_others_on_all_nodes(
    start_cluster: StartCluster, tmp_path: Path, version: int
) -> None:
    nodes = await start_cluster("--authentication", users_file(tmp_path, "anna", "bert"))
    owner, connack = await _connect(nodes, "a", "anna", "c", version, persistent=True)
    assert connack.reason_code == 0
    await owner.subscribe("t", qos=1)
    for node in NAMES:
        for persistent in (False, True):
            other, connack = await _connect(nodes, node, "bert", "c", version, persistent=persistent)
            assert connack.reason_code == 0x87
            await other.close()
    sender, _ = await _connect(nodes, "b", "bert", "sender")
    await sender.publish("t", b"1", 1)
    await owner.take(b"1")  # it was not disturbed
    await owner.abort()
    other, connack = await _connect(nodes, "c", "bert", "c", version, persistent=True)
    assert connack.reason_code == 0x87
    await sender.publish("t", b"2", 1)
    owner, connack = await _connect(nodes, "b", "anna", "c", version, persistent=True)
    assert (connack.reason_code, connack.session_present) == (0, True)
    await owner.take(b"2")
    for client in (owner, sender, other):
        await client.close()


async def test_g18_a_change_of_the_rules_counts_on_all_nodes(start_cluster: StartCluster, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    nodes = await start_cluster(
        "--authentication", users_file(tmp_path, "anna", "bert"), "--authorization", f"rules_file?path={rules}"
    )
    annas = [(await _connect(nodes, node, "anna", f"anna-{node}"))[0] for node in NAMES]
    berts = [(await _connect(nodes, node, "bert", f"bert-{node}"))[0] for node in NAMES]
    for client in (*annas, *berts):
        await client.subscribe("secret", "open")
    rules.write_text(RULES.replace('"group/secret"', '"secret"'))
    for client in berts:
        told = await client.expect_disconnect(0x87, SOON_S)
        assert told.properties is not None
        assert "'secret'" in (told.properties.reason_string or "")
    sender, _ = await _connect(nodes, "a", "anna", "sender")
    await sender.publish("secret", b"x", 1)
    for client in annas:
        await client.take(b"x")
    for client in (*annas, *berts, sender):
        await client.close()


async def test_g14_messages_go_to_the_nodes_where_they_may_be_read(start_cluster: StartCluster, tmp_path: Path) -> None:
    """Members on all nodes; only that on c may read everything. What nobody may read is dropped after a few tries."""
    rules = tmp_path / "rules.toml"
    nobody = '[[rule]]\npermission = "deny"\naction = "subscribe"\ntopics = ["group/nobody"]\n'
    rules.write_text(nobody + RULES)
    nodes = await start_cluster(
        "--authentication", users_file(tmp_path, "anna", "bert"), "--authorization", f"rules_file?path={rules}"
    )
    users = {"a": "bert", "b": "bert", "c": "anna"}
    members = {node: (await _connect(nodes, node, user, f"m-{node}"))[0] for node, user in users.items()}
    for client in members.values():
        assert list((await client.subscribe("$share/g/group/#", qos=1)).reason_codes) == [1]
    sender, _ = await _connect(nodes, "a", "anna", "sender")
    count = 30
    for number in range(count):
        await sender.publish("group/secret", b"%d" % number, 1)
        await sender.publish("group/nobody", b"nobody", 1)
    got: list[bytes] = []
    with trio.fail_after(SOON_S):
        while len(got) < count:
            got.append((await members["c"].expect(Publish, SOON_S)).payload)
    assert sorted(got, key=int) == [b"%d" % number for number in range(count)]
    with trio.fail_after(SOON_S):
        sample = 'mqtt_messages_dropped_total{reason="not_authorized"}'
        while sum(metric(nodes[node], sample) for node in NAMES) < count:
            await trio.sleep(0.1)
    assert sum(metric(nodes[node], sample) for node in NAMES) == count
    for node in ("a", "b"):
        await members[node].expect_nothing()
    for client in (*members.values(), sender):
        await client.close()
