"""Counters of a node: plain integers, read when somebody asks."""

from __future__ import annotations

from collections import defaultdict

from broker.codec.packets import KIND_NAMES


class Metrics:
    """What happened since the node started. Lists are indexed by packet type or QoS, mappings by reason."""

    __slots__ = (
        "connections",
        "connects",
        "disconnects",
        "dropped",
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
        #: packets that were refused, by reason code name
        self.packet_errors: defaultdict[str, int] = defaultdict(int)
