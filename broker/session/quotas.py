"""What the server allows and announces, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

NEVER_EXPIRES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Quotas:
    """Capabilities and limits of one listener; sizes in bytes, intervals in seconds."""

    receive_maximum: int = 100
    max_inflight: int = 100
    topic_alias_maximum: int = 64
    max_packet_size: int = 1024 * 1024
    max_packet_size_before_auth: int = 16 * 1024
    max_queued_messages: int = 1000
    max_queued_bytes: int = 8 * 1024 * 1024
    session_expiry_max_s: int = NEVER_EXPIRES
    session_expiry_v3_s: int = 7 * 24 * 3600
    max_keep_alive_s: int = 0
    maximum_qos: int = 2
    retain_available: bool = True
    wildcard_available: bool = True
    shared_available: bool = True
    subscription_ids_available: bool = True
    max_subscriptions: int = 1000
    max_topic_levels: int = 200
    max_topic_bytes: int = 65535
    #: A client that publishes what it may not is disconnected.
    deny_disconnects: bool = False
    #: A client whose output buffer is full is disconnected.
    slow_consumer_disconnects: bool = False
    validate_payload_format: bool = False
    response_information: str = ""
