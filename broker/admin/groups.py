"""Shared subscriptions: members, and what waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from broker.admin.api import NOT_FOUND, VIEWER, AdminError
from broker.admin.operations import Page, operation
from broker.admin.paging import LIMIT, Cursor, Limit, Part, Text, cursor_of, key_of, merged
from cluster.inspection import GroupInfo

if TYPE_CHECKING:
    from broker.admin.office import Office


class GroupFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which: those whose `$share/NAME/FILTER` begins with `prefix`, and which have at least `min_lag` messages
    waiting."""

    prefix: Annotated[Text, msgspec.Meta(description="Those whose `$share/NAME/FILTER` begins so.")] = ""
    min_lag: Annotated[int, msgspec.Meta(description="At least so many messages that were given to nobody yet.")] = 0
    limit: Limit = LIMIT
    cursor: Cursor = ""


class GroupItem(msgspec.Struct, kw_only=True):
    """A shared subscription. `length` messages are in its queue: `lag` were given to no node yet, `pending` were given
    and not acknowledged (`pending_by_node`), `oldest_ms` is the age of the oldest."""

    topic_filter: str
    share_name: str
    strategy: str
    members: int
    connected: int
    members_by_node: dict[str, int]
    lag: int
    pending: int
    pending_by_node: dict[str, int]
    length: int
    oldest_ms: int


class Member(msgspec.Struct, kw_only=True):
    """A session of the group; `client_id` is empty where it is not known, `node` where it is not connected."""

    client_id: str
    session_id: str
    node: str
    persistent: bool


class Group(GroupItem, kw_only=True):
    """A shared subscription with its members."""

    items: list[Member]


class NamedGroup(msgspec.Struct, frozen=True):
    """Which: the whole `$share/NAME/FILTER`."""

    topic_filter: Annotated[Text, msgspec.Meta(description="The whole `$share/NAME/FILTER`.")]


def _item(group: GroupInfo) -> GroupItem:
    by_node: dict[str, int] = {}
    for member in group.members:
        if member.node:
            by_node[member.node] = by_node.get(member.node, 0) + 1
    return GroupItem(
        topic_filter=_name(group),
        share_name=group.topic_filter.split("/", 2)[1] if group.topic_filter else "",
        strategy=group.strategy,
        members=len(group.members),
        connected=sum(by_node.values()),
        members_by_node=by_node,
        lag=group.lag,
        pending=group.pending,
        pending_by_node=group.pending_by_node,
        length=group.length,
        oldest_ms=group.oldest_ms,
    )


def _name(group: GroupInfo) -> str:
    """Its filter, or its id where a node of an older version made it."""
    return group.topic_filter or group.group_id.hex()


@operation("groups.list", VIEWER, "GET", "/groups", "List shared subscriptions", GroupFilter, Page[GroupItem])
async def list_groups(office: Office, arguments: GroupFilter) -> Page[GroupItem]:
    """Shared subscriptions of the whole cluster by name, with what waits for them."""
    after = key_of(arguments.cursor)
    groups = [
        ((_name(group),), group)
        for group in await office.inspection.groups()
        if _name(group).startswith(arguments.prefix)
        and group.lag >= arguments.min_lag
        and (after is None or (_name(group),) > after)
    ]
    found, until = merged([Part(groups, None)], arguments.limit)
    return Page(items=[_item(group) for group in found], cursor=cursor_of(until))


@operation("groups.show", VIEWER, "GET", "/groups/{topic_filter:path}", "Show a shared subscription", NamedGroup, Group)
async def show_group(office: Office, arguments: NamedGroup) -> Group:
    """A shared subscription with its members, connected or not."""
    for group in await office.inspection.groups():
        if _name(group) == arguments.topic_filter:
            members = [
                Member(
                    client_id=member.client_id,
                    session_id=member.session_id.hex(),
                    node=member.node,
                    persistent=member.persistent,
                )
                for member in group.members
            ]
            members.sort(key=lambda member: (member.client_id, member.session_id))
            return Group(**msgspec.structs.asdict(_item(group)), items=members)
    raise AdminError(
        NOT_FOUND, "no such group", f"there is no shared subscription {arguments.topic_filter!r:.200} with members"
    )
