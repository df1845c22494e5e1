"""What the HTTP surface sees of a node."""

from __future__ import annotations

from typing import Protocol

from broker.metrics import Metrics
from broker.server import Server
from cluster.api import Cluster


class NodeView(Protocol):
    """A node that answers for itself."""

    metrics: Metrics
    cluster: Cluster
    server: Server
    ready: bool

    @property
    def name(self) -> str:
        """The name of the node in its cluster."""
