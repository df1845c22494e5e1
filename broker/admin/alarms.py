"""Alarms of the whole cluster: those that are active, those that are over, and a stream of changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from broker.admin.api import OPERATOR, VIEWER
from broker.admin.inside import Watching
from broker.admin.operations import Nothing, events, operation
from broker.admin.paging import Text
from broker.admin.questions import question

if TYPE_CHECKING:
    from broker.admin.office import Office


class Alarm(msgspec.Struct, kw_only=True):
    """Something to look at. `severity` is `warning` or `critical`; `subject` says what it is about where there may be
    several of a name (a listener, a server of the store). Times are milliseconds since the epoch;
    `deactivated_at_ms` is null while the alarm is active."""

    name: str
    node: str
    subject: str
    severity: str
    message: str
    activated_at_ms: int
    deactivated_at_ms: int | None = None


class AlarmFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which alarms; empty: all."""

    node: Annotated[Text, msgspec.Meta(description="Only those of this node.")] = ""
    name: Annotated[Text, msgspec.Meta(description="Only those of this name.")] = ""


class AlarmList(msgspec.Struct, kw_only=True):
    """Newest first."""

    items: list[Alarm]
    missing_nodes: list[str] = []


class WhichNode(msgspec.Struct, frozen=True, kw_only=True):
    """Where; empty: on all nodes."""

    node: Annotated[Text, msgspec.Meta(description="Only on this node.")] = ""


class AlarmEvent(Alarm, kw_only=True):
    """An alarm that changed: `event` is `activate` or `deactivate`."""

    event: Literal["activate", "deactivate"]


@question("alarms.active")
def _active(office: Office, arguments: dict[str, Any]) -> Any:
    return [alarm.shown(office.name) for alarm in office.server.alarms.active()]


@question("alarms.over")
def _over(office: Office, arguments: dict[str, Any]) -> Any:
    return [alarm.shown(office.name) for alarm in office.server.alarms.history()]


@question("alarms.dismiss")
def _dismiss(office: Office, arguments: dict[str, Any]) -> int:
    return office.server.alarms.dismiss()


async def _gathered(office: Office, asked: str, wanted: AlarmFilter) -> AlarmList:
    answers = await office.everywhere(asked, nodes=[wanted.node] if wanted.node else None)
    items = [msgspec.convert(each, Alarm) for told in answers.by_node.values() for each in told]
    found = [each for each in items if wanted.name in ("", each.name)]
    return AlarmList(
        items=sorted(found, key=lambda each: -(each.deactivated_at_ms or each.activated_at_ms)),
        missing_nodes=answers.missing,
    )


@operation("alarms.list", VIEWER, "GET", "/alarms", "List active alarms", AlarmFilter, AlarmList)
async def list_alarms(office: Office, arguments: AlarmFilter) -> AlarmList:
    """The alarms that are active on the nodes now. They go by themselves when what they are about is over."""
    return await _gathered(office, "alarms.active", arguments)


@operation("alarms.history", VIEWER, "GET", "/alarms/history", "List alarms that are over", AlarmFilter, AlarmList)
async def list_history(office: Office, arguments: AlarmFilter) -> AlarmList:
    """The alarms of the last 24 hours that are over, at most 1000 of each node; a node that begins anew has none."""
    return await _gathered(office, "alarms.over", arguments)


@operation("alarms.dismiss", OPERATOR, "DELETE", "/alarms/history", "Forget alarms that are over", WhichNode, Nothing)
async def dismiss(office: Office, arguments: WhichNode) -> None:
    """Empties the history. Active alarms stay."""
    await office.everywhere("alarms.dismiss", nodes=[arguments.node] if arguments.node else None)


@events("events.alarms", VIEWER, "/events/alarms", "Watch alarms", Nothing, AlarmEvent)
@asynccontextmanager
async def watch_alarms(office: Office, arguments: Nothing) -> AsyncIterator[AsyncIterator[AlarmEvent]]:
    """One event for each alarm that is raised, gets another severity, or is over, on any node, from now on."""
    async with office.inside.subscription("$SYS/brokers/+/alarms/+") as watching, aclosing(_told(watching)) as told:
        yield told


async def _told(watching: Watching) -> AsyncGenerator[AlarmEvent]:
    async for message in watching:
        told = msgspec.json.decode(message.payload, type=dict)
        yield msgspec.convert({**told, "event": message.topic.rpartition(b"/")[2].decode()}, AlarmEvent)
