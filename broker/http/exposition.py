"""The metrics of one or more nodes in the text formats of Prometheus and OpenMetrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics

from broker.http.report import Report
from broker.metrics_catalogue import CATALOGUE, COUNTER, HISTOGRAM, NODE_STATES, Family, Samples, Value, summed

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def exposition(reports: Sequence[Report], ended: Samples, accept: str = "") -> tuple[bytes, str]:
    """One scrape, and its content type: the sum over `reports`, and over nodes that `ended` before (a sum must not
    fall). `accept` is the header of the request: who knows OpenMetrics gets that."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(gathered(reports, ended)))
    if knows_openmetrics(accept):
        return openmetrics.generate_latest(registry), openmetrics.CONTENT_TYPE_LATEST  # type: ignore[no-untyped-call]
    return generate_latest(registry), _TEXT


def knows_openmetrics(accept: str) -> bool:
    """Whether a request with this Accept header gets OpenMetrics."""
    # The library's own choice also looks at versions, and fails where one is no number.
    return "application/openmetrics-text" in accept.lower()


def gathered(reports: Sequence[Report], ended: Samples) -> Samples:
    """All values of these nodes together."""
    samples = summed([ended, *(report.samples for report in reports)])
    samples["mqtt_node_state"] = {state: sum(report.state == state for report in reports) for state in NODE_STATES}
    # One that is being started again cannot know.
    joined = [report for report in reports if report.member]
    samples["mqtt_store_available"] = {"": int(bool(joined) and all(report.available for report in joined))}
    samples["mqtt_cluster_members"] = {"": max((len(report.members) for report in reports), default=0)}
    return samples


class _Collector:
    """Makes families of plain numbers."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def collect(self) -> Iterable[Metric]:
        """All families that have values, and counters without labels in any case: they begin with 0."""
        for family in CATALOGUE:
            values = self._samples.get(family.name)
            if not values and not (family.grows and not family.labels):
                continue
            yield _metric(family, values or {"": _nothing(family)})


def _nothing(family: Family) -> Value:
    return [0.0] * (len(family.bounds) + 2) if family.kind == HISTOGRAM else 0.0


def _metric(family: Family, values: dict[str, Value]) -> Metric:
    made: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
    if family.kind == HISTOGRAM:
        made = HistogramMetricFamily(family.name, family.text, labels=family.labels)
    elif family.kind == COUNTER:
        made = CounterMetricFamily(family.name.removesuffix("_total"), family.text, labels=family.labels)
    else:
        made = GaugeMetricFamily(family.name, family.text, labels=family.labels)
    for key, value in values.items():
        labels = key.rsplit(",", len(family.labels) - 1) if family.labels else ()
        if isinstance(made, HistogramMetricFamily):
            assert isinstance(value, list)
            bounds = [*(str(bound) for bound in family.bounds), "+Inf"]
            counts = accumulate(value[:-1])
            made.add_metric(labels, list(zip(bounds, counts, strict=True)), value[-1])
        else:
            assert not isinstance(value, list)
            made.add_metric(labels, value)
    return made
