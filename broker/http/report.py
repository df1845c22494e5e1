"""What a node says of itself: plain values, which pass between processes as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.metrics_catalogue import Samples

READY = "ready"
STARTING = "starting"
JOINING = "joining the cluster"
UNREACHABLE = "the store cannot be reached"
FENCED = "fenced: joining the cluster again"
DRAINING = "draining"
#: Of a worker that is started anew: it does not listen yet, and the others get its clients.
RESTARTING = "restarting"
#: Of a worker that did not answer its parent in time.
SILENT = "does not answer"
#: Followed by what there is too much of.
OVERLOADED = "overloaded: "

#: Status -> its name in `mqtt_node_state`.
_STATES = {
    READY: "ready",
    STARTING: "starting",
    JOINING: "joining",
    UNREACHABLE: "unreachable",
    FENCED: "fenced",
    DRAINING: "draining",
    RESTARTING: "restarting",
    SILENT: "silent",
}


@dataclass(slots=True)
class Report:
    """One node. `status` is READY or why it is not, `member` is `<name>:<incarnation>` ("" before it has joined),
    `samples` has the values of the families in `broker.metrics_catalogue`."""

    node: str
    status: str
    member: str = ""
    pid: int = 0
    members: Sequence[str] = ()
    store: str = ""
    store_version: str = ""
    durability: str = ""
    available: bool = False
    #: An operator drained it, and it goes on running: the others get its clients.
    resting: bool = False
    round_trip_ms: float = 0.0
    connections: int = 0
    samples: Samples = field(default_factory=dict)

    @property
    def state(self) -> str:
        """The status as one of a few words: see `broker.metrics_catalogue.NODE_STATES`."""
        return "overloaded" if self.status.startswith(OVERLOADED) else _STATES[self.status]

    def shown(self) -> dict[str, Any]:
        """For people and scripts that look after the node."""
        return {
            "status": self.status,
            "node": self.node,
            "member": self.member,
            "members": list(self.members),
            "pid": self.pid,
            "store": self.store,
            "store_version": self.store_version,
            "durability": self.durability,
            "store_round_trip_ms": round(self.round_trip_ms, 3),
            "connections": self.connections,
        }

    def packed(self) -> dict[str, Any]:
        """For JSON; `Report(**packed)` is the report again."""
        return dataclasses.asdict(self)


class Source(Protocol):
    """Who answers over HTTP: a node, or the parent of several."""

    @property
    def name(self) -> str:
        """The node's name, or the one that its workers' names begin with."""

    async def reports(self) -> list[Report]:
        """Of the nodes of this process, or of those that it started: one each, in the same order each time."""

    async def statuses(self) -> list[Report]:
        """The same without what is counted, at next to no cost: strangers may ask for it."""

    def ended(self) -> Samples:
        """What nodes counted that are not among the reports any more."""


def ready(reports: Iterable[Report]) -> str:
    """READY, or why not all are of those that clients may come to. Others count only where there are no such ones."""
    every = list(reports)
    present = [each for each in every if not each.resting and each.status != RESTARTING] or every
    return next((each.status for each in present if each.status != READY), READY)
