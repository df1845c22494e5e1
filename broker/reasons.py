"""The reason codes of MQTT 5: names, where each may appear, and what MQTT 3.1 and 3.1.1 say instead."""

from __future__ import annotations

from broker.codec.packets import (
    AUTH,
    CONNACK,
    DISCONNECT,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
)

SUCCESS = 0x00
NORMAL_DISCONNECTION = 0x00
GRANTED_QOS_0 = 0x00
GRANTED_QOS_1 = 0x01
GRANTED_QOS_2 = 0x02
DISCONNECT_WITH_WILL_MESSAGE = 0x04
NO_MATCHING_SUBSCRIBERS = 0x10
NO_SUBSCRIPTION_EXISTED = 0x11
CONTINUE_AUTHENTICATION = 0x18
RE_AUTHENTICATE = 0x19
UNSPECIFIED_ERROR = 0x80
MALFORMED_PACKET = 0x81
PROTOCOL_ERROR = 0x82
IMPLEMENTATION_SPECIFIC_ERROR = 0x83
UNSUPPORTED_PROTOCOL_VERSION = 0x84
CLIENT_IDENTIFIER_NOT_VALID = 0x85
BAD_USER_NAME_OR_PASSWORD = 0x86
NOT_AUTHORIZED = 0x87
SERVER_UNAVAILABLE = 0x88
SERVER_BUSY = 0x89
BANNED = 0x8A
SERVER_SHUTTING_DOWN = 0x8B
BAD_AUTHENTICATION_METHOD = 0x8C
KEEP_ALIVE_TIMEOUT = 0x8D
SESSION_TAKEN_OVER = 0x8E
TOPIC_FILTER_INVALID = 0x8F
TOPIC_NAME_INVALID = 0x90
PACKET_IDENTIFIER_IN_USE = 0x91
PACKET_IDENTIFIER_NOT_FOUND = 0x92
RECEIVE_MAXIMUM_EXCEEDED = 0x93
TOPIC_ALIAS_INVALID = 0x94
PACKET_TOO_LARGE = 0x95
MESSAGE_RATE_TOO_HIGH = 0x96
QUOTA_EXCEEDED = 0x97
ADMINISTRATIVE_ACTION = 0x98
PAYLOAD_FORMAT_INVALID = 0x99
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B
USE_ANOTHER_SERVER = 0x9C
SERVER_MOVED = 0x9D
SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
CONNECTION_RATE_EXCEEDED = 0x9F
MAXIMUM_CONNECT_TIME = 0xA0
SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2

REASON_NAMES: dict[int, str] = {
    SUCCESS: "success",
    GRANTED_QOS_1: "granted_qos_1",
    GRANTED_QOS_2: "granted_qos_2",
    DISCONNECT_WITH_WILL_MESSAGE: "disconnect_with_will_message",
    NO_MATCHING_SUBSCRIBERS: "no_matching_subscribers",
    NO_SUBSCRIPTION_EXISTED: "no_subscription_existed",
    CONTINUE_AUTHENTICATION: "continue_authentication",
    RE_AUTHENTICATE: "re_authenticate",
    UNSPECIFIED_ERROR: "unspecified_error",
    MALFORMED_PACKET: "malformed_packet",
    PROTOCOL_ERROR: "protocol_error",
    IMPLEMENTATION_SPECIFIC_ERROR: "implementation_specific_error",
    UNSUPPORTED_PROTOCOL_VERSION: "unsupported_protocol_version",
    CLIENT_IDENTIFIER_NOT_VALID: "client_identifier_not_valid",
    BAD_USER_NAME_OR_PASSWORD: "bad_user_name_or_password",
    NOT_AUTHORIZED: "not_authorized",
    SERVER_UNAVAILABLE: "server_unavailable",
    SERVER_BUSY: "server_busy",
    BANNED: "banned",
    SERVER_SHUTTING_DOWN: "server_shutting_down",
    BAD_AUTHENTICATION_METHOD: "bad_authentication_method",
    KEEP_ALIVE_TIMEOUT: "keep_alive_timeout",
    SESSION_TAKEN_OVER: "session_taken_over",
    TOPIC_FILTER_INVALID: "topic_filter_invalid",
    TOPIC_NAME_INVALID: "topic_name_invalid",
    PACKET_IDENTIFIER_IN_USE: "packet_identifier_in_use",
    PACKET_IDENTIFIER_NOT_FOUND: "packet_identifier_not_found",
    RECEIVE_MAXIMUM_EXCEEDED: "receive_maximum_exceeded",
    TOPIC_ALIAS_INVALID: "topic_alias_invalid",
    PACKET_TOO_LARGE: "packet_too_large",
    MESSAGE_RATE_TOO_HIGH: "message_rate_too_high",
    QUOTA_EXCEEDED: "quota_exceeded",
    ADMINISTRATIVE_ACTION: "administrative_action",
    PAYLOAD_FORMAT_INVALID: "payload_format_invalid",
    RETAIN_NOT_SUPPORTED: "retain_not_supported",
    QOS_NOT_SUPPORTED: "qos_not_supported",
    USE_ANOTHER_SERVER: "use_another_server",
    SERVER_MOVED: "server_moved",
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: "shared_subscriptions_not_supported",
    CONNECTION_RATE_EXCEEDED: "connection_rate_exceeded",
    MAXIMUM_CONNECT_TIME: "maximum_connect_time",
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED: "subscription_identifiers_not_supported",
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED: "wildcard_subscriptions_not_supported",
}

