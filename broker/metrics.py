"""Counters of a node: plain integers, read when somebody asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from broker.codec.packets import KIND_NAMES, PUBLISH
from broker.histogram import SECONDS, Histogram
from broker.metrics_catalogue import TURN_PACKETS, Samples, Value

_QOS = "012"


class Metrics:
    """What happened since the node started. Lists are indexed by packet type or QoS, mappings by reason."""

    __slots__ = (
        "alarms",
        "api_messages",
        "authentication",
        "authentication_seconds",
        "authorization",
        "authorization_seconds",
        "bytes_received",
        "bytes_sent",
        "connections",
        "connects",
        "delivered_local",
        "delivered_remote",
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
        "slow_consumers",
        "started_at_ms",
        "turn_packets",
        "turn_seconds",
    )

    def __init__(self, started_at_ms: int = 0) -> None:
        self.started_at_ms = started_at_ms
        self.connections = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        self.packets_received = [0] * len(KIND_NAMES)
        #: Without PUBLISH: see `messages_sent`.
        self.packets_sent = [0] * len(KIND_NAMES)
        self.messages_received = [0, 0, 0]
        #: Messages that operators published.
        self.api_messages = [0, 0, 0]
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
        #: answers of authenticators, by `name,answer`
        self.authentication: defaultdict[str, int] = defaultdict(int)
        self.authentication_seconds: defaultdict[str, Histogram] = defaultdict(_seconds)
        #: answers of rules, by `action,answer`: each that is no, and yes where it was not remembered
        self.authorization: defaultdict[str, int] = defaultdict(int)
        self.authorization_seconds: defaultdict[str, Histogram] = defaultdict(_seconds)
        #: calls of hooks that failed or were left out, by `hook,method,timeout|error|dropped`
        self.hooks: defaultdict[str, int] = defaultdict(int)
        #: what limits did to clients, by what it was
        self.limits: defaultdict[str, int] = defaultdict(int)
        #: packets that were refused, by reason code name
        self.packet_errors: defaultdict[str, int] = defaultdict(int)
        #: clients that do not take their output, by what was done
        self.slow_consumers: defaultdict[str, int] = defaultdict(int)
        #: how many of each alarm are active
        self.alarms: dict[str, int] = {}
        self.turn_seconds = Histogram(SECONDS)
        self.turn_packets = Histogram(TURN_PACKETS)
        self.delivered_local = Histogram(SECONDS)
        self.delivered_remote = Histogram(SECONDS)

    def samples(self, sent_qos0: int = 0, bytes_received: int = 0, bytes_sent: int = 0) -> Samples:
        """Copies of all that is counted here. The arguments were counted elsewhere, and are not in it yet."""
        sent = list(self.messages_sent)
        sent[0] += sent_qos0
        packets_sent = list(self.packets_sent)
        packets_sent[PUBLISH] += sum(sent)
        return {
            "mqtt_bytes_received_total": {"": self.bytes_received + bytes_received},
            "mqtt_bytes_sent_total": {"": self.bytes_sent + bytes_sent},
            "mqtt_sessions_resumed_total": {"": self.sessions_resumed},
            "mqtt_messages_retransmitted_total": {"": self.redelivered},
            "mqtt_packets_received_total": _by_kind(self.packets_received),
            "mqtt_packets_sent_total": _by_kind(packets_sent),
            "mqtt_messages_received_total": dict(zip(_QOS, self.messages_received, strict=True)),
            "mqtt_api_messages_total": dict(zip(_QOS, self.api_messages, strict=True)),
            "mqtt_messages_sent_total": dict(zip(_QOS, sent, strict=True)),
            "mqtt_messages_dropped_total": _numbers(self.dropped),
            "mqtt_connects_total": _numbers(self.connects),
            "mqtt_disconnects_total": _numbers(self.disconnects),
            "mqtt_connections_rejected_total": _numbers(self.rejected),
            "mqtt_hook_failures_total": _numbers(self.hooks),
            "mqtt_limits_total": _numbers(self.limits),
            "mqtt_packet_errors_total": _numbers(self.packet_errors),
            "mqtt_slow_consumers_total": _numbers(self.slow_consumers),
            "mqtt_authentication_total": _numbers(self.authentication),
            "mqtt_authentication_seconds": _packed(self.authentication_seconds),
            "mqtt_authorization_total": _numbers(self.authorization),
            "mqtt_authorization_seconds": _packed(self.authorization_seconds),
            "mqtt_alarms": _numbers(self.alarms),
            "mqtt_turn_seconds": {"": _list(self.turn_seconds)},
            "mqtt_turn_packets": {"": _list(self.turn_packets)},
            "mqtt_delivery_seconds": {"local": _list(self.delivered_local), "remote": _list(self.delivered_remote)},
        }


def _seconds() -> Histogram:
    return Histogram(SECONDS)


def _numbers(counts: Mapping[str, int]) -> dict[str, Value]:
    return dict(counts)


def _by_kind(counts: Iterable[int]) -> dict[str, Value]:
    return {name: count for name, count in zip(KIND_NAMES, counts, strict=True) if name != "RESERVED"}


def _list(histogram: Histogram) -> Value:
    return histogram.packed()


def _packed(histograms: Mapping[str, Histogram]) -> dict[str, Value]:
    return {name: histogram.packed() for name, histogram in histograms.items()}
