"""Operators see subscriptions and change them on behalf of clients; they see who gets what."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from broker.access import Access
from broker.codec.packets import Publish, SubscriptionRequest
from broker.config import load
from broker.options.listener import ListenerOptions
from broker.session.quotas import Quotas
from tests.node.admin_kit import Desk, desk


async def _listed(ask: Desk, **filters: Any) -> list[tuple[str, str]]:
    return [(each["client_id"], each["topic_filter"]) for each in await ask.all("subscriptions.list", **filters)]


async def test_subscriptions_of_all_are_listed(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.subscriber("live", "a/+", "b", "$share/g/a/b")
        gone = await ask.world.subscriber("gone", "a/b", "c/#", expiry_s=100)
        gone.socket.finish()
        await ask.world.settle()
        everything = [
            ("gone", "a/b"),
            ("gone", "c/#"),
            ("live", "$share/g/a/b"),
            ("live", "a/+"),
            ("live", "b"),
        ]
        assert await _listed(ask) == everything
        assert await _listed(ask, limit=2) == everything
        assert await _listed(ask, topic="a/b") == [("gone", "a/b"), ("live", "$share/g/a/b"), ("live", "a/+")]
        assert await _listed(ask, client_id="gone") == everything[:2]
        assert await _listed(ask, share="g") == [("live", "$share/g/a/b")]
        assert await _listed(ask, topic_filter="c/#") == [("gone", "c/#")]
        assert await _listed(ask, prefix="a/") == [("gone", "a/b"), ("live", "$share/g/a/b"), ("live", "a/+")]
        assert await _listed(ask, topic="a/b", client_id="nobody") == []
        assert (await ask.refused("subscriptions.list", topic="a/#"))[0] == 400
        by_client = {(each["client_id"], each["node"]) for each in await ask.items("subscriptions.list")}
        assert by_client == {("gone", ""), ("live", "a")}


async def test_subscriptions_of_a_client(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.connect("c", expiry_s=100)
        await peer.subscribe(SubscriptionRequest("b", 1, True, True, 2), SubscriptionRequest("a", 0))
        await peer.received()
        expected = [
            {
                "topic_filter": "a",
                "qos": 0,
                "no_local": False,
                "retain_as_published": False,
                "retain_handling": 0,
                "subscription_identifier": None,
            },
            {
                "topic_filter": "b",
                "qos": 1,
                "no_local": True,
                "retain_as_published": True,
                "retain_handling": 2,
                "subscription_identifier": None,
            },
        ]
        assert (await ask("subscriptions.of_client", client_id="c"))["items"] == expected
        peer.socket.finish()
        await ask.world.settle()
        assert (await ask("subscriptions.of_client", client_id="c"))["items"] == expected
        assert (await ask.refused("subscriptions.of_client", client_id="d"))[0] == 404


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_a_connected_client_is_subscribed(expiry_s: int, autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.connect("c", expiry_s=expiry_s)
        await ask("messages.publish", topic="t/1", payload="kept", retain=True, qos=1)
        made = await ask("subscriptions.add", client_id="c", topic_filter="t/+", qos=1, subscription_identifier=7)
        assert (made["topic_filter"], made["qos"], made["subscription_identifier"]) == ("t/+", 1, 7)
        [retained] = await peer.consume()  # and no SUBACK
        assert (retained.payload, retained.retain) == (b"kept", True)
        await ask("messages.publish", topic="t/2", payload="new", qos=1)
        [live] = await peer.consume()
        assert live.payload == b"new" and live.properties is not None
        assert live.properties.subscription_identifiers == [7]
        assert await ask("subscriptions.remove", client_id="c", topic_filter="t/+") is None
        await ask("messages.publish", topic="t/3", payload="none", qos=1)
        await peer.nothing()
        assert (await ask.refused("subscriptions.remove", client_id="c", topic_filter="t/+"))[0] == 404


async def test_a_client_that_is_not_connected_is_subscribed(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.connect("c", expiry_s=100)
        peer.socket.finish()
        await ask.world.settle()
        await ask("subscriptions.add", client_id="c", topic_filter="t/+", qos=1)
        assert (await ask("messages.publish", topic="t/1", payload="x", qos=1))["matched"] == 1
        await ask("subscriptions.remove", client_id="c", topic_filter="t/+")
        assert (await ask("messages.publish", topic="t/1", payload="y", qos=1))["matched"] == 0
        back = await ask.world.connect("c", clean_start=False, expiry_s=100)
        assert [message.payload for message in await back.consume()] == [b"x"]
        assert (await ask.refused("subscriptions.remove", client_id="c", topic_filter="t/+"))[0] == 404


@pytest.mark.parametrize("connected", [True, False])
async def test_what_clients_may_not_operators_may_not_for_them(connected: bool, autojump_clock: object) -> None:
    quotas = Quotas(wildcard_available=False, max_subscriptions=1, max_topic_levels=3)
    async with desk(quotas) as ask:
        peer = await ask.world.connect("c", expiry_s=100)
        if not connected:
            peer.socket.finish()
            await ask.world.settle()

        async def refused(topic_filter: str, **more: Any) -> int:
            return (await ask.refused("subscriptions.add", client_id="c", topic_filter=topic_filter, **more))[0]

        assert await refused("a/#") == 422
        assert await refused("a/#/b") == 400
        assert await refused("") == 400
        assert await refused("a/b/c/d") == 400
        assert await refused("$share/g/a", no_local=True) == 400
        await ask("subscriptions.add", client_id="c", topic_filter="one")
        assert await refused("two") == 422
        await ask("subscriptions.add", client_id="c", topic_filter="one", qos=2)
        assert [each["qos"] for each in (await ask("subscriptions.of_client", client_id="c"))["items"]] == [2]
        assert (await ask.refused("subscriptions.add", client_id="d", topic_filter="one"))[0] == 404


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("topic_filter", ["$rookery/#", "$rookery", "$share/g/$rookery/#", "$SYS/#", "$share/g/$SYS/+"])
async def test_what_is_not_for_clients_operators_give_to_none(
    topic_filter: str, connected: bool, autojump_clock: object
) -> None:
    async with desk(system_open=False) as ask:
        peer = await ask.world.connect("c", expiry_s=100)
        if not connected:
            peer.socket.finish()
            await ask.world.settle()
        assert (await ask.refused("subscriptions.add", client_id="c", topic_filter=topic_filter, qos=1))[0] == 403
        assert (await ask("subscriptions.of_client", client_id="c"))["items"] == []


@pytest.mark.parametrize("topic_filter", ["$rookery/#", "$share/g/$rookery/#"])
async def test_topics_of_the_nodes_are_private_whatever_is_open(topic_filter: str, autojump_clock: object) -> None:
    async with desk(system_open=True) as ask:
        peer = await ask.world.connect("c", expiry_s=100)
        peer.socket.finish()
        await ask.world.settle()
        assert (await ask.refused("subscriptions.add", client_id="c", topic_filter=topic_filter))[0] == 403
        await ask("subscriptions.add", client_id="c", topic_filter="$SYS/#")
        assert await _listed(ask) == [("c", "$SYS/#")]


async def test_rules_count_for_operators_too(tmp_path: Any, autojump_clock: object) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\npermission = "deny"\naction = "subscribe"\ntopics = ["secret/#"]\n')
    config = tmp_path / "rookery.toml"
    config.write_text(f'no_match = "allow"\n[[authorization]]\ntype = "rules_file"\npath = "{rules}"\n')
    settings = load({}, {}, config).settings
    async with desk(access=Access(settings, None)) as ask:
        await ask.world.connect("c")
        assert (await ask.refused("subscriptions.add", client_id="c", topic_filter="secret/x"))[0] == 403
        await ask("subscriptions.add", client_id="c", topic_filter="open/x")
        peer = await ask.world.connect("d", expiry_s=100)
        peer.socket.finish()
        await ask.world.settle()
        await ask("subscriptions.add", client_id="d", topic_filter="secret/x", qos=1)
        await ask("subscriptions.add", client_id="d", topic_filter="open/x", qos=1)
        for topic in ("secret/x", "open/x"):
            assert (await ask("messages.publish", topic=topic, payload="x", qos=1))["matched"] == 1 + (topic[0] == "o")
        back = await ask.world.connect("d", clean_start=False, expiry_s=100)
        assert [message.topic_name for message in await back.consume()] == ["open/x"]  # not what was queued, either
        assert await _listed(ask, client_id="d") == [("d", "open/x")]


async def test_a_change_waits_for_that_of_the_client(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.connect("c", expiry_s=100)
        ask.world.cluster.subscribing.shut()
        await peer.subscribe("a")
        pending = await ask.meanwhile("subscriptions.add", client_id="c", topic_filter="b")
        assert not pending.done.is_set()
        ask.world.cluster.subscribing.open()
        await pending.done.wait()
        assert pending.error is None
        assert await _listed(ask) == [("c", "a"), ("c", "b")]
        # A client that sends meanwhile is served afterwards.
        ask.world.cluster.subscribing.shut()
        pending = await ask.meanwhile("subscriptions.add", client_id="c", topic_filter="d")
        await peer.received()
        await peer.send(Publish("x", b"1", 1, False, False, 9))
        await peer.nothing()
        ask.world.cluster.subscribing.open()
        await pending.done.wait()
        assert len(await peer.received()) == 1


async def test_topics_have_subscribers(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.subscriber("live", "a/+", "b")
        await ask.world.subscriber("stays", "a/+", expiry_s=100)
        gone = await ask.world.subscriber("gone", "a/+", "c/#", expiry_s=100)
        gone.socket.finish()
        await ask.world.settle()
        found = await ask.all("topics.list", limit=1)
        assert found == [
            {"topic_filter": "a/+", "subscribers": 3, "persistent": 2, "nodes": ["a"]},
            {"topic_filter": "b", "subscribers": 1, "persistent": 0, "nodes": ["a"]},
            {"topic_filter": "c/#", "subscribers": 1, "persistent": 1, "nodes": []},
        ]
        assert await ask.items("topics.list", prefix="a/") == found[:1]


async def test_who_gets_a_message(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.subscriber("live", "a/+", "a/#", qos=1)
        gone = await ask.world.subscriber("gone", "a/b", expiry_s=100)
        gone.socket.finish()
        await ask.world.subscriber("member", "$share/g/a/b")
        await ask.world.settle()
        found = await ask("topics.show", topic="a/b")
        shown = [(each["client_id"], each["connected"], each["persistent"], each["qos"]) for each in found["items"]]
        assert shown == [("gone", False, True, 2), ("live", True, False, 1)]
        assert found["total"] == 2 and found["refusal"] is None
        assert found["groups"] == [{"topic_filter": "$share/g/a/b", "strategy": "round_robin", "nodes": ["a"]}]
        assert (await ask("topics.show", topic="a/b", limit=1))["total"] == 2
        assert (await ask("topics.show", topic="$SYS/x"))["refusal"]
        for topic in ("a/#", "a\0", "\ud800"):
            assert (await ask.refused("topics.show", topic=topic))[0] == 400


async def test_the_node_itself_is_no_subscriber(autojump_clock: object) -> None:
    async with desk() as ask, ask.office.inside.subscription("#"):
        assert await _listed(ask) == []
        assert await ask.items("topics.list") == []
        assert (await ask("topics.show", topic="a"))["total"] == 0
        assert (await ask("messages.publish", topic="a"))["matched"] == 0
        assert await ask.items("clients.list") == []


async def test_filters_are_the_real_ones(autojump_clock: object) -> None:
    async with desk() as ask:
        mounted = ListenerOptions(mountpoint="m/${clientid}/")
        ask.world.listener = dataclasses.replace(ask.world.listener, options=mounted)
        peer = await ask.world.subscriber("c", "own")
        await ask("subscriptions.add", client_id="c", topic_filter="m/c/new/#", qos=1)
        await ask("subscriptions.add", client_id="c", topic_filter="$share/g/m/c/job")
        assert (await ask.refused("subscriptions.add", client_id="c", topic_filter="new/#"))[0] == 422
        filters = ["$share/g/m/c/job", "m/c/new/#", "m/c/own"]
        assert [
            each["topic_filter"] for each in (await ask("subscriptions.of_client", client_id="c"))["items"]
        ] == filters
        assert (await ask("messages.publish", topic="m/c/new/1", payload="x"))["matched"] == 1
        assert [(message.topic_name, message.payload) for message in await peer.publishes()] == [("new/1", b"x")]
        for topic_filter in filters:
            await ask("subscriptions.remove", client_id="c", topic_filter=topic_filter)
        assert await _listed(ask) == []
        assert (await ask("clients.show", client_id="c"))["mountpoint"] == "m/c/"