_PUBLISH_REFUSALS = frozenset((0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99))

# What a client may put into each packet kind that carries a reason code. [MQTT-3.14.2-1] and its siblings.
CLIENT_REASON_CODES: dict[int, frozenset[int]] = {
    PUBACK: _PUBLISH_REFUSALS | {SUCCESS},
    PUBREC: _PUBLISH_REFUSALS | {SUCCESS},
    PUBREL: frozenset((SUCCESS, PACKET_IDENTIFIER_NOT_FOUND)),
    PUBCOMP: frozenset((SUCCESS, PACKET_IDENTIFIER_NOT_FOUND)),
    DISCONNECT: frozenset((0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99)),
    AUTH: frozenset((CONTINUE_AUTHENTICATION, RE_AUTHENTICATE)),
}

# What a server may put into each packet kind that carries a reason code.
SERVER_REASON_CODES: dict[int, frozenset[int]] = {
    CONNACK: frozenset(bytes.fromhex("00 80 81 82 83 84 85 86 87 88 89 8A 8C 90 95 97 99 9A 9B 9C 9D 9F")),
    PUBACK: _PUBLISH_REFUSALS | {SUCCESS, NO_MATCHING_SUBSCRIBERS},
    PUBREC: _PUBLISH_REFUSALS | {SUCCESS, NO_MATCHING_SUBSCRIBERS},
    PUBREL: frozenset((SUCCESS, PACKET_IDENTIFIER_NOT_FOUND)),
    PUBCOMP: frozenset((SUCCESS, PACKET_IDENTIFIER_NOT_FOUND)),
    SUBACK: frozenset((0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2)),
    UNSUBACK: frozenset((0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)),
    DISCONNECT: frozenset(
        bytes.fromhex("00 80 81 82 83 87 89 8B 8D 8E 8F 90 93 94 95 96 97 98 99 9A 9B 9C 9D 9E 9F A0 A1 A2")
    ),
    AUTH: frozenset((SUCCESS, CONTINUE_AUTHENTICATION)),
}

ANY_REASON_CODES: dict[int, frozenset[int]] = {
    kind: CLIENT_REASON_CODES.get(kind, frozenset()) | codes for kind, codes in SERVER_REASON_CODES.items()
}

# The return codes 1 to 5 of CONNACK in MQTT 3.1 and 3.1.1, as MQTT 5 reason codes.
CONNACK_CODES_V3: tuple[int, ...] = (
    SUCCESS,
    UNSUPPORTED_PROTOCOL_VERSION,
    CLIENT_IDENTIFIER_NOT_VALID,
    SERVER_UNAVAILABLE,
    BAD_USER_NAME_OR_PASSWORD,
    NOT_AUTHORIZED,
)

# Refusals that a later attempt or another server may lift become "server unavailable"; the rest "not authorized",
# so that a client that can never succeed is not told to come back.
_CONNACK_TO_V3: dict[int, int] = {
    SUCCESS: 0,
    UNSUPPORTED_PROTOCOL_VERSION: 1,
    CLIENT_IDENTIFIER_NOT_VALID: 2,
    UNSPECIFIED_ERROR: 3,
    IMPLEMENTATION_SPECIFIC_ERROR: 3,
    SERVER_UNAVAILABLE: 3,
    SERVER_BUSY: 3,
    SERVER_SHUTTING_DOWN: 3,
    QUOTA_EXCEEDED: 3,
    USE_ANOTHER_SERVER: 3,
    SERVER_MOVED: 3,
    CONNECTION_RATE_EXCEEDED: 3,
    BAD_USER_NAME_OR_PASSWORD: 4,
}


def reason_name(code: int) -> str:
    """Return the label of a reason code for logs and metrics, `unknown_0xNN` for an undefined one."""
    return REASON_NAMES.get(code) or f"unknown_0x{code:02x}"


def connack_code_v3(reason_code: int) -> int:
    """Return the CONNACK return code (0 to 5) of MQTT 3.1 and 3.1.1 for an MQTT 5 reason code."""
    return _CONNACK_TO_V3.get(reason_code, 5)


def reason_code_allowed(kind: int, reason_code: int, from_client: bool | None = None) -> bool:
    """Say whether a packet of `kind` may carry `reason_code`; None for `from_client` means either direction."""
    if from_client is None:
        table = ANY_REASON_CODES
    elif from_client:
        table = CLIENT_REASON_CODES
    else:
        table = SERVER_REASON_CODES
    codes = table.get(kind)
    return codes is not None and reason_code in codes
