"""Slow subscribers of the whole cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from broker.admin.api import OPERATOR, VIEWER
from broker.admin.operations import Nothing, operation
from broker.admin.paging import Text
from broker.admin.questions import question

if TYPE_CHECKING:
    from broker.admin.office import Office

Count = Annotated[int, msgspec.Meta(ge=1, le=100, description="At most so many.")]


class SlowFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which; empty: all."""

    node: Annotated[Text, msgspec.Meta(description="Only clients of this node.")] = ""
    limit: Count = 100


class SlowClient(msgspec.Struct, kw_only=True):
    """A client that was slow: `reason` is `acknowledgement` (it left a message unanswered) or `output` (it did not take
    what was sent). `latency_ms` is the longest time that was seen, `last_ms` the last, `at_ms` when that was
    (milliseconds since the epoch)."""

    client_id: str
    username: str | None
    node: str
    reason: str
    latency_ms: int
    last_ms: int
    at_ms: int


class SlowClients(msgspec.Struct, kw_only=True):
    """Slowest first."""

    items: list[SlowClient]
    missing_nodes: list[str] = []


class WhichNode(msgspec.Struct, frozen=True, kw_only=True):
    """Where; empty: on all nodes."""

    node: Annotated[Text, msgspec.Meta(description="Only on this node.")] = ""


@question("slow.entries")
def _entries(office: Office, arguments: dict[str, Any]) -> Any:
    return [each.shown(office.name) for each in office.server.slow.entries()[: arguments["limit"]]]


@question("slow.clear")
def _clear(office: Office, arguments: dict[str, Any]) -> int:
    return office.server.slow.clear()


@operation("slow.list", VIEWER, "GET", "/slow-subscribers", "List slow subscribers", SlowFilter, SlowClients)
async def list_slow(office: Office, arguments: SlowFilter) -> SlowClients:
    """Clients that were slower than `slow_threshold` within `slow_expiry`, the slowest first."""
    nodes = [arguments.node] if arguments.node else None
    answers = await office.everywhere("slow.entries", {"limit": arguments.limit}, nodes)
    items = [msgspec.convert(each, SlowClient) for told in answers.by_node.values() for each in told]
    items.sort(key=lambda each: -each.latency_ms)
    return SlowClients(items=items[: arguments.limit], missing_nodes=answers.missing)


@operation("slow.clear", OPERATOR, "DELETE", "/slow-subscribers", "Empty the list", WhichNode, Nothing)
async def clear_slow(office: Office, arguments: WhichNode) -> None:
    """Those who are slow still come in again."""
    await office.everywhere("slow.clear", nodes=[arguments.node] if arguments.node else None)
