"""Data types of the wire, framing, and what cannot be encoded."""

from __future__ import annotations

import pytest

from broker.codec.decode import decode
from broker.codec.encode import encode, encode_ack
from broker.codec.packets import (
    PROPERTY_NAMES,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    Connack,
    Connect,
    Packet,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Unsubscribe,
)
from broker.codec.primitives import FrameBuffer, read_variable_byte_integer, remaining_length
from broker.codec.properties import PROPERTY_TABLE, decode_properties, encode_properties
from broker.errors import MalformedPacket, PeerError, StateError
from tests.kit.packet_data import wire

BOUNDARIES = [
    (0, "00"),
    (127, "7f"),
    (128, "8001"),
    (2047, "ff0f"),
    (2048, "8010"),
    (16_383, "ff7f"),
    (16_384, "808001"),
    (2_097_151, "ffff7f"),
    (2_097_152, "80808001"),
    (268_435_455, "ffffff7f"),
]


@pytest.mark.parametrize(("value", "digits"), BOUNDARIES)
def test_a_variable_byte_integer_has_the_length_of_the_standard(value: int, digits: str) -> None:
    encoded = remaining_length(value)
    assert encoded.hex() == digits
    assert read_variable_byte_integer(b"x" + encoded + b"x", 1, 1 + len(encoded)) == (value, 1 + len(encoded))


@pytest.mark.parametrize("value", [-1, 268_435_456])
def test_what_does_not_fit_a_variable_byte_integer_is_a_defect(value: int) -> None:
    with pytest.raises(StateError):
        remaining_length(value)


@pytest.mark.parametrize("digits", ["", "80", "ffffff", "8000", "ff00", "80808000", "ffffffff", "8080808001"])
def test_a_bad_variable_byte_integer_is_malformed(digits: str) -> None:
    data = bytes.fromhex(digits)
    with pytest.raises(MalformedPacket):
        read_variable_byte_integer(data, 0, len(data))


def test_frames_come_out_whole_and_in_order_however_the_bytes_arrive() -> None:
    stream = b"\xc0\x00" + b"\x30\x80\x01" + b"p" * 128 + b"\xd0\x00"
    expected = [(0xC0, b""), (0x30, b"p" * 128), (0xD0, b"")]
    whole = FrameBuffer()
    whole.feed(stream)
    assert list(whole) == expected
    single = FrameBuffer()
    frames: list[tuple[int, bytes]] = []
    for position in range(len(stream)):
        single.feed(stream[position : position + 1])
        frames.extend(single)
    assert frames == expected
    assert single.next_frame() is None
    assert len(single) == 0


def test_a_frame_buffer_frees_what_it_returned() -> None:
    frames = FrameBuffer()
    packet = b"\x30\x80\x80\x01" + bytes(16_384)
    for _ in range(16):
        frames.feed(packet + b"\xc0")
        assert frames.next_frame() is not None
        frames.feed(b"\x00")
        assert frames.next_frame() == (0xC0, b"")
    frames.feed(b"\xc0")
    assert len(frames) == 1


def test_a_packet_above_the_maximum_is_refused_before_its_body_arrives() -> None:
    frames = FrameBuffer(maximum_packet_size=10)
    frames.feed(b"\x30\x08" + b"x" * 8)
    assert frames.next_frame() == (0x30, b"x" * 8)
    frames.feed(b"\x30\x09")
    with pytest.raises(PeerError) as caught:
        frames.next_frame()
    assert caught.value.reason_code == 0x95
    with pytest.raises(PeerError):
        frames.feed(b"x")
    with pytest.raises(PeerError):
        frames.next_frame()


@pytest.mark.parametrize("digits", ["30ffffffff", "3080808080", "308000", "3080808000"])
def test_a_malformed_remaining_length_is_refused(digits: str) -> None:
    frames = FrameBuffer()
    frames.feed(bytes.fromhex(digits))
    with pytest.raises(MalformedPacket):
        frames.next_frame()


