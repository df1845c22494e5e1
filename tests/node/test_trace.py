"""Following a client, a topic or an address: each packet and each decision is a line, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import trio

from broker.access import Access
from broker.auth.api import DENIED
from broker.codec.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from broker.config import Settings
from broker.connection import Connection
from broker.dispatch import Dispatch
from broker.message import Message
from broker.options.authorization import RulesFile
from broker.peer import Peer as Address
from broker.session.quotas import Quotas
from broker.session.run import Run
from broker.session.session import Session
from broker.tracing.record import BYTES_MAX, LINES_MAX, LINES_PER_S, Line, Spec, Trace
from broker.tracing.text import escaped, quoted
from broker.tracing.traces import KEEP_MS, RUNNING_MAX, TooMany
from tests.node.kit import Peer, World, serving


def begin(world: World, trace_id: str = "t", seconds: int = 60, **about: Any) -> Trace:
    now_ms = world.server.now_ms
    return world.server.traces.begin(
        Spec(id=trace_id, started_at_ms=now_ms, ends_at_ms=now_ms + 1000 * seconds, **about)
    )


def lines(trace: Trace) -> list[Line]:
    return [msgspec.json.decode(line, type=Line) for line in trace.after(0, 100_000)]


def texts(trace: Trace, kind: str = "") -> list[str]:
    return [line.text for line in lines(trace) if not kind or line.kind == kind]


def packets(trace: Trace) -> Iterator[tuple[str, str]]:
    for line in lines(trace):
        if line.kind == "packet":
            yield line.direction, line.details["type"]


def found(trace: Trace, kind: str, part: str) -> Line:
    for line in lines(trace):
        if line.kind == kind and part in line.text:
            return line
    raise AssertionError(f"no {kind} line with {part!r} in:\n" + "\n".join(f"{x.kind} {x.text}" for x in lines(trace)))


async def test_every_packet_of_a_client(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        trace = begin(world, client_id="c")
        other = await world.connect("other")
        client = await world.connect("c", expiry_s=100, keep_alive_s=30)
        await client.send(Subscribe(1, [SubscriptionRequest("a/#", 1)]))
        await client.expect(Suback)
        await client.send(Publish("b", b"zero"), Publish("b", b"one", 1, False, False, 7))
        await client.expect(Puback)
        await client.send(Publish("b", b"two", 2, False, False, 8))
        await client.expect(Pubrec)
        await client.send(Pubrel(8))
        await client.expect(Pubcomp)
        await other.send(Publish("a/b", b"secret", 1, False, False, 1), Publish("a/c", b"x"))
        got = [packet for packet in await client.received() if isinstance(packet, Publish)]
        await client.send(Puback(next(packet.packet_id for packet in got if packet.qos)))
        await client.send(Unsubscribe(2, ["a/#"]))
        await client.expect(Unsuback)
        await client.send(Pingreq())
        await client.received()
        await client.send(Disconnect())
        seen = list(packets(trace))
        assert seen == [
            ("in", "CONNECT"),
            ("out", "CONNACK"),
            ("in", "SUBSCRIBE"),
            ("out", "SUBACK"),
            ("in", "PUBLISH"),
            ("in", "PUBLISH"),
            ("out", "PUBACK"),
            ("in", "PUBLISH"),
            ("out", "PUBREC"),
            ("in", "PUBREL"),
            ("out", "PUBCOMP"),
            *[("out", "PUBLISH")] * 2,
            ("in", "PUBACK"),
            ("in", "UNSUBSCRIBE"),
            ("out", "UNSUBACK"),
            ("in", "PINGREQ"),
            ("out", "PINGRESP"),
            ("in", "DISCONNECT"),
        ]
        assert {line.client_id for line in lines(trace)} == {"c"}
        assert [line.seq for line in lines(trace)] == list(range(1, trace.seq + 1))
        published = found(trace, "packet", 'PUBLISH "b" QoS 1 id 7, 3 bytes')
        assert published.details["qos"] == 1 and published.details["packet_id"] == 7
        assert not any("secret" in line.decode() for line in trace.after(0, 1000))  # payloads only where wanted
        found(trace, "route", '"b" QoS 0, 4 bytes, goes to nobody')
        found(trace, "queue", '"a/b" is in the queue as 1')
        found(trace, "queue", "1 is done and leaves the queue")
        found(trace, "session", "the session is kept for 100 s")


async def test_payloads_where_they_are_wanted(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        trace = begin(world, client_id="c", payload=True)
        client = await world.connect("c")
        await client.send(Publish("t", b"hello"), Publish("t", b"\xff\xfe"), Publish("t", "ä".encode() * 300))
        shown = [line.details for line in lines(trace) if line.kind == "packet" and line.details["type"] == "PUBLISH"]
        assert [(each["payload"], each["payload_encoding"]) for each in shown[:2]] == [
            ("hello", "plain"),
            ("//4=", "base64"),
        ]
        assert shown[2]["payload"] == "ä" * 128 and shown[2]["payload_truncated"]


async def test_passwords_are_never_shown(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        trace = begin(world, client_id="c", payload=True)
        properties = Properties()
        properties.authentication_method = "SCRAM-SHA-256"
        properties.authentication_data = b"n,,n=user,r=nonce-hush"
        peer = world.accept()
        await peer.send(Connect(5, "c", True, 0, "anna", b"hush", Will("w", b"hush", 0, False), properties))
        assert (await peer.expect(Connack)).reason_code
        assert not any(b"hush" in line for line in trace.after(0, 100))
        connect = found(trace, "packet", "CONNECT")
        assert connect.details["has_password"] and connect.details["username"] == "anna"
        assert connect.details["properties"]["authentication_data_bytes"] == 22


async def test_what_clients_chose_cannot_make_lines(autojump_clock: trio.abc.Clock) -> None:
    evil = 'x\n2026 root "ok"\x1b[2J\u202e\\'
    async with serving() as world:
        trace = begin(world, client_id=evil)
        client = await world.connect(evil)
        user_properties = Properties()
        user_properties.user_properties = [("a\nb", "c\rd")]
        await client.send(Publish(evil, b"", 0, properties=user_properties))
        await client.send(Subscribe(1, [SubscriptionRequest(evil, 0)]))
        assert len(lines(trace)) > 5
        for line in lines(trace):
            assert line.text.isprintable(), line.text
        assert found(trace, "packet", "PUBLISH").details["topic"] == evil
    assert quoted('a" QoS 2') == '"a\\" QoS 2"'
    assert escaped("\u2028\x9b") == "\\u2028\\x9b"


async def test_a_client_that_is_connected_already(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        client = await world.connect("c")
        subscriber = await world.subscriber("s", "t", qos=0)
        await client.send(Publish("t", b"1"))
        trace = begin(world, client_id="c")
        await client.send(Publish("t", b"2"))  # not on the direct way
        second = begin(world, "u", client_id="s")
        await client.send(Publish("t", b"3"))
        assert list(packets(trace)) == [("in", "PUBLISH")] * 2
        assert list(packets(second)) == [("out", "PUBLISH")]
        world.server.traces.end("t")
        world.server.traces.end("u")
        await client.send(Publish("t", b"4"))
        assert await subscriber.payloads() == [b"1", b"2", b"3", b"4"]
        assert texts(trace)[-1] == "the trace ends: it was stopped"
        assert trace.seq == 5  # two packets, two routes, the end


async def test_afterwards_everything_is_as_before(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        client = await world.connect("c")
        server = world.server
        connection = server.clients["c"]
        before = (connection._cleared, connection.plain)
        for name, about in (("client_id", "c"), ("topic_filter", "#"), ("ip", "0.0.0.0/0")):
            begin(world, name, **{name: about})  # type: ignore[arg-type]
        assert type(connection) is not Connection and type(server.dispatch) is not Dispatch
        assert connection.plain == 0
        for trace_id in list(server.traces.known):
            server.traces.end(trace_id)
        await client.send(Pingreq())
        assert type(connection) is Connection and type(connection.session) is Session
        assert type(server.dispatch) is Dispatch and server.tracer is None
        assert (connection._cleared, connection.plain) == before
        assert not server.traces.taps and not server.traces.sessions


async def test_a_trace_ends_by_itself(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        client = await world.connect("c")
        trace = begin(world, client_id="c", seconds=5)
        await client.send(Pingreq())
        await trio.sleep(6)
        await client.send(Pingreq())
        assert list(packets(trace)) == [("in", "PINGREQ"), ("out", "PINGRESP")]
        assert texts(trace)[-1] == "the trace ends: its time is over"
        assert world.server.tracer is None and trace.ended_at_ms
        await trio.sleep(KEEP_MS / 1000 + 1)
        world.server.traces.forget()
        assert not world.server.traces.known


async def test_few_run_at_a_time(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        for number in range(RUNNING_MAX):
            begin(world, str(number), client_id="c")
        with pytest.raises(TooMany):
            begin(world, "more", client_id="c")
        assert begin(world, "3", client_id="c") is world.server.traces.known["3"]  # told again
        world.server.traces.end("3")
        begin(world, "more", client_id="c")
        assert begin(world, "3", client_id="c").ended_at_ms  # and it stays ended
        client = await world.connect("c")
        await client.send(Pingreq())
        assert all(list(packets(trace))[-1] == ("out", "PINGRESP") for trace in world.server.traces.running)


async def test_an_address(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        trace = begin(world, ip="10.1.0.0/16")
        one, two = Address("10.1.2.3", 4711, "tcp"), Address("10.2.2.3", 4712, "tcp")
        clients = []
        for number, address in enumerate((one, two)):
            socket, stream = world.plug(address)
            world.server.accept(stream, world.listener)
            client = Peer(world, socket, stream, 5)
            await client.send(Connect(5, f"c{number}", True))
            await client.expect(Connack)
            clients.append(client)
        assert {line.peer for line in lines(trace)} == {"10.1.2.3:4711"}
        found(trace, "connection", 'connected to listener "tcp"')
        assert ("in", "CONNECT") in packets(trace)
        world.server.draining = True
        socket, stream = world.plug(one)
        world.server.accept(stream, world.listener)
        found(trace, "connection", "closed at once: draining")


async def test_a_topic(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        sender = await world.connect("sender")
        plain = await world.subscriber("plain", "a/+", "b", qos=0)
        queued = await world.subscriber("queued", "a/b", expiry_s=60)
        away = await world.subscriber("away", "a/b", expiry_s=60)
        await away.send(Disconnect())
        await sender.send(Publish("a/b", b"before"))
        trace = begin(world, topic_filter="a/#", payload=True)
        await sender.send(Publish("b", b"other"), Publish("a/b", b"x"))
        await sender.send(Publish("a/b", b"y", 1, False, False, 1))
        late = await world.subscriber("late", "a/b/#", "c")
        await late.received()
        assert sorted((line.client_id, line.direction) for line in lines(trace) if line.kind == "packet") == [
            ("plain", "out"),
            ("plain", "out"),
            ("queued", "out"),
            ("queued", "out"),
        ]
        words = '"a/b" QoS 0, 1 bytes, goes to 2 sessions connected here; 1 sessions that are not'
        route = found(trace, "route", words)
        assert route.client_id == "sender" and route.details["payload"] == "x"
        stored = found(trace, "queue", '"a/b" is stored for 2 sessions')
        assert {each["client_id"] for each in stored.details["queued"]} == {"queued", "away"}
        assert found(trace, "acl", "subscribe to").client_id == "late"
        assert texts(trace, "acl") == ['subscribe to "a/b/#": granted']
        assert (await plain.payloads())[-3:] == [b"other", b"x", b"y"]
        assert len(await queued.consume()) == 3


async def test_messages_of_other_nodes(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        subscriber = await world.subscriber("s", "t", qos=0)
        trace = begin(world, topic_filter="t")
        world.server.deliver_frame(4, b"\x30\x04\x00\x01tx")
        world.server.deliver_frame(5, b"\x30\x05\x00\x01t\x00y")
        world.server.deliver(Message(b"t", b"z", 1, False), True, ())
        world.server.deliver_packets(Run(4, b"\x32\x06\x00\x01t\x00\x011\x32\x06\x00\x01t\x00\x022", 2, 0, b""))
        world.reactor.wake()
        assert await subscriber.payloads() == [b"x", b"y", b"z", b"1", b"2"]
        assert texts(trace, "route") == [f'"t" QoS {qos} came from another node' for qos in (0, 0, 1, 1, 1)]
        assert list(packets(trace)) == [("out", "PUBLISH")] * 5


RULES = """
[[rule]]
permission = "deny"
action = "publish"
topics = ["closed/#"]
comment = "nobody writes here"

