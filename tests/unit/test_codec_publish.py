"""The hot path of PUBLISH: scanning properties and putting packets together from parts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from broker.codec import publish
from broker.codec.decode import decode
from broker.codec.packets import Properties, Publish
from broker.codec.primitives import remaining_length
from broker.codec.publish import (
    encode_publish,
    forwardable_to_properties,
    payload_format,
    properties_to_forwardable,
    publish_head,
    publish_tail,
    scan_publish_properties,
)
from broker.errors import PeerError, StateError
from tests.kit.packet_data import packet_data, properties_data, wire


def _scan(properties: str) -> tuple[int, int, bytes]:
    body = wire(properties)
    data = b"xx" + remaining_length(len(body)) + body + b"payload"
    expiry_s, topic_alias, forwardable, pos = scan_publish_properties(data, 2, len(data))
    assert data[pos:] == b"payload"
    return expiry_s, topic_alias, forwardable


@pytest.mark.parametrize(
    ("properties", "expiry_s", "topic_alias", "forwardable"),
    [
        ("", -1, 0, ""),
        ("02 00000000", 0, 0, ""),
        ("02 ffffffff", 4_294_967_295, 0, ""),
        ("23 ffff", -1, 65_535, ""),
        ("01 01", -1, 0, "01 01"),
        ("26 0001 'k' 0001 'v' 02 0000000a 03 0001 'c'", 10, 0, "26 0001 'k' 0001 'v' 03 0001 'c'"),
        ("02 0000000a 26 0001 'k' 0000 23 0001", 10, 1, "26 0001 'k' 0000"),
        (
            "23 0001 26 0001 'b' 0001 '1' 02 00000001 26 0001 'a' 0001 '2'",
            1,
            1,
            "26 0001 'b' 0001 '1' 26 0001 'a' 0001 '2'",
        ),
        ("09 0003 000203", -1, 0, "09 0003 000203"),
        ("08 0003 'r/t' 09 0000 01 00 23 0002", -1, 2, "08 0003 'r/t' 09 0000 01 00"),
        ("26 0002 c3a4 0004 f0aa9b94", -1, 0, "26 0002 c3a4 0004 f0aa9b94"),
    ],
)
def test_scanning_takes_out_expiry_and_alias_and_keeps_the_rest_in_order(
    properties: str, expiry_s: int, topic_alias: int, forwardable: str
) -> None:
    for _ in range(2):  # the second time from memory
        assert _scan(properties) == (expiry_s, topic_alias, wire(forwardable))


@pytest.mark.parametrize(
    "digits",
    ["", "80", "05", "7f 23 0001", "8000", "ffffffff7f", "01 26", "02 26 00", "03 26 0001", "05 26 0001 'k' 00"],
)
def test_a_property_block_that_is_cut_off_is_malformed(digits: str) -> None:
    data = wire(digits)
    for _ in range(2):
        with pytest.raises(PeerError) as caught:
            scan_publish_properties(data, 0, len(data))
        assert caught.value.reason_code == 0x81


def test_user_properties_are_bounded() -> None:
    pair = wire("26 0001 'k' 0001 'v'")
    block = remaining_length(len(pair) * 128) + pair * 128
    assert scan_publish_properties(block, 0, len(block)) == (-1, 0, pair * 128, len(block))
    block = remaining_length(len(pair) * 129) + pair * 129
    with pytest.raises(PeerError) as caught:
        scan_publish_properties(block, 0, len(block))
    assert caught.value.reason_code == 0x97


def test_remembered_blocks_are_bounded() -> None:
    for number in range(3 * publish._KNOWN_BLOCKS_MAXIMUM):
        text = f"{number:06d}".encode()
        block = b"\x09\x03\x00\x06" + text
        assert scan_publish_properties(block, 0, len(block)) == (-1, 0, block[1:], len(block))
        assert len(publish._KNOWN_BLOCKS) <= publish._KNOWN_BLOCKS_MAXIMUM
    before = len(publish._KNOWN_BLOCKS)
    body = b"\x09\x01\x00" + bytes(256)
    block = remaining_length(len(body)) + body
    scan_publish_properties(block, 0, len(block))
    assert len(publish._KNOWN_BLOCKS) == before


@pytest.mark.parametrize(
    ("forwardable", "expected"),
    [
        ("", 0),
        ("01 01", 1),
        ("01 00", 0),
        ("03 0001 'c' 01 01", 1),
        ("26 0001 'k' 0001 01", 0),
        ("26 0001 01 0001 01 09 0002 0101 01 01", 1),
        ("08 0001 'r'", 0),
    ],
)
def test_the_payload_format_is_found_among_other_properties(forwardable: str, expected: int) -> None:
    assert payload_format(wire(forwardable)) == expected


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("size", [0, 1, 100, 2035, 2040, 2048, 16_384, 2_100_000])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_whole_publish_equals_its_parts_and_decodes(version: int, size: int, qos: int) -> None:
    topic = "grüße/b".encode()
    payload = b"p" * size
    packet_id = 513 if qos else 0
    flags = qos << 1 | 1 | (8 if qos else 0)
    forwardable = wire("01 01 26 0001 'k' 0001 'v'")
    extras: list[tuple[bytes, int, Sequence[int], int]] = [
        (b"", -1, (), 0),
        (forwardable, -1, (), 0),
        (b"", 0, (), 0),
        (b"", -1, (1, 16_384), 0),
        (b"", -1, (), 7),
        (forwardable, 60, [5], 65_535),
        (wire("09 0800") + bytes(2048), -1, (), 0),
    ]
    for kept, expiry_s, subscription_ids, topic_alias in extras:
        whole = encode_publish(topic, payload, flags, packet_id, version, kept, expiry_s, subscription_ids, topic_alias)
        tail = publish_tail(version, kept, payload, expiry_s, subscription_ids, topic_alias)
        middle = packet_id.to_bytes(2, "big") if qos else b""
        assert whole == publish_head(topic, flags, len(middle) + len(tail)) + middle + tail
        start = 2
        while whole[start - 1] & 128:
            start += 1
        assert remaining_length(len(whole) - start) == whole[1:start]
        packet = decode(whole[0], whole, start, len(whole), version, False)
        assert isinstance(packet, Publish)
        assert (packet.topic_name, packet.payload, packet.qos) == ("grüße/b", payload, qos)
        assert (packet.retain, packet.dup, packet.packet_id) == (True, qos > 0, packet_id)
        properties = packet.properties or Properties()
        if version != 5:
            assert packet.properties is None
            continue
        assert properties_to_forwardable(properties) == kept
        assert properties.message_expiry_interval == (None if expiry_s < 0 else expiry_s)
        assert list(properties.subscription_identifiers) == list(subscription_ids)
        assert properties.topic_alias == (topic_alias or None)


def test_an_alias_may_stand_for_the_topic() -> None:
    encoded = encode_publish(b"", b"x", 0, 0, 5, topic_alias=3)
    assert encoded == wire("30 07 0000 03 23 0003 'x'")
    packet = decode(0x30, encoded, 2, len(encoded), 5, False)
    assert packet_data(packet)["properties"] == {"topic_alias": 3}


def test_only_what_travels_with_the_message_is_forwardable() -> None:
    properties = Properties()
    properties.payload_format_indicator = 0
    properties.message_expiry_interval = 5
    properties.content_type = ""
    properties.response_topic = "r"
    properties.correlation_data = b""
    properties.user_properties = [("b", "1"), ("a", "2"), ("b", "1")]
    properties.will_delay_interval = 9
    properties.topic_alias = 4
    properties.subscription_identifiers = [3]
    kept = forwardable_to_properties(properties_to_forwardable(properties))
    assert properties_data(kept) == {
        "payload_format_indicator": 0,
        "content_type": "",
        "response_topic": "r",
        "correlation_data": "",
        "user_properties": [["b", "1"], ["a", "2"], ["b", "1"]],
    }
    assert properties_to_forwardable(None) == b""
    assert properties_data(forwardable_to_properties(b"")) == {}


def test_damaged_stored_properties_are_not_the_peers_fault() -> None:
    with pytest.raises(StateError):
        forwardable_to_properties(b"\x03\x00\x09x")
