"""Operators ask any of three nodes and see all of them; what they change counts everywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from broker.codec.packets import Disconnect, Publish
from tests.integration.exchange import publish_many
from tests.kit.api import ADMIN, ADMIN_ARGUMENTS, PREFIX
from tests.kit.mqtt_client import DEADLINE_S, MqttClient
from tests.kit.redis_server import redis_server
from tests.multinode.conftest import NAMES, Everywhere, StartCluster, session
from tests.multinode.nodes import ALWAYS, Nodes

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes whose API can be used."""
    with redis_server(aof=True, options=ALWAYS) as store:
        url = f"redis://127.0.0.1:{store.address.port}/0"
        made = Nodes(tmp_path_factory.mktemp("nodes"), url, NAMES, ADMIN_ARGUMENTS)
        try:
            trio.run(made.start)
            yield made
        finally:
            made.stop()


class Api:
    """The API of the nodes: `await api("a", "GET", "/clients", limit=1)`."""

    def __init__(self, nodes: Nodes) -> None:
        self._clients = {
            name: httpx.AsyncClient(
                base_url=f"http://{nodes[name].http}{PREFIX}", auth=ADMIN, timeout=30, trust_env=False
            )
            for name in NAMES
        }

    async def raw(self, at: str, method: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        """The answer, whatever it is."""
        return await self._clients[at].request(method, path, json=body, params=query or None)

    async def __call__(self, at: str, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """What a successful answer holds."""
        answer = await self.raw(at, method, path, body, **query)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def until(self, wanted: Any, node: str, path: str, *keys: str | int) -> None:
        """Asks until the value below `keys` of the answer is as wanted."""
        found: Any = None
        with trio.move_on_after(DEADLINE_S):
            while True:
                answer = await self.raw(node, "GET", path)
                found = answer.json() if answer.is_success else {}
                try:
                    for key in keys:
                        found = found[key]
                except LookupError:
                    found = None
                if found == wanted:
                    return
                await trio.sleep(0.05)
        raise AssertionError(f"{path} of {node}: {found!r}, not {wanted!r}")

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()


@pytest.fixture
async def api(nodes: Nodes) -> AsyncIterator[Api]:
    made = Api(nodes)
    yield made
    await made.close()


async def test_clients_of_all_nodes_are_listed_in_parts(api: Api, at: Everywhere, topic: str) -> None:
    names = [f"{topic}-{number:02}" for number in range(12)]
    for number, name in enumerate(names):
        await at(NAMES[number % 3]).connect(client_id=name)
    offline = await session(at("b"), f"{topic}-99")
    await offline.close()
    await api.until(False, "a", f"/clients/{topic}-99", "connected")
    for node in NAMES:
        found: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            part = await api(node, "GET", "/clients", prefix=topic, limit=5, cursor=cursor)
            assert len(part["items"]) <= 5 and part["missing_nodes"] == []
            found += part["items"]
            cursor = part["cursor"]
        assert [each["client_id"] for each in found] == [*names, f"{topic}-99"]
        assert [each["node"] for each in found] == [*(NAMES[number % 3] for number in range(12)), ""]
    mine = await api("a", "GET", "/clients", prefix=topic, node="c")
    assert [each["client_id"] for each in mine["items"]] == names[2::3]


async def test_a_client_of_another_node_is_shown_and_disconnected(api: Api, at: Everywhere, topic: str) -> None:
    name = f"{topic}/x y"
    client = await session(at("b"), name)
    path = f"/clients/{quote(name, safe='')}"
    shown = await api("a", "GET", path)
    assert (shown["node"], shown["connected"], shown["persistent"]) == ("b", True, True)
    await api("c", "DELETE", path)
    assert (await client.expect(Disconnect)).reason_code == 0x98
    await api.until(False, "a", path, "connected")
    assert (await api.raw("a", "DELETE", path)).status_code == 404
    await session(at("c"), name, True)


async def test_subscribers_of_all_nodes_are_counted(api: Api, at: Everywhere, topic: str) -> None:
    live = await at("b").connect()
    await live.subscribe(f"{topic}/#", qos=0)
    stays = await session(at("c"), at("c").client_id())
    await stays.subscribe(f"{topic}/+", qos=1)
    for node in ("a", "b"):
        member = await at(node).connect()
        await member.subscribe(f"$share/g/{topic}/1", qos=1)
    for qos in (0, 1, 2):
        body = {"topic": f"{topic}/1", "payload": str(qos), "qos": qos}
        for node in NAMES:
            assert (await api(node, "POST", "/messages", body))["matched"] == 3
            assert (await live.expect(Publish)).payload == b"%d" % qos
    bulk = [{"topic": f"{topic}/2", "payload": "x"}, {"topic": f"{topic}/1", "qos": 1}]
    found = await api("a", "POST", "/messages/bulk", {"messages": bulk})
    assert [item["matched"] for item in found["items"]] == [2, 3]


async def test_who_subscribes_is_known_everywhere(api: Api, at: Everywhere, topic: str) -> None:
    clients: dict[str, str] = {}
    for node in NAMES:
        peers = at(node)
        clients[node] = f"{topic}-{node}"
        client = await peers.connect(client_id=clients[node])
        await client.subscribe(f"{topic}/#", qos=1)
    stays = await session(at("b"), f"{topic}-stays")
    await stays.subscribe(f"{topic}/#", qos=2)
    gone = await session(at("b"), f"{topic}-gone")
    await gone.subscribe(f"{topic}/#", qos=0)
    await gone.close()
    await api.until(False, "a", f"/clients/{topic}-gone", "connected")
    for node in NAMES:
        [listed] = (await api(node, "GET", "/topics", prefix=f"{topic}/"))["items"]
        assert listed == {"topic_filter": f"{topic}/#", "subscribers": 5, "persistent": 2, "nodes": ["a", "b", "c"]}
        shown = await api(node, "GET", f"/topics/{topic}/1")
        found = {(each["client_id"], each["node"], each["qos"]) for each in shown["items"]}
        assert found == {
            *((clients[each], each, 1) for each in NAMES),
            (f"{topic}-stays", "b", 2),
            (f"{topic}-gone", "", 0),
        }
        assert shown["total"] == 5
        part = await api(node, "GET", "/subscriptions", topic=f"{topic}/1")
        assert {(each["client_id"], each["node"]) for each in part["items"]} == {each[:2] for each in found}


async def test_subscriptions_on_behalf_count_everywhere_at_once(api: Api, at: Everywhere, topic: str) -> None:
    ephemeral = await at("b").connect(client_id=f"{topic}-e")
    persistent = await session(at("c"), f"{topic}-p")
    offline = await session(at("a"), f"{topic}-o")
    await offline.close()
    await api.until(False, "a", f"/clients/{topic}-o", "connected")
    publishers = {node: await at(node).connect() for node in NAMES}
    for which in ("e", "p", "o"):
        path = f"/clients/{topic}-{which}/subscriptions"
        await api("a", "POST", path, {"topic_filter": f"{topic}/{which}", "qos": 1})
        for node in NAMES:
            await publish_many(publishers[node], f"{topic}/{which}", [node.encode()], 1)
        items = (await api("b", "GET", path))["items"]
        assert [(each["topic_filter"], each["qos"]) for each in items] == [(f"{topic}/{which}", 1)]
        await api("c", "DELETE", path, topic_filter=f"{topic}/{which}")
        for node in NAMES:
            await publish_many(publishers[node], f"{topic}/{which}", [b"too late"], 1)
        assert (await api.raw("a", "DELETE", path, topic_filter=f"{topic}/{which}")).status_code == 404
    back = await session(at("b"), f"{topic}-o", True)
    for client in (ephemeral, persistent, back):
        client.auto_ack = True
        payloads = [message.payload for message in await client.collect(Publish, 3)]
        assert sorted(payloads) == [b"a", b"b", b"c"]
        await client.expect_nothing()


async def test_a_session_is_looked_into_and_ended_from_elsewhere(api: Api, at: Everywhere, topic: str) -> None:
    client = await session(at("b"), f"{topic}-s", receive_maximum=1)
    client.auto_ack = False
    await client.subscribe(f"{topic}/#", qos=1)
    publisher = await at("c").connect()
    await publish_many(publisher, f"{topic}/t", [b"%d" % number for number in range(5)], 1)
    await client.expect(Publish)
    shown = await api("a", "GET", f"/sessions/{topic}-s")
    assert (shown["node"], shown["connected"], shown["queued"]) == ("b", True, 5)
    part = await api("a", "GET", f"/sessions/{topic}-s/messages", limit=3)
    assert [item["payload"] for item in part["items"]] == ["0", "1", "2"]
    rest = await api("c", "GET", f"/sessions/{topic}-s/messages", limit=3, cursor=part["cursor"])
    assert [item["payload"] for item in rest["items"]] == ["3", "4"] and rest["cursor"] is None
    await api("a", "DELETE", f"/sessions/{topic}-s")
    assert (await client.expect(Disconnect)).reason_code == 0x98
    for node in NAMES:
        assert (await api.raw(node, "GET", f"/sessions/{topic}-s")).status_code == 404
        assert (await api(node, "POST", "/messages", {"topic": f"{topic}/t"}))["matched"] == 0
    await session(at("c"), f"{topic}-s", False)


async def test_retained_messages_are_removed_everywhere(api: Api, at: Everywhere, topic: str) -> None:
    for number in range(30):
        body = {"topic": f"{topic}/{number % 3}/{number}", "payload": "x", "retain": True, "qos": 1}
        await api(NAMES[number % 3], "POST", "/messages", body)
    for node in NAMES:
        for place in range(3):
            await api.until(10, node, f"/retained/tree?prefix={topic}", "items", place, "below")
    for node in NAMES:
        tree = await api(node, "GET", "/retained/tree", prefix=topic)
        assert [(each["level"], each["below"]) for each in tree["items"]] == [("0", 10), ("1", 10), ("2", 10)]
    assert (await api("a", "GET", f"/retained/messages/{topic}/1/1"))["payload"] == "x"
    await api("b", "DELETE", f"/retained/messages/{topic}/1/1")
    await api.until(9, "c", f"/retained/tree?prefix={topic}", "items", 1, "below")
    swept = await api("c", "DELETE", "/retained", topic_filter=f"{topic}/#", limit=1000)
    assert swept == {"deleted": 29, "cursor": None}
    for node in NAMES:
        await api.until([], node, f"/retained?topic_filter={topic}/%23", "items")
        late = await at(node).connect()
        await late.subscribe(f"{topic}/#", qos=1)
        await late.expect_nothing()


async def test_a_client_of_another_node_answers(api: Api, at: Everywhere, topic: str) -> None:
    async def answer(client: MqttClient) -> None:
        question = await client.expect(Publish)
        assert question.properties is not None and question.properties.response_topic is not None
        reply = Publish(question.properties.response_topic, b"42", 0, False, False, 0, question.properties)
        question.properties.response_topic = None
        await client.send(reply)

    for asked, answering in (("a", "b"), ("b", "b"), ("c", "a")):
        client = await at(answering).connect()
        await client.subscribe(f"{topic}/{asked}", qos=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, client)
            found = await api(asked, "POST", "/requests", {"topic": f"{topic}/{asked}", "payload": "6*7"})
        assert found["payload"] == "42"
    late = await api.raw("a", "POST", "/requests", {"topic": f"{topic}/b", "timeout_s": 0.2})
    assert late.status_code == 504


async def test_groups_stats_and_settings_of_all(api: Api, at: Everywhere, topic: str) -> None:
    for node in NAMES:
        member = await at(node).connect()
        await member.subscribe(f"$share/g/{topic}", qos=1)
    for node in NAMES:
        [group] = (await api(node, "GET", "/groups", prefix=f"$share/g/{topic}"))["items"]
        assert group["members_by_node"] == {"a": 1, "b": 1, "c": 1}
        shown = await api(node, "GET", f"/groups/{quote(f'$share/g/{topic}', safe='')}")
        assert {member["node"] for member in shown["items"]} == set(NAMES)
    stats = await api("a", "GET", "/stats")
    assert set(stats["nodes"]) == set(NAMES)
    for name in ("connections", "messages_in_per_s"):
        total = sum(numbers[name] for numbers in stats["nodes"].values())
        assert abs(stats["cluster"][name] - total) < 0.5
    assert (await api("a", "GET", "/settings", node="b"))["node"] == "b"
    levels = await api("b", "PUT", "/logs/level", {"level": "warning", "node": "c"})
    assert [(each["node"], each["level"]) for each in levels["items"]] == [("c", "warning")]
    levels = await api("a", "PUT", "/logs/level", {"level": "info"})
    assert [(each["node"], each["level"]) for each in levels["items"]] == [(node, "info") for node in NAMES]


async def test_a_ban_counts_everywhere(api: Api, at: Everywhere, topic: str) -> None:
    client = await at("b").connect(client_id=f"{topic}-1")
    await api("a", "POST", "/bans", {"kind": "client_id_prefix", "value": f"{topic}-", "for_s": 60})
    await client.expect(Disconnect)
    path = f"/bans/client_id_prefix/{topic}-"
    assert [each["value"] for each in (await api("c", "GET", "/bans", prefix=topic))["items"]] == [f"{topic}-"]
    await api("c", "DELETE", path)
    assert (await api.raw("b", "DELETE", path)).status_code == 404


async def test_a_node_is_drained_and_comes_back(api: Api, at: Everywhere, topic: str) -> None:
    client = await session(at("b"), f"{topic}-s")
    await api("a", "POST", "/nodes/b/drain")
    assert (await client.expect(Disconnect)).reason_code == 0x8B
    shown = {node["node"]: node["status"] for node in (await api("c", "GET", "/nodes"))["items"]}
    assert shown == {"a": "ready", "b": "draining", "c": "ready"}
    with pytest.raises(OSError, match="failed"):
        await at("b").connect()
    # It still answers, and works for others.
    assert (await api("b", "GET", f"/clients/{topic}-s"))["connected"] is False
    await api("c", "POST", "/nodes/b/undrain")
    await api.until("ready", "a", "/nodes/b", "status")
    await session(at("b"), f"{topic}-s", True)
    assert (await api.raw("a", "POST", "/nodes/x/drain")).status_code == 404


@pytest.mark.timeout(120)
async def test_a_node_that_does_not_answer_is_named(start_cluster: StartCluster, at_own: Everywhere) -> None:
    nodes = await start_cluster(*ADMIN_ARGUMENTS)
    at_own.nodes = nodes
    api = Api(nodes)
    try:
        await at_own("a").connect(client_id="one")
        await at_own("c").connect(client_id="two")
        stays = await session(at_own("c"), "stays")
        await stays.subscribe("t/#", qos=1)
        nodes.pause("c")
        answers: dict[str, Any] = {}

        async def ask(path: str) -> None:
            answers[path] = await api("a", "GET", path)

        async with trio.open_nursery() as nursery:  # all at once: soon the node counts as gone
            for path in ("/clients", "/nodes", "/clients/stays", "/clients/stays/subscriptions"):
                nursery.start_soon(ask, path)
        found = answers["/clients"]
        assert [each["client_id"] for each in found["items"]] == ["one", "stays"] and found["missing_nodes"] == ["c"]
        statuses = {each["node"]: each["status"] for each in answers["/nodes"]["items"]}
        assert statuses == {"a": "ready", "b": "ready", "c": "does not answer"}
        shown = answers["/clients/stays"]
        assert (shown["connected"], shown["node"], shown["ip"], shown["missing_nodes"]) == (True, "c", None, ["c"])
        kept = answers["/clients/stays/subscriptions"]
        assert [each["topic_filter"] for each in kept["items"]] == ["t/#"] and kept["missing_nodes"] == ["c"]
        nodes.wake("c")
    finally:
        await api.close()
