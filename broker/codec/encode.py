"""Packets to bytes, for both directions and all versions.

Values that no packet can carry (a string above 65,535 bytes, U+0000) raise StateError: they are defects of
the caller. Optional parts are left out where the standard lets them.
"""

from __future__ import annotations

from broker.codec.packets import (
    PINGREQ,
    PUBREL,
    SUBSCRIBE,
    UNSUBSCRIBE,
    V5,
    V31,
    Acknowledgement,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Properties,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from broker.codec.primitives import binary, remaining_length, two_byte_integer, utf8
from broker.codec.properties import encode_properties
from broker.codec.v3 import connack_body_v3, suback_body_v3, subscribe_body_v3

__all__ = ["encode", "encode_ack", "remaining_length"]

_FLAGS_2 = frozenset((PUBREL, SUBSCRIBE, UNSUBSCRIBE))

# First bytes of a packet without a body but the packet identifier, by kind.
_ACK_HEADS: tuple[bytes, ...] = tuple([bytes((kind << 4 | (2 if kind in _FLAGS_2 else 0), 2)) for kind in range(16)])


def encode_ack(kind: int, packet_id: int) -> bytes:
    """Return PUBACK, PUBREC, PUBREL or PUBCOMP with reason code 0 and no properties; the same in every version."""
    return _ACK_HEADS[kind] + packet_id.to_bytes(2, "big")


def encode(packet: Packet, version: int) -> bytes:
    """Return the bytes of `packet` for a connection of `version`; a CONNECT is written in its own version."""
    if isinstance(packet, Publish):
        return _encode_publish(packet, version)
    kind = packet.kind
    if isinstance(packet, Acknowledgement):
        body = two_byte_integer(packet.packet_id)
        if version == V5:
            body += _reason(packet.reason_code, packet.properties)
    elif isinstance(packet, Connack):
        if version == V5:
            flags = 1 if packet.session_present and packet.reason_code == 0 else 0
            body = bytes((flags, packet.reason_code)) + encode_properties(packet.properties)
        else:
            body = connack_body_v3(packet, version)
    elif isinstance(packet, Connect):
        body = _connect_body(packet)
    elif isinstance(packet, Subscribe):
        body = _subscribe_body(packet) if version == V5 else subscribe_body_v3(packet)
    elif isinstance(packet, Unsubscribe):
        properties = encode_properties(packet.properties) if version == V5 else b""
        filters = [utf8(topic_filter) for topic_filter in packet.topic_filters]
        body = two_byte_integer(packet.packet_id) + properties + b"".join(filters)
    elif isinstance(packet, Suback):
        body = _results_body(packet) if version == V5 else suback_body_v3(packet)
    elif isinstance(packet, Unsuback):
        body = _results_body(packet) if version == V5 else two_byte_integer(packet.packet_id)
    elif isinstance(packet, (Disconnect, Auth)):
        body = _reason(packet.reason_code, packet.properties) if version == V5 else b""
    else:
        return b"\xc0\x00" if kind == PINGREQ else b"\xd0\x00"
    first_byte = kind << 4 | (2 if kind in _FLAGS_2 else 0)
    return bytes((first_byte,)) + remaining_length(len(body)) + body


def _reason(reason_code: int, properties: Properties | None) -> bytes:
    encoded = encode_properties(properties)
    if len(encoded) > 1:
        return bytes((reason_code,)) + encoded
    return bytes((reason_code,)) if reason_code else b""


def _encode_publish(packet: Publish, version: int) -> bytes:
    flags = (8 if packet.dup else 0) | packet.qos << 1 | (1 if packet.retain else 0)
    topic = utf8(packet.topic_name)
    packet_id = two_byte_integer(packet.packet_id) if packet.qos else b""
    properties = encode_properties(packet.properties) if version == V5 else b""
    length = len(topic) + len(packet_id) + len(properties) + len(packet.payload)
    return b"".join((bytes((0x30 | flags,)), remaining_length(length), topic, packet_id, properties, packet.payload))


def _connect_body(packet: Connect) -> bytes:
    version = packet.protocol_version
    flags = 0x02 if packet.clean_start else 0
    will = packet.will
    if will is not None:
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
    if packet.username is not None:
        flags |= 0x80
    if packet.password is not None:
        flags |= 0x40
    out = [
        b"\x00\x06MQIsdp" if version == V31 else b"\x00\x04MQTT",
        bytes((version | (0x80 if packet.bridge else 0), flags)),
        two_byte_integer(packet.keep_alive_s),
    ]
    if version == V5:
        out.append(encode_properties(packet.properties))
    out.append(utf8(packet.client_id))
    if will is not None:
        if version == V5:
            out.append(encode_properties(will.properties))
        out.append(utf8(will.topic_name))
        out.append(binary(will.payload))
    if packet.username is not None:
        out.append(utf8(packet.username))
    if packet.password is not None:
        out.append(binary(packet.password))
    return b"".join(out)


def _subscribe_body(packet: Subscribe) -> bytes:
    out = [two_byte_integer(packet.packet_id), encode_properties(packet.properties)]
    for subscription in packet.subscriptions:
        options = subscription.qos | subscription.retain_handling << 4
        if subscription.no_local:
            options |= 4
        if subscription.retain_as_published:
            options |= 8
        out.append(utf8(subscription.topic_filter))
        out.append(bytes((options,)))
    return b"".join(out)


def _results_body(packet: Suback | Unsuback) -> bytes:
    return two_byte_integer(packet.packet_id) + encode_properties(packet.properties) + bytes(packet.reason_codes)
