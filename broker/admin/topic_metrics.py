"""Messages of a few chosen topic filters, counted on all nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from broker.admin.api import BAD_REQUEST, CONFLICT, NOT_FOUND, OPERATOR, VIEWER, AdminError
from broker.admin.operations import Nothing, operation
from broker.admin.paging import Text
from broker.admin.questions import question
from broker.errors import PeerError
from broker.extensions.topic_counts import FILTERS_MAX
from broker.topics.names import check_topic_filter, is_shared
from cluster.registry import TOPICS

if TYPE_CHECKING:
    from broker.admin.office import Office

#: Of a filter that is counted; the rest is for people.
_BYTES_MAX = 1024


class ByQos(msgspec.Struct):
    """Messages by QoS."""

    qos0: int = 0
    qos1: int = 0
    qos2: int = 0

    def add(self, counts: list[int]) -> None:
        """Those of another node."""
        self.qos0, self.qos1, self.qos2 = self.qos0 + counts[0], self.qos1 + counts[1], self.qos2 + counts[2]


class TopicMetric(msgspec.Struct, kw_only=True):
    """Of messages whose topic the filter matches, since it is counted: `received` from publishers, `sent` copies to
    subscribers, `dropped` ones that a subscriber did not get; rates are those of the last seconds. Nodes count from
    their start. `created_at_ms` is in milliseconds since the epoch."""

    topic_filter: str
    created_at_ms: int
    received: ByQos
    sent: ByQos
    dropped: int = 0
    received_per_s: float = 0.0
    sent_per_s: float = 0.0
    dropped_per_s: float = 0.0


class TopicMetrics(msgspec.Struct, kw_only=True):
    """By filter."""

    items: list[TopicMetric]
    missing_nodes: list[str] = []


class TopicFilter(msgspec.Struct, frozen=True):
    """Which filter."""

    topic_filter: Annotated[Text, msgspec.Meta(description="A topic filter, such as `sensors/+/temperature`.")]


@question("topic_metrics.counts")
def _counts(office: Office, arguments: dict[str, Any]) -> Any:
    return [counted.shown(name) for name, counted in office.server.topic_counts.items().items()]


@question("topic_metrics.refresh")
async def _refresh(office: Office, arguments: dict[str, Any]) -> None:
    await office.server.topic_counts.refresh()


@operation("topic_metrics.list", VIEWER, "GET", "/topic-metrics", "List counted topic filters", Nothing, TopicMetrics)
async def list_metrics(office: Office, arguments: Nothing) -> TopicMetrics:
    """The sums of all nodes."""
    answers = await office.everywhere("topic_metrics.counts")
    found: dict[str, TopicMetric] = {}
    for told in answers.by_node.values():
        for each in told:
            name = cast(str, each["topic_filter"])
            item = found.setdefault(
                name,
                TopicMetric(topic_filter=name, created_at_ms=each["created_at_ms"], received=ByQos(), sent=ByQos()),
            )
            item.received.add(each["received"])
            item.sent.add(each["sent"])
            item.dropped += each["dropped"]
            received, sent, dropped = each["rates"]
            item.received_per_s += received
            item.sent_per_s += sent
            item.dropped_per_s += dropped
    return TopicMetrics(items=[found[name] for name in sorted(found)], missing_nodes=answers.missing)


@operation("topic_metrics.add", OPERATOR, "POST", "/topic-metrics", "Count a topic filter", TopicFilter, Nothing)
async def add_metric(office: Office, arguments: TopicFilter) -> None:
    """Counts messages of the topics that the filter matches, on all nodes, until it is removed. At most 50 filters:
    more is a conflict. Each is a label of the metric `mqtt_topic_messages_total`."""
    name = arguments.topic_filter
    try:
        check_topic_filter(name)
        encoded = name.encode()
    except (PeerError, UnicodeError):
        raise AdminError(BAD_REQUEST, "invalid arguments", f"{name!r:.80} is no topic filter") from None
    if is_shared(name) or len(encoded) > _BYTES_MAX:
        raise AdminError(BAD_REQUEST, "invalid arguments", f"no shared filter, and at most {_BYTES_MAX} bytes")
    known = await office.registry.documents(TOPICS)
    if name in known:
        return
    if len(known) >= FILTERS_MAX:
        raise AdminError(CONFLICT, "too many filters", f"{FILTERS_MAX} topic filters are counted already")
    await office.registry.create(TOPICS, name, msgspec.json.encode({"created_at_ms": office.cluster.now_ms()}))
    await office.everywhere("topic_metrics.refresh")


@operation(
    "topic_metrics.remove", OPERATOR, "DELETE", "/topic-metrics/{topic_filter:path}", "Count it no more", TopicFilter,
    Nothing,
)  # fmt: skip
async def remove_metric(office: Office, arguments: TopicFilter) -> None:
    """Its counts are gone."""
    name = arguments.topic_filter
    try:
        document = await office.registry.document(TOPICS, name)
    except UnicodeError:
        document = None
    if document is None:
        raise AdminError(NOT_FOUND, "no such filter", f"{name!r:.80} is not counted")
    await office.registry.change(TOPICS, {name: None})
    await office.everywhere("topic_metrics.refresh")