[[rule]]
permission = "deny"
action = "subscribe"
topics = ["hidden/#"]

[[rule]]
permission = "allow"
action = "all"
topics = ["#"]
"""


async def test_which_rule_decided(autojump_clock: trio.abc.Clock, tmp_path: Any) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    path.chmod(0o600)
    settings = Settings(authorization=(RulesFile(path=path),))
    async with serving(access=Access(settings, None)) as world:
        trace = begin(world, client_id="c")
        client = await world.connect("c")
        await client.send(Publish("closed/door", b"", 1, False, False, 1), Publish("open", b"", 1, False, False, 2))
        await client.send(Subscribe(3, [SubscriptionRequest("hidden/x", 0), SubscriptionRequest("seen", 0)]))
        assert "rules.toml" in found(trace, "acl", 'publish to "closed/door": deny').details["rule"]
        assert found(trace, "acl", 'publish to "open": allow').details["decision"] == "allow"
        found(trace, "drop", 'PUBLISH to "closed/door" is refused: not_authorized (0x87)')
        found(trace, "acl", 'subscribe to "hidden/x": deny')
        found(trace, "acl", 'subscribe to "seen": allow')


async def test_who_refused_a_client(autojump_clock: trio.abc.Clock) -> None:
    async with serving(access=Access(Settings(), None)) as world:
        world.server.access.chain.allow_anonymous = False

        class Nobody:
            name = "users"

            async def authenticate(self, request: object) -> Any:
                return DENIED

            def exchanges(self) -> dict[str, object]:
                return {}

        world.server.access.chain.authenticators["users"] = Nobody()  # type: ignore[assignment]
        trace = begin(world, client_id="c")
        peer = world.connecting("c", username="anna")
        assert (await peer.expect(Connack)).reason_code == 0x86
        line = found(trace, "authentication", "refused: bad_user_name_or_password (0x86)")
        assert line.details["asked"] == ["users"]


async def test_the_queue_of_a_slow_client(autojump_clock: trio.abc.Clock) -> None:
    async with serving(quotas=Quotas(max_queued_messages=2)) as world:
        trace = begin(world, client_id="s")
        await world.subscriber("s", "t", qos=1, receive_maximum=1)
        sender = await world.connect("sender")
        for number in range(1, 5):
            await sender.send(Publish("t", b"", 1, False, False, number))
        assert texts(trace, "queue") == ['"t" waits in memory: 1 of 1 are in flight'] * 2
        assert found(trace, "drop", "queue_full").details["reason"] == "queue_full"


async def test_output_that_is_full(autojump_clock: trio.abc.Clock) -> None:
    async with serving(bound=1000) as world:
        trace = begin(world, client_id="s")
        slow = await world.subscriber("s", "t", qos=0)
        slow.socket.set_room(0)
        sender = await world.connect("sender")
        for _ in range(3):
            await sender.send(Publish("t", bytes(800)))
        found(trace, "queue", "the output buffer is full")
        assert found(trace, "drop", '"t" is not sent: output_full').details["reason"] == "output_full"
        slow.socket.set_room(None)
        await world.settle()
        found(trace, "queue", "room again")


async def test_takeover_and_will(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        trace = begin(world, client_id="c")
        await world.connect("c", will=Will("gone", b"", 1, False))
        second = await world.connect("c", will=Will("gone", b"", 0, False))
        found(trace, "takeover", "takes over from the connection of memory:0")
        found(trace, "takeover", "another connection uses this client id")
        found(trace, "will", 'the will for "gone" is due now')
        await second.send(Disconnect())
        found(trace, "will", 'the will for "gone" is forgotten')
        third = await world.connect("c", will=Will("gone", b"", 0, False))
        third.socket.reset()
        await world.settle()
        found(trace, "connection", "the connection ends: connection_lost")
        found(trace, "route", '"gone" QoS 0, 0 bytes, goes to nobody')


async def test_packets_that_are_none(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        trace = begin(world, client_id="c")
        client = await world.connect("c")
        client.socket.feed(b"\x36\x05\x00\x01t\x00\x01")
        await world.settle()
        found(trace, "packet", "PUBLISH, malformed: PUBLISH has QoS 3")
        found(trace, "disconnect", "refused: malformed_packet (0x81)")
        found(trace, "packet", "DISCONNECT malformed_packet")


async def test_shared_subscriptions_and_retained_messages(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        trace = begin(world, client_id="m")
        sender = await world.connect("sender")
        await sender.send(Publish("r", b"kept", 0, True))
        member = await world.subscriber("m", "$share/g/t", "r", qos=1)
        await sender.send(Publish("t", b"", 1, False, False, 1))
        messages = await member.consume()
        assert len(messages) == 2
        found(trace, "route", '"t" comes from "$share/g/t"')
        found(trace, "queue", 'a message of "$share/g/t" is done')
        assert found(trace, "packet", 'PUBLISH "r" QoS 0 retain, 4 bytes').direction == "out"


async def test_a_fast_client_is_bounded_and_loses_nothing(autojump_clock: trio.abc.Clock) -> None:
    async with serving() as world:
        subscriber = await world.subscriber("s", "t", qos=0)
        client = await world.connect("c")
        trace = begin(world, client_id="c")
        for second in range(4):
            client.put(*(Publish("t", b"%d" % (5000 * second + number)) for number in range(5000)))
            await world.settle()
            await trio.sleep(1)
        assert [int(payload) for payload in await subscriber.payloads()] == list(range(20_000))
        await trio.sleep(2)
        client.put(Publish("t", b"the last"))  # the next line that is taken says what was left out before
        await world.settle()
        assert trace.seq <= 6 * LINES_PER_S and trace.left_out >= 4 * (10_000 - 2 * LINES_PER_S)
        told = sum(line.details["left_out"] for line in lines(trace) if "were left out" in line.text)
        assert told == trace.left_out


def test_the_ring() -> None:
    trace = Trace(Spec(id="t", client_id="c", started_at_ms=0, ends_at_ms=100_000_000), "n")
    for number in range(3 * LINES_MAX):
        assert trace.takes(number * 1000)
        trace.add(number * 1000, "c", "p", "packet", "in", "text", {})
    assert trace.first == 2 * LINES_MAX + 1
    assert [msgspec.json.decode(line)["seq"] for line in trace.after(0, 2)] == [trace.first, trace.first + 1]
    assert [msgspec.json.decode(line)["seq"] for line in trace.after(trace.seq - 1, 5)] == [trace.seq]
    assert trace.after(trace.seq, 5) == []
    for number in range(100):
        trace.add(number, "c", "p", "packet", "in", "x" * (BYTES_MAX // 10), {})
    assert trace._bytes <= BYTES_MAX and len(trace.after(0, 1000)) == 9
    assert not trace.takes(100_000_000)
