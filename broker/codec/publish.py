"""PUBLISH on the hot path: properties stay bytes, and only what the broker must change is taken apart.

"Forwardable" properties are the encoded properties that travel unchanged from publisher to subscribers,
in their order and without a length: all but message expiry interval, topic alias and subscription identifiers.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.codec.packets import PUBLISH, V5, Properties
from broker.codec.primitives import REMAINING_LENGTHS, read_variable_byte_integer, remaining_length
from broker.codec.properties import MAXIMUM_USER_PROPERTIES, decode_properties, encode_property_list
from broker.errors import MalformedPacket, PeerError, ProtocolError, StateError
from broker.reasons import QUOTA_EXCEEDED, TOPIC_ALIAS_INVALID

_TABLE_SIZE = len(REMAINING_LENGTHS)
_TWO_BYTES: tuple[bytes, ...] = tuple([n.to_bytes(2, "big") for n in range(_TABLE_SIZE)])
_FIRST_BYTES: tuple[bytes, ...] = tuple([bytes((0x30 | flags,)) for flags in range(16)])


# Clients repeat themselves: most property blocks of a connection are equal byte for byte, and a look-up costs a
# tenth of a check. Only blocks that passed are here, so it changes no result. It starts anew when it is full.
_KNOWN_BLOCKS: dict[bytes, tuple[int, int, bytes]] = {}
_KNOWN_BLOCKS_MAXIMUM = 1024
_KNOWN_BLOCK_BYTES = 256


def scan_publish_properties(data: bytes, start: int, end: int) -> tuple[int, int, bytes, int]:
    """Check the property block of a client's PUBLISH and return what routing needs of it.

    `data[start:end]` begins with the property length. Returns the message expiry interval in seconds or -1,
    the topic alias or 0, the forwardable properties, and the position of the payload. Raises PeerError as
    `decode` does.
    """
    if start >= end:
        raise MalformedPacket("packet ends before its property length")
    length = data[start]
    if length == 0:
        return -1, 0, b"", start + 1
    if length < 128:
        pos = start + 1
    else:
        length, pos = read_variable_byte_integer(data, start, end)
    stop = pos + length
    if stop > end:
        raise MalformedPacket(f"property length {length} exceeds the {end - pos} bytes left")
    block = data[pos:stop]
    known = _KNOWN_BLOCKS.get(block)
    if known is None:
        known = _scan_block(block, length)
        if length <= _KNOWN_BLOCK_BYTES:
            if len(_KNOWN_BLOCKS) >= _KNOWN_BLOCKS_MAXIMUM:
                _KNOWN_BLOCKS.clear()
            _KNOWN_BLOCKS[block] = known
    return known[0], known[1], known[2], stop


# One flat function: a call per property would double its time.
def _scan_block(data: bytes, stop: int) -> tuple[int, int, bytes]:
    pos = 0
    expiry_s = -1
    topic_alias = 0
    forwardable = b""
    run_start = pos  # where the run of properties begins that is still to be copied
    seen = 0
    user_properties = 0
    while pos < stop:
        identifier = data[pos]
        if identifier == 0x26:  # user property
            user_properties += 1
            if user_properties > MAXIMUM_USER_PROPERTIES:
                raise PeerError(QUOTA_EXCEEDED, f"more than {MAXIMUM_USER_PROPERTIES} user properties")
            pos = _skip_text(data, _skip_text(data, pos + 1, stop), stop)
            continue
        if identifier > 0x26:
            raise _refusal(identifier)
        bit = 1 << identifier
        if seen & bit:
            raise ProtocolError(f"property 0x{identifier:02x} appears twice in PUBLISH")
        seen |= bit
        if identifier == 0x02:  # message expiry interval
            if pos + 5 > stop:
                raise MalformedPacket("properties end inside message_expiry_interval")
            expiry_s = data[pos + 1] << 24 | data[pos + 2] << 16 | data[pos + 3] << 8 | data[pos + 4]
            if pos > run_start:
                forwardable += data[run_start:pos]
            pos += 5
            run_start = pos
        elif identifier == 0x23:  # topic alias
            if pos + 3 > stop:
                raise MalformedPacket("properties end inside topic_alias")
            topic_alias = data[pos + 1] << 8 | data[pos + 2]
            if topic_alias == 0:
                raise PeerError(TOPIC_ALIAS_INVALID, "topic_alias is 0")  # [MQTT-3.3.2-8]
            if pos > run_start:
                forwardable += data[run_start:pos]
            pos += 3
            run_start = pos
        elif identifier == 0x03:  # content type
            pos = _skip_text(data, pos + 1, stop)
        elif identifier == 0x08:  # response topic
            after = _skip_text(data, pos + 1, stop)
            response_topic = data[pos + 3 : after]
            if not response_topic or b"+" in response_topic or b"#" in response_topic:
                raise ProtocolError(f"response_topic {response_topic[:80]!r} is no topic name")  # [MQTT-3.3.2-14]
            pos = after
        elif identifier == 0x09:  # correlation data
            if pos + 3 > stop:
                raise MalformedPacket("properties end inside a length")
            pos += 3 + (data[pos + 1] << 8 | data[pos + 2])
            if pos > stop:
                raise MalformedPacket("correlation_data exceeds the properties")
        elif identifier == 0x01:  # payload format indicator
            if pos + 2 > stop:
                raise MalformedPacket("properties end inside payload_format_indicator")
            if data[pos + 1] > 1:
                raise ProtocolError(f"payload_format_indicator is {data[pos + 1]}, not 0 or 1")
            pos += 2
        else:
            raise _refusal(identifier)
    if run_start < stop:
        return expiry_s, topic_alias, forwardable + data[run_start:stop]
    return expiry_s, topic_alias, forwardable


def _skip_text(data: bytes, pos: int, stop: int) -> int:
    """Check the UTF-8 string at `pos` and return the position after it."""
    start = pos + 2
    if start > stop:
        raise MalformedPacket("properties end inside a length")
    after = start + (data[pos] << 8 | data[pos + 1])
    if after > stop:
        raise MalformedPacket(f"length {after - start} exceeds the {stop - start} bytes left")
    raw = data[start:after]
    if not raw.isascii():
        try:
            raw.decode("utf-8")  # [MQTT-1.5.4-1]
        except UnicodeDecodeError as error:
            raise MalformedPacket(f"string is not UTF-8: {error.reason} at byte {error.start}") from None
    if b"\0" in raw:
        raise MalformedPacket("string contains U+0000")  # [MQTT-1.5.4-2]
    return after


def _refusal(identifier: int) -> PeerError:
    """Return the error for an identifier that a client's PUBLISH must not have."""
    if identifier == 0x0B:
        return ProtocolError("a client must not send subscription_identifier in PUBLISH")  # [MQTT-3.3.4-6]
    return MalformedPacket(f"0x{identifier:02x} is no property of PUBLISH")


