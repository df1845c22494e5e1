"""The log: its level, and the warnings and errors of late."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import trio

from broker import log
from broker.admin.api import ADMIN, VIEWER
from broker.admin.operations import operation
from broker.admin.paging import Text
from broker.admin.questions import question

if TYPE_CHECKING:
    from broker.admin.office import Office

Level = Literal["debug", "info", "warning", "error"]


class WhichNode(msgspec.Struct, frozen=True):
    """A node, or all of them."""

    node: Annotated[Text, msgspec.Meta(description="This node; without it: all.")] = ""


class LevelChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another level, of one node or of all; after `duration_s` that of the settings is back (null: not before a restart
    or SIGHUP)."""

    level: Annotated[Level, msgspec.Meta(description="The level.")]
    node: Annotated[Text, msgspec.Meta(description="This node; without it: all.")] = ""
    duration_s: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=7 * 86400)] | None,
        msgspec.Meta(description="After so many seconds the level of the settings is back."),
    ] = None


class NodeLevel(msgspec.Struct, kw_only=True):
    """The level of a node. `configured` is that of its settings, `back_in_s` when that will be in force again."""

    node: str
    level: str
    configured: str
    back_in_s: float | None = None


class Levels(msgspec.Struct, kw_only=True):
    """By node."""

    items: list[NodeLevel]
    missing_nodes: list[str] = []


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines: of a node, of errors only, with this text in event or fields."""

    node: Annotated[Text, msgspec.Meta(description="This node; without it: all.")] = ""
    level: Annotated[Literal["warning", "error"], msgspec.Meta(description="This level and above.")] = "warning"
    contains: Annotated[str, msgspec.Meta(max_length=200, description="With this text in event or fields.")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=log.RECENT_LINES, description="At most so many lines.")] = 100


class LogLine(msgspec.Struct, kw_only=True):
    """A line of the log."""

    at_ms: int
    node: str
    level: str
    event: str
    fields: dict[str, str]


class LogLines(msgspec.Struct, kw_only=True):
    """The newest first."""

    items: list[LogLine]
    missing_nodes: list[str] = []


class Temporary:
    """A level that goes back by itself: of one office."""

    def __init__(self) -> None:
        self.until = math.inf
        self.number = 0


def _level(office: Office) -> NodeLevel:
    left = office.log_level.until - trio.current_time()
    return NodeLevel(
        node=office.name,
        level=log.level(),
        configured=office.settings.log_level,
        back_in_s=None if math.isinf(left) else round(max(0.0, left), 1),
    )


@question("logs.level")
def _ask_level(office: Office, arguments: dict[str, Any]) -> NodeLevel:
    return _level(office)


@question("logs.set_level")
def _set_level(office: Office, arguments: dict[str, Any]) -> NodeLevel:
    temporary = office.log_level
    temporary.number += 1
    temporary.until = math.inf
    office.node.set_log_level(arguments["level"])
    if arguments["duration_s"] is not None:
        temporary.until = trio.current_time() + arguments["duration_s"]
        office.server.start(partial(_put_back, office, temporary.number, temporary.until))
    return _level(office)


async def _put_back(office: Office, number: int, until: float) -> None:
    await trio.sleep_until(until)
    if office.log_level.number == number:
        office.log_level.until = math.inf
        office.node.set_log_level(office.settings.log_level)


async def _levels(office: Office, name: str, node: str, arguments: dict[str, Any]) -> Levels:
    if node:
        return Levels(items=[msgspec.convert(await office.at(node, name, arguments), NodeLevel)])
    answers = await office.everywhere(name, arguments)
    items = [msgspec.convert(told, NodeLevel) for told in answers.by_node.values()]
    return Levels(items=sorted(items, key=lambda item: item.node), missing_nodes=answers.missing)


@operation("logs.level", VIEWER, "GET", "/logs/level", "Show the log levels", WhichNode, Levels)
async def log_levels(office: Office, arguments: WhichNode) -> Levels:
    """The level of each node's log."""
    return await _levels(office, "logs.level", arguments.node, {})


@operation("logs.set_level", ADMIN, "PUT", "/logs/level", "Change the log level", LevelChange, Levels)
async def set_log_level(office: Office, arguments: LevelChange) -> Levels:
    """From now on. A node that is started anew, or gets SIGHUP, has the level of its settings."""
    asked = {"level": arguments.level, "duration_s": arguments.duration_s}
    return await _levels(office, "logs.set_level", arguments.node, asked)


@question("logs.lines")
def _lines(office: Office, arguments: dict[str, Any]) -> list[LogLine]:
    found: list[LogLine] = []
    for at_s, level, event, fields in reversed(log.recent.lines):
        if arguments["level"] == "error" and level not in ("error", "critical"):
            continue
        text = arguments["contains"]
        if text and text not in event and not any(text in each for each in fields.values()):
            continue
        found.append(LogLine(at_ms=round(1000 * at_s), node=office.name, level=level, event=event, fields=fields))
        if len(found) >= arguments["limit"]:
            break
    return found


@operation("logs.list", VIEWER, "GET", "/logs", "Show recent warnings and errors", LogFilter, LogLines)
async def list_logs(office: Office, arguments: LogFilter) -> LogLines:
    """Of all nodes, newest first. Each node remembers 500 since its start."""
    asked = msgspec.to_builtins(arguments)
    nodes = [arguments.node] if arguments.node else None
    answers = await office.everywhere("logs.lines", asked, nodes)
    found = [line for told in answers.by_node.values() for line in msgspec.convert(told, list[LogLine])]
    found.sort(key=lambda line: -line.at_ms)
    return LogLines(items=found[: arguments.limit], missing_nodes=answers.missing)
