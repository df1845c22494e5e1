"""The property block of MQTT 5 packets and wills: bytes to `Properties` and back.

Tables say which data type a property has and in which packets each side may send it.
"""

from __future__ import annotations

from broker.codec.packets import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    KIND_NAMES,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    Properties,
)
from broker.codec.primitives import (
    binary,
    four_byte_integer,
    has_wildcard,
    read_binary,
    read_four_byte_integer,
    read_two_byte_integer,
    read_utf8,
    read_variable_byte_integer,
    remaining_length,
    two_byte_integer,
    utf8,
)
from broker.errors import MalformedPacket, PeerError, ProtocolError
from broker.reasons import QUOTA_EXCEEDED, TOPIC_ALIAS_INVALID

# Not a packet: the `kind` under which the properties of a CONNECT's will are looked up.
WILL = 16

# A packet with more user properties than this is refused: they cost memory in every copy of a message.
MAXIMUM_USER_PROPERTIES = 128

PAYLOAD_FORMAT_INDICATOR = 0x01
MESSAGE_EXPIRY_INTERVAL = 0x02
CONTENT_TYPE = 0x03
RESPONSE_TOPIC = 0x08
CORRELATION_DATA = 0x09
SUBSCRIPTION_IDENTIFIER = 0x0B
SESSION_EXPIRY_INTERVAL = 0x11
ASSIGNED_CLIENT_IDENTIFIER = 0x12
SERVER_KEEP_ALIVE = 0x13
AUTHENTICATION_METHOD = 0x15
AUTHENTICATION_DATA = 0x16
REQUEST_PROBLEM_INFORMATION = 0x17
WILL_DELAY_INTERVAL = 0x18
REQUEST_RESPONSE_INFORMATION = 0x19
RESPONSE_INFORMATION = 0x1A
SERVER_REFERENCE = 0x1C
REASON_STRING = 0x1F
RECEIVE_MAXIMUM = 0x21
TOPIC_ALIAS_MAXIMUM = 0x22
TOPIC_ALIAS = 0x23
MAXIMUM_QOS = 0x24
RETAIN_AVAILABLE = 0x25
USER_PROPERTY = 0x26
MAXIMUM_PACKET_SIZE = 0x27
WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
SHARED_SUBSCRIPTION_AVAILABLE = 0x2A

# Data types. A flag is a byte that may only be 0 or 1.
FLAG = 1
TWO_BYTES = 2
FOUR_BYTES = 3
VARIABLE = 4
TEXT = 5
BINARY = 6
TEXT_PAIR = 7

_MESSAGE = (PUBLISH, WILL)
_ACKNOWLEDGEMENTS = (PUBACK, PUBREC, PUBREL, PUBCOMP)

