"""Nodes of the release before are replaced one by one, and one of them goes back, under load: nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio

from broker import __version__
from broker.codec.packets import V5, Connect, Publish
from cluster import layout
from tests.fault.world import World, endure
from tests.history import availability
from tests.history.client import Profile, RecordedClient
from tests.history.run import require
from tests.history.workload import HOUR_S, Mix
from tests.integration.logins import WELCOME, WRONG, login
from tests.kit.api import ADMIN, ADMIN_ARGUMENTS, PREFIX
from tests.kit.broker_process import ROOT, BrokerProcess
from tests.kit.mqtt_client import MqttClient
from tests.multinode.nodes import LOOPBACK, SOON_S, Nodes
from tests.upgrade.previous import Release

pytestmark = pytest.mark.timeout(300)

ARGUMENTS = (*ADMIN_ARGUMENTS, "--authentication", "store", "--authorization", "store", "--allow-anonymous")

BANNED: Final = 0x8A
DENIED: Final = 0x87

#: By name: permission, action, topics.
RULES: Final = {"10": ("deny", "publish", "no/#"), "90": ("allow", "all", "#")}

#: Little enough for any machine: what matters is what happens beside it.
LOAD: Final = Mix(rate=40.0, group_rate=15.0, retained_rate=2.0, delayed_rate=1.0, churn=0.0)

#: Away from the beginning to the end: what comes for it meanwhile waits in the store.
AWAY: Final = "sub-away"


class Upgrade:
    """Which release each node runs, and what operators ask meanwhile."""

    def __init__(self, previous: Release) -> None:
        self.previous = previous
        self.versions: dict[str, str] = {}
        self._made = 0
        self._key = ""
        self._delayed = ""

    def prepare(self, nodes: Nodes) -> None:
        """All nodes begin with the release before, which finds rules that its own command has put there."""
        for name, rule in RULES.items():
            self.previous.rookery("ctl", "rules", "add", "--store", nodes.store_url, name, *rule)
        nodes.make = lambda name, url: self._make(nodes, name, url, self.previous.version)

    def _make(self, nodes: Nodes, name: str, url: str, version: str) -> BrokerProcess:
        self._made += 1
        self.versions[name] = version
        folder = nodes.folder / f"{name}-{self._made}-{version}"
        arguments = ("--node-name", name, *nodes.arguments)
        if version == self.previous.version:
            return self.previous.node(folder, url, arguments=arguments, http=LOOPBACK)
        return BrokerProcess(folder, url, http=LOOPBACK, arguments=arguments)

    async def ask(
        self, node: BrokerProcess, method: str, path: str, body: Any = None, token: str = "", **query: Any
    ) -> Any:
        """What a successful answer of a node holds; `token` of a key other than that of the administrator."""
        async with httpx.AsyncClient(base_url=f"http://{node.http}{PREFIX}", timeout=30, trust_env=False) as client:
            headers, auth = ({"Authorization": f"Bearer {token}"}, None) if token else ({}, ADMIN)
            answer = await client.request(method, path, json=body, params=query or None, headers=headers, auth=auth)
        assert answer.is_success, f"{method} {path}: {answer.text}"
        return answer.json() if answer.content else None

    async def furnish(self, world: World) -> RecordedClient:
        """Everything that operators keep in the store, put there through a node of the release before."""
        node = world.nodes["a"]
        await self.ask(node, "PUT", "/users/ann", {"password": "one", "attributes": {"site": "bern"}})
        await self.ask(node, "POST", "/bans", {"kind": "client_id", "value": "banned", "reason": "a test"})
        self._key = (await self.ask(node, "POST", "/keys", {"name": "looking", "scope": "viewer"}))["token"]
        await self.ask(node, "POST", "/messages", {"topic": "still/there", "payload": "x", "retain": True, "qos": 1})
        await self.ask(node, "POST", "/messages", {"topic": "$delayed/3600/much/later", "payload": "y", "qos": 1})
        self._delayed = await self._much_later(node)
        away = world.run.client(AWAY, "a", Profile(expiry_s=HOUR_S, subscriptions=(("load/pub-2-0/2", 2),)))
        await world.run.ready(away)
        away.leave()
        with trio.fail_after(SOON_S):
            while not (await self.ask(node, "GET", f"/sessions/{AWAY}"))["queued"]:
                await trio.sleep(0.05)
        return away

    async def _much_later(self, node: BrokerProcess) -> str:
        """The id of the message that stays delayed all the time."""
        items = (await self.ask(node, "GET", "/delayed", limit=500))["items"]
        [found] = [each["id"] for each in items if each["topic"] == "much/later"]
        return str(found)

    async def replace(self, world: World, name: str, version: str) -> None:
        """Drain a node as an operator does, through another one; end it; start one of that version in its place."""
        nodes = world.nodes
        world.run.history.fault(f"{self.versions[name]} is replaced by {version}", name)
        nodes.live.remove(name)
        other = nodes[nodes.live[0]]
        await self.ask(other, "POST", f"/nodes/{name}/drain")
        with trio.fail_after(SOON_S):
            while (await self.ask(other, "GET", f"/nodes/{name}"))["connections"]:
                await trio.sleep(0.1)
        assert await nodes.terminate(name) == 0, nodes[name].log()
        del nodes.processes[name]
        nodes.make = lambda name, url: self._make(nodes, name, url, version)
        await nodes.start(name)

    def look(self, store_url: str) -> None:
        """`rookery store status` tells of members of both versions; those of 0.1 do not tell theirs."""
        command = [sys.executable, "-m", "broker", "store", "status", "--json", "--store", store_url]
        shown = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
        known = {each["node"]: each["version"] for each in shown["members"]}
        assert known == {
            name: "0.1.x" if version.startswith("0.1.") else version for name, version in self.versions.items()
        }
        old = any(version.startswith("0.1.") for version in self.versions.values())
        assert (shown["layout"], shown["level"]) == ("1", 1 if old else layout.FEATURES)

    async def inquire(self, world: World) -> None:
        """A node of each version answers for all of them, and has what operators put there."""
        for name in {self.versions[name]: name for name in sorted(world.nodes.live)}.values():
            await self._inquire(world, world.nodes[name])

    async def _inquire(self, world: World, node: BrokerProcess) -> None:
        listed = (await self.ask(node, "GET", "/nodes"))["items"]
        assert {each["node"]: each["version"] for each in listed} == self.versions
        clients = await self.ask(node, "GET", "/clients", token=self._key, limit=1000)
        assert clients["missing_nodes"] == [] and AWAY in [each["client_id"] for each in clients["items"]]
        homes = {each["node"] for each in clients["items"] if each["connected"]}
        assert homes <= set(self.versions) and len(homes) > 1, homes
        for client in ("sub-persistent-1", "sub-persistent-v3"):
            assert (await self.ask(node, "GET", f"/sessions/{client}"))["expiry_s"] > 0
        assert (await self.ask(node, "GET", f"/sessions/{AWAY}"))["queued"] > 0
        assert (await self.ask(node, "GET", "/groups"))["items"]
        assert (await self.ask(node, "GET", "/topics/load/x/1"))["total"] > 0
        assert (await self.ask(node, "GET", "/retained/messages/still/there"))["payload"] == "x"
        assert await self._much_later(node) == self._delayed
        assert (await self.ask(node, "GET", "/users/ann"))["attributes"] == {"site": "bern"}
        assert [each["name"] for each in (await self.ask(node, "GET", "/rules"))["items"]] == [*RULES]
        assert [each["value"] for each in (await self.ask(node, "GET", "/bans"))["items"]] == ["banned"]
        assert "looking" in [each["name"] for each in (await self.ask(node, "GET", "/keys"))["items"]]
        assert await login(node, "ann", "one") == WELCOME
        assert await login(node, "ann", "two") == WRONG
        assert await login(node, None, None, "banned") == BANNED
        for name in {self.versions[name]: name for name in sorted(world.nodes.live)}.values():
            there = world.nodes[name]
            async with await MqttClient.open(there.host, there.port) as reader:
                await reader.connect(Connect(V5, "", True, 60))
                await reader.subscribe("ops/#", qos=1)
                assert (await self.ask(node, "POST", "/messages", {"topic": "ops/1", "qos": 1}))["matched"] == 1
                await reader.expect(Publish)
                assert await reader.publish("no/entry", b"", 1) == DENIED


async def test_one_after_the_other_and_back(previous: Release, tmp_path: Path) -> None:
    upgrade = Upgrade(previous)
    old, new = previous.version, __version__

    async def fault(world: World) -> None:
        away = await upgrade.furnish(world)
        world.begin("rolling upgrade")
        await upgrade.inquire(world)
        for name, version in (("a", new), ("b", new), ("c", new), ("b", old), ("b", new)):
            await upgrade.replace(world, name, version)
            if name != "b" or version == old:
                await upgrade.inquire(world)
                await trio.to_thread.run_sync(upgrade.look, world.nodes.store_url)
        await upgrade.inquire(world)
        world.end("all upgraded")
        assert upgrade.versions == dict.fromkeys(("a", "b", "c"), new)
        away.come_back()

    _, timeline, problems = await endure(
        tmp_path, fault, mix=LOAD, prepare=upgrade.prepare, arguments=ARGUMENTS, before_s=0.5
    )
    # Node b was stopped three times.
    require(problems + availability.disconnections(timeline, {"a": 1, "b": 3, "c": 1}))
