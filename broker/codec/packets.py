"""The control packets of MQTT 3.1, 3.1.1 and 5.0 as plain objects.

One set of classes serves all versions: what a version lacks keeps its default. Attributes carry the
names of the MQTT 5 specification. Packets are built positionally; `kind` is the packet type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

CONNECT = 1
CONNACK = 2
PUBLISH = 3
PUBACK = 4
PUBREC = 5
PUBREL = 6
PUBCOMP = 7
SUBSCRIBE = 8
SUBACK = 9
UNSUBSCRIBE = 10
UNSUBACK = 11
PINGREQ = 12
PINGRESP = 13
DISCONNECT = 14
AUTH = 15

KIND_NAMES = (
    "RESERVED",
    "CONNECT",
    "CONNACK",
    "PUBLISH",
    "PUBACK",
    "PUBREC",
    "PUBREL",
    "PUBCOMP",
    "SUBSCRIBE",
    "SUBACK",
    "UNSUBSCRIBE",
    "UNSUBACK",
    "PINGREQ",
    "PINGRESP",
    "DISCONNECT",
    "AUTH",
)

V31 = 3
V311 = 4
V5 = 5


#: Of all packets: the attributes of `Properties`.
PROPERTY_NAMES = (
    "assigned_client_identifier",
    "authentication_data",
    "authentication_method",
    "content_type",
    "correlation_data",
    "maximum_packet_size",
    "maximum_qos",
    "message_expiry_interval",
    "payload_format_indicator",
    "reason_string",
    "receive_maximum",
    "request_problem_information",
    "request_response_information",
    "response_information",
    "response_topic",
    "retain_available",
    "server_keep_alive",
    "server_reference",
    "session_expiry_interval",
    "shared_subscription_available",
    "subscription_identifier_available",
    "subscription_identifiers",
    "topic_alias",
    "topic_alias_maximum",
    "user_properties",
    "wildcard_subscription_available",
    "will_delay_interval",
)


class Properties:
    """The properties of one packet or will; None (or an empty sequence) means absent."""

    __slots__ = PROPERTY_NAMES

    def __init__(self) -> None:
        self.payload_format_indicator: int | None = None
        self.message_expiry_interval: int | None = None
        self.content_type: str | None = None
        self.response_topic: str | None = None
        self.correlation_data: bytes | None = None
        self.subscription_identifiers: Sequence[int] = ()
        self.session_expiry_interval: int | None = None
        self.assigned_client_identifier: str | None = None
        self.server_keep_alive: int | None = None
        self.authentication_method: str | None = None
        self.authentication_data: bytes | None = None
        self.request_problem_information: int | None = None
        self.will_delay_interval: int | None = None
        self.request_response_information: int | None = None
        self.response_information: str | None = None
        self.server_reference: str | None = None
        self.reason_string: str | None = None
        self.receive_maximum: int | None = None
        self.topic_alias_maximum: int | None = None
        self.topic_alias: int | None = None
        self.maximum_qos: int | None = None
        self.retain_available: int | None = None
        self.user_properties: Sequence[tuple[str, str]] = ()
        self.maximum_packet_size: int | None = None
        self.wildcard_subscription_available: int | None = None
        self.subscription_identifier_available: int | None = None
        self.shared_subscription_available: int | None = None


class Will:
    """The will of a CONNECT. `properties` holds will properties, also the delay."""

    __slots__ = ("payload", "properties", "qos", "retain", "topic_name")

    def __init__(
        self, topic_name: str, payload: bytes, qos: int, retain: bool, properties: Properties | None = None
    ) -> None:
        self.topic_name = topic_name
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties


class Connect:
    """CONNECT. `protocol_version` is 3, 4 or 5; `bridge` is bit 7 of it, which bridges set."""

    __slots__ = (
        "bridge",
        "clean_start",
        "client_id",
        "keep_alive_s",
        "password",
        "properties",
        "protocol_version",
        "username",
        "will",
    )
    kind: ClassVar[int] = CONNECT

    def __init__(
        self,
        protocol_version: int,
        client_id: str,
        clean_start: bool = True,
        keep_alive_s: int = 0,
        username: str | None = None,
        password: bytes | None = None,
        will: Will | None = None,
        properties: Properties | None = None,
        bridge: bool = False,
    ) -> None:
        self.protocol_version = protocol_version
        self.client_id = client_id
        self.clean_start = clean_start
        self.keep_alive_s = keep_alive_s
        self.username = username
        self.password = password
        self.will = will
        self.properties = properties
        self.bridge = bridge


class Connack:
    """CONNACK. `reason_code` is always an MQTT 5 code in memory; the v3 encoder maps it."""

    __slots__ = ("properties", "reason_code", "session_present")
    kind: ClassVar[int] = CONNACK

    def __init__(self, session_present: bool, reason_code: int, properties: Properties | None = None) -> None:
        self.session_present = session_present
        self.reason_code = reason_code
        self.properties = properties


class Publish:
    """PUBLISH. `packet_id` is 0 at QoS 0; `topic_name` is empty where a topic alias stands for it."""

    __slots__ = ("dup", "packet_id", "payload", "properties", "qos", "retain", "topic_name")
    kind: ClassVar[int] = PUBLISH

    def __init__(
        self,
        topic_name: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: Properties | None = None,
    ) -> None:
        self.topic_name = topic_name
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        self.properties = properties


class Acknowledgement:
    """What PUBACK, PUBREC, PUBREL and PUBCOMP share."""

    __slots__ = ("packet_id", "properties", "reason_code")
    kind: ClassVar[int] = 0

    def __init__(self, packet_id: int, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.reason_code = reason_code
        self.properties = properties


class Puback(Acknowledgement):
    """PUBACK."""

    __slots__ = ()
    kind: ClassVar[int] = PUBACK


class Pubrec(Acknowledgement):
    """PUBREC."""

    __slots__ = ()
    kind: ClassVar[int] = PUBREC


class Pubrel(Acknowledgement):
    """PUBREL."""

    __slots__ = ()
    kind: ClassVar[int] = PUBREL


class Pubcomp(Acknowledgement):
    """PUBCOMP."""

    __slots__ = ()
    kind: ClassVar[int] = PUBCOMP


class SubscriptionRequest:
    """One topic filter of a SUBSCRIBE with its subscription options."""

    __slots__ = ("no_local", "qos", "retain_as_published", "retain_handling", "topic_filter")

    def __init__(
        self,
        topic_filter: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
    ) -> None:
        self.topic_filter = topic_filter
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.retain_handling = retain_handling


class Subscribe:
    """SUBSCRIBE; at most one subscription identifier in its properties."""

    __slots__ = ("packet_id", "properties", "subscriptions")
    kind: ClassVar[int] = SUBSCRIBE

    def __init__(
        self, packet_id: int, subscriptions: Sequence[SubscriptionRequest], properties: Properties | None = None
    ) -> None:
        self.packet_id = packet_id
        self.subscriptions = subscriptions
        self.properties = properties


class Suback:
    """SUBACK: one MQTT 5 reason code per topic filter; the v3 encoder maps failures to 0x80."""

    __slots__ = ("packet_id", "properties", "reason_codes")
    kind: ClassVar[int] = SUBACK

    def __init__(self, packet_id: int, reason_codes: Sequence[int], properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.reason_codes = reason_codes
        self.properties = properties


class Unsubscribe:
    """UNSUBSCRIBE."""

    __slots__ = ("packet_id", "properties", "topic_filters")
    kind: ClassVar[int] = UNSUBSCRIBE

    def __init__(self, packet_id: int, topic_filters: Sequence[str], properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.topic_filters = topic_filters
        self.properties = properties


class Unsuback:
    """UNSUBACK; version 3 has no reason codes, and decodes to an empty sequence."""

    __slots__ = ("packet_id", "properties", "reason_codes")
    kind: ClassVar[int] = UNSUBACK

    def __init__(self, packet_id: int, reason_codes: Sequence[int], properties: Properties | None = None) -> None:
        self.packet_id = packet_id
        self.reason_codes = reason_codes
        self.properties = properties


class Pingreq:
    """PINGREQ."""

    __slots__ = ()
    kind: ClassVar[int] = PINGREQ


class Pingresp:
    """PINGRESP."""

    __slots__ = ()
    kind: ClassVar[int] = PINGRESP


class Disconnect:
    """DISCONNECT; version 3 has only reason code 0."""

    __slots__ = ("properties", "reason_code")
    kind: ClassVar[int] = DISCONNECT

    def __init__(self, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.reason_code = reason_code
        self.properties = properties


class Auth:
    """AUTH (version 5 only)."""

    __slots__ = ("properties", "reason_code")
    kind: ClassVar[int] = AUTH

    def __init__(self, reason_code: int = 0, properties: Properties | None = None) -> None:
        self.reason_code = reason_code
        self.properties = properties


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)
