"""Clients: connected ones of all nodes, and those whose sessions wait for them."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio

from broker.admin.api import BAD_REQUEST, CALLER, NOT_FOUND, OPERATOR, VIEWER, AdminError
from broker.admin.inside import PRIVATE
from broker.admin.operations import Nothing, Page, operation
from broker.admin.paging import (
    LIMIT,
    PAGE_BYTES,
    PART_BYTES,
    Cursor,
    Key,
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
from broker.codec.packets import V5, V31, V311
from broker.limits.bans import CLIENT_ID, Ban, address_of
from broker.peer import network_of
from broker.session.machine import OPEN
from cluster.inspection import LIST_LIMIT, SessionState
from cluster.registry import BANS

if TYPE_CHECKING:
    from broker.admin.office import Office
    from broker.connection import Connection

#: Stored sessions that are looked at for one part of a list; it may come out short.
SCANNED_MAX: Final = 5 * LIST_LIMIT

#: How many are read at a time: client ids may be as long as 64 KiB.
SESSIONS_FIRST: Final = 32
SESSIONS_MAX: Final = 250

#: How long a client may take to be gone after it was disconnected.
GONE_S: Final = 1.5

VERSIONS: Final = {V31: "3.1", V311: "3.1.1", V5: "5"}


class ClientFilter(msgspec.Struct, kw_only=True):
    """Which clients; all that is given must hold. `prefix`: the client id begins so; `contains`: this is somewhere in
    it. `ip` is an address or a network. `username`, `ip`, `listener`, `protocol_version` (3.1, 3.1.1, 5) and
    `transport` (tcp, tls, ws, wss, unix) are known of connected clients only."""

    client_id: Annotated[Text, msgspec.Meta(description="This client id.")] = ""
    prefix: Annotated[Text, msgspec.Meta(description="Client ids that begin so.")] = ""
    contains: Annotated[Text, msgspec.Meta(description="Client ids with this in them.")] = ""
    username: Annotated[Text, msgspec.Meta(description="This user name (connected clients only).")] = ""
    ip: Annotated[str, msgspec.Meta(max_length=64, description="This address or network (connected clients only).")] = (
        ""
    )
    node: Annotated[Text, msgspec.Meta(description="Connected to this node.")] = ""
    listener: Annotated[Text, msgspec.Meta(description="Name or URL of the listener (connected clients only).")] = ""
    protocol_version: Annotated[
        str, msgspec.Meta(max_length=5, description="3.1, 3.1.1 or 5 (connected clients only).")
    ] = ""
    transport: Annotated[
        str, msgspec.Meta(max_length=5, description="tcp, tls, ws, wss or unix (connected clients only).")
    ] = ""
    connected: Annotated[bool | None, msgspec.Meta(description="Whether they are connected.")] = None
    limit: Limit = LIMIT
    cursor: Cursor = ""


class ClientItem(msgspec.Struct, kw_only=True):
    """A client; of one that is not connected the session only. Times are milliseconds since the epoch, `queued` and
    `in_flight` messages to the client, `output_bytes` what waits because the client does not take it."""

    client_id: str
    connected: bool
    node: str = ""
    persistent: bool = True
    session_expiry_s: int = 0
    session_expires_at_ms: int | None = None
    username: str | None = None
    ip: str | None = None
    port: int | None = None
    listener: str | None = None
    transport: str | None = None
    protocol_version: str | None = None
    keep_alive_s: int | None = None
    clean_start: bool | None = None
    connected_at_ms: int | None = None
    last_activity_at_ms: int | None = None
    subscriptions: int = 0
    in_flight: int = 0
    queued: int = 0
    output_bytes: int | None = None


class Client(ClientItem, kw_only=True):
    """Everything that is known of a client. What begins with `stored_` is of the session in the store; `missing_nodes`
    did not answer: what only they know of a connection is null."""

    authenticator: str | None = None
    superuser: bool | None = None
    attributes: dict[str, str] = {}
    certificate_common_name: str | None = None
    certificate_subject: str | None = None
    mountpoint: str | None = None
    receive_maximum: int | None = None
    maximum_packet_size: int | None = None
    has_will: bool | None = None
    credentials_expire_at_ms: int | None = None
    stored_queued: int | None = None
    stored_queued_bytes: int | None = None
    stored_oldest_ms: int | None = None
    stored_in_flight: int | None = None
    created_at_ms: int | None = None
    missing_nodes: list[str] = []


class NamedClient(msgspec.Struct, frozen=True):
    """Which client."""

    client_id: Annotated[Text, msgspec.Meta(description="The client id.")]


class Kick(msgspec.Struct, frozen=True, kw_only=True):
    """Which client, and whether it stays away: for `ban_s` seconds (0: it may come back at once)."""

    client_id: Annotated[Text, msgspec.Meta(description="The client id.")]
    ban_s: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=100 * 365 * 86400, description="Ban it for so many seconds; 0: it may come back at once."
        ),
    ] = 0.0
    reason: Annotated[str, msgspec.Meta(max_length=200, description="Why it is banned, for those who list bans.")] = ""


# -- what a node knows


def _shown(office: Office, connection: Connection) -> dict[str, Any]:
    server = office.server
    session, subscriber, agreement = connection.session, connection.subscriber, connection.agreement
    principal = connection.principal
    peer = connection.stream.peer
    now_ms, now = server.now_ms, server.reactor.now
    behind = max(0, session.newest_seq - session.sent_seq) if session is not None and session.behind else 0
    return {
        "client_id": connection.client_id,
        "connected": True,
        "node": office.name,
        "persistent": connection.persistent(),
        "session_expiry_s": connection.expiry_s,
        "username": None if principal is None else principal.username,
        "ip": peer.host or None,
        "port": peer.port or None,
        "listener": connection.listener.name,
        "transport": connection.listener.scheme,
        "protocol_version": VERSIONS.get(connection.version),
        "keep_alive_s": connection.keep_alive_s,
        "clean_start": None if agreement is None else agreement.clean_start,
        "connected_at_ms": connection.connected_at_ms or None,
        "last_activity_at_ms": now_ms - round(1000 * max(0.0, now - connection.last_received)),
        "subscriptions": 0 if subscriber is None else len(subscriber.subscriptions),
        "in_flight": 0 if session is None else len(session.inflight),
        "queued": 0 if session is None else session.waiting() + behind,
        "output_bytes": connection.stream.pending_bytes(),
    }


def _more(connection: Connection) -> dict[str, Any]:
    principal, agreement = connection.principal, connection.agreement
    certificate = connection.stream.peer.certificate
    found: dict[str, Any] = {
        "certificate_common_name": None if certificate is None else certificate.common_name,
        "certificate_subject": None if certificate is None else certificate.subject,
        "mountpoint": None if connection.mount is None else connection.mount.text,
        "has_will": connection.has_will,
    }
    if principal is not None:
        found["authenticator"] = principal.authenticator
        found["superuser"] = principal.superuser
        found["attributes"] = dict(principal.attributes)
        if principal.expires_at_s is not None:
            found["credentials_expire_at_ms"] = round(1000 * principal.expires_at_s)
    if agreement is not None:
        found["receive_maximum"] = agreement.receive_maximum
        found["maximum_packet_size"] = agreement.max_packet_size or None
    return found


def connected_here(office: Office, client_id: str) -> Connection | None:
    """The open connection of a client, if it is here."""
    connection = office.server.clients.get(client_id)
    return connection if connection is not None and connection.machine.state == OPEN else None


def _wanted(filters: ClientFilter) -> Callable[[Connection], bool]:
    """Whether a connection passes; raises AdminError (400) for an address that is none."""
    network = _network(filters.ip) if filters.ip else None

    def passes(connection: Connection) -> bool:
        client_id = connection.client_id
        if connection.machine.state != OPEN or client_id.startswith(PRIVATE):
            return False
        if not client_id.startswith(filters.prefix) or filters.contains not in client_id:
            return False
        if filters.client_id and client_id != filters.client_id:
            return False
        if filters.username and (connection.principal is None or connection.principal.username != filters.username):
            return False
        listener = connection.listener
        if filters.listener and filters.listener not in (listener.name, listener.url):
            return False
        if filters.transport and listener.scheme != filters.transport:
            return False
        if filters.protocol_version and VERSIONS.get(connection.version) != filters.protocol_version:
            return False
        if network is not None:
            address = address_of(connection.stream.peer.host)
            return address is not None and address in network
        return True

    return passes


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return network_of(text.strip())
    except ValueError as error:
        raise AdminError(BAD_REQUEST, "invalid arguments", f"ip: {error}") from None


@question("clients.page", looks=True)
async def _page(office: Office, arguments: dict[str, Any]) -> dict[str, object]:
    """A part of the clients that are connected here."""
    filters = msgspec.convert(arguments["filters"], ClientFilter)
    passes = _wanted(filters)
    found: Smallest[Connection] = Smallest(filters.limit + 1, key_of(filters.cursor))
    if filters.client_id:
        one = office.server.clients.get(filters.client_id)
        everybody = [] if one is None else [one]
    else:
        everybody = list(office.server.clients.values())
    async for portion in portions(everybody):
        for connection in portion:
            key = (connection.client_id,)
            if found.wants(key) and passes(connection):
                found.put(key, connection)
    part = found.part()
    items: list[tuple[Key, dict[str, Any]]] = []
    async for each in portions(part.items):
        items += [(key, _shown(office, connection)) for key, connection in each if connection.machine.state == OPEN]
    return packed(await cut(Part(items, part.until), arguments["most_bytes"]))


@question("clients.show")
def _show(office: Office, arguments: dict[str, Any]) -> dict[str, Any] | None:
    connection = connected_here(office, arguments["client_id"])
    return None if connection is None else {**_shown(office, connection), **_more(connection)}


@question("clients.kick")
async def _kick(office: Office, arguments: dict[str, Any]) -> bool:
    """Disconnect a client; with `end` its session ends too. Returns when its session was let go, or after a while."""
    connection = connected_here(office, arguments["client_id"])
    if connection is None:
        return False
    if connection.finished is None:
        connection.finished = trio.Event()
    finished = connection.finished
    if arguments["end"]:
        connection.expiry_s = 0
    connection.disconnect(0x98, "disconnected by an operator")
    office.server.reactor.wake()
    with trio.move_on_after(GONE_S):
        await finished.wait()
    return True


# -- of the whole cluster


async def kick(office: Office, client_id: str, end: bool = False) -> bool:
    """Disconnect a client, wherever it is; False: it is connected nowhere. `end` ends its session, too."""
    arguments = {"client_id": client_id, "end": end}
    state = await office.inspection.session(client_id)
    if state is not None and state.node and await office.at(state.node, "clients.kick", arguments):
        return True
    answers = await office.everywhere("clients.kick", arguments)
    return any(answers.by_node.values())


async def stored_part(
    office: Office,
    passes: Callable[[SessionState], bool],
    after: Key | None,
    limit: int,
    prefix: str,
) -> Part[SessionState]:
    """Persistent sessions by client id, as far as the store was looked through for this part."""
    found: list[tuple[Key, SessionState]] = []
    last = "" if after is None else after[0]
    scanned = size = 0
    count = SESSIONS_FIRST
    while len(found) <= limit and scanned < SCANNED_MAX and size < PAGE_BYTES:
        async with office.reading.turn():
            sessions = await office.inspection.sessions(last, min(count, limit + 1), prefix)
        if not sessions:
            return Part(found, None)
        scanned += len(sessions)
        read = sum(len(state.client_id) for state in sessions)
        size += read
        count = max(SESSIONS_FIRST // 4, min(4 * count, PART_BYTES * len(sessions) // (read + 1), SESSIONS_MAX))
        last = sessions[-1].client_id
        found += [((state.client_id,), state) for state in sessions if passes(state)]
    return Part(found, (last,))


def from_state(state: SessionState) -> ClientItem:
    """What the store knows of a client."""
    return ClientItem(
        client_id=state.client_id,
        connected=state.connected,
        node=state.node,
        persistent=state.expiry_s > 0,
        session_expiry_s=state.expiry_s,
        session_expires_at_ms=state.expires_at_ms or None,
        subscriptions=state.subscriptions,
        in_flight=state.in_flight,
        queued=state.queued,
    )


@operation("clients.list", VIEWER, "GET", "/clients", "List clients", ClientFilter, Page[ClientItem])
async def list_clients(office: Office, arguments: ClientFilter) -> Page[ClientItem]:
    """Connected clients of all nodes, and clients that have a session and are not connected, by client id. A part may
    have less items than asked for without being the last: `cursor` tells."""
    filters = arguments
    _wanted(filters)
    if filters.client_id:
        filters = msgspec.structs.replace(filters, prefix=filters.client_id)
    after = key_of(filters.cursor)
    parts: list[Part[ClientItem]] = []
    missing: list[str] = []
    if filters.connected is not False:
        nodes = [filters.node] if filters.node else None
        asked = {"filters": msgspec.to_builtins(filters), "most_bytes": office.part_bytes()}
        answers = await office.everywhere("clients.page", asked, nodes)
        parts += [unpacked(told, ClientItem) for told in answers.by_node.values()]
        missing = answers.missing
    live = filters.username or filters.ip or filters.listener or filters.protocol_version or filters.transport
    if filters.connected is not True and not live and not filters.node:

        def passes(state: SessionState) -> bool:
            if filters.client_id and state.client_id != filters.client_id:
                return False
            if filters.connected is False and state.connected:
                return False
            return filters.contains in state.client_id

        stored = await stored_part(office, passes, after, filters.limit, filters.prefix)
        parts.append(Part([(key, from_state(state)) for key, state in stored.items], stored.until))
    items, until = merged(parts, filters.limit)
    return Page(items=items, cursor=cursor_of(until), missing_nodes=missing)


@operation("clients.show", VIEWER, "GET", "/clients/{client_id}", "Show a client", NamedClient, Client)
async def show_client(office: Office, arguments: NamedClient) -> Client:
    """Everything that is known of a client, connected or not. Where its node does not answer, it is what the store
    knows."""
    client_id = arguments.client_id
    state = await office.inspection.session(client_id)
    told = None
    missing: list[str] = []
    if state is None or state.node:
        nodes = None if state is None else [state.node]
        answers = await office.everywhere("clients.show", {"client_id": client_id}, nodes)
        told = next((each for each in answers.by_node.values() if each is not None), None)
        missing = answers.missing
    if told is not None:
        client = msgspec.convert(told, Client)
    elif state is not None:
        client = Client(**msgspec.structs.asdict(from_state(state)))
    else:
        raise no_client(client_id)
    if state is not None and state.expiry_s:
        client.stored_queued, client.stored_queued_bytes = state.queued, state.queued_bytes
        client.stored_oldest_ms, client.stored_in_flight = state.oldest_ms, state.in_flight
        client.created_at_ms = state.created_ms or None
        client.session_expires_at_ms = state.expires_at_ms or None
    if told is None:
        client.missing_nodes = missing
    return client


def no_client(client_id: str) -> AdminError:
    """There is neither a connection nor a session."""
    return AdminError(NOT_FOUND, "no such client", f"there is no client {client_id!r:.200}")


@operation("clients.kick", OPERATOR, "DELETE", "/clients/{client_id}", "Disconnect a client", Kick, Nothing)
async def kick_client(office: Office, arguments: Kick) -> None:
    """Disconnects a client (reason code 0x98); its session stays for as long as its expiry says, and its will is
    published. With `ban_s` it is banned before that. 404: it is not connected."""
    client_id = arguments.client_id
    if arguments.ban_s:
        until_s = round(time.time() + arguments.ban_s, 3)
        ban = Ban(CLIENT_ID, client_id, until_s, arguments.reason, CALLER.get().name)
        await office.registry.change(BANS, {ban.name: ban.document()})
    if not await kick(office, client_id):
        detail = f"client {client_id!r:.200} is not connected" + ("; it is banned now" if arguments.ban_s else "")
        raise AdminError(NOT_FOUND, "not connected", detail)
