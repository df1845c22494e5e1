"""Topics: the filters that somebody subscribes to, and who gets a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from broker.admin.api import BAD_REQUEST, VIEWER, AdminError
from broker.admin.inside import PRIVATE
from broker.admin.operations import Page, operation
from broker.admin.paging import (
    LIMIT,
    PAGE_BYTES,
    Cursor,
    Limit,
    Part,
    Smallest,
    Text,
    cursor_of,
    cut,
    key_of,
    merged,
    packed,
    portions,
    size_of,
    unpacked,
)
from broker.admin.questions import question
from broker.errors import PeerError
from broker.routes import Route

if TYPE_CHECKING:
    from broker.admin.office import Office

#: Receivers that are named; all are counted.
_NAMED_MAX: Final = 1000


class TopicFilter(msgspec.Struct, kw_only=True):
    """Which filters: those that begin with `prefix`."""

    prefix: Annotated[Text, msgspec.Meta(description="Filters that begin so.")] = ""
    limit: Limit = LIMIT
    cursor: Cursor = ""


class Subscribed(msgspec.Struct, kw_only=True):
    """A filter (with `$share/NAME/` for a shared subscription), how many sessions have it, how many of these outlive
    their connections, and the nodes where any of them is connected."""

    topic_filter: str
    subscribers: int
    persistent: int
    nodes: list[str]


class OneTopic(msgspec.Struct, frozen=True, kw_only=True):
    """Which topic, and how many receivers are named at most."""

    topic: Annotated[Text, msgspec.Meta(description="The topic name.")]
    limit: Annotated[int, msgspec.Meta(ge=0, le=_NAMED_MAX, description="Name at most so many receivers.")] = LIMIT


class Receiver(msgspec.Struct, kw_only=True):
    """A session that gets a message of the topic. `node`: where its client is connected, empty if it is not."""

    client_id: str
    node: str
    connected: bool
    persistent: bool
    qos: int
    subscription_ids: list[int]


class ReceiverGroup(msgspec.Struct, kw_only=True):
    """A shared subscription, of which one member gets the message. `nodes` have connected members."""

    topic_filter: str
    strategy: str
    nodes: list[str]


class Receivers(msgspec.Struct, kw_only=True):
    """Who gets a message of a topic: `total` sessions, some of which are `items`, and one member of each of `groups`.
    `refusal`: why clients may not publish to the topic, null if they may (rules are another matter)."""

    topic: str
    refusal: str | None
    total: int
    items: list[Receiver]
    groups: list[ReceiverGroup]
    missing_nodes: list[str] = []


@question("topics.page", looks=True)
async def _page(office: Office, arguments: dict[str, Any]) -> dict[str, object]:
    """A part of the filters of clients that are connected here: count, those of persistent sessions, and the node. With
    `absent` of persistent sessions instead that are not."""
    filters = msgspec.convert(arguments["filters"], TopicFilter)
    return packed(await cut(await _part(office, filters, not arguments["absent"]), arguments["most_bytes"]))


async def _part(office: Office, filters: TopicFilter, here: bool) -> Part[Subscribed]:
    """Of sessions that are connected here, or of persistent ones that are not."""
    found: Smallest[Subscribed] = Smallest(filters.limit + 1, key_of(filters.cursor))
    nodes = [office.name] if here else []
    async for portion in portions(list(office.server.dispatch.subscribers.values())):
        for subscriber in portion:
            if (subscriber.connection is not None) != here or not (here or subscriber.persistent):
                continue
            if _inside(subscriber.client_id):
                continue
            for topic_filter in subscriber.subscriptions:
                if not topic_filter.startswith(filters.prefix):
                    continue
                key = (topic_filter,)
                if not found.wants(key):
                    continue
                known = found.get(key)
                if known is None:
                    known = Subscribed(topic_filter=topic_filter, subscribers=0, persistent=0, nodes=nodes)
                    found.put(key, known)
                known.subscribers += 1
                known.persistent += subscriber.persistent
    return found.part()


@operation(
    "topics.list",
    VIEWER,
    "GET",
    "/topics",
    "List the filters that somebody subscribes to",
    TopicFilter,
    Page[Subscribed],
)
async def list_topics(office: Office, arguments: TopicFilter) -> Page[Subscribed]:
    """All topic filters of the cluster in order, with the number of sessions and the nodes where these are
    connected."""
    filters = arguments
    key_of(filters.cursor)
    asked = {"filters": msgspec.to_builtins(filters), "absent": False, "most_bytes": office.part_bytes()}
    answers = await office.everywhere("topics.page", asked)
    parts = [unpacked(told, Subscribed) for told in answers.by_node.values()]
    # Those of persistent sessions that are connected nowhere; this node cannot tell them from those of other nodes, so
    # what these tell of is taken off.
    absent = unpacked(await office.at(office.name, "topics.page", {**asked, "absent": True}), Subscribed)
    elsewhere: dict[str, int] = {}
    for node, told in answers.by_node.items():
        if node != office.name:
            for _, item in unpacked(told, Subscribed).items:
                elsewhere[item.topic_filter] = elsewhere.get(item.topic_filter, 0) + item.persistent
    for _, item in absent.items:
        item.persistent = max(0, item.persistent - elsewhere.get(item.topic_filter, 0))
        item.subscribers = item.persistent
    items, until = merged([*parts, absent], filters.limit, _added)
    return Page(items=items, cursor=cursor_of(until), missing_nodes=answers.missing)


def _added(one: Subscribed, other: Subscribed) -> Subscribed:
    return Subscribed(
        topic_filter=one.topic_filter,
        subscribers=one.subscribers + other.subscribers,
        persistent=one.persistent + other.persistent,
        nodes=sorted({*one.nodes, *other.nodes}),
    )


# -- one topic


@question("topics.receivers", looks=True)
def _receivers(office: Office, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that are connected here: how many of them end with their connections, the first by name, and groups."""
    route = office.server.dispatch.route(arguments["topic"].encode())
    items = _bounded(_named(office, route, arguments["limit"], True), arguments["most_bytes"])
    ephemeral = sum(
        not entry.subscriber.persistent and not _inside(entry.subscriber.client_id) for entry in route.entries
    )
    return {"ephemeral": ephemeral, "items": items, "groups": [group.name for group in route.groups if group.online]}


