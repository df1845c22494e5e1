"""The counters of a node in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from broker import __version__
from broker.codec.packets import KIND_NAMES

if TYPE_CHECKING:
    from broker.http.view import NodeView


def exposition(node: NodeView) -> bytes:
    """One scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(node))
    return generate_latest(registry)


class _Collector:
    """Reads the plain counters when asked."""

    def __init__(self, node: NodeView) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        """All families."""
        metrics = self._node.metrics
        dispatch = self._node.server.dispatch
        yield InfoMetricFamily("mqtt_build", "Version of the node.", value={"version": __version__})
        yield GaugeMetricFamily("mqtt_connections", "Open connections.", value=metrics.connections)
        yield GaugeMetricFamily(
            "mqtt_subscriptions", "Subscriptions known to this node.", value=dispatch.subscription_count()
        )
        yield GaugeMetricFamily(
            "mqtt_store_available", "1 while the store answers.", value=int(self._node.cluster.health().available)
        )
        reactor = self._node.server.reactor
        yield CounterMetricFamily("mqtt_bytes_received", "Bytes read from clients.", value=reactor.received_bytes)
        yield CounterMetricFamily("mqtt_bytes_sent", "Bytes written to clients.", value=reactor.sent_bytes)
        yield _by_index("mqtt_packets_received", "Packets received.", "type", KIND_NAMES, metrics.packets_received)
        yield _by_index(
            "mqtt_packets_sent", "Packets sent, other than PUBLISH.", "type", KIND_NAMES, metrics.packets_sent
        )
        yield _by_index("mqtt_messages_received", "PUBLISH received.", "qos", "012", metrics.messages_received)
        sent = list(metrics.messages_sent)
        sent[0] += sum(connection.sent_qos0 for connection in self._node.server.connections)
        yield _by_index("mqtt_messages_sent", "PUBLISH sent.", "qos", "012", sent)
        yield CounterMetricFamily("mqtt_sessions_resumed", "Sessions taken up again.", value=metrics.sessions_resumed)
        yield CounterMetricFamily("mqtt_messages_retransmitted", "PUBLISH sent with DUP.", value=metrics.redelivered)
        yield _by_reason("mqtt_messages_dropped", "Messages a receiver did not get.", metrics.dropped)
        yield _by_reason("mqtt_connects", "CONNECT by outcome.", metrics.connects)
        yield _by_reason("mqtt_disconnects", "Ended connections.", metrics.disconnects)
        yield _by_reason("mqtt_connections_rejected", "Sockets turned away.", metrics.rejected)
        yield _by_reason("mqtt_packet_errors", "Packets that broke the rules.", metrics.packet_errors)


def _by_index(name: str, text: str, label: str, names: Iterable[str], values: Iterable[int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in zip(names, values, strict=True):
        if key != "RESERVED":
            family.add_metric([key], value)
    return family


def _by_reason(name: str, text: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["reason"])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
