"""Subscriptions: who has which, and changes of them on behalf of clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio

from broker.admin.api import BAD_REQUEST, CONFLICT, FORBIDDEN, NOT_FOUND, OPERATOR, UNAVAILABLE, VIEWER, AdminError
from broker.admin.clients import connected_here, no_client
from broker.admin.inside import PRIVATE
from broker.admin.operations import Nothing, Page, operation
from broker.admin.paging import (
    LIMIT,
    LIMIT_MAX,
    PART_BYTES,
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
    unpacked,
)
from broker.admin.questions import question
from broker.codec.packets import Properties, Subscribe, SubscriptionRequest, Unsubscribe
from broker.errors import PeerError, SessionConnected, SessionLost
from broker.extensions.system_filters import is_system
from broker.reasons import reason_name
from broker.routes import Subscriber
from broker.routes import Subscription as Known
from broker.topics.names import check_topic_filter, check_topic_name, matches, split_shared
from cluster import keys
from cluster.api import StoredSubscription

if TYPE_CHECKING:
    from broker.admin.office import Office

#: How long a client's own work is waited for, before its subscriptions are changed.
_WAIT_S: Final = 1.5
_STEP_S: Final = 0.01

#: Reason codes of SUBACK that are not 422 (what the node does not support or allow).
_STATUS: Final = {0x83: UNAVAILABLE, 0x87: FORBIDDEN, 0x8F: BAD_REQUEST}


class SubscriptionOptions(msgspec.Struct, kw_only=True):
    """How a client is subscribed to a filter. `retain_handling`: retained messages are sent 0 always, 1 if the
    subscription is new, 2 never. `subscription_identifier` null: none."""

    qos: Annotated[int, msgspec.Meta(ge=0, le=2, description="Maximum QoS.")] = 0
    no_local: Annotated[bool, msgspec.Meta(description="Not the client's own messages.")] = False
    retain_as_published: Annotated[bool, msgspec.Meta(description="Keep the RETAIN flag of live messages.")] = False
    retain_handling: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=2, description="Send retained messages: 0 always, 1 if the subscription is new, 2 never."
        ),
    ] = 0
    subscription_identifier: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=268_435_455)] | None,
        msgspec.Meta(description="Subscription identifier; none if it is not given."),
    ] = None


class Subscription(SubscriptionOptions, kw_only=True):
    """A subscription. `topic_filter` is the real one, a mountpoint included, with `$share/NAME/`."""

    topic_filter: str


class ListedSubscription(Subscription, kw_only=True):
    """Whose it is. `node`: where the client is connected, empty if it is not."""

    client_id: str
    node: str = ""
    persistent: bool = False


class SubscriptionFilter(msgspec.Struct, kw_only=True):
    """Which subscriptions; all that is given must hold. `topic`: their filters match this topic name. `share`: this
    share name. `prefix`: the filter behind `$share/NAME/` begins so."""

    client_id: Annotated[Text, msgspec.Meta(description="Of this client.")] = ""
    topic: Annotated[Text, msgspec.Meta(description="Whose filters match this topic name.")] = ""
    topic_filter: Annotated[Text, msgspec.Meta(description="With this filter, `$share/NAME/` included.")] = ""
    share: Annotated[Text, msgspec.Meta(description="Shared subscriptions of this name.")] = ""
    prefix: Annotated[Text, msgspec.Meta(description="Whose filters (behind `$share/NAME/`) begin so.")] = ""
    limit: Limit = LIMIT
    cursor: Cursor = ""


class OfClient(msgspec.Struct, frozen=True, kw_only=True):
    """Whose."""

    client_id: Annotated[Text, msgspec.Meta(description="The client id.")]
    limit: Limit = LIMIT_MAX
    cursor: Cursor = ""


class Adding(SubscriptionOptions, kw_only=True, forbid_unknown_fields=True):
    """A subscription for a client."""

    client_id: Annotated[Text, msgspec.Meta(description="The client id.")]
    topic_filter: Annotated[Text, msgspec.Meta(description="The filter, a mountpoint included.")]


class Removing(msgspec.Struct, frozen=True):
    """A subscription of a client."""

    client_id: Annotated[Text, msgspec.Meta(description="The client id.")]
    topic_filter: Annotated[Text, msgspec.Meta(description="The filter, a mountpoint included.")]


# -- what a node knows


def _subscription(topic_filter: str, options: int, identifier: int) -> dict[str, Any]:
    return {
        "topic_filter": topic_filter,
        "qos": options & 3,
        "no_local": bool(options & 4),
        "retain_as_published": bool(options & 8),
        "retain_handling": options >> 4 & 3,
        "subscription_identifier": identifier or None,
    }


@question("subscriptions.of", looks=True)
async def _of(office: Office, arguments: dict[str, Any]) -> dict[str, object] | None:
    """A part of those of a client that is connected here."""
    connection = connected_here(office, arguments["client_id"])
    if connection is None or connection.subscriber is None:
        return None
    part = _part_of(connection.subscriber, arguments["limit"], arguments["cursor"])
    return packed(await cut(part, arguments["most_bytes"]))


def _part_of(subscriber: Subscriber, limit: int, cursor: str) -> Part[dict[str, Any]]:
    found: Smallest[Known] = Smallest(limit, key_of(cursor))
    for topic_filter, each in subscriber.subscriptions.items():
        if found.wants((topic_filter,)):
            found.put((topic_filter,), each)
    part = found.part()
    items = [(key, _subscription(key[0], each.options, each.identifier)) for key, each in part.items]
    return Part(items, part.until)


def _candidates(office: Office, filters: SubscriptionFilter) -> Iterable[Subscriber]:
    """Whoever may have subscriptions that pass."""
    dispatch = office.server.dispatch
    if filters.client_id:
        one = dispatch.subscribers.get(keys.session_id(filters.client_id))
        return [] if one is None else [one]
    if filters.topic:
        route = dispatch.route(filters.topic.encode())
        found = {entry.subscriber.session_id: entry.subscriber for entry in route.entries}
        for group in route.groups:
            found.update((key, member.subscriber) for key, member in group.members.items())
        return list(found.values())
    return list(dispatch.subscribers.values())


@question("subscriptions.page", looks=True)
async def _page(office: Office, arguments: dict[str, Any]) -> dict[str, object]:
    """A part of the subscriptions of clients that are connected here; at the node `stored_at` of all persistent
    sessions, too."""
    filters = msgspec.convert(arguments["filters"], SubscriptionFilter)
    part = await _part(office, filters, office.name == arguments["stored_at"])
    return packed(await cut(part, arguments["most_bytes"]))


async def _part(office: Office, filters: SubscriptionFilter, stored: bool) -> Part[dict[str, Any]]:
    found: Smallest[dict[str, Any]] = Smallest(filters.limit + 1, key_of(filters.cursor, 2))
    async for portion in portions(list(_candidates(office, filters))):
        for subscriber in portion:
            here = subscriber.connection is not None
            if subscriber.client_id.startswith(PRIVATE) or not (here or (stored and subscriber.persistent)):
                continue
            for topic_filter, each in subscriber.subscriptions.items():
                key = (subscriber.client_id, topic_filter)
                if found.wants(key) and _passes(filters, topic_filter):
                    shown = _subscription(topic_filter, each.options, each.identifier)
                    shown["client_id"] = subscriber.client_id
                    shown["node"] = office.name if here else ""
                    shown["persistent"] = subscriber.persistent
                    found.put(key, shown)
    return found.part()


def _passes(filters: SubscriptionFilter, topic_filter: str) -> bool:
    if filters.topic_filter and topic_filter != filters.topic_filter:
        return False
    share_name, plain = split_shared(topic_filter)
    if filters.share and share_name != filters.share:
        return False
    return plain.startswith(filters.prefix) and (not filters.topic or matches(plain, filters.topic))


@question("subscriptions.change")
async def _change(office: Office, arguments: dict[str, Any]) -> list[int] | None:
    """Subscribe or unsubscribe for a client that is connected here; returns reason codes, None: it is not here."""
    client_id, topic_filter = arguments["client_id"], arguments["topic_filter"]
    until = trio.current_time() + _WAIT_S
    while (connection := connected_here(office, client_id)) is not None and not connection.begin_work():
        if trio.current_time() > until:
            raise AdminError(CONFLICT, "busy", f"client {client_id!r:.200} waits for something else")
        await trio.sleep(_STEP_S)
    if connection is None:
        return None
    try:
        mount = connection.mount
        if mount is not None:
            seen = mount.seen(topic_filter)
            if mount.filter(seen) != topic_filter:
                raise AdminError(422, "not subscribed", f"all topics of the client are below {mount.text!r:.200}")
            topic_filter = seen
        if arguments["options"] is None:
            packet: Subscribe | Unsubscribe = Unsubscribe(0, [topic_filter])
        else:
            packet = _subscribe(topic_filter, msgspec.convert(arguments["options"], SubscriptionOptions))
        return list(await office.server.subscribing.on_behalf(connection, packet)) or None
    except SessionLost:
        return None
    except PeerError as error:
        raise AdminError(422, "not subscribed", error.text) from None
    finally:
        connection.work_done()
        office.server.reactor.wake()


def _subscribe(topic_filter: str, options: SubscriptionOptions) -> Subscribe:
    properties = None
    if options.subscription_identifier is not None:
        properties = Properties()
        properties.subscription_identifiers = [options.subscription_identifier]
    return Subscribe(0, [_request(topic_filter, options)], properties)


def _request(topic_filter: str, options: SubscriptionOptions) -> SubscriptionRequest:
    return SubscriptionRequest(
        topic_filter, options.qos, options.no_local, options.retain_as_published, options.retain_handling
    )


# -- of the whole cluster


@operation(
    "subscriptions.list",
    VIEWER,
    "GET",
    "/subscriptions",
    "List subscriptions of all clients",
    SubscriptionFilter,
    Page[ListedSubscription],
)
async def list_subscriptions(office: Office, arguments: SubscriptionFilter) -> Page[ListedSubscription]:
    """Subscriptions of connected clients and of persistent sessions, by client id and filter."""
    filters = arguments
    key_of(filters.cursor, 2)
    if filters.topic:
        try:
            check_topic_name(filters.topic)
        except PeerError as error:
            raise AdminError(BAD_REQUEST, "invalid topic", error.text) from None
    asked = {
        "filters": msgspec.to_builtins(filters),
        "stored_at": office.name,
        "most_bytes": office.part_bytes(),
    }
    answers = await office.everywhere("subscriptions.page", asked)
    # What a node says of its own clients counts more than what this one knows of them.
    nodes = sorted(answers.by_node, key=lambda node: node == office.name)
    parts = [unpacked(answers.by_node[node], ListedSubscription) for node in nodes]
    items, until = merged(parts, filters.limit, _fuller)
    return Page(items=items, cursor=cursor_of(until), missing_nodes=answers.missing)


def _fuller(one: ListedSubscription, other: ListedSubscription) -> ListedSubscription:
    return one if one.node else other


@operation(
    "subscriptions.of_client",
    VIEWER,
    "GET",
    "/clients/{client_id}/subscriptions",
    "List the subscriptions of a client",
    OfClient,
    Page[Subscription],
)
async def subscriptions_of_client(office: Office, arguments: OfClient) -> Page[Subscription]:
    """All that a client has, connected or not, by filter. Where its node does not answer, it is what is stored."""
    client_id = arguments.client_id
    key_of(arguments.cursor)
    state = await office.inspection.session(client_id)
    if state is None:
        raise no_client(client_id)
    told = None
    missing: list[str] = []
    if state.node:
        asked = {
            "client_id": client_id,
            "limit": arguments.limit,
            "cursor": arguments.cursor,
            "most_bytes": PART_BYTES,
        }
        answers = await office.everywhere("subscriptions.of", asked, [state.node])
        told, missing = answers.by_node.get(state.node), answers.missing
    part: Part[Subscription] = Part([], None)
    if told is not None:
        part = unpacked(told, Subscription)
    else:
        # What the store has of all persistent sessions each node has, too.
        known = office.server.dispatch.subscribers.get(keys.session_id(client_id))
        if known is not None and known.persistent:
            own = _part_of(known, arguments.limit, arguments.cursor)
            part = Part([(key, msgspec.convert(item, Subscription)) for key, item in own.items], own.until)
    items, until = merged([part], arguments.limit)
    return Page(items=items, cursor=cursor_of(until), missing_nodes=missing)


@operation(
    "subscriptions.add",
    OPERATOR,
    "POST",
    "/clients/{client_id}/subscriptions",
    "Subscribe a client to a filter",
    Adding,
    Subscription,
    status=201,
)
async def add_subscription(office: Office, arguments: Adding) -> Subscription:
    """Subscribes as if the client had done it, with the same checks, rules included; retained messages are sent as
    `retain_handling` says. When the answer comes, all nodes know of it. For a client that is not connected its session
    is changed: rules are asked when it is back, which is too late for filters below `$SYS/` (403, unless `sys_access`
    is `all`), and retained messages are not sent. The filter is the real one, a mountpoint included."""
    client_id, topic_filter = arguments.client_id, arguments.topic_filter
    options = SubscriptionOptions(
        qos=arguments.qos,
        no_local=arguments.no_local,
        retain_as_published=arguments.retain_as_published,
        retain_handling=arguments.retain_handling,
        subscription_identifier=arguments.subscription_identifier,
    )
    _check_filter(topic_filter)
    if options.no_local and split_shared(topic_filter)[0]:
        raise AdminError(BAD_REQUEST, "invalid arguments", "no_local is not possible for a shared subscription")
    code = await _changed(office, client_id, topic_filter, options)
    if code >= 0x80:
        raise AdminError(_STATUS.get(code, 422), "not subscribed", reason_name(code).replace("_", " "))
    return msgspec.convert({**msgspec.structs.asdict(options), "topic_filter": topic_filter, "qos": code}, Subscription)


@operation(
    "subscriptions.remove",
    OPERATOR,
    "DELETE",
    "/clients/{client_id}/subscriptions",
    "Unsubscribe a client from a filter",
    Removing,
    Nothing,
)
async def remove_subscription(office: Office, arguments: Removing) -> None:
    """Unsubscribes as if the client had done it; it is not told. 404: it has no such subscription."""
    client_id, topic_filter = arguments.client_id, arguments.topic_filter
    if await _changed(office, client_id, topic_filter, None):
        raise AdminError(
            NOT_FOUND, "no such subscription", f"client {client_id!r:.200} is not subscribed to {topic_filter!r:.200}"
        )


def _check_filter(topic_filter: str) -> None:
    try:
        check_topic_filter(topic_filter)
    except PeerError as error:
        raise AdminError(BAD_REQUEST, "invalid topic filter", error.text) from None


async def _changed(office: Office, client_id: str, topic_filter: str, options: SubscriptionOptions | None) -> int:
    """The reason code; `options` None: unsubscribe. A client that comes or goes meanwhile is looked for again."""
    asked = {"client_id": client_id, "topic_filter": topic_filter, "options": msgspec.to_builtins(options)}
    for attempt in range(5):
        state = await office.inspection.session(client_id)
        if state is None:
            raise no_client(client_id)
        if state.node:
            codes = await office.at(state.node, "subscriptions.change", asked)
            if codes:
                return int(codes[0])
        else:
            try:
                return await _change_stored(office, client_id, topic_filter, options)
            except SessionConnected:
                pass
        await trio.sleep(0.05 * attempt)
    raise AdminError(CONFLICT, "busy", f"client {client_id!r:.200} comes and goes")


async def _change_stored(office: Office, client_id: str, topic_filter: str, options: SubscriptionOptions | None) -> int:
    stored = await office.inspection.subscriptions(client_id)
    if stored is None:
        raise no_client(client_id)
    known = any(each.topic_filter == topic_filter for each in stored)
    if options is None:
        if not known:
            return 0x11
        done = await office.inspection.change_subscriptions(client_id, [], [topic_filter])
        code = 0
    else:
        subscribing = office.server.subscribing
        code = subscribing.check(_request(topic_filter, options))
        if code < 0x80:
            code = subscribing.refusal(topic_filter, 0 if known else len(stored)) or code
        if code < 0x80 and is_system(split_shared(topic_filter)[1]) and not office.server.system_open:
            code = 0x87  # it takes a rule, and rules are asked when the client is back: too late for what was queued
        if code < 0x80 and options.subscription_identifier and not office.server.quotas.subscription_ids_available:
            code = 0xA1
        if code >= 0x80:
            return code
        flags = code | options.no_local << 2 | options.retain_as_published << 3 | options.retain_handling << 4
        new = StoredSubscription(topic_filter, flags, options.subscription_identifier or 0)
        done = await office.inspection.change_subscriptions(client_id, [new], [])
    if not done:
        raise no_client(client_id)
    return code