def _inside(client_id: str) -> bool:
    return client_id.startswith(PRIVATE)


def _named(office: Office, route: Route, limit: int, here: bool) -> list[Receiver]:
    found = [
        Receiver(
            client_id=entry.subscriber.client_id,
            node=office.name if here else "",
            connected=here,
            persistent=entry.subscriber.persistent,
            qos=entry.qos,
            subscription_ids=list(entry.subscription_ids),
        )
        for entry in route.entries
        if (entry.subscriber.connection is not None) == here
        and (here or entry.subscriber.persistent)
        and not _inside(entry.subscriber.client_id)
    ]
    found.sort(key=lambda item: item.client_id)
    return found[:limit]


def _bounded(items: list[Receiver], most_bytes: int) -> list[Receiver]:
    size = 0
    for number, item in enumerate(items):
        size += size_of(item)
        if size > most_bytes and number:
            return items[:number]
    return items


@operation(
    "topics.show", VIEWER, "GET", "/topics/{topic:path}", "Show who gets a message of a topic", OneTopic, Receivers
)
async def show_topic(office: Office, arguments: OneTopic) -> Receivers:
    """The sessions with a subscription that matches, connected or not, and the shared subscriptions. Rules that keep a
    client from reading a message are not looked at."""
    try:
        route = office.server.dispatch.route(arguments.topic.encode())
    except PeerError as error:
        raise AdminError(BAD_REQUEST, "invalid topic", error.text) from None
    except UnicodeError:
        raise AdminError(BAD_REQUEST, "invalid topic", "the topic name is not valid UTF-8") from None
    asked = {"topic": arguments.topic, "limit": arguments.limit, "most_bytes": office.part_bytes()}
    answers = await office.everywhere("topics.receivers", asked)
    named: dict[str, Receiver] = {}
    online: dict[str, list[str]] = {}
    total = sum(entry.subscriber.persistent for entry in route.entries)
    for node, told in sorted(answers.by_node.items()):
        total += told["ephemeral"]
        for item in msgspec.convert(told["items"], list[Receiver]):
            named.setdefault(item.client_id, item)
        for name in told["groups"]:
            online.setdefault(name, []).append(node)
    for item in _named(office, route, arguments.limit + len(named), False):
        named.setdefault(item.client_id, item)
    items = _bounded(sorted(named.values(), key=lambda item: item.client_id)[: arguments.limit], PAGE_BYTES)
    groups = [
        ReceiverGroup(topic_filter=group.name, strategy=group.strategy, nodes=online.get(group.name, []))
        for group in route.groups
    ]
    return Receivers(
        topic=arguments.topic,
        refusal=route.text or None,
        total=total,
        items=items,
        groups=sorted(groups, key=lambda group: group.topic_filter),
        missing_nodes=answers.missing,
    )