def payload_format(forwardable: bytes) -> int:
    """Return the payload format indicator among checked forwardable properties, 0 if there is none."""
    if b"\x01" not in forwardable:
        return 0
    pos = 0
    end = len(forwardable)
    while pos < end:
        identifier = forwardable[pos]
        if identifier == 0x01:
            return forwardable[pos + 1]
        pos += 3 + (forwardable[pos + 1] << 8 | forwardable[pos + 2])
        if identifier == 0x26:
            pos += 2 + (forwardable[pos] << 8 | forwardable[pos + 1])
    return 0


def publish_head(topic: bytes, flags: int, body_len_after_topic: int) -> bytes:
    """Return fixed header and topic name; packet identifier, properties and payload follow it.

    `flags` are the low four bits of the first byte (DUP 8, QoS 2 and 4, RETAIN 1); `body_len_after_topic` counts
    everything that will follow.
    """
    topic_len = len(topic)
    length = topic_len + 2 + body_len_after_topic
    if length < _TABLE_SIZE:
        return _FIRST_BYTES[flags] + REMAINING_LENGTHS[length] + _TWO_BYTES[topic_len] + topic
    return _FIRST_BYTES[flags] + remaining_length(length) + topic_len.to_bytes(2, "big") + topic


def publish_tail(
    version: int,
    forwardable: bytes,
    payload: bytes,
    remaining_expiry_s: int = -1,
    subscription_ids: Sequence[int] = (),
    topic_alias: int = 0,
) -> bytes:
    """Return what follows topic name and packet identifier: properties (version 5 only) and payload.

    -1 for `remaining_expiry_s` and 0 for `topic_alias` leave the property out.
    """
    if version != V5:
        return payload
    if forwardable or remaining_expiry_s >= 0 or subscription_ids or topic_alias:
        return _property_block(forwardable, remaining_expiry_s, subscription_ids, topic_alias) + payload
    return b"\x00" + payload