@pytest.mark.parametrize("kind", [PUBACK, PUBREC, PUBREL, PUBCOMP])
@pytest.mark.parametrize("packet_id", [1, 255, 256, 65_535])
def test_the_short_way_to_acknowledge_gives_the_same_bytes(kind: int, packet_id: int) -> None:
    packets: dict[int, Packet] = {
        PUBACK: Puback(packet_id),
        PUBREC: Pubrec(packet_id),
        PUBREL: Pubrel(packet_id),
        PUBCOMP: Pubcomp(packet_id),
    }
    for version in (3, 4, 5):
        assert encode_ack(kind, packet_id) == encode(packets[kind], version)


def test_version_3_drops_properties_and_maps_reason_codes() -> None:
    properties = Properties()
    properties.reason_string = "why"
    properties.user_properties = [("k", "v")]
    assert encode(Publish("a", b"x", properties=properties), 4) == wire("30 04 0001 'a' 'x'")
    assert encode(Puback(1, 0x87, properties), 4) == wire("40 02 0001")
    assert encode(Connack(False, 0x8A, properties), 4) == wire("20 02 0005")
    assert encode(Connack(True, 0), 3) == wire("20 02 0000")
    assert encode(Suback(1, [0, 2, 0x8F, 0x97], properties), 3) == wire("90 06 0001 00 02 80 80")
    assert encode(Unsubscribe(1, ["a"], properties), 3) == wire("a2 05 0001 0001 'a'")


@pytest.mark.parametrize("version", [4, 5])
def test_a_refusal_never_says_session_present(version: int) -> None:
    assert encode(Connack(True, 0x87), version)[2] == 0


@pytest.mark.parametrize(
    "packet",
    [
        Publish("t" * 65_536, b""),
        Publish("a\0b", b""),
        Publish("\ud800", b""),
        Puback(65_536),
        Puback(-1),
        Connect(4, "c", password=b"p" * 65_536, username="u"),
    ],
)
def test_what_no_packet_can_carry_is_a_defect(packet: Publish | Puback | Connect) -> None:
    with pytest.raises(StateError):
        encode(packet, 5)


def _user_properties(count: int) -> bytes:
    pair = wire("26 0001 'k' 0001 'v'") * count
    return remaining_length(len(pair)) + pair


def test_user_properties_are_bounded() -> None:
    body = b"\0\1t" + _user_properties(128)
    packet = decode(0x30, body, 0, len(body), 5)
    assert isinstance(packet, Publish)
    assert packet.properties is not None
    assert packet.properties.user_properties == [("k", "v")] * 128
    body = b"\0\1t" + _user_properties(129)
    with pytest.raises(PeerError) as caught:
        decode(0x30, body, 0, len(body), 5)
    assert caught.value.reason_code == 0x97


def test_the_property_table_has_every_property_of_the_standard() -> None:
    assert len(PROPERTY_TABLE) == 27
    assert {"user_properties" if row[0] == "user_property" else row[0] for row in PROPERTY_TABLE.values()} == {
        "subscription_identifier" if name == "subscription_identifiers" else name for name in PROPERTY_NAMES
    }


VALUES: dict[int, bytes] = {1: b"\1", 2: b"\0\1", 3: b"\0\0\0\1", 4: b"\1", 5: b"\0\1x", 6: b"\0\1x", 7: b"\0\1k\0\1v"}


@pytest.mark.parametrize("identifier", PROPERTY_TABLE)
@pytest.mark.parametrize("kind", [*range(1, 17)])
def test_each_side_may_send_a_property_only_where_the_table_says(identifier: int, kind: int) -> None:
    _, data_type, client, server = PROPERTY_TABLE[identifier]
    body = bytes((identifier,)) + VALUES[data_type]
    block = remaining_length(len(body)) + body
    allowed = {True: kind in client, False: kind in server, None: kind in client or kind in server}
    for from_client, fine in allowed.items():
        if fine:
            properties, after = decode_properties(block, 0, len(block), kind, from_client)
            assert after == len(block)
            assert encode_properties(properties) == block
        else:
            with pytest.raises(PeerError) as caught:
                decode_properties(block, 0, len(block), kind, from_client)
            assert caught.value.reason_code == (0x82 if allowed[None] else 0x81)


def test_an_empty_block_is_none() -> None:
    assert decode_properties(b"\0", 0, 1, 3) == (None, 1)
    assert encode_properties(None) == b"\0"
    assert encode_properties(Properties()) == b"\0"
