"""Shared subscriptions: members, and what waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from broker.admin.api import NOT_FOUND, VIEWER, AdminError
from broker.admin.operations import Page, operation
from broker.admin.paging import LIMIT, PAGE_BYTES, Cursor, Limit, Text, cursor_of, key_of, size_of
from cluster.inspection import LIST_LIMIT, GroupInfo

if TYPE_CHECKING:
    from broker.admin.office import Office

#: Groups that are looked at for one answer, where few of them have as much lag as is asked for.
_LOOK: Final = 5000
#: In one portion.
_PORTION: Final = 200


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
    """A shared subscription with its members: a thousand of them at most, however many it has."""

    items: list[Member]


class NamedGroup(msgspec.Struct, frozen=True):
    """Which: the whole `$share/NAME/FILTER`."""

    topic_filter: Annotated[Text, msgspec.Meta(description="The whole `$share/NAME/FILTER`.")]


def _item(group: GroupInfo) -> GroupItem:
    return GroupItem(
        topic_filter=group.name,
        share_name=group.topic_filter.split("/", 2)[1] if group.topic_filter else "",
        strategy=group.strategy,
        members=group.members,
        connected=sum(group.members_by_node.values()),
        members_by_node=group.members_by_node,
        lag=group.lag,
        pending=group.pending,
        pending_by_node=group.pending_by_node,
        length=group.length,
        oldest_ms=group.oldest_ms,
    )


@operation("groups.list", VIEWER, "GET", "/groups", "List shared subscriptions", GroupFilter, Page[GroupItem])
async def list_groups(office: Office, arguments: GroupFilter) -> Page[GroupItem]:
    """Shared subscriptions of the whole cluster by name, with what waits for them. Where there are over a thousand,
    those that came within the last ten seconds may be missing. A part may be empty and still have a cursor."""
    key = key_of(arguments.cursor)
    after = "" if key is None else key[0]
    items: list[GroupItem] = []
    looked = size = 0
    while looked < _LOOK:
        wanted = _PORTION if arguments.min_lag > 0 else min(_PORTION, arguments.limit - len(items))
        found = await office.inspection.groups(after, wanted, arguments.prefix)
        if not found:
            return Page(items=items)
        looked += len(found)
        for group in found:
            after = group.place
            if group.lag >= arguments.min_lag:
                items.append(_item(group))
                size += size_of(items[-1])
                if len(items) == arguments.limit or size >= PAGE_BYTES:
                    return Page(items=items, cursor=cursor_of((after,)))
    return Page(items=items, cursor=cursor_of((after,)))


@operation("groups.show", VIEWER, "GET", "/groups/{topic_filter:path}", "Show a shared subscription", NamedGroup, Group)
async def show_group(office: Office, arguments: NamedGroup) -> Group:
    """A shared subscription with its members, connected or not; of very many some."""
    group = await office.inspection.group(arguments.topic_filter)
    if group is None:
        raise AdminError(
            NOT_FOUND, "no such group", f"there is no shared subscription {arguments.topic_filter!r:.200} with members"
        )
    members = [
        Member(
            client_id=member.client_id,
            session_id=member.session_id.hex(),
            node=member.node,
            persistent=member.persistent,
        )
        for member in await office.inspection.group_members(arguments.topic_filter, LIST_LIMIT)
    ]
    members.sort(key=lambda member: (member.client_id, member.session_id))
    return Group(**msgspec.structs.asdict(_item(group)), items=members)
