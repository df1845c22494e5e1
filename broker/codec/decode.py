"""Bytes to packets, with every check that needs nothing but the packet itself.

Left to others, because they need configuration or state: the rules of client identifiers, the syntax of
topic filters (a SUBACK answers it), topic alias limits, and payloads that claim to be UTF-8.
"""

from __future__ import annotations

from broker.codec.packets import (
    AUTH,
    CONNACK,
    CONNECT,
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
from broker.codec.primitives import (
    check_topic_name,
    read_binary,
    read_packet_id,
    read_two_byte_integer,
    read_utf8,
)
from broker.codec.properties import WILL, decode_properties
from broker.codec.v3 import decode_v3
from broker.errors import MalformedPacket, PeerError, ProtocolError
from broker.reasons import SUCCESS, UNSUPPORTED_PROTOCOL_VERSION, reason_code_allowed

_SERVER_ONLY = frozenset((CONNACK, SUBACK, UNSUBACK, PINGRESP))
_CLIENT_ONLY = frozenset((CONNECT, SUBSCRIBE, UNSUBSCRIBE, PINGREQ))
_FLAGS_2 = frozenset((PUBREL, SUBSCRIBE, UNSUBSCRIBE))


def decode(first_byte: int, data: bytes, start: int, end: int, version: int, from_client: bool | None = None) -> Packet:
    """Return the packet whose body is `data[start:end]`, or raise PeerError with the standard's reason code.

    `version` (3, 4 or 5) is that of the connection; a CONNECT carries its own. `from_client` says which side
    sent it: packets, properties and reason codes of the other side are then protocol errors.
    """
    kind = first_byte >> 4
    if kind == 0 or (kind == AUTH and version != V5):
        raise MalformedPacket(f"packet type {kind} is reserved")
    if from_client is not None and kind in (_SERVER_ONLY if from_client else _CLIENT_ONLY):
        raise ProtocolError(f"a {'client' if from_client else 'server'} must not send {KIND_NAMES[kind]}")
    if kind != PUBLISH:
        _check_flags(kind, first_byte & 15, version)
    if kind == CONNECT:
        return _decode_connect(data, start, end)
    if version != V5:
        return decode_v3(first_byte, data, start, end, version, from_client)
    if kind == PUBLISH:
        return _decode_publish(first_byte, data, start, end, from_client)
    if PUBACK <= kind <= PUBCOMP:
        return _decode_acknowledgement(kind, data, start, end, from_client)
    if kind == SUBSCRIBE:
        return _decode_subscribe(data, start, end)
    if kind == UNSUBSCRIBE:
        return _decode_unsubscribe(data, start, end)
    if kind in (SUBACK, UNSUBACK):
        return _decode_filter_results(kind, data, start, end)
    if kind == DISCONNECT:
        reason_code, properties = _decode_reason(DISCONNECT, data, start, end, from_client)
        return Disconnect(reason_code, properties)
    if kind == AUTH:
        return _decode_auth(data, start, end, from_client)
    if kind == CONNACK:
        return _decode_connack(data, start, end, from_client)
    if start != end:
        raise MalformedPacket(f"{KIND_NAMES[kind]} has a body of {end - start} bytes")
    return Pingreq() if kind == PINGREQ else Pingresp()


def _check_flags(kind: int, flags: int, version: int) -> None:
    expected = 2 if kind in _FLAGS_2 else 0
    if flags == expected:
        return
    if version == V31 and kind != CONNECT and (expected == 0 or flags & 6 == 2):
        # 3.1 calls the bits unused, and resends PUBREL, SUBSCRIBE and UNSUBSCRIBE with DUP set.
        return
    raise MalformedPacket(f"{KIND_NAMES[kind]} has fixed header flags {flags:04b}, not {expected:04b}")


def _protocol_version(name: bytes, level: int) -> int:
    if name == b"MQTT":
        if level == V5:
            return V5
        return V311 if level & 0x7F == V311 else 0
    return V31 if name == b"MQIsdp" and level & 0x7F == V31 else 0


def _decode_connect(data: bytes, pos: int, end: int) -> Connect:
    name, pos = read_binary(data, pos, end)
    if pos + 2 > end:
        raise MalformedPacket("CONNECT ends before its flags")
    level = data[pos]
    version = _protocol_version(name, level)
    if version == 0:
        # [MQTT-3.1.2-1] [MQTT-3.1.2-2]
        raise PeerError(UNSUPPORTED_PROTOCOL_VERSION, f"protocol {name[:16]!r} level {level} is not supported")
    flags = data[pos + 1]
    keep_alive_s, pos = read_two_byte_integer(data, pos + 2, end)
    has_will = flags & 0x04 != 0
    _check_connect_flags(flags, version)
    properties: Properties | None = None
    if version == V5:
        properties, pos = decode_properties(data, pos, end, CONNECT, True)
        if (
            properties is not None
            and properties.authentication_data is not None
            and properties.authentication_method is None
        ):
            raise ProtocolError("authentication_data without authentication_method")
    client_id, pos = read_utf8(data, pos, end)
    will: Will | None = None
    if has_will:
        will, pos = _decode_will(data, pos, end, version, flags)
    username: str | None = None
    password: bytes | None = None
    # In 3.1 the remaining length overrules the flags: a user name or password that is not there is valid.
    if flags & 0x80 and (version != V31 or pos < end):
        username, pos = read_utf8(data, pos, end)
    if flags & 0x40 and (version != V31 or pos < end):
        password, pos = read_binary(data, pos, end)
    if pos != end:
        raise MalformedPacket(f"CONNECT has {end - pos} bytes after its payload")
    clean_start = flags & 0x02 != 0
    bridge = level & 0x80 != 0
    return Connect(version, client_id, clean_start, keep_alive_s, username, password, will, properties, bridge)


def _check_connect_flags(flags: int, version: int) -> None:
    if flags & 0x01 and version != V31:
        raise MalformedPacket("CONNECT has its reserved flag set")  # [MQTT-3.1.2-3]
    if flags & 0x04:
        if flags & 0x18 == 0x18:
            raise MalformedPacket("will QoS is 3")  # [MQTT-3.1.2-12]
    elif flags & 0x38 and version != V31:
        raise MalformedPacket("will QoS or will retain without a will")  # [MQTT-3.1.2-11] [MQTT-3.1.2-13]
    if version != V5 and flags & 0x40 and not flags & 0x80:
        raise MalformedPacket("password without a user name")  # [MQTT-3.1.2-22] of 3.1.1


def _decode_will(data: bytes, pos: int, end: int, version: int, flags: int) -> tuple[Will, int]:
    properties: Properties | None = None
    if version == V5:
        properties, pos = decode_properties(data, pos, end, WILL, True)
    topic_name, pos = read_utf8(data, pos, end)
    payload, pos = read_binary(data, pos, end)
    check_topic_name(topic_name)
    return Will(topic_name, payload, flags >> 3 & 3, flags & 0x20 != 0, properties), pos


def _decode_publish(first_byte: int, data: bytes, pos: int, end: int, from_client: bool | None) -> Publish:
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
    properties, pos = decode_properties(data, pos, end, PUBLISH, from_client)
    if topic_name:
        check_topic_name(topic_name)
    elif properties is None or properties.topic_alias is None:
        raise ProtocolError("PUBLISH has neither topic name nor topic alias")
    return Publish(topic_name, data[pos:end], qos, first_byte & 1 != 0, dup, packet_id, properties)


def _decode_acknowledgement(
    kind: int, data: bytes, pos: int, end: int, from_client: bool | None
) -> Puback | Pubrec | Pubrel | Pubcomp:
    packet_id, pos = read_packet_id(data, pos, end)
    reason_code, properties = _decode_reason(kind, data, pos, end, from_client)
    if kind == PUBACK:
        return Puback(packet_id, reason_code, properties)
    if kind == PUBREC:
        return Pubrec(packet_id, reason_code, properties)
    if kind == PUBREL:
        return Pubrel(packet_id, reason_code, properties)
    return Pubcomp(packet_id, reason_code, properties)


def _decode_reason(
    kind: int, data: bytes, pos: int, end: int, from_client: bool | None
) -> tuple[int, Properties | None]:
    """Read the reason code and properties that end a packet; both, or the properties, may be left out."""
    if pos == end:
        return SUCCESS, None
    reason_code = data[pos]
    if not reason_code_allowed(kind, reason_code, from_client):
        raise ProtocolError(f"{KIND_NAMES[kind]} has reason code 0x{reason_code:02x}")
    pos += 1
    if pos == end:
        return reason_code, None
    properties, pos = decode_properties(data, pos, end, kind, from_client)
    if pos != end:
        raise MalformedPacket(f"{KIND_NAMES[kind]} has {end - pos} bytes after its properties")
    return reason_code, properties


def _decode_auth(data: bytes, pos: int, end: int, from_client: bool | None) -> Auth:
    if pos == end and from_client:
        raise ProtocolError("a client must not send AUTH with reason code 0x00")
    reason_code, properties = _decode_reason(AUTH, data, pos, end, from_client)
    if (reason_code != SUCCESS or properties is not None) and (
        properties is None or properties.authentication_method is None
    ):
        raise ProtocolError("AUTH without authentication_method")
    return Auth(reason_code, properties)


def _decode_connack(data: bytes, pos: int, end: int, from_client: bool | None) -> Connack:
    if pos + 2 > end:
        raise MalformedPacket("CONNACK ends before its reason code")
    flags = data[pos]
    reason_code = data[pos + 1]
    if flags > 1:
        raise MalformedPacket(f"CONNACK has reserved flags set: {flags:08b}")  # [MQTT-3.2.2-1]
    if not reason_code_allowed(CONNACK, reason_code):
        raise ProtocolError(f"CONNACK has reason code 0x{reason_code:02x}")
    if flags and reason_code:
        raise ProtocolError("CONNACK refuses with session_present set")  # [MQTT-3.2.2-6]
    properties, pos = decode_properties(data, pos + 2, end, CONNACK, from_client)
    if pos != end:
        raise MalformedPacket(f"CONNACK has {end - pos} bytes after its properties")
    return Connack(flags == 1, reason_code, properties)


def _decode_subscribe(data: bytes, pos: int, end: int) -> Subscribe:
    packet_id, pos = read_packet_id(data, pos, end)
    properties, pos = decode_properties(data, pos, end, SUBSCRIBE)
    subscriptions: list[SubscriptionRequest] = []
    while pos < end:
        topic_filter, pos = read_utf8(data, pos, end)
        if pos >= end:
            raise MalformedPacket("SUBSCRIBE ends before subscription options")
        options = data[pos]
        pos += 1
        if options & 0xC0:
            raise MalformedPacket("subscription options have reserved bits set")  # [MQTT-3.8.3-5]
        qos = options & 3
        retain_handling = options >> 4
        no_local = options & 4 != 0
        if qos == 3:
            raise ProtocolError("subscription options ask for QoS 3")
        if retain_handling == 3:
            raise ProtocolError("subscription options have retain handling 3")
        if no_local and topic_filter.startswith("$share/"):
            raise ProtocolError("no local on a shared subscription")  # [MQTT-3.8.3-4]
        subscriptions.append(SubscriptionRequest(topic_filter, qos, no_local, options & 8 != 0, retain_handling))
    if not subscriptions:
        raise ProtocolError("SUBSCRIBE without a topic filter")  # [MQTT-3.8.3-2]
    return Subscribe(packet_id, subscriptions, properties)


def _decode_unsubscribe(data: bytes, pos: int, end: int) -> Unsubscribe:
    packet_id, pos = read_packet_id(data, pos, end)
    properties, pos = decode_properties(data, pos, end, UNSUBSCRIBE)
    topic_filters: list[str] = []
    while pos < end:
        topic_filter, pos = read_utf8(data, pos, end)
        topic_filters.append(topic_filter)
    if not topic_filters:
        raise ProtocolError("UNSUBSCRIBE without a topic filter")  # [MQTT-3.10.3-2]
    return Unsubscribe(packet_id, topic_filters, properties)


def _decode_filter_results(kind: int, data: bytes, pos: int, end: int) -> Suback | Unsuback:
    packet_id, pos = read_packet_id(data, pos, end)
    properties, pos = decode_properties(data, pos, end, kind)
    reason_codes = list(data[pos:end])
    if not reason_codes:
        raise ProtocolError(f"{KIND_NAMES[kind]} without a reason code")
    for reason_code in reason_codes:
        if not reason_code_allowed(kind, reason_code):
            raise ProtocolError(f"{KIND_NAMES[kind]} has reason code 0x{reason_code:02x}")
    if kind == SUBACK:
        return Suback(packet_id, reason_codes, properties)
    return Unsuback(packet_id, reason_codes, properties)