# identifier -> (name, data type, kinds a client may send it in, kinds a server may send it in)
PROPERTY_TABLE: dict[int, tuple[str, int, tuple[int, ...], tuple[int, ...]]] = {
    PAYLOAD_FORMAT_INDICATOR: ("payload_format_indicator", FLAG, _MESSAGE, _MESSAGE),
    MESSAGE_EXPIRY_INTERVAL: ("message_expiry_interval", FOUR_BYTES, _MESSAGE, _MESSAGE),
    CONTENT_TYPE: ("content_type", TEXT, _MESSAGE, _MESSAGE),
    RESPONSE_TOPIC: ("response_topic", TEXT, _MESSAGE, _MESSAGE),
    CORRELATION_DATA: ("correlation_data", BINARY, _MESSAGE, _MESSAGE),
    SUBSCRIPTION_IDENTIFIER: ("subscription_identifier", VARIABLE, (SUBSCRIBE,), (PUBLISH,)),
    SESSION_EXPIRY_INTERVAL: ("session_expiry_interval", FOUR_BYTES, (CONNECT, DISCONNECT), (CONNACK,)),
    ASSIGNED_CLIENT_IDENTIFIER: ("assigned_client_identifier", TEXT, (), (CONNACK,)),
    SERVER_KEEP_ALIVE: ("server_keep_alive", TWO_BYTES, (), (CONNACK,)),
    AUTHENTICATION_METHOD: ("authentication_method", TEXT, (CONNECT, AUTH), (CONNACK, AUTH)),
    AUTHENTICATION_DATA: ("authentication_data", BINARY, (CONNECT, AUTH), (CONNACK, AUTH)),
    REQUEST_PROBLEM_INFORMATION: ("request_problem_information", FLAG, (CONNECT,), ()),
    WILL_DELAY_INTERVAL: ("will_delay_interval", FOUR_BYTES, (WILL,), ()),
    REQUEST_RESPONSE_INFORMATION: ("request_response_information", FLAG, (CONNECT,), ()),
    RESPONSE_INFORMATION: ("response_information", TEXT, (), (CONNACK,)),
    SERVER_REFERENCE: ("server_reference", TEXT, (), (CONNACK, DISCONNECT)),
    REASON_STRING: (
        "reason_string",
        TEXT,
        (*_ACKNOWLEDGEMENTS, DISCONNECT, AUTH),
        (*_ACKNOWLEDGEMENTS, CONNACK, SUBACK, UNSUBACK, DISCONNECT, AUTH),
    ),
    RECEIVE_MAXIMUM: ("receive_maximum", TWO_BYTES, (CONNECT,), (CONNACK,)),
    TOPIC_ALIAS_MAXIMUM: ("topic_alias_maximum", TWO_BYTES, (CONNECT,), (CONNACK,)),
    TOPIC_ALIAS: ("topic_alias", TWO_BYTES, (PUBLISH,), (PUBLISH,)),
    MAXIMUM_QOS: ("maximum_qos", FLAG, (), (CONNACK,)),
    RETAIN_AVAILABLE: ("retain_available", FLAG, (), (CONNACK,)),
    USER_PROPERTY: (
        "user_property",
        TEXT_PAIR,
        (CONNECT, *_MESSAGE, *_ACKNOWLEDGEMENTS, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, AUTH),
        (CONNACK, *_MESSAGE, *_ACKNOWLEDGEMENTS, SUBACK, UNSUBACK, DISCONNECT, AUTH),
    ),
    MAXIMUM_PACKET_SIZE: ("maximum_packet_size", FOUR_BYTES, (CONNECT,), (CONNACK,)),
    WILDCARD_SUBSCRIPTION_AVAILABLE: ("wildcard_subscription_available", FLAG, (), (CONNACK,)),
    SUBSCRIPTION_IDENTIFIER_AVAILABLE: ("subscription_identifier_available", FLAG, (), (CONNACK,)),
    SHARED_SUBSCRIPTION_AVAILABLE: ("shared_subscription_available", FLAG, (), (CONNACK,)),
}


def _kind_mask(kinds: tuple[int, ...]) -> int:
    mask = 0
    for kind in kinds:
        mask |= 1 << kind
    return mask


_IDENTIFIERS = 0x2B
_NAMES: list[str] = ["" for _ in range(_IDENTIFIERS)]
_TYPES: list[int] = [0 for _ in range(_IDENTIFIERS)]
_CLIENT_KINDS: list[int] = [0 for _ in range(_IDENTIFIERS)]
_SERVER_KINDS: list[int] = [0 for _ in range(_IDENTIFIERS)]
for _identifier, (_name, _type, _client, _server) in PROPERTY_TABLE.items():
    _NAMES[_identifier] = _name
    _TYPES[_identifier] = _type
    _CLIENT_KINDS[_identifier] = _kind_mask(_client)
    _SERVER_KINDS[_identifier] = _kind_mask(_server)


def kind_name(kind: int) -> str:
    """Return the name of a packet kind, or of the will, for messages."""
    return "will" if kind == WILL else KIND_NAMES[kind]


def decode_properties(
    data: bytes, pos: int, end: int, kind: int, from_client: bool | None = None
) -> tuple[Properties | None, int]:
    """Read the property length and properties at `pos`; None stands for an empty block.

    An identifier that `kind` never carries is malformed; one that only the other side may send, one that
    is repeated, and a value out of range are protocol errors (0x94 for topic alias 0).
    """
    length, pos = read_variable_byte_integer(data, pos, end)
    if length == 0:
        return None, pos
    stop = pos + length
    if stop > end:
        raise MalformedPacket(f"property length {length} exceeds the {end - pos} bytes left")
    properties = Properties()
    user_properties: list[tuple[str, str]] = []
    subscription_identifiers: list[int] = []
    kind_bit = 1 << kind
    seen = 0
    while pos < stop:
        identifier, pos = read_variable_byte_integer(data, pos, stop)
        data_type = _TYPES[identifier] if identifier < _IDENTIFIERS else 0
        if data_type == 0:
            raise MalformedPacket(f"unknown property 0x{identifier:02x} in {kind_name(kind)}")
        _check_allowed(identifier, kind, kind_bit, from_client)
        if data_type == TEXT_PAIR:
            if len(user_properties) >= MAXIMUM_USER_PROPERTIES:
                raise PeerError(QUOTA_EXCEEDED, f"more than {MAXIMUM_USER_PROPERTIES} user properties")
            key, pos = read_utf8(data, pos, stop)
            value, pos = read_utf8(data, pos, stop)
            user_properties.append((key, value))
            continue
        bit = 1 << identifier
        if seen & bit and (data_type != VARIABLE or kind != PUBLISH):
            raise ProtocolError(f"{_NAMES[identifier]} appears twice in {kind_name(kind)}")
        seen |= bit
        if data_type == VARIABLE:
            number, pos = read_variable_byte_integer(data, pos, stop)
            if number == 0:
                raise ProtocolError("subscription_identifier is 0")
            subscription_identifiers.append(number)
        else:
            pos = _read_value(properties, identifier, data_type, data, pos, stop)
    if user_properties:
        properties.user_properties = user_properties
    if subscription_identifiers:
        properties.subscription_identifiers = subscription_identifiers
    return properties, pos


