"""The load test's clients on fabricated byte streams: what a faulty broker does must show in the counts."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any

import pytest

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import (
    PUBACK,
    PUBREC,
    Connack,
    Disconnect,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
)
from broker.codec.primitives import FrameBuffer
from broker.codec.publish import encode_publish
from loadtest.address import Address, Credentials
from loadtest.client import Client
from loadtest.engine import Engine
from loadtest.publisher import Publisher
from loadtest.result import Counts
from loadtest.retained import Reader, Storing
from loadtest.scenario import Scenario
from loadtest.subscriber import Subscriber
from loadtest.traffic import PACED_PER_TURN, Traffic
from loadtest.wire import STAMP, Wire

NODE = Address("127.0.0.1", 1, socket.AF_INET, ("127.0.0.1", 1))


class Bench:
    """An engine whose clients are ready and whose sockets nobody serves."""

    def __init__(self, scenario: Scenario) -> None:
        self.engine = Engine(scenario, (NODE,), (NODE,), Credentials())
        kind = Storing if scenario.layout == "retained" else Traffic
        self.traffic = kind(self.engine, scenario, 0, "run", scenario.clean)
        self.traffic.populate()
        self.engine.traffics.append(self.traffic)
        self._others: list[socket.socket] = []
        for client in (*self.publishers, *self.subscribers):
            self.plug(client)
            client.connected = client.ready = True
            client.blocked = False
        self.engine.sending = True

    @property
    def publishers(self) -> list[Publisher]:
        return self.traffic.publishers

    @property
    def subscribers(self) -> list[Subscriber]:
        return self.traffic.subscribers

    def plug(self, client: Client) -> None:
        """Give the client a socket."""
        client.socket, other = socket.socketpair()
        client.socket.setblocking(False)
        self._others.append(other)
        self.engine.register(client)

    def sent(self, number: int = 0) -> list[bytes]:
        """The packets a publisher sends when it may."""
        publisher = self.publishers[number]
        publisher.fill()
        packets = list(publisher.out)
        publisher.out.clear()
        return packets

    def count(self) -> Counts:
        return self.engine.count()

    @property
    def trouble(self) -> str:
        return "; ".join(self.engine.troubles)

    def close(self) -> None:
        self.engine.close()
        for other in self._others:
            other.close()


Make = Callable[..., Bench]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Bench] = []

    def bench_of(layout: str, publishers: int, subscribers: int, **keys: Any) -> Bench:
        keys.setdefault("size", 40)
        made.append(Bench(Scenario(layout=layout, publishers=publishers, subscribers=subscribers, **keys)))
        return made[-1]

    yield bench_of
    for bench in made:
        bench.close()


def _p2p(make: Make, qos: int, version: int = 5, pairs: int = 1, cap: int = 8, **keys: Any) -> Bench:
    return make("p2p", pairs, pairs, qos=qos, version=version, cap=cap, **keys)


def _clean(counts: Counts) -> bool:
    return not (counts.lost or counts.unacknowledged or counts.duplicated or counts.reordered)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("size", [16, 40, 120, 3000])
def test_packets_are_those_of_the_codec(version: int, qos: int, size: int) -> None:
    wire = Wire(version, qos, size, 3)
    payload = STAMP.pack(7, 8, 9) + wire.padding
    packet_id = 258 if qos else 0
    packet = wire.struct.pack(wire.head("a/b"), b"\x01\x02"[: 2 if qos else 0], wire.properties, 7, 8, 9, wire.padding)
    assert packet == encode_publish(b"a/b", payload, qos << 1, packet_id, version)


def test_a_payload_must_hold_its_stamp() -> None:
    with pytest.raises(ValueError, match="15 bytes is too small"):
        Wire(5, 0, 15, 3)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_faithful_broker_has_no_faults(make: Make, version: int, qos: int, step: int) -> None:
    bench = _p2p(make, qos, version)
    stream = b"".join(bench.sent())
    rest = b""
    for at in range(0, len(stream), step):
        rest += stream[at : at + step]
        rest = rest[bench.subscribers[0].feed(rest) :]
    tally = bench.count()
    assert (tally.sent, tally.received, tally.lost, tally.duplicated, tally.reordered) == (8, 8, 0, 0, 0)
    assert bench.engine.delivered == bench.engine.latency.count == 8
    assert tally.unacknowledged == (0, 8, 16)[qos]  # with QoS 2 each of them awaits PUBREL as well
    kinds = {packet[0] >> 4 for packet in bench.subscribers[0].out}
    assert kinds == {0: set(), 1: {PUBACK}, 2: {PUBREC}}[qos]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    "order, faults",
    [
        ([0, 1, 2, 4, 5, 6, 7], (1, 0, 0)),
        ([0, 1, 2, 3, 4, 5, 6], (1, 0, 0)),
        ([0, 1, 1, 2, 3, 4, 5, 6, 7], (0, 1, 0)),
        ([0, 2, 1, 3, 4, 5, 6, 7], (0, 0, 1)),
        ([1, 0, 0, 3, 5, 6, 7], (2, 1, 1)),
    ],
    ids=str,
)
def test_faults_of_a_broker_are_counted(
    make: Make, version: int, order: list[int], faults: tuple[int, int, int]
) -> None:
    bench = _p2p(make, 0, version)
    packets = bench.sent()
    bench.subscribers[0].feed(b"".join(packets[i] for i in order))
    tally = bench.count()
    assert (tally.lost, tally.duplicated, tally.reordered) == faults
    assert not _clean(tally)


def test_a_shared_group_is_one_audience(make: Make) -> None:
    bench = make("shared", 1, 2, cap=6)
    packets = bench.sent()
    bench.subscribers[0].feed(packets[1] + packets[3])
    bench.subscribers[1].feed(packets[0] + packets[2] + packets[5] + packets[4])
    tally = bench.count()
    assert (tally.expected, tally.lost, tally.duplicated, tally.reordered) == (6, 0, 0, 1)
    bench.subscribers[0].feed(packets[5])
    assert bench.count().duplicated == 1


def test_every_subscriber_of_a_fan_out_expects_everything(make: Make) -> None:
    bench = make("fanout", 1, 3, cap=4)
    packets = bench.sent()
    bench.subscribers[0].feed(b"".join(packets))
    bench.subscribers[1].feed(b"".join(packets[:3]))
    tally = bench.count()
    assert (tally.sent, tally.expected, tally.received, tally.lost) == (4, 12, 7, 5)
    assert bench.sent() == []  # the third subscriber has received nothing: the cap holds


def test_the_cap_bounds_what_is_on_its_way(make: Make) -> None:
    bench = _p2p(make, 0, 5, cap=5)
    packets = bench.sent()
    assert len(packets) == 5
    assert bench.sent() == []
    bench.subscribers[0].feed(packets[0] + packets[1])
    assert len(bench.sent()) == 2


def test_what_stands_still_at_the_cap_is_written_off_and_stays_lost(make: Make) -> None:
    bench = _p2p(make, 0, 5, cap=5)
    bench.sent()
    bench.publishers[0].tick()
    assert bench.sent() == []  # it has only now been seen to stand still
    bench.publishers[0].tick()
    assert len(bench.sent()) == 5
    assert bench.count().lost == 10


@pytest.mark.parametrize("version", [4, 5])
def test_the_window_opens_with_acknowledgements(make: Make, version: int) -> None:
    bench = _p2p(make, 1, version, cap=100)
    publisher = bench.publishers[0]
    publisher.receive_maximum = 3
    assert len(bench.sent()) == 3
    publisher.feed(encode(Puback(2), version))
    assert publisher.unacknowledged == 2
    [packet] = bench.sent()
    assert packet[-43 if version == 5 else -42 :][:2] == b"\x00\x04"  # packet identifier, properties, payload
    publisher.feed(encode(Puback(1), version) + encode(Puback(3), version) + encode(Puback(4), version))
    assert publisher.unacknowledged == 0


def test_packet_identifiers_start_again_around_those_in_use(make: Make) -> None:
    bench = _p2p(make, 1, 5, cap=10**6)
    publisher = bench.publishers[0]
    used: list[int] = []
    while len(used) < 140_000:
        for packet in bench.sent():
            packet_id = int.from_bytes(packet[-43:-41], "big")
            used.append(packet_id)
            if packet_id != 5:
                publisher.feed(encode(Puback(packet_id), 5))
    assert used.count(5) == 1  # it was never acknowledged
    assert set(used) == set(range(1, 65_536))
    assert max(used.count(packet_id) for packet_id in (1, 4, 6, 1000, 65_535)) <= 3


def test_qos_2_is_acknowledged_in_two_steps(make: Make) -> None:
    bench = _p2p(make, 2, 5, cap=1)
    publisher, subscriber = bench.publishers[0], bench.subscribers[0]
    [packet] = bench.sent()
    publisher.feed(encode(Pubrec(1), 5))
    assert publisher.out == [encode(Pubrel(1), 5)]
    assert publisher.unacknowledged == 1
    publisher.feed(encode(Pubcomp(1), 5))
    assert publisher.unacknowledged == 0
    subscriber.feed(packet + encode(Pubrel(1), 5))
    assert subscriber.out == [encode(Pubrec(1), 5), encode(Pubcomp(1), 5)]


@pytest.mark.parametrize("qos, answer", [(1, Puback(9)), (2, Pubcomp(1)), (1, Pubrec(1)), (2, Puback(1))])
def test_a_wrong_acknowledgement_is_counted(make: Make, qos: int, answer: Puback | Pubcomp | Pubrec) -> None:
    bench = _p2p(make, qos)
    bench.sent()
    bench.publishers[0].feed(encode(answer, 5))
    assert bench.count().protocol_errors == 1
    assert "not in use" in bench.trouble


@pytest.mark.parametrize("qos, answer, unacknowledged", [(1, Puback(1, 0x97), 7), (2, Pubrec(1, 0x97), 14)])
def test_a_refused_message_is_counted_and_not_expected(
    make: Make, qos: int, answer: Puback | Pubrec, unacknowledged: int
) -> None:
    bench = _p2p(make, qos)
    packets = bench.sent()
    bench.publishers[0].feed(encode(answer, 5))
    bench.subscribers[0].feed(b"".join(packets[1:]))
    counts = bench.count()
    assert (counts.refused, counts.expected, counts.lost, counts.unacknowledged) == (1, 7, 0, unacknowledged)
    assert "reason code 0x97" in bench.trouble


def test_no_matching_subscribers_is_an_acknowledgement(make: Make) -> None:
    bench = _p2p(make, 1, 5)
    bench.sent()
    bench.publishers[0].feed(encode(Puback(1, 0x10), 5))
    assert bench.publishers[0].unacknowledged == 7


def test_a_packet_that_looks_different_is_counted_too(make: Make) -> None:
    bench = _p2p(make, 0, 5)
    packets = bench.sent()
    [(_, body)] = _frames(packets[1])
    properties = Properties()
    properties.message_expiry_interval = 5
    topic = bench.publishers[0].topic
    packets[1] = encode(Publish(topic, body[-40:], properties=properties), 5)
    bench.subscribers[0].feed(b"".join(packets))
    assert _clean(bench.count())
    assert bench.engine.delivered == 8


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    frames = FrameBuffer()
    frames.feed(data)
    return list(frames)


@pytest.mark.parametrize(
    "at, text", [(-1, "changed payload"), (-40, "changed payload"), (-33, "changed payload"), (6, "nobody sent")]
)
def test_changed_bytes_are_counted_and_the_message_is_lost(make: Make, at: int, text: str) -> None:
    bench = _p2p(make, 0, pairs=2)
    packets = [bytearray(packet) for packet in bench.sent()]
    packets[3][at] ^= 0x40 if at == -33 else 1
    bench.subscribers[0].feed(b"".join(packets))
    counts = bench.count()
    assert (counts.protocol_errors, counts.lost, counts.received) == (1, 1, 7)
    assert text in bench.trouble


def test_a_disconnect_is_counted_and_the_client_comes_back(make: Make) -> None:
    bench = _p2p(make, 0)
    subscriber = bench.subscribers[0]
    subscriber.feed(encode(Disconnect(0x8B), 5))
    assert bench.count().disconnects == 1
    assert "0x8b" in bench.trouble
    assert subscriber.socket is None
    assert bench.engine.absent == {subscriber}


def test_a_closed_connection_is_counted(make: Make) -> None:
    bench = _p2p(make, 0)
    bench._others[0].close()
    bench.publishers[0].readable()
    assert bench.count().disconnects == 1


def test_malformed_bytes_are_counted_and_end_the_connection(make: Make) -> None:
    bench = _p2p(make, 0)
    bench._others[1].send(b"\x00\x00")
    bench.subscribers[0].readable()
    counts = bench.count()
    assert (counts.protocol_errors, counts.disconnects) == (1, 0)
    assert bench.subscribers[0].socket is None


def test_a_ping_without_answer_ends_the_connection(make: Make) -> None:
    bench = _p2p(make, 0)
    bench.publishers[0].ping()
    bench.publishers[0].feed(encode(Pingresp(), 5))
    bench.publishers[0].ping()
    assert not bench.count().disconnects
    bench.publishers[0].ping()
    assert "no PINGRESP" in bench.trouble


def _reconnected(bench: Bench, client: Client, session_present: bool) -> list[bytes]:
    """Cut the client off, let it come back, and return what it says after CONNACK."""
    client.drop()
    bench.plug(client)
    client.feed(encode(Connack(session_present, 0), bench.engine.version))
    said = list(client.out)
    client.out.clear()
    return said


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("first, again", [(False, False), (False, True), (True, True)])
def test_session_present_is_checked(make: Make, clean: bool, first: bool, again: bool) -> None:
    bench = _p2p(make, 0, clean=clean)
    subscriber = bench.subscribers[0]
    _reconnected(bench, subscriber, first)
    _reconnected(bench, subscriber, again)
    assert bench.count().session_mismatches == first + (again != (not clean))


def test_a_subscriber_subscribes_again_only_without_a_session(make: Make) -> None:
    bench = _p2p(make, 1, clean=False)
    subscriber = bench.subscribers[0]
    subscriber.session = True
    assert _reconnected(bench, subscriber, True) == []
    assert subscriber.ready
    [packet] = _reconnected(bench, subscriber, False)
    assert packet[0] == 0x82
    bench.engine.absent.add(subscriber)
    subscriber.feed(encode(Suback(1, (1,)), 5))
    assert not bench.engine.absent


def test_a_refused_subscription_ends_the_run(make: Make) -> None:
    bench = _p2p(make, 1)
    _reconnected(bench, bench.subscribers[0], False)
    bench.subscribers[0].feed(encode(Suback(1, (0x87,)), 5))
    assert bench.count().refused == 1
    assert "SUBSCRIBE answered by 0x87" in bench.engine.failure


@pytest.mark.parametrize("code, ends", [(0x87, True), (0x97, False), (0x9F, False)])
def test_a_refused_connection_ends_the_run_unless_it_may_pass(make: Make, code: int, ends: bool) -> None:
    bench = _p2p(make, 1)
    client = bench.publishers[0]
    client.drop()
    bench.plug(client)
    client.feed(encode(Connack(False, code), 5))
    counts = bench.count()
    assert (counts.refused, counts.disconnects, bool(bench.engine.failure)) == (1, 0, ends)
    assert bench.engine.absent == {client}


def test_unacknowledged_messages_are_sent_again_with_dup_to_the_same_session(make: Make) -> None:
    bench = _p2p(make, 1, cap=3, clean=False)
    publisher = bench.publishers[0]
    packets = bench.sent()
    publisher.feed(encode(Puback(2), 5))
    publisher.session = True
    again = _reconnected(bench, publisher, True)
    assert again == [bytes((packet[0] | 8,)) + packet[1:] for packet in (packets[0], packets[2])]
    assert bench.count().retransmitted == 2
    bench.subscribers[0].feed(b"".join(packets) + again[0] + again[1])
    assert (bench.count().duplicated, bench.count().lost) == (2, 0)


def test_unacknowledged_messages_are_new_to_a_new_session(make: Make) -> None:
    bench = _p2p(make, 1, cap=3)
    packets = bench.sent()
    assert _reconnected(bench, bench.publishers[0], False) == packets


def test_released_messages_are_released_again(make: Make) -> None:
    bench = _p2p(make, 2, cap=2, clean=False)
    publisher = bench.publishers[0]
    packets = bench.sent()
    publisher.feed(encode(Pubrec(1), 5))
    publisher.session = True
    assert _reconnected(bench, publisher, True) == [encode(Pubrel(1), 5), bytes((packets[1][0] | 8,)) + packets[1][1:]]
    publisher.feed(encode(Pubcomp(1), 5))
    assert publisher.unacknowledged == 1


def test_a_message_of_qos_2_that_comes_again_in_the_same_session_is_no_duplicate(make: Make) -> None:
    bench = _p2p(make, 2, cap=1, clean=False)
    subscriber = bench.subscribers[0]
    [packet] = bench.sent()
    subscriber.feed(packet)
    subscriber.session = True
    _reconnected(bench, subscriber, True)
    subscriber.feed(bytes((packet[0] | 8,)) + packet[1:] + encode(Pubrel(1), 5))
    assert subscriber.out == [encode(Pubrec(1), 5), encode(Pubcomp(1), 5)]
    assert bench.count().duplicated == bench.count().protocol_errors == 0
    subscriber.feed(packet)
    assert bench.count().duplicated == 1


def test_latency_counts_from_when_the_subscriber_came_back(make: Make) -> None:
    bench = _p2p(make, 0, cap=1)
    [packet] = bench.sent()
    subscriber = bench.subscribers[0]
    subscriber.since_ns = STAMP.unpack(packet[-40:-24])[2] + 10**15
    subscriber.feed(packet)
    assert bench.engine.latency.percentile_ms(50) == 0


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_retained_messages_are_counted_by_topic(make: Make, qos: int) -> None:
    bench = make("retained", 2, 2, topics=3, qos=qos)
    packets = [*bench.sent(0), *bench.sent(1)]
    assert len(packets) == 6
    assert isinstance(bench.traffic, Storing)
    assert bench.count().lost == 0  # nobody has come for them yet
    bench.traffic.reading = True
    assert all(packet[0] & 1 for packet in packets)
    first, second = bench.subscribers
    first.feed(b"".join(packets))
    second.feed(b"".join([*packets[3:], packets[1], packets[4]]))  # any order; one is there twice, two are not
    counts = bench.count()
    assert (counts.sent, counts.expected, counts.received, counts.lost) == (6, 12, 10, 2)
    assert (counts.duplicated, counts.reordered) == (1, 0)
    assert (bench.engine.delivered, bench.engine.latency.count) == (10, 11)


def test_a_retained_message_has_its_topic_and_its_flag(make: Make) -> None:
    bench = make("retained", 1, 1, topics=3)
    packets = bench.sent()
    [reader] = bench.subscribers
    assert isinstance(reader, Reader)
    changed = bytearray(packets[0])
    changed[-39] ^= 1  # the number in its payload
    reader.feed(bytes(changed) + b"\x30" + packets[1][1:] + packets[2])
    assert bench.count().protocol_errors == 2
    assert bytes(reader.seen) == b"\x00\x00\x01"


def test_a_paced_message_held_back_counts_from_when_it_was_due(make: Make) -> None:
    bench = _p2p(make, 1, rate=1000)
    publisher = bench.publishers[0]
    publisher.receive_maximum = 1
    publisher.due = 2
    [first] = bench.sent()
    publisher.feed(encode(Puback(1), 5))
    [second] = bench.sent()
    assert STAMP.unpack(second[-40:-24])[2] == bench.traffic.due_ns(0, 1)
    assert STAMP.unpack(first[-40:-24])[2] > bench.traffic.due_ns(0, 0)


def _altered(bench: Bench, packet: bytes, **changes: Any) -> bytes:
    """A packet of the first publisher, made anew by the codec with something else."""
    frame = FrameBuffer()
    frame.feed(packet)
    [(first_byte, body)] = list(frame)
    found = decode(first_byte, body, 0, len(body), bench.engine.version, from_client=False)
    assert isinstance(found, Publish)
    for name, value in changes.items():
        setattr(found.properties if hasattr(Properties(), name) else found, name, value)
    return encode(found, bench.engine.version)


PROPERTIES = {"content_type": "a", "response_topic": "b", "user": {"k": "v", "l": "w"}, "message_expiry_interval": 60}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"content_type": None}, "content_type"),
        ({"response_topic": "c"}, "response_topic"),
        ({"payload_format_indicator": 1}, "payload_format_indicator"),
        ({"user_properties": [("l", "w"), ("k", "v")]}, "user"),
        ({"message_expiry_interval": None}, "message_expiry_interval"),
        ({"message_expiry_interval": 61}, "message_expiry_interval"),
        ({"message_expiry_interval": 7}, ""),
    ],
    ids=str,
)
def test_changed_properties_are_counted_and_the_message_is_there(
    make: Make, changes: dict[str, Any], text: str
) -> None:
    bench = _p2p(make, 1, properties=PROPERTIES)
    packets = bench.sent()
    packets[3] = _altered(bench, packets[3], **changes)
    bench.subscribers[0].feed(b"".join(packets))
    counts = bench.count()
    assert (counts.protocol_errors, counts.lost) == (bool(text), 0)
    assert text in bench.trouble


def test_properties_that_nobody_sent_are_counted(make: Make) -> None:
    bench = _p2p(make, 0)
    packets = bench.sent()
    properties = Properties()
    properties.user_properties = [("k", "v")]
    packets[1] = _altered(bench, packets[1], properties=properties)
    bench.subscribers[0].feed(b"".join(packets))
    assert bench.count().protocol_errors == 1
    assert "changed properties (user)" in bench.trouble


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize(
    "changes, text", [({"packet_id": 0}, "packet identifier 0"), ({"packet_id": 1}, "in use twice")], ids=str
)
def test_a_packet_identifier_that_must_not_be_used_is_counted(
    make: Make, qos: int, changes: dict[str, Any], text: str
) -> None:
    bench = _p2p(make, qos)
    packets = bench.sent()
    at = len(packets[3]) - 43
    packets[3] = packets[3][:at] + changes["packet_id"].to_bytes(2, "big") + packets[3][at + 2 :]
    bench.subscribers[0].feed(b"".join(packets))
    assert bench.count().protocol_errors == 1
    assert text in bench.trouble


def test_a_packet_identifier_may_be_used_again_after_its_acknowledgement(make: Make) -> None:
    bench = _p2p(make, 1)
    for packet in bench.sent():
        bench.subscribers[0].feed(packet)
    assert not bench.count().protocol_errors


@pytest.mark.parametrize("flag, text", [("dup", "DUP is set"), ("retain", "RETAIN is set")])
@pytest.mark.parametrize("qos", [1, 2])
def test_a_stray_flag_is_counted_and_the_message_is_there(make: Make, qos: int, flag: str, text: str) -> None:
    bench = _p2p(make, qos)
    packets = bench.sent()
    packets[3] = _altered(bench, packets[3], **{flag: True})
    bench.subscribers[0].feed(b"".join(packets))
    counts = bench.count()
    assert (counts.protocol_errors, counts.lost, counts.duplicated) == (1, 0, 0)
    assert text in bench.trouble


def test_dup_is_as_it_has_to_be_in_a_session_that_goes_on(make: Make) -> None:
    bench = _p2p(make, 1, clean=False)
    subscriber = bench.subscribers[0]
    packets = bench.sent()
    subscriber.session = True
    _reconnected(bench, subscriber, True)
    subscriber.feed(_altered(bench, packets[0], dup=True))
    assert not bench.count().protocol_errors


@pytest.mark.parametrize(
    "answers, text, ready",
    [
        ([Suback(7, (1,))], "SUBACK for packet identifier 7", False),
        ([Suback(1, (1,)), Suback(1, (1,))], "SUBACK for packet identifier 1", True),
        ([Suback(1, (1, 1))], "2 reason codes for 1 filters", True),
    ],
    ids=["another", "twice", "too many"],
)
def test_a_wrong_suback_is_counted(make: Make, answers: list[Suback], text: str, ready: bool) -> None:
    bench = _p2p(make, 1)
    subscriber = bench.subscribers[0]
    _reconnected(bench, subscriber, False)
    for answer in answers:
        subscriber.feed(encode(answer, 5))
    assert bench.count().protocol_errors == 1
    assert text in bench.trouble
    assert subscriber.ready is ready


def test_a_message_that_is_never_released_is_unacknowledged(make: Make) -> None:
    bench = _p2p(make, 2, cap=3)
    publisher, subscriber = bench.publishers[0], bench.subscribers[0]
    subscriber.feed(b"".join(bench.sent()))
    for packet_id in (1, 2, 3):
        publisher.feed(encode(Pubrec(packet_id), 5) + encode(Pubcomp(packet_id), 5))
    subscriber.feed(encode(Pubrel(1), 5) + encode(Pubrel(3), 5))
    assert bench.count().unacknowledged == subscriber.unreleased == 1
    subscriber.feed(encode(Pubrel(3), 5))
    assert "PUBREL for packet identifier 0003, not in use" in bench.trouble


def test_repetitions_are_no_throughput(make: Make) -> None:
    bench = _p2p(make, 0)
    packets = bench.sent()
    bench.subscribers[0].feed(b"".join([*packets, *packets[2:5]]))
    assert bench.engine.delivered == 8
    changed = _altered(bench, packets[6], retain=True)  # the long way
    bench.subscribers[0].feed(changed)
    assert (bench.engine.delivered, bench.count().duplicated) == (8, 4)


def test_a_turn_paces_no_more_than_it_can_bear(make: Make) -> None:
    bench = _p2p(make, 0, pairs=2, rate=1e7)
    bench.traffic.start()
    later = monotonic_ns() + 10**10
    assert bench.traffic.pace(later) < later
    due = sum(publisher.due for publisher in bench.publishers)
    assert due == PACED_PER_TURN
    bench.traffic.pace(later)
    assert sum(publisher.due for publisher in bench.publishers) == 2 * due


def test_nothing_more_is_stored_after_the_end(make: Make) -> None:
    bench = make("retained", 1, 1, topics=3)
    bench.engine.stop()
    assert bench.sent() == []


def test_those_who_are_not_ready_are_given_up(make: Make) -> None:
    bench = _p2p(make, 0, pairs=2, clean=False)
    engine, late = bench.engine, bench.subscribers[1]
    late.drop()
    engine.open([late])
    assert engine.absent == {late}
    engine.abandon()
    engine.turn(monotonic_ns())
    assert (engine.absent, late.socket, engine.failure) == (set(), None, "")


def test_a_session_may_have_been_made_by_a_connect_without_answer(make: Make) -> None:
    bench = _p2p(make, 0, clean=False)
    client = bench.publishers[0]
    client.connected = False
    client.close()
    assert client.session is None
