"""Delayed messages: those that wait for their time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from broker.admin.api import BAD_REQUEST, NOT_FOUND, OPERATOR, AdminError
from broker.admin.operations import Nothing, Page, operation
from broker.admin.paging import Cursor, cursor_of, key_of
from broker.admin.payloads import Shown, shown
from broker.admin.reading import Reading
from cluster.inspection import DelayedMessage

if TYPE_CHECKING:
    from broker.admin.office import Office

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_WHOLE: Final = 1024 * 1024


class DelayedFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the list, and how much of each payload is shown."""

    max_payload_bytes: Annotated[int, msgspec.Meta(ge=0, le=4096, description="So much of each payload is shown.")] = (
        256
    )
    limit: Annotated[int, msgspec.Meta(ge=1, le=500, description="At most so many messages.")] = 100
    cursor: Cursor = ""


class NamedDelayed(msgspec.Struct, frozen=True):
    """Which message."""

    id: Annotated[_Id, msgspec.Meta(description="The id, from the list.")]


class Delayed(Shown, kw_only=True):
    """A message that is published to its topic at `due_at_ms` (epoch)."""

    id: str
    due_at_ms: int


def _shown(office: Office, found: DelayedMessage, limit: int) -> dict[str, Any]:
    return shown(found.message, office.server.now_ms, limit, id=found.delayed_id, due_at_ms=found.due_ms)


@operation("delayed.list", OPERATOR, "GET", "/delayed", "List delayed messages", DelayedFilter, Page[Delayed])
async def list_delayed(office: Office, arguments: DelayedFilter) -> Page[Delayed]:
    """Messages that were published to `$delayed/SECONDS/TOPIC`, by the time that they are due."""
    key = key_of(arguments.cursor)
    after = "" if key is None else key[0]
    reading: Reading[Delayed] = Reading(arguments.limit)
    while reading.going:
        try:
            async with office.reading.turn():
                found = await office.inspection.delayed(after, reading.count())
        except ValueError:
            raise AdminError(BAD_REQUEST, "invalid arguments", "the cursor is not one of this list") from None
        if not found:
            return Page(items=reading.items)
        reading.read([each.message for each in found])
        for each in found:
            if not reading.room:
                break
            reading.add(Delayed(**_shown(office, each, arguments.max_payload_bytes)))
            after = each.delayed_id
    return Page(items=reading.items, cursor=cursor_of((after,)))


@operation("delayed.show", OPERATOR, "GET", "/delayed/{id}", "Show a delayed message", NamedDelayed, Delayed)
async def show_delayed(office: Office, arguments: NamedDelayed) -> dict[str, Any]:
    """One of them."""
    try:
        async with office.reading.turn():
            found = await office.inspection.delayed_message(arguments.id)
    except ValueError:
        found = None
    if found is None:
        raise _none(arguments.id)
    return _shown(office, found, _WHOLE)


@operation("delayed.delete", OPERATOR, "DELETE", "/delayed/{id}", "Take a delayed message back", NamedDelayed, Nothing)
async def delete_delayed(office: Office, arguments: NamedDelayed) -> None:
    """It will not be published. 404: there is none of this id (any more)."""
    try:
        done = await office.inspection.cancel_delayed(arguments.id)
    except ValueError:
        done = False
    if not done:
        raise _none(arguments.id)


def _none(delayed_id: str) -> AdminError:
    return AdminError(NOT_FOUND, "no such message", f"there is no delayed message {delayed_id!r:.200}")