def _check_allowed(identifier: int, kind: int, kind_bit: int, from_client: bool | None) -> None:
    client = _CLIENT_KINDS[identifier]
    server = _SERVER_KINDS[identifier]
    if not (client | server) & kind_bit:
        raise MalformedPacket(f"{_NAMES[identifier]} is no property of {kind_name(kind)}")
    if from_client is not None and not (client if from_client else server) & kind_bit:
        side = "client" if from_client else "server"
        raise ProtocolError(f"a {side} must not send {_NAMES[identifier]} in {kind_name(kind)}")


def _read_value(properties: Properties, identifier: int, data_type: int, data: bytes, pos: int, stop: int) -> int:
    """Read the value of a property that occurs at most once and return the position after it."""
    if data_type == TEXT:
        text, pos = read_utf8(data, pos, stop)
        _set_text(properties, identifier, text)
    elif data_type == BINARY:
        raw, pos = read_binary(data, pos, stop)
        if identifier == CORRELATION_DATA:
            properties.correlation_data = raw
        else:
            properties.authentication_data = raw
    elif data_type == FLAG:
        if pos >= stop:
            raise MalformedPacket("properties end inside a byte")
        flag = data[pos]
        pos += 1
        if flag > 1:
            raise ProtocolError(f"{_NAMES[identifier]} is {flag}, not 0 or 1")
        _set_flag(properties, identifier, flag)
    elif data_type == TWO_BYTES:
        number, pos = read_two_byte_integer(data, pos, stop)
        _set_number(properties, identifier, number)
    else:
        number, pos = read_four_byte_integer(data, pos, stop)
        _set_number(properties, identifier, number)
    return pos


def _set_text(properties: Properties, identifier: int, text: str) -> None:
    if identifier == CONTENT_TYPE:
        properties.content_type = text
    elif identifier == RESPONSE_TOPIC:
        if not text or has_wildcard(text):
            raise ProtocolError(f"response_topic {text[:80]!r} is no topic name")  # [MQTT-3.3.2-14]
        properties.response_topic = text
    elif identifier == ASSIGNED_CLIENT_IDENTIFIER:
        properties.assigned_client_identifier = text
    elif identifier == AUTHENTICATION_METHOD:
        properties.authentication_method = text
    elif identifier == RESPONSE_INFORMATION:
        properties.response_information = text
    elif identifier == SERVER_REFERENCE:
        properties.server_reference = text
    else:
        properties.reason_string = text


def _set_flag(properties: Properties, identifier: int, flag: int) -> None:
    if identifier == PAYLOAD_FORMAT_INDICATOR:
        properties.payload_format_indicator = flag
    elif identifier == REQUEST_PROBLEM_INFORMATION:
        properties.request_problem_information = flag
    elif identifier == REQUEST_RESPONSE_INFORMATION:
        properties.request_response_information = flag
    elif identifier == MAXIMUM_QOS:
        properties.maximum_qos = flag
    elif identifier == RETAIN_AVAILABLE:
        properties.retain_available = flag
    elif identifier == WILDCARD_SUBSCRIPTION_AVAILABLE:
        properties.wildcard_subscription_available = flag
    elif identifier == SUBSCRIPTION_IDENTIFIER_AVAILABLE:
        properties.subscription_identifier_available = flag
    else:
        properties.shared_subscription_available = flag


