"""What a node says of itself: plain values, which pass between processes as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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

#: Family -> number, numbers by packet type or QoS, or numbers by reason.
Counters = dict[str, int | list[int] | dict[str, int]]


@dataclass(slots=True)
class Report:
    """One node. `status` is READY or why it is not, `member` is `<name>:<incarnation>` ("" before it has joined),
    `groups` has lag, pending and age in ms of the oldest message by id of the shared subscription."""

    node: str
    status: str
    member: str = ""
    pid: int = 0
    members: Sequence[str] = ()
    store: str = ""
    store_version: str = ""
    durability: str = ""
    available: bool = False
    round_trip_ms: float = 0.0
    connections: int = 0
    subscriptions: int = 0
    groups: dict[str, list[int]] = field(default_factory=dict)
    counters: Counters = field(default_factory=dict)

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

    def ended(self) -> Counters:
        """What nodes counted that are not among the reports any more."""


def ready(reports: Iterable[Report]) -> str:
    """READY, or why not all are of those that clients may come to."""
    statuses = [report.status for report in reports]
    present = [status for status in statuses if status != RESTARTING] or statuses
    return next((status for status in present if status != READY), READY)


def total(all_counters: Iterable[Counters]) -> Counters:
    """The sums by family, index and reason."""
    sums: Counters = {}
    for counters in all_counters:
        for family, value in counters.items():
            sums[family] = _plus(sums[family], value) if family in sums else value
    return sums


def _plus(one: int | list[int] | dict[str, int], other: int | list[int] | dict[str, int]) -> Any:
    if isinstance(one, list) and isinstance(other, list):
        return [left + right for left, right in zip(one, other, strict=True)]
    if isinstance(one, dict) and isinstance(other, dict):
        return {reason: one.get(reason, 0) + other.get(reason, 0) for reason in {**one, **other}}
    assert isinstance(one, int) and isinstance(other, int)
    return one + other
