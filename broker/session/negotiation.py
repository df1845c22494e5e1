"""CONNECT and CONNACK: what client and server agree on."""

from __future__ import annotations

from broker.codec.packets import V5, V31, V311, Connect, Properties, Will
from broker.errors import PeerError
from broker.session.quotas import Quotas


class Agreement:
    """The terms of one connection. `max_packet_size` is the largest packet the client accepts (0: any)."""

    __slots__ = (
        "assigned",
        "authentication_method",
        "clean_start",
        "client_id",
        "expiry_s",
        "keep_alive_s",
        "max_packet_size",
        "problem_information",
        "receive_maximum",
        "requested_expiry_s",
        "requested_keep_alive_s",
        "response_information",
        "topic_alias_maximum",
        "version",
        "will",
    )

    def __init__(self, version: int, client_id: str, clean_start: bool) -> None:
        self.version = version
        self.client_id = client_id
        self.assigned = False
        self.clean_start = clean_start
        self.requested_expiry_s = 0
        self.expiry_s = 0
        self.requested_keep_alive_s = 0
        self.keep_alive_s = 0
        self.receive_maximum = 65535
        self.max_packet_size = 0
        self.topic_alias_maximum = 0
        self.problem_information = True
        self.response_information = False
        self.authentication_method: str | None = None
        self.will: Will | None = None


def agree(connect: Connect, quotas: Quotas, new_client_id: str) -> Agreement:
    """The terms for a CONNECT; `new_client_id` is used if the client left the choice to the server.

    Raises PeerError with the CONNACK reason code if the server does not accept them.
    """
    version = connect.protocol_version
    terms = Agreement(version, connect.client_id, connect.clean_start)
    if not connect.client_id:
        if version == V31:
            raise PeerError(0x85, "MQTT 3.1 needs a client identifier")
        if version == V311 and not connect.clean_start:  # [MQTT-3.1.3-8]
            raise PeerError(0x85, "an empty client identifier needs a clean session")
        terms.client_id = new_client_id
        terms.assigned = True
    properties = connect.properties
    if version == V5:
        if properties is not None:
            _take(terms, properties)
        terms.expiry_s = min(terms.requested_expiry_s, quotas.session_expiry_max_s)
    else:
        terms.expiry_s = 0 if connect.clean_start else min(quotas.session_expiry_v3_s, quotas.session_expiry_max_s)
        terms.requested_expiry_s = terms.expiry_s
    terms.receive_maximum = min(terms.receive_maximum, quotas.max_inflight)
    terms.requested_keep_alive_s = terms.keep_alive_s = connect.keep_alive_s
    limit = quotas.max_keep_alive_s
    if version == V5 and limit and (connect.keep_alive_s == 0 or connect.keep_alive_s > limit):
        terms.keep_alive_s = limit
    will = connect.will
    if will is not None:
        if will.qos > quotas.maximum_qos:  # [MQTT-3.2.2-12]
            raise PeerError(0x9B, f"will QoS {will.qos} is not supported, at most {quotas.maximum_qos}")
        if will.retain and not quotas.retain_available:  # [MQTT-3.2.2-13]
            raise PeerError(0x9A, "retained messages are not supported")
        terms.will = will
    return terms


def _take(terms: Agreement, properties: Properties) -> None:
    if properties.session_expiry_interval is not None:
        terms.requested_expiry_s = properties.session_expiry_interval
    if properties.receive_maximum is not None:
        terms.receive_maximum = properties.receive_maximum
    if properties.maximum_packet_size is not None:
        terms.max_packet_size = properties.maximum_packet_size
    if properties.topic_alias_maximum is not None:
        terms.topic_alias_maximum = properties.topic_alias_maximum
    if properties.request_problem_information == 0:
        terms.problem_information = False
    if properties.request_response_information == 1:
        terms.response_information = True
    terms.authentication_method = properties.authentication_method


def connack_properties(terms: Agreement, quotas: Quotas, authentication_data: bytes | None = None) -> Properties | None:
    """What a successful CONNACK announces; None for version 3."""
    if terms.version != V5:
        return None
    out = Properties()
    if terms.expiry_s != terms.requested_expiry_s:
        out.session_expiry_interval = terms.expiry_s
    if quotas.receive_maximum != 65535:
        out.receive_maximum = quotas.receive_maximum
    if quotas.maximum_qos < 2:
        out.maximum_qos = quotas.maximum_qos
    if not quotas.retain_available:
        out.retain_available = 0
    out.maximum_packet_size = quotas.max_packet_size
    if terms.assigned:  # [MQTT-3.2.2-16]
        out.assigned_client_identifier = terms.client_id
    if quotas.topic_alias_maximum:
        out.topic_alias_maximum = quotas.topic_alias_maximum
    if not quotas.wildcard_available:
        out.wildcard_subscription_available = 0
    if not quotas.subscription_ids_available:
        out.subscription_identifier_available = 0
    if not quotas.shared_available:
        out.shared_subscription_available = 0
    if terms.keep_alive_s != terms.requested_keep_alive_s:  # [MQTT-3.1.2-21]
        out.server_keep_alive = terms.keep_alive_s
    if terms.response_information and quotas.response_information:
        out.response_information = quotas.response_information + terms.client_id
    if terms.authentication_method is not None:
        out.authentication_method = terms.authentication_method
        out.authentication_data = authentication_data
    return out
