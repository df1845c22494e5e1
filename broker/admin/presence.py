"""Clients of the whole cluster that come and go, as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import msgspec

from broker.admin.api import BAD_REQUEST, VIEWER, AdminError
from broker.admin.inside import Watching
from broker.admin.operations import events
from broker.admin.paging import Text
from broker.extensions.presence import escaped

if TYPE_CHECKING:
    from broker.admin.office import Office


class WatchClients(msgspec.Struct, frozen=True, kw_only=True):
    """Which clients; empty: all."""

    client_id: Annotated[Text, msgspec.Meta(description="Only this client.")] = ""
    username: Annotated[Text, msgspec.Meta(description="Only clients with this proved user name.")] = ""
    node: Annotated[Text, msgspec.Meta(description="Only clients of this node.")] = ""


class ClientEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A client came (`event` is `connected`) or went (`disconnected`). `epoch` grows with every connection of a client
    id, whichever node it is to. Times are milliseconds since the epoch."""

    event: str
    clientid: str
    node: str
    epoch: int
    username: str | None = None
    ipaddress: str = ""
    port: int = 0
    protocol: str = ""
    proto_ver: int = 0
    listener: str = ""
    connected_at: int | None = None
    keepalive: int | None = None
    clean_start: bool | None = None
    session_present: bool | None = None
    expiry_interval: int | None = None
    disconnected_at: int | None = None
    reason: str | None = None
    reason_code: int | None = None


@events("events.clients", VIEWER, "/events/clients", "Watch clients come and go", WatchClients, ClientEvent)
@asynccontextmanager
async def watch_clients(office: Office, arguments: WatchClients) -> AsyncIterator[AsyncIterator[ClientEvent]]:
    """One event for each CONNACK and for each end of a connection, on any node, from now on. Events of a client come in
    their order; whoever reads too slowly loses some."""
    if any(letter in arguments.node for letter in "/+#\0"):
        raise AdminError(BAD_REQUEST, "invalid arguments", f"there is no node {arguments.node!r}")
    client = escaped(arguments.client_id) if arguments.client_id else "+"
    topic_filter = f"$SYS/brokers/{arguments.node or '+'}/clients/{client}/+"
    async with office.inside.subscription(topic_filter) as watching, aclosing(_told(watching, arguments)) as told:
        yield told


async def _told(watching: Watching, wanted: WatchClients) -> AsyncGenerator[ClientEvent]:
    async for message in watching:
        told = msgspec.json.decode(message.payload, type=dict)
        event = message.topic.rpartition(b"/")[2].decode()
        found = msgspec.convert({**told, "event": event}, ClientEvent)
        if wanted.client_id in ("", found.clientid) and wanted.username in ("", found.username):
            yield found
