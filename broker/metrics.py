"""Counters of a node: plain integers, read when somebody asks."""

from __future__ import annotations

from collections import defaultdict

from broker.codec.packets import KIND_NAMES


class Metrics:
    """What happened since the node started. Lists are indexed by packet type or QoS, mappings by reason."""

    __slots__ = (
        "authorization",
        "bytes_received",
        "bytes_sent",
        "connections",
        "connects",
        "disconnects",
        "dropped",
        "hooks",
        "limits",
        "messages_received",
        "messages_sent",
        "packet_errors",
        "packets_received",
        "packets_sent",
        "redelivered",
        "rejected",
        "sessions_resumed",
        "started_at_ms",
    )

    def __init__(self, started_at_ms: int = 0) -> None:
        self.started_at_ms = started_at_ms
        self.connections = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.packets_received = [0] * len(KIND_NAMES)
        self.packets_sent = [0] * len(KIND_NAMES)
        self.messages_received = [0, 0, 0]
        self.messages_sent = [0, 0, 0]
        self.redelivered = 0
        self.sessions_resumed = 0
        #: accepted sockets that were refused, by reason
        self.rejected: defaultdict[str, int] = defaultdict(int)
        #: CONNECT outcomes by CONNACK reason
        self.connects: defaultdict[str, int] = defaultdict(int)
        #: ended connections by reason
        self.disconnects: defaultdict[str, int] = defaultdict(int)
        #: messages not delivered to a receiver, by reason
        self.dropped: defaultdict[str, int] = defaultdict(int)
        #: answers of rules, by `action,answer`: each that is no, and yes where it was not remembered
        self.authorization: defaultdict[str, int] = defaultdict(int)
        #: calls of hooks that failed or were left out, by `hook,method,timeout|error|dropped`
        self.hooks: defaultdict[str, int] = defaultdict(int)
        #: what limits did to clients, by what it was
        self.limits: defaultdict[str, int] = defaultdict(int)
        #: packets that were refused, by reason code name
        self.packet_errors: defaultdict[str, int] = defaultdict(int)

    def counters(self) -> dict[str, int | list[int] | dict[str, int]]:
        """Copies of all that only grows, by the name of its family."""
        return {
            "mqtt_bytes_received": self.bytes_received,
            "mqtt_bytes_sent": self.bytes_sent,
            "mqtt_sessions_resumed": self.sessions_resumed,
            "mqtt_messages_retransmitted": self.redelivered,
            "mqtt_packets_received": list(self.packets_received),
            "mqtt_packets_sent": list(self.packets_sent),
            "mqtt_messages_received": list(self.messages_received),
            "mqtt_messages_sent": list(self.messages_sent),
            "mqtt_messages_dropped": dict(self.dropped),
            "mqtt_connects": dict(self.connects),
            "mqtt_disconnects": dict(self.disconnects),
            "mqtt_connections_rejected": dict(self.rejected),
            "mqtt_hook_failures": dict(self.hooks),
            "mqtt_limits": dict(self.limits),
            "mqtt_packet_errors": dict(self.packet_errors),
            "mqtt_authorization": dict(self.authorization),
        }
