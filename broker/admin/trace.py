"""Traces of the whole cluster: started and stopped on all nodes, their lines read and followed from any of them.

Every node keeps its own lines. Nodes that join while a trace runs are told of it by those that have it, so a trace
goes on when the node where it was started dies; each node ends it by itself.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio

from broker.admin.api import BAD_REQUEST, CONFLICT, NOT_FOUND, OPERATOR, UNAVAILABLE, AdminError
from broker.admin.inside import PRIVATE, Watching
from broker.admin.operations import Nothing, events, operation
from broker.admin.paging import Cursor, Limit
from broker.admin.questions import Answers, question
from broker.errors import ClusterError, PeerError
from broker.log import get_logger
from broker.message import Message
from broker.peer import network_of
from broker.topics.names import check_topic_filter, is_shared
from broker.tracing.record import Line, Spec
from broker.tracing.traces import RUNNING_MAX, TOPIC, TooMany

if TYPE_CHECKING:
    from broker.admin.office import Office

#: How often nodes that run traces look for new nodes.
SPREAD_S: Final = 2.0

#: Who follows hears of the end this much later than it should be at most, or when a node is gone.
_GRACE_MS: Final = 2000
_LOOK_S: Final = 5.0

_log = get_logger("trace")


TraceId = Annotated[str, msgspec.Meta(max_length=64, description="The id that the trace got.")]


class Start(msgspec.Struct, kw_only=True, frozen=True):
    """What to follow: one of `client_id`, `topic_filter` and `ip` (an address or a network such as 10.0.0.0/8), for
    `duration_s` seconds. With `payload` lines have the first 256 bytes of payloads."""

    client_id: Annotated[str, msgspec.Meta(max_length=65535, description="Follow the client with this id.")] = ""
    topic_filter: Annotated[
        str, msgspec.Meta(max_length=65535, description="Follow the messages of topics that match this filter.")
    ] = ""
    ip: Annotated[
        str, msgspec.Meta(max_length=64, description="Follow the clients of this address, or network (10.0.0.0/8).")
    ] = ""
    duration_s: Annotated[int, msgspec.Meta(ge=1, le=3600, description="For so long; it ends by itself.")] = 60
    payload: Annotated[bool, msgspec.Meta(description="Keep the first 256 bytes of payloads.")] = False


class Trace(msgspec.Struct, kw_only=True):
    """A trace and what became of it. Times are milliseconds since the epoch; `lines` so far, `left_out` of those that
    came too fast (more than 1000 in a second of one node), `nodes` that have it."""

    id: str
    client_id: str
    topic_filter: str
    ip: str
    payload: bool
    started_at_ms: int
    ends_at_ms: int
    running: bool = False
    lines: int = 0
    left_out: int = 0
    nodes: list[str] = []
    missing_nodes: list[str] = []


class Traces(msgspec.Struct, kw_only=True):
    """Those that run, and those that ended less than ten minutes ago, by their beginning."""

    items: list[Trace]
    missing_nodes: list[str] = []


class NamedTrace(msgspec.Struct, frozen=True):
    """Which trace."""

    id: TraceId


class ReadLines(msgspec.Struct, kw_only=True, frozen=True):
    """Which lines: up to `limit` behind `cursor`."""

    id: TraceId
    cursor: Cursor = ""
    limit: Limit = 100


class Lines(msgspec.Struct, kw_only=True):
    """Lines of all nodes by time. `cursor` is where the next ones are, null when there are none now; `next` is where to
    go on later while the trace is `running`."""

    items: list[Line]
    cursor: str | None = None
    next: str = ""
    running: bool = False
    missing_nodes: list[str] = []


class _Told(msgspec.Struct):
    """What a node tells those who follow."""

    node: str
    more: bool
    lines: list[Line]


# -- what every node answers


@question("trace.begin")
def _begin(office: Office, arguments: dict[str, Any]) -> None:
    spec = msgspec.convert(arguments["spec"], Spec)
    traces = office.server.traces
    try:
        traces.begin(spec)
    except TooMany as error:
        raise AdminError(CONFLICT, "too many traces", str(error)) from None
    traces.tell = partial(_publish, office)
    spreading = bool(traces.members)
    traces.members.setdefault(spec.id, set(arguments["members"]))
    if not spreading:
        office.server.start(partial(_spread, office))


@question("trace.end")
def _end(office: Office, arguments: dict[str, Any]) -> bool:
    return office.server.traces.end(arguments["id"]) is not None


@question("trace.list")
def _list(office: Office, arguments: dict[str, Any]) -> list[Any]:
    office.server.traces.forget()
    return [
        {
            "spec": msgspec.to_builtins(trace.spec),
            "running": not trace.ended_at_ms,
            "lines": trace.seq,
            "left_out": trace.left_out,
        }
        for trace in office.server.traces.known.values()
    ]


@question("trace.lines")
def _read(office: Office, arguments: dict[str, Any]) -> Any:
    trace = office.server.traces.known.get(arguments["id"])
    if trace is None:
        return None
    found = trace.after(int(arguments["after"].get(office.name, 0)), int(arguments["limit"]))
    lines: list[bytes] = []
    left = int(arguments["most_bytes"])
    for line in found:
        left -= len(line)
        if left < 0 and lines:
            break
        lines.append(line)
    return {
        "lines": msgspec.json.decode(b"[" + b",".join(lines) + b"]"),
        "running": not trace.ended_at_ms,
        "more": len(lines) < len(found) or len(found) == arguments["limit"],
    }


# -- between nodes


async def _spread(office: Office) -> None:
    """Tell nodes that join of the traces that run here."""
    traces = office.server.traces
    while True:
        await trio.sleep(SPREAD_S)
        running = {trace.spec.id: trace.spec for trace in traces.running}
        for trace_id in traces.members.keys() - running.keys():
            del traces.members[trace_id]
        if not running:
            return
        members = set(office.cluster.health().members)
        for trace_id, spec in running.items():
            told = traces.members.setdefault(trace_id, set())
            if new := members - told:
                try:
                    nodes = [member.rpartition(":")[0] for member in new]
                    answers = await office.everywhere("trace.begin", _beginning(spec, members), nodes)
                except ClusterError:
                    continue
                told.update(member for member in new if member.rpartition(":")[0] not in answers.missing)


def _beginning(spec: Spec, members: set[str]) -> dict[str, Any]:
    return {"spec": msgspec.to_builtins(spec), "members": sorted(members)}


def _publish(office: Office, trace_id: str, lines: Sequence[bytes], more: bool) -> None:
    """Tell those who follow, on whatever node; nothing is made where nobody does."""
    dispatch = office.server.dispatch
    route = dispatch.route((TOPIC + trace_id).encode())
    if not (route.entries or route.nodes):
        return
    payload = b'{"node":%b,"more":%b,"lines":[%b]}' % (
        msgspec.json.encode(office.name),
        b"true" if more else b"false",
        b",".join(lines),
    )
    dispatch.publish(Message(route.topic, payload, 0, False), route, None)
    office.server.reactor.wake()


# -- what operators ask


@operation("trace.start", OPERATOR, "POST", "/traces", "Start a trace", Start, Trace, status=201)
async def start_trace(office: Office, arguments: Start) -> Trace:
    """Follow a client, the messages of a topic filter, or the clients of an address: every packet and what was decided
    about it, on all nodes. At most ten traces run at a time."""
    _check(arguments)
    answers = await office.everywhere("trace.list")
    if len([trace for trace in _combined(answers) if trace.running]) >= RUNNING_MAX:
        raise AdminError(CONFLICT, "too many traces", f"{RUNNING_MAX} traces run already: stop one of them")
    now_ms = office.cluster.now_ms()
    spec = Spec(
        id=os.urandom(6).hex(),
        client_id=arguments.client_id,
        topic_filter=arguments.topic_filter,
        ip=arguments.ip,
        payload=arguments.payload,
        started_at_ms=now_ms,
        ends_at_ms=now_ms + 1000 * arguments.duration_s,
    )
    began = await office.everywhere("trace.begin", _beginning(spec, set(office.cluster.health().members)))
    if not began.by_node:
        raise AdminError(UNAVAILABLE, "no node answers", "no node began the trace")
    return Trace(
        **msgspec.to_builtins(spec), running=True, nodes=sorted(began.by_node), missing_nodes=sorted(began.missing)
    )


def _check(arguments: Start) -> None:
    if sum(map(bool, (arguments.client_id, arguments.topic_filter, arguments.ip))) != 1:
        raise AdminError(BAD_REQUEST, "invalid arguments", "give one of client_id, topic_filter and ip")
    if arguments.topic_filter:
        if is_shared(arguments.topic_filter) or arguments.topic_filter.startswith(PRIVATE):
            raise AdminError(BAD_REQUEST, "invalid arguments", "topic_filter must be a plain one of clients")
        try:
            check_topic_filter(arguments.topic_filter)
        except PeerError as error:
            raise AdminError(BAD_REQUEST, "invalid arguments", error.text) from None
    if arguments.ip:
        try:
            network_of(arguments.ip)
        except ValueError as error:
            raise AdminError(BAD_REQUEST, "invalid arguments", f"ip: {error}") from None


def _combined(answers: Answers) -> list[Trace]:
    found: dict[str, Trace] = {}
    for node, known in sorted(answers.by_node.items()):
        for each in known:
            trace = found.get(each["spec"]["id"])
            if trace is None:
                trace = found[each["spec"]["id"]] = Trace(**each["spec"], nodes=[])
            trace.running = trace.running or each["running"]
            trace.lines += each["lines"]
            trace.left_out += each["left_out"]
            trace.nodes.append(node)
    return sorted(found.values(), key=lambda trace: (trace.started_at_ms, trace.id))


async def _find(office: Office, trace_id: str) -> Trace:
    answers = await office.everywhere("trace.list")
    for trace in _combined(answers):
        if trace.id == trace_id:
            trace.missing_nodes = sorted(answers.missing)
            return trace
    raise AdminError(NOT_FOUND, "no such trace", f"there is no trace {trace_id!r}")


@operation("trace.list", OPERATOR, "GET", "/traces", "List traces", Nothing, Traces)
async def list_traces(office: Office, arguments: Nothing) -> Traces:
    """Traces that run, and those that ended not long ago."""
    answers = await office.everywhere("trace.list")
    return Traces(items=_combined(answers), missing_nodes=sorted(answers.missing))


@operation("trace.stop", OPERATOR, "POST", "/traces/{id}/stop", "Stop a trace", NamedTrace, Trace)
async def stop_trace(office: Office, arguments: NamedTrace) -> Trace:
    """End a trace before its time; its lines can be read for ten minutes more. One that has ended stays as it is."""
    await _find(office, arguments.id)
    await office.everywhere("trace.end", {"id": arguments.id})
    return await _find(office, arguments.id)


@operation("trace.lines", OPERATOR, "GET", "/traces/{id}/lines", "Read the lines of a trace", ReadLines, Lines)
async def read_lines(office: Office, arguments: ReadLines) -> Lines:
    """Lines of all nodes, merged by time. Every node keeps the last 10000 of a trace, and 8 MiB."""
    after = _after(arguments.cursor)
    lines, running, missing, more = await _lines(office, arguments.id, after, arguments.limit)
    for line in lines:
        after[line.node] = line.seq
    cursor = base64.urlsafe_b64encode(msgspec.json.encode(after)).rstrip(b"=").decode()
    return Lines(items=lines, cursor=cursor if more else None, next=cursor, running=running, missing_nodes=missing)


def _after(cursor: str) -> dict[str, int]:
    if not cursor:
        return {}
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=dict[str, Annotated[int, msgspec.Meta(ge=0, le=2**53)]])
    except (binascii.Error, msgspec.DecodeError, ValueError):
        raise AdminError(BAD_REQUEST, "invalid arguments", "the cursor is not one of this list") from None


async def _lines(
    office: Office, trace_id: str, after: Mapping[str, int], limit: int
) -> tuple[list[Line], bool, list[str], bool]:
    """Lines behind those of `after` (numbers by node), whether the trace runs, who did not answer, and whether there
    are more lines now."""
    asked = {"id": trace_id, "after": dict(after), "limit": limit, "most_bytes": office.part_bytes()}
    answers = await office.everywhere("trace.lines", asked)
    known = {node: answer for node, answer in answers.by_node.items() if answer is not None}
    if not known:
        raise AdminError(NOT_FOUND, "no such trace", f"there is no trace {trace_id!r}")
    parts = [msgspec.convert(answer["lines"], list[Line]) for answer in known.values()]
    merged = list(heapq.merge(*parts, key=lambda line: line.at_ms))
    more = len(merged) > limit or any(answer["more"] for answer in known.values())
    running = any(answer["running"] for answer in known.values())
    return merged[:limit], running, sorted(answers.missing), more


@events("trace.follow", OPERATOR, "/traces/{id}/follow", "Follow a trace", NamedTrace, Line)
@asynccontextmanager
async def follow_trace(office: Office, arguments: NamedTrace) -> AsyncIterator[AsyncIterator[Line]]:
    """The lines so far, then each as it comes, until the trace ends. Lines of one node are in order; where their
    numbers leave some out, whoever follows was too slow, and finds them by reading."""
    trace = await _find(office, arguments.id)
    async with office.inside.subscription(TOPIC + arguments.id) as watching:
        yield _followed(office, trace, watching)


async def _followed(office: Office, trace: Trace, watching: Watching) -> AsyncIterator[Line]:
    seen: dict[str, int] = {}
    more = running = True
    while more:
        lines, running, _, more = await _lines(office, trace.id, seen, 1000)
        for line in lines:
            seen[line.node] = line.seq
            yield line
    nodes = set(trace.nodes) if running else set()
    ended: set[str] = set()
    while nodes - ended and office.cluster.now_ms() < trace.ends_at_ms + _GRACE_MS:
        message: Message | None = None
        with trio.move_on_after(_LOOK_S):
            message = await watching.receive()
        if message is None:
            # A node may be gone, or may have ended before it was listened to.
            trace = await _find(office, trace.id)
            nodes = {node for node in trace.nodes if node not in ended} if trace.running else set()
            continue
        told = msgspec.json.decode(message.payload, type=_Told)
        nodes.add(told.node)
        for line in told.lines:
            if line.seq > seen.get(line.node, 0):
                seen[line.node] = line.seq
                yield line
        if not told.more:
            ended.add(told.node)
