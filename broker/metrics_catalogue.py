"""Every metric that a node tells: name, kind, labels, text, and how the values of several workers become one.

The exposition, the sums of the parent of workers and docs/metrics.md are made of these declarations. Labels have few
values: never a client id, a user name, a topic or an address of a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker.histogram import SECONDS, SIZES

#: Bounds of `mqtt_turn_packets`: many turns only write, or talk to the store.
TURN_PACKETS: Final = (0.0, *SIZES)

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"

#: How the values of several workers of a machine become one.
SUM: Final = "sum"
MAX: Final = "max"
MIN: Final = "min"

#: A number, or a packed histogram.
Value = float | list[float]

#: Family -> values of its labels, separated by commas ("" without labels) -> value. Passes as JSON.
Samples = dict[str, dict[str, Value]]

NODE_STATES: Final = (
    "ready", "starting", "joining", "unreachable", "fenced", "draining", "overloaded", "restarting", "silent",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """One name, as it is exposed: counters end with `_total`. `cluster`: every node tells the same: use `max()`."""

    group: str
    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()
    over: str = SUM
    bounds: tuple[float, ...] = ()

    @property
    def cluster(self) -> bool:
        """It is about the whole cluster: the same at every node, give or take a moment."""
        return self.name.startswith("mqtt_cluster_")

    @property
    def grows(self) -> bool:
        """It never falls while a process lives."""
        return self.kind != GAUGE


def _group(group: str, *families: Family) -> tuple[Family, ...]:
    return tuple(Family(group, *_fields(family)) for family in families)


def _fields(family: Family) -> tuple[str, str, str, tuple[str, ...], str, tuple[float, ...]]:
    return family.name, family.kind, family.text, family.labels, family.over, family.bounds


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family("", name, COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str, over: str = SUM) -> Family:
    return Family("", name, GAUGE, text, labels, over)


def _histogram(name: str, text: str, *labels: str, bounds: tuple[float, ...] = SECONDS) -> Family:
    return Family("", name, HISTOGRAM, text, labels, SUM, bounds)


CATALOGUE: Final[Sequence[Family]] = (
    *_group(
        "Node",
        _gauge("mqtt_build_info", "Always 1; what runs.", "version", "python", "node", over=MAX),
        _gauge("mqtt_node_state", "1 for the state that the node is in (with workers: how many are).", "state"),
        _gauge("mqtt_start_time_seconds", "When the node started (of workers: the last), since the epoch.", over=MAX),
        _gauge("mqtt_drain_remaining_connections", "Connections that a drain has not disconnected yet; else 0."),
        _gauge("mqtt_event_loop_lag_seconds", "How late the event loop was at most, in the last 15 seconds.", over=MAX),
        _gauge("mqtt_output_pending_bytes", "Bytes that wait because receivers do not take them."),
        _gauge("mqtt_alarms", "Active alarms.", "name"),
        _gauge(
            "mqtt_tls_certificate_expiry_timestamp_seconds",
            "When the certificate of a listener ends, since the epoch; `name` is that of SNI, or empty.",
            "listener",
            "name",
            over=MIN,
        ),
    ),
    *_group(
        "Connections",
        _gauge(
            "mqtt_connections",
            "Open connections; the protocol version is `none` before CONNECT.",
            "listener",
            "protocol_version",
        ),
        _gauge("mqtt_connections_limit", "`max_connections`; 0: none."),
        _counter("mqtt_connects_total", "CONNECT by the reason code of CONNACK.", "result"),
        _counter("mqtt_disconnects_total", "Ended connections.", "reason"),
        _counter("mqtt_connections_rejected_total", "Sockets turned away before CONNECT.", "reason"),
        _counter("mqtt_limits_total", "Clients that limits refused or paused, and bans that they wrote.", "reason"),
        _counter("mqtt_slow_consumers_total", "What was done to clients that do not take their output.", "action"),
        _gauge("mqtt_sessions", "Sessions that are connected to the node.", "kind"),
        _gauge("mqtt_cluster_sessions", "Persistent sessions, connected or not.", over=MAX),
        _counter("mqtt_sessions_resumed_total", "Sessions taken up again by their clients."),
    ),
    *_group(
        "Packets",
        _counter("mqtt_packets_received_total", "Packets by type.", "type"),
        _counter("mqtt_packets_sent_total", "Packets by type.", "type"),
        _counter("mqtt_packet_errors_total", "Packets that broke the rules, by reason code.", "reason"),
        _counter("mqtt_bytes_received_total", "Bytes read from clients, of MQTT and what it is wrapped in."),
        _counter("mqtt_bytes_sent_total", "Bytes written to clients, of MQTT and what it is wrapped in."),
    ),
    *_group(
        "Messages",
        _counter("mqtt_messages_received_total", "PUBLISH from clients.", "qos"),
        _counter("mqtt_api_messages_total", "Messages that were published over the API.", "qos"),
        _counter("mqtt_messages_sent_total", "PUBLISH to clients.", "qos"),
        _counter("mqtt_messages_retransmitted_total", "PUBLISH sent with DUP."),
        _counter("mqtt_messages_dropped_total", "Messages that a receiver did not get.", "reason"),
        _counter(
            "mqtt_topic_messages_total",
            "Messages of the topic filters that operators chose (at most 50), by what became of them here: received,"
            " sent (copies) or dropped.",
            "filter",
            "direction",
        ),
        _gauge("mqtt_inflight_messages", "Messages sent to connected clients that they have not acknowledged."),
        _gauge(
            "mqtt_queued_messages",
            "Messages that wait for the window of connected clients, in memory or in the store.",
        ),
        _histogram(
            "mqtt_delivery_seconds",
            "From a message coming in to its copy being handed to the socket of a receiver on this node. `local`: from"
            " a publisher of this node; `remote` (QoS 1 and 2): of another one. Sampled: at most 100 a second each.",
            "scope",
        ),
    ),
    *_group(
        "Subscriptions",
        _gauge("mqtt_subscriptions", "Subscriptions of sessions that end with their connections to this node."),
        _gauge("mqtt_cluster_subscriptions", "Subscriptions of persistent sessions, connected or not.", over=MAX),
        _gauge(
            "mqtt_remote_routes",
            "Filters that other nodes have ephemeral sessions, or connected members of shared subscriptions, for. Each"
            " node knows those of the others: no two tell the same.",
            over=MAX,
        ),
        _gauge("mqtt_routes_cached", "Topic names of which the receivers are remembered."),
        _gauge("mqtt_cluster_retained_messages", "Retained messages.", over=MAX),
        _gauge("mqtt_cluster_shared_groups", "Shared subscriptions, with connected members or without.", over=MAX),
        _gauge(
            "mqtt_cluster_shared_group_lag",
            "Messages of all shared subscriptions that no member was given yet.",
            over=MAX,
        ),
        _gauge("mqtt_cluster_shared_group_lag_max", "The same of the one that has most.", over=MAX),
        _gauge(
            "mqtt_cluster_shared_group_pending",
            "Messages of all shared subscriptions that a member was given and has not acknowledged.",
            over=MAX,
        ),
        _gauge(
            "mqtt_cluster_shared_group_oldest_seconds",
            "Age of the oldest message of any shared subscription, acknowledged by nobody; 0: there is none.",
            over=MAX,
        ),
    ),
    *_group(
        "Access",
        _counter(
            "mqtt_authentication_total",
            "Answers of authenticators: allow, deny, ignore (not known there), error, and those that were remembered.",
            "backend",
            "result",
        ),
        _histogram("mqtt_authentication_seconds", "Time until an authenticator answered.", "backend"),
        _counter(
            "mqtt_authorization_total",
            "Answers of rules: each deny and error, and each allow that a connection had to ask for.",
            "action",
            "result",
        ),
        _histogram("mqtt_authorization_seconds", "Time until a rule source that has to be asked answered.", "backend"),
        _counter(
            "mqtt_hook_failures_total",
            "Calls of hooks that failed, took too long or were left out because too many waited.",
            "hook",
            "method",
            "reason",
        ),
    ),
    *_group(
        "Reactor",
        _histogram("mqtt_turn_seconds", "Duration of a turn: sockets are read, packets handled, output is written."),
        _histogram("mqtt_turn_packets", "Packets that were handled in a turn.", bounds=TURN_PACKETS),
    ),
    *_group(
        "Cluster and store",
        _gauge("mqtt_cluster_members", "Live nodes of the cluster, this one included.", over=MAX),
        _gauge("mqtt_store_available", "1 while the store answers.", over=MIN),
        _gauge("mqtt_store_durability_info", "Always 1; the durability class that is in force.", "class", over=MAX),
        _gauge("mqtt_store_lease_age_seconds", "Since the node's lease was renewed.", over=MAX),
        _gauge("mqtt_store_unanswered_commands", "Commands that the store has not answered yet."),
        _gauge("mqtt_store_pending_bytes", "Bytes of commands that wait for room in the socket or a connection."),
        _counter("mqtt_store_commands_total", "Commands sent to the store."),
        _counter("mqtt_store_errors_total", "Errors that the store answered with.", "kind"),
        _counter("mqtt_store_reconnects_total", "Connections to the store that were made anew."),
        _counter("mqtt_store_failovers_total", "Changes of the primary that the node followed."),
        _histogram("mqtt_store_round_trip_seconds", "From a batch being sent to the answer to its last command."),
        _histogram("mqtt_store_batch_commands", "Commands that were sent together.", bounds=SIZES),
        _gauge("mqtt_cluster_store_memory_bytes", "Memory that a primary of the store uses.", "server", over=MAX),
        _gauge(
            "mqtt_cluster_store_memory_limit_bytes",
            "What it may use: `maxmemory`, or else the memory of its machine.",
            "server",
            over=MAX,
        ),
        _gauge("mqtt_cluster_store_keys", "Keys of a primary of the store.", "server", over=MAX),
    ),
    *_group(
        "Process",
        _counter("process_cpu_seconds_total", "CPU time, of user and system."),
        _gauge("process_virtual_memory_bytes", "Virtual memory."),
        _gauge("process_resident_memory_bytes", "Resident memory."),
        _gauge("process_start_time_seconds", "When the process (of workers: the last) started.", over=MAX),
        _gauge("process_open_fds", "Open file descriptors."),
        _gauge("process_max_fds", "Most file descriptors that may be open."),
        _counter("python_gc_collections_total", "Runs of the garbage collector.", "generation"),
        _counter("python_gc_objects_collected_total", "Objects that it freed.", "generation"),
        _gauge("python_info", "Always 1; the interpreter.", "implementation", "version", over=MAX),
    ),
)

FAMILIES: Final[Mapping[str, Family]] = {family.name: family for family in CATALOGUE}


def summed(all_samples: Iterable[Samples]) -> Samples:
    """What several workers tell, as if it were one node. Families that nobody declared are left out."""
    sums: Samples = {}
    for samples in all_samples:
        for name, values in samples.items():
            family = FAMILIES.get(name)
            if family is None:
                continue
            known = sums.setdefault(name, {})
            for key, value in values.items():
                known[key] = _joined(family.over, known[key], value) if key in known else value
    return sums


def growing(samples: Samples) -> Samples:
    """Only what must not fall when the process that told it has ended."""
    return {name: values for name, values in samples.items() if name in FAMILIES and FAMILIES[name].grows}


def _joined(over: str, one: Value, other: Value) -> Value:
    if isinstance(one, list) or isinstance(other, list):
        assert isinstance(one, list) and isinstance(other, list)
        return [left + right for left, right in zip(one, other, strict=True)]
    if over == SUM:
        return one + other
    return max(one, other) if over == MAX else min(one, other)