def _set_number(properties: Properties, identifier: int, number: int) -> None:
    if identifier == MESSAGE_EXPIRY_INTERVAL:
        properties.message_expiry_interval = number
    elif identifier == SESSION_EXPIRY_INTERVAL:
        properties.session_expiry_interval = number
    elif identifier == WILL_DELAY_INTERVAL:
        properties.will_delay_interval = number
    elif identifier == SERVER_KEEP_ALIVE:
        properties.server_keep_alive = number
    elif identifier == TOPIC_ALIAS_MAXIMUM:
        properties.topic_alias_maximum = number
    elif identifier == TOPIC_ALIAS:
        if number == 0:
            raise PeerError(TOPIC_ALIAS_INVALID, "topic_alias is 0")  # [MQTT-3.3.2-8]
        properties.topic_alias = number
    elif number == 0:
        raise ProtocolError(f"{_NAMES[identifier]} is 0")
    elif identifier == RECEIVE_MAXIMUM:
        properties.receive_maximum = number
    else:
        properties.maximum_packet_size = number


def encode_properties(properties: Properties | None) -> bytes:
    """Return the property length and every property that is set; StateError for values that cannot be sent."""
    if properties is None:
        return b"\x00"
    body = encode_property_list(properties)
    return remaining_length(len(body)) + body


def encode_property_list(properties: Properties) -> bytes:
    """Return every property that is set, in the order of identifiers but user properties last, without a length."""
    out: list[bytes] = []
    _add_byte(out, PAYLOAD_FORMAT_INDICATOR, properties.payload_format_indicator)
    _add_four(out, MESSAGE_EXPIRY_INTERVAL, properties.message_expiry_interval)
    _add_text(out, CONTENT_TYPE, properties.content_type)
    _add_text(out, RESPONSE_TOPIC, properties.response_topic)
    _add_binary(out, CORRELATION_DATA, properties.correlation_data)
    for identifier in properties.subscription_identifiers:
        out.append(b"\x0b" + remaining_length(identifier))
    _add_four(out, SESSION_EXPIRY_INTERVAL, properties.session_expiry_interval)
    _add_text(out, ASSIGNED_CLIENT_IDENTIFIER, properties.assigned_client_identifier)
    _add_two(out, SERVER_KEEP_ALIVE, properties.server_keep_alive)
    _add_text(out, AUTHENTICATION_METHOD, properties.authentication_method)
    _add_binary(out, AUTHENTICATION_DATA, properties.authentication_data)
    _add_byte(out, REQUEST_PROBLEM_INFORMATION, properties.request_problem_information)
    _add_four(out, WILL_DELAY_INTERVAL, properties.will_delay_interval)
    _add_byte(out, REQUEST_RESPONSE_INFORMATION, properties.request_response_information)
    _add_text(out, RESPONSE_INFORMATION, properties.response_information)
    _add_text(out, SERVER_REFERENCE, properties.server_reference)
    _add_text(out, REASON_STRING, properties.reason_string)
    _add_two(out, RECEIVE_MAXIMUM, properties.receive_maximum)
    _add_two(out, TOPIC_ALIAS_MAXIMUM, properties.topic_alias_maximum)
    _add_two(out, TOPIC_ALIAS, properties.topic_alias)
    _add_byte(out, MAXIMUM_QOS, properties.maximum_qos)
    _add_byte(out, RETAIN_AVAILABLE, properties.retain_available)
    _add_four(out, MAXIMUM_PACKET_SIZE, properties.maximum_packet_size)
    _add_byte(out, WILDCARD_SUBSCRIPTION_AVAILABLE, properties.wildcard_subscription_available)
    _add_byte(out, SUBSCRIPTION_IDENTIFIER_AVAILABLE, properties.subscription_identifier_available)
    _add_byte(out, SHARED_SUBSCRIPTION_AVAILABLE, properties.shared_subscription_available)
    for key, value in properties.user_properties:
        out.append(b"\x26" + utf8(key) + utf8(value))
    return b"".join(out)


def _add_byte(out: list[bytes], identifier: int, value: int | None) -> None:
    if value is not None:
        out.append(bytes((identifier, value)))


def _add_two(out: list[bytes], identifier: int, value: int | None) -> None:
    if value is not None:
        out.append(bytes((identifier,)) + two_byte_integer(value))


def _add_four(out: list[bytes], identifier: int, value: int | None) -> None:
    if value is not None:
        out.append(bytes((identifier,)) + four_byte_integer(value))


def _add_text(out: list[bytes], identifier: int, value: str | None) -> None:
    if value is not None:
        out.append(bytes((identifier,)) + utf8(value))


def _add_binary(out: list[bytes], identifier: int, value: bytes | None) -> None:
    if value is not None:
        out.append(bytes((identifier,)) + binary(value))
