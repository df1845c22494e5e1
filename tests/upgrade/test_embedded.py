"""The data folder of the release before opens in this version, and the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.codec.packets import Publish
from tests.conformance.peers import Peers
from tests.integration.logins import WELCOME, login
from tests.kit.api import ADMIN_ARGUMENTS, admin_of
from tests.kit.broker_process import BrokerProcess
from tests.multinode.nodes import LOOPBACK
from tests.upgrade.previous import Release
from tests.upgrade.stored import CLIENTS, TOPICS, expect_all, furnish

ARGUMENTS = ("--node-name", "a", *ADMIN_ARGUMENTS, "--authentication", "store", "--allow-anonymous")


async def put(node: BrokerProcess) -> None:
    """One of everything that `furnish` leaves out."""
    with admin_of(node) as admin:
        assert admin.put("/users/ann", json={"password": "one"}).is_success
        assert admin.post("/bans", json={"kind": "client_id", "value": "banned"}).is_success
        assert admin.put("/rules/10", json={"rule": {"permission": "deny", "topics": ["no/#"]}}).is_success
        assert admin.post("/messages", json={"topic": "$delayed/3600/later", "payload": "x", "qos": 2}).is_success
    peers = Peers(node.host, node.port, "t")
    member = await peers.connect(client_id="member", persistent=True)
    await member.subscribe("$share/g/work/#", qos=2)
    await member.close()
    publisher = await peers.connect()
    for number in range(10):
        await publisher.publish("work/1", b"%d" % number, 2)
    await peers.close()


def told(node: BrokerProcess) -> dict[str, Any]:
    """What operators see of it."""
    with admin_of(node) as admin:

        def items(path: str, *names: str) -> list[Any]:
            found = admin.get(path, params={"limit": 500}).json()["items"]
            return [tuple(each[name] for name in names) for each in found]

        return {
            "users": items("/users", "username"),
            "bans": items("/bans", "kind", "value"),
            "rules": items("/rules", "name", "rule"),
            "delayed": items("/delayed", "id", "topic", "due_at_ms"),
            "sessions": items("/sessions", "client_id", "expiry_s", "subscriptions", "queued", "queued_bytes"),
            "retained": items("/retained", "topic"),
        }


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_the_folder_of_the_release_before(previous: Release, tmp_path: Path, end: str) -> None:
    folder = tmp_path / "node"
    before = previous.node(folder, "embedded", arguments=ARGUMENTS, http=LOOPBACK)
    after = BrokerProcess(folder, "embedded", http=LOOPBACK, arguments=ARGUMENTS)
    before.start()
    try:
        await furnish(before)
        await put(before)
        known = told(before)
        assert len(known["sessions"]) == len(CLIENTS) + 1 and len(known["retained"]) == len(TOPICS)
        if end == "killed":
            before.kill()
        else:
            assert before.terminate() == 0
        after.start()
        assert told(after) == known
        await expect_all(after)
        assert await login(after, "ann", "one") == WELCOME
        peers = Peers(after.host, after.port, "t")
        member = await peers.connect(client_id="member", persistent=True)
        assert [each.payload for each in await member.collect(Publish, 10)] == [b"%d" % number for number in range(10)]
        await peers.close()
        with admin_of(after) as admin:
            assert admin.put("/users/bob", json={"password": "two"}).is_success
        assert after.terminate() == 0
        # And back.
        before.start()
        assert await login(before, "bob", "two") == WELCOME
        assert told(before)["delayed"] == known["delayed"]
    finally:
        before.stop()
        after.stop()
