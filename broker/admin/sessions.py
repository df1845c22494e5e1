"""Persistent sessions: how much waits for them, what that is, and their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio

from broker.admin.api import CONFLICT, NOT_FOUND, OPERATOR, VIEWER, AdminError
from broker.admin.clients import kick, stored_part
from broker.admin.operations import Nothing, Page, operation
from broker.admin.paging import LIMIT, Cursor, Limit, Part, Text, cursor_of, key_of, merged
from broker.admin.payloads import Shown, shown
from broker.admin.reading import Reading
from broker.errors import SessionConnected
from cluster.api import PAGE_LIMIT
from cluster.inspection import SessionState

if TYPE_CHECKING:
    from broker.admin.office import Office

#: How often a client is disconnected that comes back while its session is being deleted.
_TRIES: Final = 5


class SessionFilter(msgspec.Struct, kw_only=True):
    """Which sessions; all that is given must hold. `prefix`: the client id begins so; `contains`: this is in it."""

    prefix: Annotated[Text, msgspec.Meta(description="Client ids that begin so.")] = ""
    contains: Annotated[Text, msgspec.Meta(description="Client ids with this in them.")] = ""
    node: Annotated[Text, msgspec.Meta(description="Connected to this node.")] = ""
    connected: Annotated[bool | None, msgspec.Meta(description="Whether their clients are connected.")] = None
    min_queued: Annotated[int, msgspec.Meta(ge=0, description="At least so many queued messages.")] = 0
    limit: Limit = LIMIT
    cursor: Cursor = ""


class Session(msgspec.Struct, kw_only=True):
    """A session as the store has it. `node`: where its client is connected. `expiry_s` 4294967295: never;
    `expires_at_ms` null: not running out. `oldest_ms`: age of the oldest queued message. `in_flight` of the queued
    messages were sent and not acknowledged, `releasing` are past PUBREC, `inbound` QoS 2 messages of the client were
    not released."""

    client_id: str
    connected: bool
    node: str
    expiry_s: int
    expires_at_ms: int | None
    created_at_ms: int | None
    has_identity: bool
    subscriptions: int
    queued: int
    queued_bytes: int
    oldest_ms: int
    in_flight: int
    releasing: int
    inbound: int


class NamedSession(msgspec.Struct, frozen=True):
    """Whose session."""

    client_id: Annotated[Text, msgspec.Meta(description="The client id.")]


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """Whose queue, and how much of each payload is shown."""

    client_id: Annotated[Text, msgspec.Meta(description="The client id.")]
    max_payload_bytes: Annotated[
        int, msgspec.Meta(ge=0, le=1024 * 1024, description="So much of each payload is shown.")
    ] = 4096
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT, description="At most so many messages.")] = 20
    cursor: Cursor = ""


class Queued(Shown, kw_only=True):
    """A message of a queue: `seq` is its place; it will be delivered at `delivery_qos`."""

    seq: int
    delivery_qos: int
    subscription_ids: list[int]


def _session(state: SessionState) -> Session:
    return Session(
        client_id=state.client_id,
        connected=state.connected,
        node=state.node,
        expiry_s=state.expiry_s,
        expires_at_ms=state.expires_at_ms or None,
        created_at_ms=state.created_ms or None,
        has_identity=state.has_identity,
        subscriptions=state.subscriptions,
        queued=state.queued,
        queued_bytes=state.queued_bytes,
        oldest_ms=state.oldest_ms,
        in_flight=state.in_flight,
        releasing=state.releasing,
        inbound=state.inbound,
    )


def no_session(client_id: str) -> AdminError:
    """There is none."""
    return AdminError(NOT_FOUND, "no such session", f"client {client_id!r:.200} has no session")


@operation("sessions.list", VIEWER, "GET", "/sessions", "List sessions", SessionFilter, Page[Session])
async def list_sessions(office: Office, arguments: SessionFilter) -> Page[Session]:
    """Sessions that outlive their connections, connected or not, by client id. A part may have less items than asked
    for without being the last: `cursor` tells."""
    filters = arguments

    def passes(state: SessionState) -> bool:
        return (
            filters.contains in state.client_id
            and (not filters.node or state.node == filters.node)
            and (filters.connected is None or state.connected == filters.connected)
            and state.queued >= filters.min_queued
        )

    part = await stored_part(office, passes, key_of(filters.cursor), filters.limit, filters.prefix)
    items, until = merged([Part([(key, _session(state)) for key, state in part.items], part.until)], filters.limit)
    return Page(items=items, cursor=cursor_of(until))


@operation("sessions.show", VIEWER, "GET", "/sessions/{client_id}", "Show a session", NamedSession, Session)
async def show_session(office: Office, arguments: NamedSession) -> Session:
    """The session of a client, also one that ends with its connection."""
    state = await office.inspection.session(arguments.client_id)
    if state is None:
        raise no_session(arguments.client_id)
    return _session(state)


@operation(
    "sessions.messages",
    OPERATOR,
    "GET",
    "/sessions/{client_id}/messages",
    "Look into the queue of a session",
    QueueView,
    Page[Queued],
)
async def session_messages(office: Office, arguments: QueueView) -> Page[Queued]:
    """The messages that wait in the store for a client, oldest first; they stay where they are. What waits for a
    session that ends with its connection is in the memory of its node and not shown."""
    client_id = arguments.client_id
    if await office.inspection.session(client_id) is None:
        raise no_session(client_id)
    key = key_of(arguments.cursor)
    after = int(key[0]) if key is not None and key[0].isascii() and key[0].isdigit() else 0
    reading: Reading[Queued] = Reading(arguments.limit)
    while reading.going:
        async with office.reading.turn():
            messages = await office.inspection.queue(client_id, after, reading.count())
        if not messages:
            return Page(items=reading.items)
        reading.read([each.message for each in messages])
        for each in messages:
            if not reading.room:
                break
            fields: dict[str, Any] = shown(each.message, office.server.now_ms, arguments.max_payload_bytes)
            fields["retain"] = each.retain
            ids = list(each.subscription_ids)
            reading.add(Queued(seq=each.seq, delivery_qos=each.qos, subscription_ids=ids, **fields))
            after = each.seq
    return Page(items=reading.items, cursor=cursor_of((str(after),)))


@operation("sessions.delete", OPERATOR, "DELETE", "/sessions/{client_id}", "End a session", NamedSession, Nothing)
async def delete_session(office: Office, arguments: NamedSession) -> None:
    """Ends a session with its subscriptions and its queue. A connected client is disconnected first (reason code 0x98)
    and its will is published; a will that waits for its delay is not."""
    client_id = arguments.client_id
    known = False
    for attempt in range(_TRIES):
        try:
            if await office.inspection.end_session(client_id) or known:
                return
            if not await kick(office, client_id, end=True):
                raise no_session(client_id)
            known = True
        except SessionConnected:
            known = await kick(office, client_id, end=True) or known
            await trio.sleep(0.05 * attempt)
    raise AdminError(CONFLICT, "still connected", f"client {client_id!r:.200} comes back again and again")
