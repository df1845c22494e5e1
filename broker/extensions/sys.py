"""`$SYS/brokers/<node>/...`: what a node says of itself by MQTT, to whoever subscribes to it there.

These are no messages of the store: a subscriber gets them from the node it is connected to, once for each SUBSCRIBE
with a matching filter, at QoS 0 and as retained.
"""

from __future__ import annotations

from collections.abc import Iterator

from broker.message import Message
from broker.topics.names import matches
from cluster.api import Cluster

PREFIX = "$SYS/"


class SystemTopics:
    """Those of one node; `node_name` "" has none."""

    def __init__(self, cluster: Cluster, node_name: str) -> None:
        self._cluster = cluster
        self._node_name = node_name

    def matching(self, topic_filter: str) -> Iterator[Message]:
        """The messages that match."""
        if not self._node_name or not topic_filter.startswith(PREFIX):  # [MQTT-4.7.2-1]
            return
        facts = {f"{PREFIX}brokers/{self._node_name}/durability": self._cluster.health().durability}
        for topic, value in facts.items():
            if matches(topic_filter, topic):
                yield Message(topic.encode(), value.encode(), 0, True)
