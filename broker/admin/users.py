"""Users in the cluster's store, for the authenticator `store`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import trio

from broker.admin.api import ADMIN, BAD_REQUEST, CONFLICT, NOT_FOUND, VIEWER, AdminError
from broker.admin.operations import Nothing, Page, operation
from broker.admin.paging import LIMIT, Cursor, Limit, Smallest, Text, cursor_of, key_of, portions
from broker.auth.accounts import give_password, hashed, kind_of, scram_methods, usable_name
from broker.auth.stored_users import UserDocument
from broker.errors import ConfigError
from cluster.registry import USERS

if TYPE_CHECKING:
    from broker.admin.office import Office

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
_Value = Annotated[str, msgspec.Meta(max_length=1000)]


class UserFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which users: those whose names begin so."""

    prefix: Annotated[Text, msgspec.Meta(description="Names that begin so.")] = ""
    limit: Limit = LIMIT
    cursor: Cursor = ""


class User(msgspec.Struct, kw_only=True):
    """A user. `password` is how the password is hashed, null: none; `scram` the methods that it works for. `readable`
    false: the document is broken or of a newer version, and nobody can be this user."""

    username: str
    password: str | None = None
    scram: list[str] = []
    superuser: bool = False
    disabled: bool = False
    attributes: dict[str, str] = {}
    readable: bool = True


class NamedUser(msgspec.Struct, frozen=True):
    """Which user."""

    username: Annotated[Text, msgspec.Meta(description="The user name.")]


class UserChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user is from now on; what is null stays as it is. A new user needs a password. `scram`: make verifiers for
    the SCRAM methods, too. `attributes` replace those that there were."""

    username: Annotated[Text, msgspec.Meta(description="The user name.")]
    password: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=1000)] | None, msgspec.Meta(description="A new password.")
    ] = None
    hash: Annotated[
        Literal["sha512-pbkdf2", "argon2id", "scram-sha-256", "scram-sha-512"] | None,
        msgspec.Meta(description="How the password is hashed."),
    ] = None
    scram: Annotated[bool, msgspec.Meta(description="Make verifiers for the SCRAM methods, too.")] = False
    superuser: Annotated[bool | None, msgspec.Meta(description="May do everything, whatever the rules say.")] = None
    disabled: Annotated[bool | None, msgspec.Meta(description="Is not let in.")] = None
    attributes: Annotated[
        Annotated[dict[_Name, _Value], msgspec.Meta(max_length=100)] | None,
        msgspec.Meta(description="Client attributes, in place of those that there were."),
    ] = None


def _user(name: str, raw: bytes) -> User:
    try:
        document = UserDocument.read(raw)
    except ValueError:
        return User(username=name, readable=False)
    return User(
        username=name,
        password=kind_of(document.password),
        scram=scram_methods(document),
        superuser=document.superuser,
        disabled=document.disabled,
        attributes=document.attributes,
    )


def _named(username: str) -> str:
    try:
        return usable_name(username)
    except ValueError as error:
        raise AdminError(BAD_REQUEST, "invalid user name", str(error)) from None


async def _document(office: Office, username: str) -> tuple[str, bytes]:
    name = _named(username)
    raw = await office.registry.document(USERS, name)
    if raw is None:
        raise AdminError(NOT_FOUND, "no such user", f"there is no user {name!r:.200} in the store")
    return name, raw


@operation("users.list", VIEWER, "GET", "/users", "List the users in the store", UserFilter, Page[User])
async def list_users(office: Office, arguments: UserFilter) -> Page[User]:
    """Users of the authenticator `store`, by name, without their hashes."""
    found: Smallest[bytes] = Smallest(arguments.limit, key_of(arguments.cursor))
    async for portion in portions(list((await office.registry.documents(USERS)).items())):
        for name, raw in portion:
            if name.startswith(arguments.prefix) and found.wants((name,)):
                found.put((name,), raw)
    part = found.part()
    return Page(items=[_user(key[0], raw) for key, raw in part.items], cursor=cursor_of(part.until))


@operation("users.show", VIEWER, "GET", "/users/{username}", "Show a user", NamedUser, User)
async def show_user(office: Office, arguments: NamedUser) -> User:
    """A user, without the hashes."""
    return _user(*await _document(office, arguments.username))


@operation("users.put", ADMIN, "PUT", "/users/{username}", "Make or change a user", UserChange, User)
async def put_user(office: Office, arguments: UserChange) -> User:
    """Makes a user, or changes one. Counts on every node within about a second: clients of a user with a new password,
    or one that is disabled, are disconnected."""
    name = _named(arguments.username)
    raw = await office.registry.document(USERS, name)
    if raw is None and arguments.password is None:
        raise AdminError(
            BAD_REQUEST, "invalid arguments", f"there is no user {name!r:.200}: a new one needs a password"
        )
    try:
        document = UserDocument() if raw is None else UserDocument.read(raw)
    except ValueError as error:
        raise AdminError(CONFLICT, "unreadable", f"the user's document cannot be read: {error}; delete it") from None
    for attribute in arguments.attributes or ():
        if not attribute.isidentifier() or not attribute.isascii():
            raise AdminError(BAD_REQUEST, "invalid arguments", f"attribute {attribute!r:.100}: not a name")
    if arguments.password is not None:
        make = partial(hashed, arguments.password, arguments.hash, arguments.scram, None, scram_methods(document))
        try:
            give_password(document, await trio.to_thread.run_sync(make))
        except (ValueError, ConfigError) as error:
            raise AdminError(422, "the password cannot be used", str(error)) from None
    if arguments.superuser is not None:
        document.superuser = arguments.superuser
    if arguments.disabled is not None:
        document.disabled = arguments.disabled
    if arguments.attributes is not None:
        document.attributes = arguments.attributes
    written = document.write()
    await office.registry.change(USERS, {name: written})
    return _user(name, written)


@operation("users.delete", ADMIN, "DELETE", "/users/{username}", "Remove a user", NamedUser, Nothing)
async def delete_user(office: Office, arguments: NamedUser) -> None:
    """Removes a user; its clients are disconnected within about a second."""
    name, _ = await _document(office, arguments.username)
    await office.registry.change(USERS, {name: None})
