"""Who is not let in, on any node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from broker.admin.api import BAD_REQUEST, CALLER, NOT_FOUND, OPERATOR, VIEWER, AdminError
from broker.admin.operations import Nothing, Page, operation
from broker.admin.paging import LIMIT, Cursor, Limit, Part, Smallest, Text, cursor_of, key_of, merged, portions
from broker.limits.bans import Ban, BanError, read_ban
from cluster.registry import BANS

if TYPE_CHECKING:
    from broker.admin.office import Office

Kind = Literal["client_id", "username", "client_id_prefix", "username_prefix", "ip"]

#: A hundred years.
_LONGEST_S: Final = 100 * 365 * 86400
#: The end of the year 9999: no date of anybody's comes after that.
_LAST_S: Final = 253_402_300_799


class BanFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which bans: of a kind, with values that begin so."""

    kind: Annotated[Kind | None, msgspec.Meta(description="Of this kind.")] = None
    prefix: Annotated[Text, msgspec.Meta(description="Values that begin so.")] = ""
    limit: Limit = LIMIT
    cursor: Cursor = ""


class BanItem(msgspec.Struct, kw_only=True):
    """A ban. `value` of `ip` is an address or a network. `until_at_ms` (epoch) null: for ever. `by`: whoever made it;
    `reason` is for those who list bans, clients are not told. `new_only`: those that are connected may stay."""

    kind: Kind
    value: str
    until_at_ms: int | None
    reason: str
    by: str
    new_only: bool


class NewBan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to ban, and how long: for `for_s` seconds, or until `until_at_ms` (epoch), or without both for ever."""

    kind: Annotated[Kind, msgspec.Meta(description="What is banned.")]
    value: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            max_length=65535,
            description="A client id, user name, address or network, or what it begins with.",
        ),
    ]
    for_s: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)] | None, msgspec.Meta(description="For so many seconds.")
    ] = None
    until_at_ms: Annotated[
        Annotated[int, msgspec.Meta(gt=0, le=253_402_300_799_000)] | None,
        msgspec.Meta(description="Until then, in milliseconds since the epoch."),
    ] = None
    reason: Annotated[str, msgspec.Meta(max_length=200, description="Why, for those who list bans.")] = ""
    new_only: Annotated[bool, msgspec.Meta(description="Whoever is connected may stay.")] = False


class NamedBan(msgspec.Struct, frozen=True):
    """Which ban."""

    kind: Annotated[Kind, msgspec.Meta(description="What is banned.")]
    value: Annotated[Text, msgspec.Meta(description="The value, as it is listed.")]


def _item(ban: Ban) -> BanItem:
    until_at_ms = None if ban.until_s is None else round(1000 * ban.until_s)
    return msgspec.convert(
        {
            "kind": ban.kind,
            "value": ban.value,
            "until_at_ms": until_at_ms,
            "reason": ban.reason,
            "by": ban.by,
            "new_only": ban.new_only,
        },
        BanItem,
    )


def _ban(kind: str, value: str) -> Ban:
    try:
        return Ban(kind, value)
    except BanError as error:
        raise AdminError(BAD_REQUEST, "invalid arguments", str(error)) from None


@operation("bans.list", VIEWER, "GET", "/bans", "List bans", BanFilter, Page[BanItem])
async def list_bans(office: Office, arguments: BanFilter) -> Page[BanItem]:
    """The bans that hold, by kind and value."""
    documents = list((await office.registry.documents(BANS)).items())
    found: Smallest[Ban] = Smallest(arguments.limit, key_of(arguments.cursor, 2))
    now_s = time.time()
    async for portion in portions(documents):
        for name, document in portion:
            kind, _, value = name.partition(":")
            if not found.wants((kind, value)) or not value.startswith(arguments.prefix):
                continue
            if arguments.kind is not None and kind != arguments.kind:
                continue
            try:
                ban = read_ban(name, document)
            except BanError:
                continue
            if ban.holds(now_s) and (ban.until_s is None or ban.until_s <= _LAST_S):
                found.put((kind, value), ban)
    part = found.part()
    items, until = merged([Part([(key, _item(ban)) for key, ban in part.items], part.until)], arguments.limit)
    return Page(items=items, cursor=cursor_of(until))


@operation("bans.add", OPERATOR, "POST", "/bans", "Ban clients", NewBan, BanItem, status=201)
async def add_ban(office: Office, arguments: NewBan) -> BanItem:
    """Bans clients; connected ones are disconnected within about a second, on every node. A ban of the same kind and
    value is replaced."""
    ban = _ban(arguments.kind, arguments.value)
    if arguments.for_s is not None and arguments.until_at_ms is not None:
        raise AdminError(BAD_REQUEST, "invalid arguments", "only one of for_s and until_at_ms is possible")
    if arguments.for_s is not None:
        ban.until_s = round(time.time() + arguments.for_s, 3)
    elif arguments.until_at_ms is not None:
        ban.until_s = arguments.until_at_ms / 1000
        if not ban.holds(time.time()):
            raise AdminError(BAD_REQUEST, "invalid arguments", "until_at_ms is over")
    ban.reason, ban.by, ban.new_only = arguments.reason, CALLER.get().name, arguments.new_only
    await office.registry.change(BANS, {ban.name: ban.document()})
    return _item(ban)


@operation("bans.remove", OPERATOR, "DELETE", "/bans/{kind}/{value:path}", "Let clients in again", NamedBan, Nothing)
async def remove_ban(office: Office, arguments: NamedBan) -> None:
    """Removes a ban; clients may come back within about a second."""
    if not arguments.value:
        raise AdminError(NOT_FOUND, "no such ban", "no value is named")
    name = _ban(arguments.kind, arguments.value).name
    if await office.registry.document(BANS, name) is None:
        raise AdminError(NOT_FOUND, "no such ban", f"there is no ban {name!r:.200}")
    await office.registry.change(BANS, {name: None})
