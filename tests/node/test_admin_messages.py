"""Operators publish, ask clients, handle retained messages, and see what waits in groups and for its time."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import trio

from broker.codec.packets import Properties, Publish, SubscriptionRequest
from broker.session.quotas import Quotas
from tests.node.admin_kit import desk


async def test_subscribers_are_counted(autojump_clock: object) -> None:
    async with desk() as ask:
        live = await ask.world.subscriber("live", "t/#", "t/+", qos=0)
        gone = await ask.world.subscriber("gone", "t/1", expiry_s=100)
        gone.socket.finish()
        await ask.world.subscriber("member1", "$share/g/t/1")
        await ask.world.subscriber("member2", "$share/g/t/1")
        for qos in (0, 1, 2):
            found = await ask("messages.publish", topic="t/1", payload="hello", qos=qos)
            assert found["matched"] == 3 and found["missing_nodes"] == []
            assert (found["message_id"] is not None) == (qos == 2)
        assert ask.world.metrics.api_messages == [1, 1, 1]
        assert ask.world.metrics.messages_received == [0, 0, 0]  # by clients
        assert [message.payload for message in await live.publishes()] == [b"hello"] * 3
        assert (await ask("messages.publish", topic="other"))["matched"] == 0
        back = await ask.world.connect("gone", clean_start=False, expiry_s=100)
        assert len(await back.consume()) == 2


async def test_properties_and_payloads_arrive(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("c", "t")
        await ask(
            "messages.publish",
            topic="t",
            payload=base64.b64encode(b"\x00\xff").decode(),
            payload_encoding="base64",
            qos=1,
            properties={
                "content_type": "x/y",
                "response_topic": "back",
                "correlation_data": base64.b64encode(b"id").decode(),
                "user_properties": [["a", "1"], ["a", "2"]],
                "message_expiry_interval": 60,
                "payload_format_indicator": 0,
            },
        )
        [message] = await peer.consume()
        assert message.payload == b"\x00\xff" and message.properties is not None
        properties = message.properties
        assert (properties.content_type, properties.response_topic) == ("x/y", "back")
        assert properties.correlation_data == b"id" and properties.message_expiry_interval == 60
        assert list(properties.user_properties) == [("a", "1"), ("a", "2")]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"topic": ""}, 400),
        ({"topic": "a/#"}, 400),
        ({"topic": "a\0"}, 400),
        ({"topic": "\ud800"}, 400),
        ({"topic": "a/" * 10}, 400),
        ({"topic": "$SYS/x"}, 403),
        ({"topic": "$rookery/ask"}, 403),
        ({"topic": "$share/g/a"}, 400),
        ({"topic": "$delayed/x/a"}, 400),
        ({"topic": "a", "qos": 3}, 400),
        ({"topic": "a", "qos": 2}, 400),
        ({"topic": "a", "payload": "x" * 2000}, 413),
        ({"topic": "a", "payload": "?", "payload_encoding": "base64"}, 400),
        (
            {
                "topic": "a",
                "payload": "/w==",
                "payload_encoding": "base64",
                "properties": {"payload_format_indicator": 1},
            },
            400,
        ),
        ({"topic": "a", "properties": {"response_topic": "a/+"}}, 400),
        ({"topic": "a", "properties": {"correlation_data": "?"}}, 400),
        ({"topic": "a", "properties": {"content_type": "\0"}}, 400),
        ({"topic": "a", "properties": {"user_properties": [["a"]]}}, 400),
        ({"topic": "a", "properties": {"user_properties": [["a", "b"]] * 129}}, 400),
        ({"topic": "a", "retain": True}, 400),
        ({}, 400),
    ],
)
async def test_what_cannot_be_published(arguments: dict[str, Any], status: int, autojump_clock: object) -> None:
    quotas = Quotas(
        maximum_qos=1, max_packet_size=1000, max_topic_levels=5, retain_available=False, validate_payload_format=True
    )
    async with desk(quotas) as ask:
        found, text = await ask.refused("messages.publish", **arguments)
        assert found == status and text


async def test_the_answer_comes_when_it_is_stored(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("c", "t", expiry_s=100)
        peer.socket.finish()
        ask.world.cluster.held = True
        pending = await ask.meanwhile("messages.publish", topic="t", qos=1)
        assert not pending.done.is_set()
        ask.world.cluster.held = False
        await pending.done.wait()
        assert pending.result["matched"] == 1
        ask.world.cluster.held = True
        pending = await ask.meanwhile("messages.publish", topic="t", qos=1)
        await pending.done.wait()
        assert pending.error is not None and pending.error.status == 504


async def test_a_full_store_is_told(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("c", "t", expiry_s=100)
        peer.socket.finish()
        await ask.world.settle()
        ask.world.cluster.full = True
        assert (await ask.refused("messages.publish", topic="t", qos=1))[0] == 507
        found = await ask("messages.publish_bulk", messages=[{"topic": "t", "qos": 1}, {"topic": "t", "qos": 0}])
        assert [item["error"] and item["error"]["status"] for item in found["items"]] == [507, None]


async def test_many_at_once(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("c", "t/#", expiry_s=100, receive_maximum=1000)
        messages: list[dict[str, Any]] = [{"topic": f"t/{n}", "payload": str(n), "qos": n % 3} for n in range(300)]
        messages[7] = {"topic": "t/+", "payload": "7"}
        found = (await ask("messages.publish_bulk", messages=messages))["items"]
        assert len(found) == 300
        assert found[7]["error"]["status"] == 400 and found[7]["matched"] == 0
        assert all(item["matched"] == 1 and item["error"] is None for at, item in enumerate(found) if at != 7)
        taken = await peer.consume()
        assert {message.payload for message in taken} == {b"%d" % n for n in range(300) if n != 7}
        stored = [int(message.payload) for message in taken if message.qos]
        assert stored == sorted(stored)
        assert (await ask.refused("messages.publish_bulk", messages=[{"topic": "t"}] * 1001))[0] == 400


async def test_no_local_by_client(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.connect("c")
        await peer.subscribe(SubscriptionRequest("t", 1, True))
        await peer.received()
        assert (await ask("messages.publish", topic="t", qos=1, client_id="c"))["matched"] == 0
        await peer.nothing()
        assert (await ask("messages.publish", topic="t", qos=1, client_id="d"))["matched"] == 1
        assert len(await peer.consume()) == 1


# -- requests


async def test_a_client_answers(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("c", "rpc", qos=1)
        pending = await ask.meanwhile("messages.request", topic="rpc", payload="2+2")
        [question] = await peer.consume()
        assert question.payload == b"2+2" and question.properties is not None
        topic, correlation = question.properties.response_topic, question.properties.correlation_data
        assert topic is not None and topic.startswith("response/") and correlation
        other = Properties()
        other.correlation_data = b"of another request"
        await peer.send(Publish(topic, b"5", 0, False, False, 0, other))
        assert not pending.done.is_set()
        own = Properties()
        own.correlation_data, own.content_type = correlation, "number"
        await peer.send(Publish(topic, b"4", 0, False, False, 0, own))
        await pending.done.wait()
        assert pending.result["payload"] == "4" and pending.result["properties"]["content_type"] == "number"


async def test_an_answer_where_it_is_wanted(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("c", "rpc", qos=1)
        wanted = {"response_topic": "answers/me", "correlation_data": base64.b64encode(b"7").decode()}
        pending = await ask.meanwhile("messages.request", topic="rpc", properties=wanted)
        await peer.consume()
        await peer.send(Publish("answers/me", b"of somebody else", 0, False, False, 0))
        assert not pending.done.is_set()
        own = Properties()
        own.correlation_data = b"7"
        await peer.send(Publish("answers/me", b"\xff", 0, False, False, 0, own))
        await pending.done.wait()
        assert (pending.result["payload"], pending.result["payload_encoding"]) == ("/w==", "base64")


async def test_nobody_answers(autojump_clock: object) -> None:
    async with desk() as ask:
        began = trio.current_time()
        status, text = await ask.refused("messages.request", topic="rpc")
        assert status == 504 and "nobody subscribes" in text and trio.current_time() == began
        await ask.world.subscriber("c", "rpc", qos=1)
        status, text = await ask.refused("messages.request", topic="rpc", timeout_s=5)
        assert status == 504 and "5 s" in text and trio.current_time() == began + 5
        assert (await ask.refused("messages.request", topic="rpc", timeout_s=61))[0] == 400
        assert (await ask.refused("messages.request", topic="a/#"))[0] == 400
        assert (await ask.refused("messages.request", topic="a", properties={"response_topic": "$SYS/a"}))[0] == 403
        assert not ask.office.inside._watching


async def test_a_store_that_does_not_answer_holds_up_no_request_longer_than_it_says(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.subscriber("c", "rpc", qos=1)
        async with ask.office.inside.subscription("known"):
            ask.world.cluster.subscribing.shut()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(lambda: ask.refused("messages.request", topic="rpc", timeout_s=2))
            assert (await ask.refused("messages.request", topic="rpc", timeout_s=1))[0] == 503
            assert trio.current_time() == began + 3
            async with ask.office.inside.subscription("known"):
                assert trio.current_time() == began + 3, "what the store knows is not waited for"
            ask.world.cluster.subscribing.open()
        assert (await ask.refused("messages.request", topic="rpc", timeout_s=1))[0] == 504


# -- retained messages


async def test_retained_messages_are_browsed(autojump_clock: object) -> None:
    async with desk() as ask:
        for topic in ("home/a/temp", "home/a/hum", "home/b", "home", "/odd", "x"):
            await ask("messages.publish", topic=topic, payload=topic, retain=True, qos=1)
        first = await ask.all("retained.browse", limit=1)
        assert [(each["level"], each["topic"], each["has_message"], each["below"]) for each in first] == [
            ("", "", False, 1),
            ("home", "home", True, 3),
            ("x", "x", True, 0),
        ]
        assert [each["topic"] for each in await ask.items("retained.browse", prefix="home")] == ["home/a", "home/b"]
        assert [each["topic"] for each in await ask.items("retained.browse", prefix="")] == ["/odd"]
        assert await ask.items("retained.browse", prefix="nothing/here") == []


async def test_retained_messages_are_listed_and_shown(autojump_clock: object) -> None:
    async with desk() as ask:
        for number in range(5):
            await ask("messages.publish", topic=f"t/{number}", payload=str(number) * 10, retain=True, qos=1)
        found = await ask.all("retained.list", topic_filter="t/+", limit=2)
        assert found == [{"topic": f"t/{number}", "message": None} for number in range(5)]
        found = await ask.all("retained.list", topic_filter="t/+", limit=2, details=True, max_payload_bytes=4)
        assert [(each["message"]["payload"], each["message"]["truncated"]) for each in found[:2]] == [
            ("0000", True),
            ("1111", True),
        ]
        shown = await ask("retained.show", topic="t/3")
        assert (shown["payload"], shown["qos"], shown["retain"], shown["payload_bytes"]) == ("3" * 10, 1, True, 10)
        assert (await ask.refused("retained.show", topic="t/9"))[0] == 404
        assert (await ask.refused("retained.show", topic="t/#"))[0] == 400
        assert (await ask.refused("retained.list", topic_filter="t/#/x"))[0] == 400
        assert (await ask.refused("retained.list", topic_filter="$share/g/x"))[0] == 400


async def test_retained_messages_are_removed(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("c", "t/#")
        for number in range(25):
            await ask("messages.publish", topic=f"t/{number:02}", payload="x", retain=True)
        await peer.received()
        await ask("retained.delete", topic="t/03")
        assert (await ask.refused("retained.delete", topic="t/03"))[0] == 404
        first = await ask("retained.delete_matching", topic_filter="x/#", limit=3)
        assert first == {"deleted": 0, "cursor": None}
        deleted = 0
        cursor: str | None = ""
        while cursor is not None:
            part = await ask("retained.delete_matching", topic_filter="t/+", limit=10, cursor=cursor)
            deleted, cursor = deleted + part["deleted"], part["cursor"]
        assert deleted == 24
        assert await ask.items("retained.list") == []
        await peer.nothing()
        late = await ask.world.subscriber("late", "t/#")
        await late.nothing()
        assert (await ask.refused("retained.delete_matching", topic_filter=""))[0] == 400


# -- shared subscriptions, delayed messages


async def test_groups_have_members_and_lag(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.subscriber("m1", "$share/g/t", expiry_s=100, receive_maximum=1)
        gone = await ask.world.subscriber("m2", "$share/g/t", expiry_s=100)
        gone.socket.finish()
        await ask.world.subscriber("n1", "$share/h/u")
        await ask.world.settle()
        for _ in range(3):
            await ask("messages.publish", topic="t", qos=1)
        found = await ask.all("groups.list", limit=1)
        assert [each["topic_filter"] for each in found] == ["$share/g/t", "$share/h/u"]
        group = found[0]
        assert (group["share_name"], group["members"], group["connected"]) == ("g", 2, 1)
        assert group["members_by_node"] == {"a": 1} and group["length"] == 3
        assert group["lag"] + group["pending"] == 3
        shown = await ask("groups.show", topic_filter="$share/g/t")
        assert [(each["client_id"], each["node"]) for each in shown["items"]] == [("m1", "a"), ("m2", "")]
        assert (await ask.refused("groups.show", topic_filter="$share/g/x"))[0] == 404
        assert [each["topic_filter"] for each in await ask.items("groups.list", prefix="$share/h")] == ["$share/h/u"]


async def test_delayed_messages_are_listed_and_taken_back(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("c", "t/#")
        for number in (3, 1, 2):
            found = await ask("messages.publish", topic=f"$delayed/{number}00/t/{number}", payload=str(number))
            assert found["matched"] == 0
        found = await ask.all("delayed.list", limit=1)
        assert [(each["topic"], each["payload"]) for each in found] == [("t/1", "1"), ("t/2", "2"), ("t/3", "3")]
        assert found[0]["due_at_ms"] > ask.world.server.now_ms
        assert await ask("delayed.show", id=found[1]["id"]) == found[1]
        await ask("delayed.delete", id=found[1]["id"])
        for operation in ("delayed.show", "delayed.delete"):
            for wrong in (found[1]["id"], "x", "0" * 50):
                assert (await ask.refused(operation, id=wrong))[0] == 404
        assert len(await ask.items("delayed.list")) == 2
        await peer.nothing()
