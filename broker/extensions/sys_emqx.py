"""`$SYS/brokers/<node>/...`: the values of a node under the names that EMQX gives them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from broker import __version__
from broker.codec.packets import KIND_NAMES

if TYPE_CHECKING:
    from broker.extensions.sys import Counts

#: Packets that only one side sends.
_ONLY_RECEIVED: Final = frozenset({"connect", "subscribe", "unsubscribe", "pingreq"})
_ONLY_SENT: Final = frozenset({"connack", "suback", "unsuback", "pingresp"})


def values(counts: Counts) -> Iterator[tuple[str, str]]:
    """Topics below `$SYS/brokers/<node>/`, and values."""
    yield "version", __version__
    yield "sysdescr", "Rookery MQTT Broker"
    yield "uptime", str(int(counts.uptime_s * 1000))
    yield "datetime", datetime.fromtimestamp(counts.now_ms / 1000, UTC).isoformat(timespec="milliseconds")
    for name, value in (
        ("connections", "connections"),
        ("live_connections", "connections"),
        ("sessions", "clients"),
        ("subscribers", "subscribers"),
        ("subscriptions", "subscriptions"),
        ("suboptions", "subscriptions"),
        ("subscriptions/shared", "shared"),
        ("topics", "routes"),
        ("retained", "retained"),
    ):
        yield f"stats/{name}/count", str(getattr(counts, value))
        yield f"stats/{name}/max", str(counts.most[value])
    yield "metrics/bytes/received", str(counts.bytes_received)
    yield "metrics/bytes/sent", str(counts.bytes_sent)
    yield "metrics/packets/received", str(counts.packets_received)
    yield "metrics/packets/sent", str(counts.packets_sent)
    for kind, name in enumerate(KIND_NAMES):
        name = name.lower()
        if name == "reserved":
            continue
        if name not in _ONLY_SENT:
            yield f"metrics/packets/{name}/received", str(counts.received_by_kind[kind])
        if name not in _ONLY_RECEIVED:
            yield f"metrics/packets/{name}/sent", str(counts.sent_by_kind[kind])
    yield "metrics/messages/received", str(counts.messages_received)
    yield "metrics/messages/sent", str(counts.messages_sent)
    yield "metrics/messages/dropped", str(counts.dropped)
    yield "metrics/messages/retained", str(counts.retained)
    for qos in range(3):
        yield f"metrics/messages/qos{qos}/received", str(counts.received_by_qos[qos])
        yield f"metrics/messages/qos{qos}/sent", str(counts.sent_by_qos[qos])
    yield "metrics/client/connected", str(counts.connects)
    yield "metrics/client/disconnected", str(counts.disconnects)
    yield "metrics/session/resumed", str(counts.resumed)
