"""MQTT 3.1 and 3.1.1 on the wire: every packet but CONNECT, which all versions share.

There are no properties and no reason codes but the return codes of CONNACK and SUBACK, which become the
matching MQTT 5 reason codes in memory.
"""

from __future__ import annotations

from broker.codec.packets import (
    CONNACK,
    DISCONNECT,
    KIND_NAMES,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBSCRIBE,
    V31,
    Connack,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
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
)
from broker.codec.primitives import check_topic_name, read_packet_id, read_utf8, two_byte_integer, utf8
from broker.errors import MalformedPacket, ProtocolError
from broker.reasons import CONNACK_CODES_V3, connack_code_v3

SUBACK_FAILURE = 0x80


def decode_v3(
    first_byte: int, data: bytes, start: int, end: int, version: int, from_client: bool | None = None
) -> Packet:
    """Return the packet whose body is `data[start:end]`; fixed header flags are checked by the caller."""
    kind = first_byte >> 4
    if kind == PUBLISH:
        return _decode_publish(first_byte, data, start, end)
    if kind == SUBSCRIBE:
        return _decode_subscribe(data, start, end)
    if kind == UNSUBSCRIBE:
        return _decode_unsubscribe(data, start, end)
    if kind == SUBACK:
        return _decode_suback(data, start, end)
    if kind == CONNACK:
        return _decode_connack(data, start, end, version)
    if kind in (PINGREQ, PINGRESP, DISCONNECT):
        if start != end:
            raise MalformedPacket(f"{KIND_NAMES[kind]} has a body of {end - start} bytes")
        if kind == DISCONNECT:
            if from_client is False:
                raise ProtocolError("a server must not send DISCONNECT in this version")
            return Disconnect()
        return Pingreq() if kind == PINGREQ else Pingresp()
    return _decode_packet_id_only(kind, data, start, end)


def _decode_packet_id_only(kind: int, data: bytes, start: int, end: int) -> Packet:
    packet_id, pos = read_packet_id(data, start, end)
    if pos != end:
        raise MalformedPacket(f"{KIND_NAMES[kind]} has {end - pos} bytes after its packet identifier")
    if kind == PUBACK:
        return Puback(packet_id)
    if kind == PUBREC:
        return Pubrec(packet_id)
    if kind == PUBREL:
        return Pubrel(packet_id)
    if kind == PUBCOMP:
        return Pubcomp(packet_id)
    return Unsuback(packet_id, ())


def _decode_publish(first_byte: int, data: bytes, pos: int, end: int) -> Publish:
    qos = first_byte >> 1 & 3
    dup = first_byte & 8 != 0
    if qos == 3:
        raise MalformedPacket("PUBLISH has QoS 3")  # [MQTT-3.3.1-4]
    if dup and qos == 0:
        raise MalformedPacket("PUBLISH has DUP set at QoS 0")  # [MQTT-3.3.1-2]
    topic_name, pos = read_utf8(data, pos, end)
    packet_id = 0
    if qos:
        packet_id, pos = read_packet_id(data, pos, end)
    check_topic_name(topic_name)
    return Publish(topic_name, data[pos:end], qos, first_byte & 1 != 0, dup, packet_id)


def _decode_subscribe(data: bytes, pos: int, end: int) -> Subscribe:
    packet_id, pos = read_packet_id(data, pos, end)
    subscriptions: list[SubscriptionRequest] = []
    while pos < end:
        topic_filter, pos = read_utf8(data, pos, end)
        if pos >= end:
            raise MalformedPacket("SUBSCRIBE ends before a requested QoS")
        qos = data[pos]
        pos += 1
        if qos > 2:
            raise MalformedPacket(f"requested QoS byte is 0x{qos:02x}")  # [MQTT-3-8.3-4]
        subscriptions.append(SubscriptionRequest(topic_filter, qos))
    if not subscriptions:
        raise ProtocolError("SUBSCRIBE without a topic filter")  # [MQTT-3.8.3-3]
    return Subscribe(packet_id, subscriptions)


def _decode_unsubscribe(data: bytes, pos: int, end: int) -> Unsubscribe:
    packet_id, pos = read_packet_id(data, pos, end)
    topic_filters: list[str] = []
    while pos < end:
        topic_filter, pos = read_utf8(data, pos, end)
        topic_filters.append(topic_filter)
    if not topic_filters:
        raise ProtocolError("UNSUBSCRIBE without a topic filter")  # [MQTT-3.10.3-2]
    return Unsubscribe(packet_id, topic_filters)


def _decode_suback(data: bytes, pos: int, end: int) -> Suback:
    packet_id, pos = read_packet_id(data, pos, end)
    reason_codes = list(data[pos:end])
    if not reason_codes:
        raise ProtocolError("SUBACK without a return code")
    for reason_code in reason_codes:
        if reason_code > 2 and reason_code != SUBACK_FAILURE:
            raise MalformedPacket(f"SUBACK has return code 0x{reason_code:02x}")  # [MQTT-3.9.3-2]
    return Suback(packet_id, reason_codes)


def _decode_connack(data: bytes, pos: int, end: int, version: int) -> Connack:
    if end - pos != 2:
        raise MalformedPacket(f"CONNACK has a body of {end - pos} bytes")
    flags = data[pos]
    code = data[pos + 1]
    if version == V31:
        flags = 0  # an unused byte in 3.1
    if flags > 1:
        raise MalformedPacket(f"CONNACK has reserved flags set: {flags:08b}")
    if code >= len(CONNACK_CODES_V3):
        raise MalformedPacket(f"CONNACK has return code {code}")
    if flags and code:
        raise ProtocolError("CONNACK refuses with session_present set")  # [MQTT-3.2.2-4] of 3.1.1
    return Connack(flags == 1, CONNACK_CODES_V3[code])


def connack_body_v3(packet: Connack, version: int) -> bytes:
    """Return the body of a CONNACK: return code 0 to 5, no session present in 3.1."""
    flags = 1 if packet.session_present and packet.reason_code == 0 and version != V31 else 0
    return bytes((flags, connack_code_v3(packet.reason_code)))


def subscribe_body_v3(packet: Subscribe) -> bytes:
    """Return the body of a SUBSCRIBE: of the subscription options only the QoS exists."""
    out = [two_byte_integer(packet.packet_id)]
    for subscription in packet.subscriptions:
        out.append(utf8(subscription.topic_filter))
        out.append(bytes((subscription.qos,)))
    return b"".join(out)


def suback_body_v3(packet: Suback) -> bytes:
    """Return the body of a SUBACK: every failure is 0x80.

    3.1 defines no failure; 0x80 is what clients of 3.1 get from other servers too, and better than a promise.
    """
    codes = [code if code < SUBACK_FAILURE else SUBACK_FAILURE for code in packet.reason_codes]
    return two_byte_integer(packet.packet_id) + bytes(codes)
