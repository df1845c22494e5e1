"""Numbers and rates, of nodes and of the whole cluster: now, of late, and as they come."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio

from broker.admin.api import VIEWER
from broker.admin.operations import Nothing, events, operation
from broker.admin.questions import Answers, question
from broker.measuring.history import FIELDS, MINUTE_S, SECOND_S, averaged, summed

if TYPE_CHECKING:
    from broker.admin.office import Office

#: Rates of `stats.show` are those of so many seconds.
_RECENT_S: Final = 10

#: How long other nodes may take for a point of `stats.live`.
_LIVE_PATIENCE_S: Final = 0.8

#: About so many points of a history are told.
_POINTS: Final = 300
_STEPS_S: Final = (1, 2, 5, 15, 60, 120, 300)

_MINUTES_MAX: Final = 24 * 60


class Numbers(msgspec.Struct, kw_only=True):
    """Of a node, or of all of them together. Rates are those of a second; `latency_*` from a message coming in to its
    copy being handed to a socket. `sessions` are those of connected clients. What the store holds (`retained`,
    `persistent_sessions`, connected or not, `store_memory_bytes` and its limit, null if there is none or it is not
    known) is the same for all."""

    connections: int = 0
    sessions: int = 0
    subscriptions: int = 0
    queued: int = 0
    persistent_sessions: int | None = None
    retained: int | None = None
    messages_in_per_s: float = 0.0
    messages_out_per_s: float = 0.0
    dropped_per_s: float = 0.0
    bytes_in_per_s: float = 0.0
    bytes_out_per_s: float = 0.0
    latency_p50_ms: float = 0.0
    latency_p99_ms: float = 0.0
    store_round_trip_ms: float = 0.0
    store_memory_bytes: int | None = None
    store_memory_limit_bytes: int | None = None


class Point(msgspec.Struct, kw_only=True):
    """The cluster at a time, and each of its nodes that told."""

    at_ms: int
    cluster: Numbers
    nodes: dict[str, Numbers]


class Stats(Point, kw_only=True):
    """As of now, rates of the last ten seconds; of `cluster`, `subscriptions` are those of all sessions. `uptime_s` by
    node."""

    uptime_s: dict[str, float]
    missing_nodes: list[str] = []


class Period(msgspec.Struct, frozen=True):
    """How far to look back."""

    minutes: Annotated[int, msgspec.Meta(ge=1, le=_MINUTES_MAX, description="How far to look back.")] = 15


class Course(msgspec.Struct, kw_only=True):
    """Points of time, `step_s` apart, oldest first: averages of rates, the worst of times."""

    step_s: int
    items: list[Point]
    missing_nodes: list[str] = []


def _stored(office: Office) -> dict[str, Any]:
    """What this node knows of the store without asking it."""
    watch = office.measuring.store
    limits = [each.limit_bytes or each.host_bytes for each in watch.memory]
    return {
        "persistent_sessions": watch.sessions,
        "retained": watch.retained,
        "store_memory_bytes": sum(each.used_bytes for each in watch.memory) if watch.memory else None,
        "store_memory_limit_bytes": sum(limits) if limits and all(limits) else None,
    }


def _numbers(values: Sequence[float], stored: dict[str, Any] | None = None) -> Numbers:
    fields: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
    for name in ("connections", "sessions", "subscriptions", "queued"):
        fields[name] = int(fields[name])
    return Numbers(**fields, **(stored or {}))


@question("stats.now")
def _now(office: Office, arguments: dict[str, Any]) -> dict[str, Any]:
    """The last second, or the average of the last few."""
    history = office.measuring.history
    seconds = arguments["seconds"]
    return {
        "numbers": history.now if seconds == 1 else history.recent(seconds),
        "uptime_s": round(time.time() - office.node.started_at_s, 1),
    }


def _point(office: Office, answers: Answers) -> Point:
    by_node: dict[str, list[float]] = {node: told["numbers"] for node, told in sorted(answers.by_node.items())}
    stored = _stored(office)
    together = _numbers(summed(list(by_node.values())), stored)
    # Those of persistent sessions, which every node knows.
    together.subscriptions += office.server.dispatch.counts[True]
    return Point(
        at_ms=round(1000 * time.time()),
        cluster=together,
        nodes={node: _numbers(values) for node, values in by_node.items()},
    )


@operation("stats.show", VIEWER, "GET", "/stats", "Show numbers and rates", Nothing, Stats)
async def show_stats(office: Office, arguments: Nothing) -> Stats:
    """Of the cluster and of each node, rates of the last ten seconds."""
    answers = await office.everywhere("stats.now", {"seconds": _RECENT_S})
    point = _point(office, answers)
    return Stats(
        at_ms=point.at_ms,
        cluster=point.cluster,
        nodes=point.nodes,
        uptime_s={node: told["uptime_s"] for node, told in sorted(answers.by_node.items())},
        missing_nodes=answers.missing,
    )


@events("stats.live", VIEWER, "/stats/live", "Follow numbers and rates", Nothing, Point)
@asynccontextmanager
async def follow_stats(office: Office, arguments: Nothing) -> AsyncIterator[AsyncIterator[Point]]:
    """A point each second. A node that does not tell in time is missing from it."""
    async with aclosing(_live(office)) as points:
        yield points


async def _live(office: Office) -> AsyncGenerator[Point, None]:
    while True:
        answers = await office.everywhere("stats.now", {"seconds": 1}, patience_s=_LIVE_PATIENCE_S)
        yield _point(office, answers)
        now = time.time()
        await trio.sleep(SECOND_S - now % SECOND_S)


# -- history


@question("stats.history")
async def _history(office: Office, arguments: dict[str, Any]) -> list[list[Any]]:
    """Points `[step number, numbers]` of a node, oldest first."""
    step_s, steps = arguments["step_s"], arguments["steps"]
    history = office.measuring.history
    points = list(history.minutes if step_s >= MINUTE_S else history.seconds)
    first = round(time.time()) // step_s - steps
    found: list[list[Any]] = []
    together: list[list[float]] = []
    at = -1
    for at_ms, numbers in points:
        step = at_ms // 1000 // step_s
        if step <= first:
            continue
        if step != at and together:
            found.append([at, averaged(together)])
            together = []
        at = step
        together.append(numbers)
    if together:
        found.append([at, averaged(together)])
    return found


@operation("stats.history", VIEWER, "GET", "/stats/history", "Show the course of numbers and rates", Period, Course)
async def show_history(office: Office, arguments: Period) -> Course:
    """The last minutes, at most a day; a quarter of an hour in seconds, more than that in minutes. A node has nothing
    of before its start."""
    span_s = 60 * arguments.minutes
    finest = SECOND_S if arguments.minutes <= 15 else MINUTE_S
    step_s = next((step for step in _STEPS_S if step >= finest and span_s / step <= _POINTS), _STEPS_S[-1])
    answers = await office.everywhere("stats.history", {"step_s": step_s, "steps": span_s // step_s})
    steps: dict[int, dict[str, list[float]]] = {}
    for node, told in sorted(answers.by_node.items()):
        for step, numbers in told:
            steps.setdefault(step, {})[node] = numbers
    items = [
        Point(
            at_ms=1000 * step_s * step,
            cluster=_numbers(summed(list(by_node.values()))),
            nodes={node: _numbers(numbers) for node, numbers in by_node.items()},
        )
        for step, by_node in sorted(steps.items())
    ]
    return Course(step_s=step_s, items=items, missing_nodes=answers.missing)