def _property_block(forwardable: bytes, expiry_s: int, subscription_ids: Sequence[int], topic_alias: int) -> bytes:
    if expiry_s >= 0:
        forwardable += b"\x02" + expiry_s.to_bytes(4, "big")
    for identifier in subscription_ids:
        forwardable += b"\x0b" + remaining_length(identifier)
    if topic_alias:
        forwardable += b"\x23" + topic_alias.to_bytes(2, "big")
    return remaining_length(len(forwardable)) + forwardable


def encode_publish(
    topic: bytes,
    payload: bytes,
    flags: int,
    packet_id: int,
    version: int,
    forwardable: bytes = b"",
    expiry_s: int = -1,
    subscription_ids: Sequence[int] = (),
    topic_alias: int = 0,
) -> bytes:
    """Return a whole PUBLISH; `packet_id` is 0 exactly at QoS 0, the rest as in publish_head and publish_tail."""
    if version != V5:
        properties = b""
    elif forwardable or expiry_s >= 0 or subscription_ids or topic_alias:
        properties = _property_block(forwardable, expiry_s, subscription_ids, topic_alias)
    else:
        properties = b"\x00"
    packet_id_bytes = packet_id.to_bytes(2, "big") if packet_id else b""
    topic_len = len(topic)
    length = 2 + topic_len + len(packet_id_bytes) + len(properties) + len(payload)
    # One join copies the payload once.
    if length < _TABLE_SIZE:
        return b"".join(
            (
                _FIRST_BYTES[flags],
                REMAINING_LENGTHS[length],
                _TWO_BYTES[topic_len],
                topic,
                packet_id_bytes,
                properties,
                payload,
            )
        )
    head = (_FIRST_BYTES[flags], remaining_length(length), topic_len.to_bytes(2, "big"), topic)
    return b"".join((*head, packet_id_bytes, properties, payload))


def properties_to_forwardable(properties: Properties | None) -> bytes:
    """Return the forwardable among `properties` (of a will, say), encoded; everything else is left out."""
    if properties is None:
        return b""
    kept = Properties()
    kept.payload_format_indicator = properties.payload_format_indicator
    kept.content_type = properties.content_type
    kept.response_topic = properties.response_topic
    kept.correlation_data = properties.correlation_data
    kept.user_properties = properties.user_properties
    return encode_property_list(kept)


def forwardable_to_properties(forwardable: bytes) -> Properties:
    """Return forwardable properties as an object; StateError if they are no such bytes."""
    block = remaining_length(len(forwardable)) + forwardable
    try:
        properties, _ = decode_properties(block, 0, len(block), PUBLISH)
    except PeerError as error:
        raise StateError(f"stored properties are damaged: {error.text}") from None
    return properties if properties is not None else Properties()
