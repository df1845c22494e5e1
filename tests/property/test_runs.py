"""Runs of packets against packets one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.codec.decode import decode
from broker.codec.packets import Puback, Publish
from broker.codec.primitives import FrameBuffer
from broker.codec.publish import encode_publish
from broker.codec.runs import (
    acknowledgements,
    packet_ids,
    plain_ids,
    run_length,
    split_run,
    topic_bounds,
    with_packet_ids,
)

versions = st.sampled_from([4, 5])
topics = st.text(st.characters(exclude_characters="\0+#", exclude_categories=["Cs"]), min_size=1, max_size=70)
identifiers = st.integers(1, 65535)


def packets_of(data: bytes, version: int) -> list[object]:
    frames = FrameBuffer()
    frames.feed(data)
    return [decode(first, body, 0, len(body), version, True) for first, body in frames]


@given(versions, st.lists(st.tuples(st.sampled_from(["a", "a/b"]), st.binary(max_size=3)), min_size=1), st.data())
def test_a_run_is_what_begins_alike_and_is_as_long(
    version: int, messages: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    packets = [encode_publish(topic.encode(), payload, 0, 0, version) for topic, payload in messages]
    rest = data.draw(st.binary(max_size=3))
    limit = data.draw(st.integers(1, len(packets) + 1))
    stream = b"x" + b"".join(packets) + packets[0][: len(rest)]
    first = packets[0]
    body = topic_bounds(first)[1]
    expected = 0
    for packet in packets:
        if packet[:body] != first[:body]:
            break
        expected += 1
    assert run_length(stream, 1, 1 + len(first), first[:body], limit) == min(limit, expected)


@given(versions, topics, st.lists(identifiers, min_size=1, max_size=20), st.integers(0, 200), st.integers(1, 60000))
def test_packet_ids_are_read_acknowledged_and_replaced(
    version: int, topic: str, ids: list[int], size: int, first: int
) -> None:
    packets = [
        encode_publish(topic.encode(), b"%03d" % at + b"x" * size, 2, each, version) for at, each in enumerate(ids)
    ]
    run = b"".join(packets)
    start, end = topic_bounds(run)
    assert run[start:end] == topic.encode()
    assert list(split_run(run, len(ids))) == packets
    found = plain_ids(run, len(ids), end, version == 5)
    assert packet_ids(found) == ids
    answers = packets_of(acknowledgements(found, 0x40), version)
    assert [answer.packet_id for answer in answers if isinstance(answer, Puback)] == ids
    changed = packets_of(with_packet_ids(run, len(ids), end, first), version)
    assert [
        (packet.topic_name, packet.payload, packet.packet_id) for packet in changed if isinstance(packet, Publish)
    ] == [(topic, b"%03d" % at + b"x" * size, first + at) for at in range(len(ids))]


@given(versions, st.lists(st.sampled_from([0, 1, 255, 256, 0x3000]), min_size=1, max_size=5))
def test_a_packet_id_of_zero_ends_a_run(version: int, ids: list[int]) -> None:
    run = b"".join(b"\x32\x06\x00\x01t" + each.to_bytes(2, "big") + b"\0" for each in ids)
    expected = ids[: ids.index(0)] if 0 in ids else ids
    assert packet_ids(plain_ids(run, len(ids), 5, version == 5)) == expected


def test_properties_end_a_run() -> None:
    plain, special = b"\x32\x08\x00\x01t\x00\x01\x00yy", b"\x32\x08\x00\x01t\x00\x02\x02\x01\x00"
    assert packet_ids(plain_ids(plain + special, 2, 5, True)) == [1]
    assert plain_ids(special + plain, 2, 5, True) == b""
    assert packet_ids(plain_ids(plain + special, 2, 5, False)) == [1, 2]
