"""The counters of one or more nodes in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from broker import __version__
from broker.codec.packets import KIND_NAMES
from broker.http.report import Counters, Report, total

_PLAIN = {
    "mqtt_bytes_received": "Bytes read from clients.",
    "mqtt_bytes_sent": "Bytes written to clients.",
    "mqtt_sessions_resumed": "Sessions taken up again.",
    "mqtt_messages_retransmitted": "PUBLISH sent with DUP.",
}
_BY_INDEX: dict[str, tuple[str, str, Sequence[str]]] = {
    "mqtt_packets_received": ("Packets received.", "type", KIND_NAMES),
    "mqtt_packets_sent": ("Packets sent, other than PUBLISH.", "type", KIND_NAMES),
    "mqtt_messages_received": ("PUBLISH received.", "qos", "012"),
    "mqtt_messages_sent": ("PUBLISH sent.", "qos", "012"),
}
_BY_REASON = {
    "mqtt_messages_dropped": "Messages a receiver did not get.",
    "mqtt_connects": "CONNECT by outcome.",
    "mqtt_disconnects": "Ended connections.",
    "mqtt_connections_rejected": "Sockets turned away.",
    "mqtt_limits": "Clients that were refused or paused, and bans that were written, by limits.",
    "mqtt_packet_errors": "Packets that broke the rules.",
}
#: Counted by the values of several labels, separated by commas.
_BY_SEVERAL = {
    "mqtt_authorization": (
        "Answers of rules: each deny and error, and each allow that a connection had to ask for.",
        ["action", "result"],
    ),
    "mqtt_hook_failures": (
        "Calls of hooks that failed, took too long or were left out because too many waited.",
        ["hook", "method", "reason"],
    ),
}


def exposition(reports: Sequence[Report], ended: Counters) -> bytes:
    """One scrape: the sum over `reports`, and over nodes that `ended` before (a sum must not fall)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(reports, ended))
    return generate_latest(registry)


class _Collector:
    """Makes families of plain numbers."""

    def __init__(self, reports: Sequence[Report], ended: Counters) -> None:
        self._reports = reports
        self._ended = ended

    def collect(self) -> Iterable[Metric]:
        """All families."""
        reports = self._reports
        yield InfoMetricFamily("mqtt_build", "Version of the node.", value={"version": __version__})
        yield _gauge("mqtt_connections", "Open connections.", sum(report.connections for report in reports))
        # Each node knows those of the others' persistent sessions too: no sum.
        yield _gauge(
            "mqtt_subscriptions",
            "Subscriptions known to a node.",
            max((report.subscriptions for report in reports), default=0),
        )
        yield _gauge(
            "mqtt_store_available",
            "1 while the store answers.",
            int(all(report.available for report in reports) and bool(reports)),
        )
        yield _gauge(
            "mqtt_cluster_members",
            "Live nodes of the cluster, this one included.",
            max((len(report.members) for report in reports), default=0),
        )
        groups = _groups(reports)
        yield _gauge("mqtt_shared_groups", "Shared subscriptions with connected members here.", len(groups))
        yield _gauge(
            "mqtt_shared_group_lag",
            "Messages of all shared subscriptions that no member was given yet.",
            sum(group[0] for group in groups),
        )
        yield _gauge(
            "mqtt_shared_group_lag_max",
            "The same of the shared subscription that has most.",
            max((group[0] for group in groups), default=0),
        )
        yield _gauge(
            "mqtt_shared_group_pending",
            "Messages of all shared subscriptions that a member was given and has not acknowledged.",
            sum(group[1] for group in groups),
        )
        yield _gauge(
            "mqtt_shared_group_oldest_seconds",
            "Age of the oldest message of any shared subscription.",
            max((group[2] for group in groups), default=0) / 1000,
        )
        counters = total([self._ended, *(report.counters for report in reports)])
        for name, text in _PLAIN.items():
            yield CounterMetricFamily(name, text, value=counters.get(name, 0))  # type: ignore[arg-type]
        for name, (text, label, names) in _BY_INDEX.items():
            yield _labelled(name, text, label, zip(names, counters.get(name, ()), strict=False))  # type: ignore[arg-type]
        for name, text in _BY_REASON.items():
            yield _labelled(name, text, "reason", dict(counters.get(name, {})).items())  # type: ignore[arg-type]
        for name, (text, labels) in _BY_SEVERAL.items():
            family = CounterMetricFamily(name, text, labels=labels)
            for key, value in dict(counters.get(name, {})).items():  # type: ignore[arg-type]
                family.add_metric(key.rsplit(",", len(labels) - 1), value)
            yield family


def _groups(reports: Sequence[Report]) -> list[list[int]]:
    """Each group once: nodes that share it tell the same of it, give or take a moment."""
    found: dict[str, list[int]] = {}
    for report in reports:
        for name, state in report.groups.items():
            found[name] = [max(pair) for pair in zip(found.get(name, [0, 0, 0]), state, strict=True)]
    return list(found.values())


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, label: str, values: Iterable[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values:
        if key != "RESERVED":
            family.add_metric([key], value)
    return family
