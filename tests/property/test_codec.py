"""The codec for packets nobody thought of: round trips, arbitrary splits, random and mutated bytes."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PUBLISH,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    V5,
    V31,
    V311,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
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
from broker.codec.primitives import FrameBuffer
from broker.codec.properties import (
    BINARY,
    FLAG,
    FOUR_BYTES,
    PROPERTY_TABLE,
    TEXT,
    TWO_BYTES,
    WILL,
    encode_properties,
)
from broker.codec.publish import (
    encode_publish,
    forwardable_to_properties,
    payload_format,
    properties_to_forwardable,
    scan_publish_properties,
)
from broker.errors import PeerError
from broker.reasons import CLIENT_REASON_CODES, CONNACK_CODES_V3, SERVER_REASON_CODES
from tests.kit.packet_data import packet_data, properties_data

FEW = settings(max_examples=150, deadline=None)

_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_TOPIC_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0+#")
texts = st.text(_CHARACTERS, max_size=20)
topic_names = st.text(_TOPIC_CHARACTERS, min_size=1, max_size=20)
payloads = st.binary(max_size=40)
packet_ids = st.integers(1, 65_535)
qos_levels = st.integers(0, 2)
versions = st.sampled_from([V31, V311, V5])
sides = st.sampled_from([True, False, None])
user_properties = st.lists(st.tuples(texts, texts), max_size=4)

NEVER_ZERO = ("receive_maximum", "maximum_packet_size", "topic_alias")


def _values(name: str, data_type: int) -> st.SearchStrategy[object]:
    low = 1 if name in NEVER_ZERO else 0
    if name == "response_topic":
        return topic_names
    if data_type == FLAG:
        return st.integers(0, 1)
    if data_type == TWO_BYTES:
        return st.integers(low, 65_535)
    if data_type == FOUR_BYTES:
        return st.integers(low, 4_294_967_295)
    if data_type == TEXT:
        return texts
    assert data_type == BINARY
    return payloads


@st.composite
def property_blocks(draw: st.DrawFn, kind: int, from_client: bool) -> Properties | None:
    """Properties that this side may send in this kind; None if no property is set."""
    properties = Properties()
    for name, data_type, client, server in PROPERTY_TABLE.values():
        if kind not in (client if from_client else server) or draw(st.integers(0, 2)):
            continue
        if name == "user_property":
            properties.user_properties = draw(user_properties)
        elif name == "subscription_identifier":
            size = 1 if kind == SUBSCRIBE else 3
            properties.subscription_identifiers = draw(st.lists(st.integers(1, 268_435_455), max_size=size))
        else:
            setattr(properties, name, draw(_values(name, data_type)))
    if properties.authentication_data is not None and properties.authentication_method is None:
        properties.authentication_method = "method"
    return properties if encode_properties(properties) != b"\0" else None


def _properties(draw: st.DrawFn, kind: int, version: int, from_client: bool) -> Properties | None:
    return draw(property_blocks(kind, from_client)) if version == V5 else None


def _reason(draw: st.DrawFn, kind: int, version: int, from_client: bool) -> int:
    table = CLIENT_REASON_CODES if from_client else SERVER_REASON_CODES
    return draw(st.sampled_from(sorted(table[kind]))) if version == V5 else 0


def _connect(draw: st.DrawFn, version: int, _: bool) -> Packet:
    will = None
    if draw(st.booleans()):
        will_properties = _properties(draw, WILL, version, True)
        will = Will(draw(topic_names), draw(payloads), draw(qos_levels), draw(st.booleans()), will_properties)
    username = draw(st.none() | texts)
    password = draw(st.none() | payloads) if version == V5 or username is not None else None
    return Connect(
        version,
        draw(texts),
        draw(st.booleans()),
        draw(st.integers(0, 65_535)),
        username,
        password,
        will,
        _properties(draw, CONNECT, version, True),
        version != V5 and draw(st.booleans()),
    )


def _connack(draw: st.DrawFn, version: int, _: bool) -> Packet:
    codes = sorted(SERVER_REASON_CODES[CONNACK]) if version == V5 else CONNACK_CODES_V3
    reason_code = draw(st.sampled_from(codes))
    session_present = version != V31 and reason_code == 0 and draw(st.booleans())
    return Connack(session_present, reason_code, _properties(draw, CONNACK, version, False))


def _publish(draw: st.DrawFn, version: int, from_client: bool) -> Packet:
    qos = draw(qos_levels)
    properties = _properties(draw, PUBLISH, version, from_client)
    topic_name = draw(topic_names)
    if properties is not None and properties.topic_alias is not None and draw(st.booleans()):
        topic_name = ""
    dup = qos > 0 and draw(st.booleans())
    packet_id = draw(packet_ids) if qos else 0
    return Publish(topic_name, draw(payloads), qos, draw(st.booleans()), dup, packet_id, properties)


def _acknowledgement(cls: type[Puback | Pubrec | Pubrel | Pubcomp]) -> Callable[[st.DrawFn, int, bool], Packet]:
    def build(draw: st.DrawFn, version: int, from_client: bool) -> Packet:
        reason_code = _reason(draw, cls.kind, version, from_client)
        return cls(draw(packet_ids), reason_code, _properties(draw, cls.kind, version, from_client))

    return build


def _subscribe(draw: st.DrawFn, version: int, _: bool) -> Packet:
    subscriptions = []
    for topic_filter in draw(st.lists(texts | st.just("$share/g/a/#"), min_size=1, max_size=4)):
        subscription = SubscriptionRequest(topic_filter, draw(qos_levels))
        if version == V5:
            subscription.no_local = not topic_filter.startswith("$share/") and draw(st.booleans())
            subscription.retain_as_published = draw(st.booleans())
            subscription.retain_handling = draw(st.integers(0, 2))
        subscriptions.append(subscription)
    return Subscribe(draw(packet_ids), subscriptions, _properties(draw, SUBSCRIBE, version, True))


def _suback(draw: st.DrawFn, version: int, _: bool) -> Packet:
    codes = sorted(SERVER_REASON_CODES[SUBACK]) if version == V5 else [0, 1, 2, 0x80]
    reason_codes = draw(st.lists(st.sampled_from(codes), min_size=1, max_size=5))
    return Suback(draw(packet_ids), reason_codes, _properties(draw, SUBACK, version, False))


def _unsubscribe(draw: st.DrawFn, version: int, _: bool) -> Packet:
    topic_filters = draw(st.lists(texts, min_size=1, max_size=4))
    return Unsubscribe(draw(packet_ids), topic_filters, _properties(draw, UNSUBSCRIBE, version, True))


def _unsuback(draw: st.DrawFn, version: int, _: bool) -> Packet:
    codes = st.sampled_from(sorted(SERVER_REASON_CODES[UNSUBACK]))
    reason_codes = draw(st.lists(codes, min_size=1, max_size=5)) if version == V5 else []
    return Unsuback(draw(packet_ids), reason_codes, _properties(draw, UNSUBACK, version, False))


def _disconnect(draw: st.DrawFn, version: int, from_client: bool) -> Packet:
    reason_code = _reason(draw, DISCONNECT, version, from_client)
    return Disconnect(reason_code, _properties(draw, DISCONNECT, version, from_client))


def _auth(draw: st.DrawFn, version: int, from_client: bool) -> Packet:
    reason_code = _reason(draw, AUTH, version, from_client)
    properties = _properties(draw, AUTH, version, from_client)
    if properties is None and reason_code:
        properties = Properties()
    if properties is not None:
        properties.authentication_method = properties.authentication_method or "method"
    return Auth(reason_code, properties)


def _ping(draw: st.DrawFn, version: int, from_client: bool) -> Packet:
    return Pingreq() if from_client else Pingresp()


_BOTH = [
    _publish,
    _acknowledgement(Puback),
    _acknowledgement(Pubrec),
    _acknowledgement(Pubrel),
    _acknowledgement(Pubcomp),
    _ping,
]
_CLIENT = [*_BOTH, _connect, _subscribe, _unsubscribe, _disconnect]
_SERVER = [*_BOTH, _connack, _suback, _unsuback]


@st.composite
def packets(draw: st.DrawFn) -> tuple[int, bool, Packet]:
    """A version, the side that sends, and a packet that it may send."""
    version = draw(versions)
    from_client = draw(st.booleans())
    builders = _CLIENT if from_client else _SERVER
    if version == V5:
        builders = [*builders, _auth] if from_client else [*builders, _auth, _disconnect]
    return version, from_client, draw(st.sampled_from(builders))(draw, version, from_client)


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    frames = FrameBuffer()
    frames.feed(data)
    found = list(frames)
    assert len(frames) == 0
    return found


@settings(max_examples=600, deadline=None)
@given(packets())
def test_every_packet_survives_encoding_and_decoding(case: tuple[int, bool, Packet]) -> None:
    version, from_client, packet = case
    encoded = encode(packet, version)
    [(first_byte, body)] = _frames(encoded)
    for side in (from_client, None):
        decoded = decode(first_byte, b"?" + body + b"?", 1, 1 + len(body), version, side)
        assert packet_data(decoded) == packet_data(packet)
        assert encode(decoded, version) == encoded


@FEW
@given(st.lists(packets(), min_size=1, max_size=5), st.lists(st.integers(0, 400), max_size=12))
def test_splitting_the_stream_anywhere_changes_nothing(cases: list[tuple[int, bool, Packet]], cuts: list[int]) -> None:
    encoded = [encode(packet, version) for version, _, packet in cases]
    stream = b"".join(encoded)
    frames = FrameBuffer(maximum_packet_size=max(len(one) for one in encoded))
    found: list[tuple[int, bytes]] = []
    previous = 0
    for cut in [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]:
        frames.feed(stream[previous:cut])
        found.extend(frames)
        previous = cut
    assert found == _frames(stream)
    assert len(found) == len(cases)


def _outcome(first_byte: int, body: bytes, version: int, from_client: bool | None) -> Packet | int:
    try:
        return decode(first_byte, body, 0, len(body), version, from_client)
    except PeerError as error:
        return error.reason_code


def _decode_or_refuse(first_byte: int, body: bytes, version: int, from_client: bool | None) -> None:
    """What is decoded at all can be encoded, and then says the same."""
    packet = _outcome(first_byte, body, version, from_client)
    if isinstance(packet, int):
        assert packet in (0x81, 0x82, 0x84, 0x90, 0x94, 0x97)
        return
    version = packet.protocol_version if isinstance(packet, Connect) else version
    [(again, encoded)] = _frames(encode(packet, version))
    decoded = decode(again, encoded, 0, len(encoded), version, from_client)
    assert packet_data(decoded) == packet_data(packet)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=60), versions, sides)
@example(0x30, b"\0\1a\x02\x0b\x80", V5, False)
def test_random_bytes_are_a_packet_or_the_peers_error(
    first_byte: int, body: bytes, version: int, from_client: bool | None
) -> None:
    _decode_or_refuse(first_byte, body, version, from_client)


@settings(max_examples=1000, deadline=None)
@given(packets(), st.data())
def test_mutated_packets_are_packets_or_the_peers_error(case: tuple[int, bool, Packet], data: st.DataObject) -> None:
    version, from_client, packet = case
    [(first_byte, body)] = _frames(encode(packet, version))
    mutated = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(mutated)))
        change = data.draw(st.sampled_from(["cut", "insert", "replace", "delete"]))
        if change == "cut":
            del mutated[position:]
        elif change == "insert":
            mutated[position:position] = data.draw(st.binary(min_size=1, max_size=4))
        elif change == "replace" and position < len(mutated):
            mutated[position] = data.draw(st.integers(0, 255))
        else:
            del mutated[position : position + 2]
    other = data.draw(versions)
    _decode_or_refuse(first_byte, bytes(mutated), version, from_client)
    _decode_or_refuse(first_byte ^ data.draw(st.integers(0, 15)), bytes(mutated), other, None)


def _framed(stream: bytes, limit: int) -> tuple[list[tuple[int, bytes]], int] | int:
    frames = FrameBuffer(maximum_packet_size=limit)
    try:
        frames.feed(stream)
        return list(frames), len(frames)
    except PeerError as error:
        return error.reason_code


@FEW
@given(st.binary(max_size=60), st.integers(0, 40))
def test_random_streams_are_frames_or_the_peers_error(stream: bytes, limit: int) -> None:
    outcome = _framed(stream, limit)
    if isinstance(outcome, int):
        assert outcome in (0x81, 0x95)
        return
    frames, left = outcome
    heads = sum(2 if len(body) < 128 else 3 for _, body in frames)
    assert heads + sum(len(body) for _, body in frames) + left == len(stream)


def _scanned(block: bytes) -> tuple[int, int, bytes, int] | int:
    try:
        return scan_publish_properties(block, 0, len(block))
    except PeerError as error:
        return error.reason_code


@settings(max_examples=400, deadline=None)
@given(property_blocks(PUBLISH, True), st.integers(-20, 120), st.integers(0, 255))
def test_the_fast_way_and_the_slow_way_agree_on_properties(
    properties: Properties | None, position: int, value: int
) -> None:
    changed = bytearray(encode_properties(properties))
    if 0 <= position < len(changed):
        changed[position] = value
    block = bytes(changed)
    packet = _outcome(0x30, b"\0\1t" + block, V5, True)
    scanned = _scanned(block)
    if isinstance(packet, int) or isinstance(scanned, int):
        assert packet == scanned
        return
    assert isinstance(packet, Publish)
    decoded = packet.properties or Properties()
    expiry_s, topic_alias, forwardable, pos = scanned
    assert block[pos:] == packet.payload
    assert expiry_s == (-1 if decoded.message_expiry_interval is None else decoded.message_expiry_interval)
    assert topic_alias == (decoded.topic_alias or 0)
    assert payload_format(forwardable) == (decoded.payload_format_indicator or 0)
    decoded.message_expiry_interval = None
    decoded.topic_alias = None
    assert properties_data(forwardable_to_properties(forwardable)) == properties_data(decoded)


@st.composite
def delivered_publishes(draw: st.DrawFn) -> tuple[int, Publish]:
    """A version and a PUBLISH as a server sends it, now and then of several kilobytes."""
    version = draw(versions)
    packet = _publish(draw, version, False)
    assert isinstance(packet, Publish)
    packet.payload *= draw(st.sampled_from([1, 1, 100]))
    return version, packet


@FEW
@given(delivered_publishes())
def test_the_fast_way_writes_the_publish_that_the_slow_way_reads(case: tuple[int, Publish]) -> None:
    version, packet = case
    properties = packet.properties or Properties()
    encoded = encode_publish(
        packet.topic_name.encode(),
        packet.payload,
        (8 if packet.dup else 0) | packet.qos << 1 | packet.retain,
        packet.packet_id,
        version,
        properties_to_forwardable(properties),
        -1 if properties.message_expiry_interval is None else properties.message_expiry_interval,
        properties.subscription_identifiers,
        properties.topic_alias or 0,
    )
    [(first_byte, body)] = _frames(encoded)
    decoded = decode(first_byte, body, 0, len(body), version, False)
    assert packet_data(decoded) == packet_data(packet)
