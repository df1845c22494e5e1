"""The load test's clients on fabricated byte streams: what a faulty broker does must show in the counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from broker.codec.encode import encode
from broker.codec.packets import (
    PUBACK,
    PUBREC,
    Disconnect,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from broker.codec.primitives import FrameBuffer
from broker.codec.publish import encode_publish
from loadtest.client import LoadError
from loadtest.engine import Engine
from loadtest.scenarios import Scenario
from loadtest.wire import STAMP, Wire

Make = Callable[[Scenario, int], Engine]


@pytest.fixture
def make() -> Iterator[Make]:
    """Engines whose clients are ready and whose sockets nobody serves."""
    made: list[Engine] = []

    def engine_of(scenario: Scenario, version: int) -> Engine:
        engine = Engine(("127.0.0.1", 1), version)
        made.append(engine)
        engine.populate(scenario, 40)
        for client in (*engine.publishers, *engine.subscribers):
            client.ready, client.blocked = True, False
        engine.sending = True
        return engine

    yield engine_of
    for engine in made:
        for client in (*engine.publishers, *engine.subscribers):
            client.ready = False
        engine.close()


def _p2p(qos: int, pairs: int = 1, cap: int = 8) -> Scenario:
    return Scenario("", "", "p2p", pairs, pairs, qos=qos, cap=cap)


def _sent(engine: Engine, number: int = 0) -> list[bytes]:
    """The packets a publisher sends when it may."""
    publisher = engine.publishers[number]
    publisher.fill()
    packets = list(publisher.out)
    publisher.out.clear()
    return packets


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
    engine = make(_p2p(qos), version)
    stream = b"".join(_sent(engine))
    rest = b""
    for at in range(0, len(stream), step):
        rest += stream[at : at + step]
        rest = rest[engine.subscribers[0].feed(rest) :]
    tally = engine.count()
    assert (tally.sent, tally.received, tally.lost, tally.duplicated, tally.reordered) == (8, 8, 0, 0, 0)
    assert engine.delivered == engine.latency.count == 8
    assert tally.unacknowledged == (8 if qos else 0)
    kinds = {packet[0] >> 4 for packet in engine.subscribers[0].out}
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
    engine = make(_p2p(0), version)
    packets = _sent(engine)
    engine.subscribers[0].feed(b"".join(packets[i] for i in order))
    tally = engine.count()
    assert (tally.lost, tally.duplicated, tally.reordered) == faults
    assert not tally.clean


def test_a_shared_group_is_one_audience(make: Make) -> None:
    engine = make(Scenario("", "", "shared", 1, 2, cap=6), 5)
    packets = _sent(engine)
    engine.subscribers[0].feed(packets[1] + packets[3])
    engine.subscribers[1].feed(packets[0] + packets[2] + packets[5] + packets[4])
    tally = engine.count()
    assert (tally.expected, tally.lost, tally.duplicated, tally.reordered) == (6, 0, 0, 1)
    engine.subscribers[0].feed(packets[5])
    assert engine.count().duplicated == 1


def test_every_subscriber_of_a_fan_out_expects_everything(make: Make) -> None:
    engine = make(Scenario("", "", "fanout", 1, 3, cap=4), 5)
    packets = _sent(engine)
    engine.subscribers[0].feed(b"".join(packets))
    engine.subscribers[1].feed(b"".join(packets[:3]))
    tally = engine.count()
    assert (tally.sent, tally.expected, tally.received, tally.lost) == (4, 12, 7, 5)
    assert _sent(engine) == []  # the third subscriber has received nothing: the cap holds


def test_the_cap_bounds_what_is_on_its_way(make: Make) -> None:
    engine = make(_p2p(0, cap=5), 5)
    packets = _sent(engine)
    assert len(packets) == 5
    assert _sent(engine) == []
    engine.subscribers[0].feed(packets[0] + packets[1])
    assert len(_sent(engine)) == 2


def test_what_stands_still_at_the_cap_is_written_off_and_stays_lost(make: Make) -> None:
    engine = make(_p2p(0, cap=5), 5)
    engine.cap = 5
    _sent(engine)
    engine.publishers[0].tick()
    assert _sent(engine) == []  # it has only now been seen to stand still
    engine.publishers[0].tick()
    assert len(_sent(engine)) == 5
    assert engine.count().lost == 10


@pytest.mark.parametrize("version", [4, 5])
def test_the_window_opens_with_acknowledgements(make: Make, version: int) -> None:
    engine = make(_p2p(1, cap=100), version)
    publisher = engine.publishers[0]
    publisher.receive_maximum = 3
    assert len(_sent(engine)) == 3
    publisher.feed(encode(Puback(2), version))
    assert publisher.unacknowledged == 2
    [packet] = _sent(engine)
    assert packet[-43 if version == 5 else -42 :][:2] == b"\x00\x04"  # packet identifier, properties, payload
    publisher.feed(encode(Puback(1), version) + encode(Puback(3), version) + encode(Puback(4), version))
    assert publisher.unacknowledged == 0


def test_packet_identifiers_start_again_around_those_in_use(make: Make) -> None:
    engine = make(_p2p(1, cap=10**6), 5)
    publisher = engine.publishers[0]
    used: list[int] = []
    while len(used) < 140_000:
        for packet in _sent(engine):
            packet_id = int.from_bytes(packet[-43:-41], "big")
            used.append(packet_id)
            if packet_id != 5:
                publisher.feed(encode(Puback(packet_id), 5))
    assert used.count(5) == 1  # it was never acknowledged
    assert set(used) == set(range(1, 65_536))
    assert max(used.count(packet_id) for packet_id in (1, 4, 6, 1000, 65_535)) <= 3


def test_qos_2_is_acknowledged_in_two_steps(make: Make) -> None:
    engine = make(_p2p(2, cap=1), 5)
    publisher, subscriber = engine.publishers[0], engine.subscribers[0]
    [packet] = _sent(engine)
    publisher.feed(encode(Pubrec(1), 5))
    assert publisher.out == [encode(Pubrel(1), 5)]
    assert publisher.unacknowledged == 1
    publisher.feed(encode(Pubcomp(1), 5))
    assert publisher.unacknowledged == 0
    subscriber.feed(packet + encode(Pubrel(1), 5))
    assert subscriber.out == [encode(Pubrec(1), 5), encode(Pubcomp(1), 5)]


@pytest.mark.parametrize("qos, answer", [(1, Puback(9)), (2, Pubcomp(1)), (1, Pubrec(1)), (2, Puback(1))])
def test_a_wrong_acknowledgement_ends_the_run(make: Make, qos: int, answer: Puback | Pubcomp | Pubrec) -> None:
    engine = make(_p2p(qos), 5)
    _sent(engine)
    with pytest.raises(LoadError, match="not in use"):
        engine.publishers[0].feed(encode(answer, 5))


def test_a_refused_message_ends_the_run(make: Make) -> None:
    engine = make(_p2p(1), 5)
    _sent(engine)
    with pytest.raises(LoadError, match="message refused, reason code 0x97"):
        engine.publishers[0].feed(encode(Puback(1, 0x97), 5))


def test_no_matching_subscribers_is_an_acknowledgement(make: Make) -> None:
    engine = make(_p2p(1), 5)
    _sent(engine)
    engine.publishers[0].feed(encode(Puback(1, 0x10), 5))
    assert engine.publishers[0].unacknowledged == 7


def test_a_packet_that_looks_different_is_counted_too(make: Make) -> None:
    engine = make(_p2p(0), 5)
    packets = _sent(engine)
    [(_, body)] = _frames(packets[1])
    properties = Properties()
    properties.message_expiry_interval = 5
    topic = engine.publishers[0].topic
    packets[1] = encode(Publish(topic, body[-40:], properties=properties), 5)
    engine.subscribers[0].feed(b"".join(packets))
    assert engine.count().clean
    assert engine.delivered == 8


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    frames = FrameBuffer()
    frames.feed(data)
    return list(frames)


@pytest.mark.parametrize("at, text", [(-1, "changed payload"), (-40, "changed payload"), (6, "nobody sent")])
def test_changed_bytes_end_the_run(make: Make, at: int, text: str) -> None:
    engine = make(_p2p(0, pairs=2), 5)
    packet = bytearray(_sent(engine)[0])
    packet[at] ^= 1
    with pytest.raises(LoadError, match=text):
        engine.subscribers[0].feed(bytes(packet))


def test_a_disconnect_ends_the_run(make: Make) -> None:
    engine = make(_p2p(0), 5)
    with pytest.raises(LoadError, match="0x8b"):
        engine.subscribers[0].feed(encode(Disconnect(0x8B), 5))


def test_a_paced_message_held_back_counts_from_when_it_was_due(make: Make) -> None:
    engine = make(Scenario("", "", "p2p", 1, 1, qos=1, rate=1000), 5)
    publisher = engine.publishers[0]
    publisher.receive_maximum = 1
    publisher.due = 2
    [first] = _sent(engine)
    publisher.feed(encode(Puback(1), 5))
    [second] = _sent(engine)
    assert STAMP.unpack(second[-40:-24])[2] == engine.due_ns(0, 1)
    assert STAMP.unpack(first[-40:-24])[2] > engine.due_ns(0, 0)
