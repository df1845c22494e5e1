"""Operators list, show and disconnect clients, and look into sessions."""

from __future__ import annotations

import dataclasses

import pytest

from broker.codec.packets import Disconnect, Publish, SubscriptionRequest, Will
from broker.limits.bans import read_bans
from broker.options.listener import Listener, ListenerOptions
from cluster.registry import BANS
from tests.node.admin_kit import desk


async def test_clients_are_listed_in_order_in_parts(autojump_clock: object) -> None:
    async with desk() as ask:
        for number in range(25):
            await ask.world.connect(f"c{number:02}")
        part = await ask("clients.list", limit=10)
        assert [item["client_id"] for item in part["items"]] == [f"c{number:02}" for number in range(10)]
        assert part["cursor"] and part["missing_nodes"] == []
        # What comes and goes does not move the cursor.
        await ask.world.connect("a")
        await ask("clients.kick", client_id="c09")
        rest = await ask.all("clients.list", limit=7)
        assert len(rest) == 25
        second = await ask("clients.list", limit=10, cursor=part["cursor"])
        assert [item["client_id"] for item in second["items"]] == [f"c{number:02}" for number in range(10, 20)]


async def test_connected_and_waiting_clients_are_one_list(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.connect("here", expiry_s=100)
        gone = await ask.world.subscriber("gone", "a/#", expiry_s=100)
        gone.socket.finish()
        await ask.world.connect("short")
        found = await ask.items("clients.list")
        shown = {item["client_id"]: (item["connected"], item["persistent"], item["node"]) for item in found}
        assert shown == {"gone": (False, True, ""), "here": (True, True, "a"), "short": (True, False, "a")}
        assert [each["client_id"] for each in await ask.items("clients.list", connected=False)] == ["gone"]
        assert [each["client_id"] for each in await ask.items("clients.list", connected="true")] == ["here", "short"]
        assert [each["client_id"] for each in await ask.items("clients.list", contains="o")] == ["gone", "short"]
        assert [each["client_id"] for each in await ask.items("clients.list", prefix="go")] == ["gone"]
        assert [each["client_id"] for each in await ask.items("clients.list", client_id="short")] == ["short"]
        assert await ask.items("clients.list", client_id="sho") == []
        gone = next(item for item in found if item["client_id"] == "gone")
        assert gone["subscriptions"] == 1 and gone["session_expires_at_ms"] > 0


async def test_clients_are_filtered(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.connect("five", 5)
        await ask.world.connect("four", 4)
        named = ListenerOptions(name="inner")
        ask.world.listener = dataclasses.replace(Listener("ws", "127.0.0.1", 80), options=named)
        await ask.world.connect("web")
        for filters, expected in (
            ({"protocol_version": "3.1.1"}, ["four"]),
            ({"protocol_version": "5"}, ["five", "web"]),
            ({"listener": "inner"}, ["web"]),
            ({"transport": "ws"}, ["web"]),
            ({"username": "nobody"}, []),
            ({"node": "a"}, ["five", "four", "web"]),
            ({"node": "m"}, []),
            ({"ip": "10.0.0.0/8"}, []),
        ):
            assert [each["client_id"] for each in (await ask("clients.list", **filters))["items"]] == expected, filters
        assert (await ask.refused("clients.list", ip="nowhere"))[0] == 400
        assert (await ask.refused("clients.list", limit=0))[0] == 400
        assert (await ask.refused("clients.list", limit=1001))[0] == 400
        assert (await ask.refused("clients.list", cursor="x"))[0] == 400
        assert (await ask.refused("clients.list", cursor="WyJhIiwiYiJd"))[0] == 400


async def test_a_client_is_shown(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.connect(
            "c/1", expiry_s=60, keep_alive_s=30, receive_maximum=7, will=Will("w", b"gone", 0, False)
        )
        found = await ask("clients.show", client_id="c/1")
        assert found["connected"] and found["protocol_version"] == "5" and found["keep_alive_s"] == 30
        assert found["receive_maximum"] == 7 and found["has_will"] and found["session_expiry_s"] == 60
        assert found["stored_queued"] == 0 and found["clean_start"] is True
        assert abs(found["connected_at_ms"] - ask.world.server.now_ms) < 60_000
        assert (await ask.refused("clients.show", client_id="c"))[0] == 404


async def test_a_client_is_disconnected(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.connect("c", expiry_s=60)
        assert await ask("clients.kick", client_id="c") is None
        assert (await peer.expect(Disconnect)).reason_code == 0x98
        assert peer.closed()
        assert await ask.refused("clients.kick", client_id="c") == (404, "client 'c' is not connected")
        again = await ask.world.connect("c", clean_start=False, expiry_s=60)
        assert again.connack is not None and again.connack.session_present
        old = await ask.world.connect("old", 4)
        await ask("clients.kick", client_id="old")
        await old.nothing()
        assert old.closed()


async def test_a_client_stays_away(autojump_clock: object) -> None:
    async with desk() as ask:
        await ask.world.connect("c")
        await ask("clients.kick", client_id="c", ban_s=60, reason="noise")
        found, _, _ = read_bans(await ask.office.registry.documents(BANS), 0)
        [ban] = list(found)
        assert (ban.kind, ban.value, ban.reason, ban.by) == ("client_id", "c", "noise", "somebody")
        status, text = await ask.refused("clients.kick", client_id="c", ban_s=60)
        assert status == 404 and "banned" in text


async def test_sessions_are_listed_with_what_waits(autojump_clock: object) -> None:
    async with desk() as ask:
        for name in ("s1", "s2", "s3"):
            peer = await ask.world.subscriber(name, f"{name}/#", expiry_s=100)
            if name != "s3":
                peer.socket.finish()
        await ask.world.connect("short")
        sender = await ask.world.connect("sender")
        await sender.send(Publish("s1/a", b"x" * 100, 1, False, False, 1), Publish("s1/b", b"y", 2, False, False, 2))
        found = await ask.all("sessions.list", limit=2)
        assert [(each["client_id"], each["connected"], each["queued"]) for each in found] == [
            ("s1", False, 2),
            ("s2", False, 0),
            ("s3", True, 0),
        ]
        assert found[0]["queued_bytes"] >= 101
        assert [each["client_id"] for each in await ask.items("sessions.list", connected=False)] == ["s1", "s2"]
        assert [each["client_id"] for each in await ask.items("sessions.list", min_queued=1)] == ["s1"]
        assert (await ask("sessions.show", client_id="s1"))["subscriptions"] == 1
        assert (await ask.refused("sessions.show", client_id="s9"))[0] == 404


async def test_a_queue_is_looked_into(autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.subscriber("s", "t/#", expiry_s=100)
        peer.socket.finish()
        sender = await ask.world.connect("sender")
        await sender.send(
            *(Publish(f"t/{number}", b"\xff" * number, 1, False, False, number + 1) for number in range(5))
        )
        first = await ask("sessions.messages", client_id="s", limit=3, max_payload_bytes=2)
        assert [item["topic"] for item in first["items"]] == ["t/0", "t/1", "t/2"]
        assert [item["payload"] for item in first["items"]] == ["", "/w==", "//8="]
        rest = await ask("sessions.messages", client_id="s", limit=3, max_payload_bytes=2, cursor=first["cursor"])
        assert [(item["payload_bytes"], item["truncated"]) for item in rest["items"]] == [(3, True), (4, True)]
        assert rest["cursor"] is None and rest["items"][0]["delivery_qos"] == 1
        # Nothing was taken out.
        back = await ask.world.connect("s", clean_start=False, expiry_s=100)
        assert len(await back.consume()) == 5
        assert (await ask.refused("sessions.messages", client_id="x"))[0] == 404


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_a_session_is_ended(connected: bool, expiry_s: int, autojump_clock: object) -> None:
    async with desk() as ask:
        peer = await ask.world.connect("s", expiry_s=expiry_s)
        await peer.subscribe(SubscriptionRequest("t", 1))
        await peer.received()
        if not connected:
            peer.socket.finish()
            await ask.world.settle()
        if not connected and not expiry_s:
            assert (await ask.refused("sessions.delete", client_id="s"))[0] == 404
            return
        await ask("sessions.delete", client_id="s")
        assert peer.closed()
        assert await ask.items("sessions.list") == []
        assert (await ask("messages.publish", topic="t", qos=1))["matched"] == 0
        again = await ask.world.connect("s", clean_start=False, expiry_s=100)
        assert again.connack is not None and not again.connack.session_present
