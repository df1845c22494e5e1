"""API keys: listed, made, given new secrets, deleted; and what HTTP servers ask about credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import trio

from broker.admin.api import ADMIN, BAD_REQUEST, CONFLICT, NOT_FOUND, AdminError, Scope
from broker.admin.key_document import (
    ADMIN_KEY,
    LONGEST_SECRET,
    NAME_PATTERN,
    SHORTEST_SECRET,
    KeyDocument,
    fast_hash,
    new_secret,
    stored_hash,
    token_of,
    valid_name,
)
from broker.admin.keyring import FirstKey, Identity, Login
from broker.admin.operations import Nothing, internal, operation
from broker.log import get_logger
from cluster.registry import KEYS

if TYPE_CHECKING:
    from broker.admin.office import Office

KEYS_MAX = 1000

_log = get_logger("admin")

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description="What the key is called.")]
Chosen = Annotated[
    str,
    msgspec.Meta(
        min_length=SHORTEST_SECRET,
        max_length=LONGEST_SECRET,
        description="The secret; without one it is generated, which is safer and answers faster.",
    ),
]
Seconds = Annotated[
    float, msgspec.Meta(ge=1, le=315_360_000, description="After so many seconds the key counts no more.")
]


class Key(msgspec.Struct, kw_only=True):
    """A key without its secret. `expires_at_ms` null: never. `fixed` says that the settings of the node hold the
    secret: it can be neither deleted nor changed here."""

    name: str
    scope: Scope
    created_at_ms: int
    expires_at_ms: int | None
    generated: bool
    fixed: bool


class Keys(msgspec.Struct):
    """All of them, by name."""

    items: list[Key]


class NewKey(msgspec.Struct, kw_only=True):
    """A key with its secret, which cannot be seen again. `token` is for `Authorization: Bearer`."""

    name: str
    scope: Scope
    secret: str
    token: str
    expires_at_ms: int | None


class CreateKey(msgspec.Struct, kw_only=True):
    """What is to be made."""

    name: Name
    scope: Scope
    secret: Chosen | None = None
    expires_in_s: Seconds | None = None


class NamedKey(msgspec.Struct, frozen=True):
    """Which key."""

    name: str


class RotateKey(msgspec.Struct, kw_only=True):
    """Which key, and what is new. Without `expires_in_s` it ends when it would have ended; one that expired
    needs it."""

    name: str
    secret: Chosen | None = None
    expires_in_s: Seconds | None = None


@operation("keys.list", ADMIN, "GET", "/keys", "List the API keys", Nothing, Keys)
async def list_keys(office: Office, arguments: Nothing) -> Keys:
    """All keys of the cluster, without their secrets."""
    documents = await office.registry.documents(KEYS)
    return Keys([_shown(office, name, raw) for name, raw in sorted(documents.items()) if _read(raw) is not None])


@operation("keys.create", ADMIN, "POST", "/keys", "Make an API key", CreateKey, NewKey, status=201)
async def create_key(office: Office, arguments: CreateKey) -> NewKey:
    """Make a key; its secret is in the answer and nowhere else. 409 if there is one of this name that counts."""
    name = arguments.name
    if not valid_name(name):
        raise AdminError(BAD_REQUEST, "invalid arguments", "a name has letters, digits, dots and dashes")
    if name == ADMIN_KEY and (arguments.scope != ADMIN or arguments.expires_in_s is not None):
        raise AdminError(
            BAD_REQUEST, "invalid arguments", f"{ADMIN_KEY} is a key of the scope admin that does not expire"
        )
    if len(await office.registry.documents(KEYS)) >= KEYS_MAX:
        raise AdminError(CONFLICT, "too many keys", f"there may be {KEYS_MAX}")
    secret, made = await _secret(arguments.secret)
    document = KeyDocument(scope=arguments.scope, hash=made, created=office.keys.now_s)
    _limit(office, document, arguments.expires_in_s)
    if not await _create(office, name, document):
        raise AdminError(CONFLICT, "there is one", f"there is a key {name!r} already")
    office.keys.forget(KEYS, name)
    return _new(name, document, secret)


@operation("keys.rotate", ADMIN, "POST", "/keys/{name}/rotate", "Give an API key a new secret", RotateKey, NewKey)
async def rotate_key(office: Office, arguments: RotateKey) -> NewKey:
    """The old secret counts no more within two seconds, and logins of the key end. 409 for a key that expired, unless
    there is a new end."""
    name = arguments.name
    document = await _existing(office, name)
    if name == ADMIN_KEY and arguments.expires_in_s is not None:
        raise AdminError(BAD_REQUEST, "invalid arguments", f"{ADMIN_KEY} does not expire")
    if arguments.expires_in_s is None and document.is_over(office.keys.now_s):
        raise AdminError(
            CONFLICT, "it expired", f"{name!r:.80} counts no more: say with expires_in_s when it is to end"
        )
    if arguments.expires_in_s is not None and document.lasts():
        await _check_not_last(office, name)
    secret, document.hash = await _secret(arguments.secret)
    _limit(office, document, arguments.expires_in_s)
    await office.registry.change(KEYS, {name: document.write()})
    office.keys.forget(KEYS, name)
    return _new(name, document, secret)


@operation("keys.delete", ADMIN, "DELETE", "/keys/{name}", "Delete an API key", NamedKey, Nothing)
async def delete_key(office: Office, arguments: NamedKey) -> None:
    """The key counts no more within two seconds, and its logins end. The last key of the scope admin stays (409)."""
    document = await _existing(office, arguments.name)
    if document.lasts():
        await _check_not_last(office, arguments.name)
    await office.registry.change(KEYS, {arguments.name: None})
    office.keys.forget(KEYS, arguments.name)


async def _create(office: Office, name: str, document: KeyDocument) -> bool:
    """Whether there was none of this name that counts."""
    written = document.write()
    if await office.registry.create(KEYS, name, written):
        return True
    raw = await office.registry.document(KEYS, name)
    found = None if raw is None else _read(raw)
    if raw is None or found is None or not found.is_over(office.keys.now_s):
        return False
    await office.registry.remove(KEYS, {name: raw})
    return await office.registry.create(KEYS, name, written)


async def _existing(office: Office, name: str) -> KeyDocument:
    """A key that may be changed here."""
    if name == ADMIN_KEY and office.keys.admin_is_set:
        raise AdminError(CONFLICT, "the settings say what it is", f"{ADMIN_KEY} has the secret of admin_secret")
    raw = await office.registry.document(KEYS, name)
    document = None if raw is None else _read(raw)
    if document is None:
        raise AdminError(NOT_FOUND, "no such key", f"there is no key {name!r:.80}")
    return document


async def _check_not_last(office: Office, name: str) -> None:
    # Two nodes that delete two keys at the same instant may both see another one; `rookery ctl keys` makes a new one.
    others = {other: _read(raw) for other, raw in (await office.registry.documents(KEYS)).items() if other != name}
    if not any(document is not None and document.lasts() for document in others.values()):
        raise AdminError(CONFLICT, "the last one", f"{name!r} is the last key of the scope admin that does not expire")


async def _secret(chosen: str | None) -> tuple[str, str]:
    """The secret and its hash."""
    if chosen is None:
        secret = new_secret()
        return secret, fast_hash(secret)
    if "\0" in chosen:
        raise AdminError(BAD_REQUEST, "invalid arguments", "a secret has no NUL in it")
    try:
        return chosen, await trio.to_thread.run_sync(stored_hash, chosen)
    except ValueError as error:  # UnicodeEncodeError is one
        raise AdminError(BAD_REQUEST, "invalid arguments", f"the secret cannot be used: {error}") from None


def _limit(office: Office, document: KeyDocument, expires_in_s: float | None) -> None:
    if expires_in_s is not None:
        document.expires = office.keys.now_s + expires_in_s


def _new(name: str, document: KeyDocument, secret: str) -> NewKey:
    return NewKey(
        name=name,
        scope=document.scope,
        secret=secret,
        token=token_of(name, secret),
        expires_at_ms=_ms(document.expires),
    )


def _shown(office: Office, name: str, raw: bytes) -> Key:
    document = KeyDocument.read(raw)
    return Key(
        name=name,
        scope=document.scope,
        created_at_ms=int(document.created * 1000),
        expires_at_ms=_ms(document.expires),
        generated=document.generated,
        fixed=name == ADMIN_KEY and office.keys.admin_is_set,
    )


def _ms(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s * 1000)


def _read(raw: bytes) -> KeyDocument | None:
    try:
        return KeyDocument.read(raw)
    except ValueError:
        return None


# -- what HTTP servers ask


class Credential(msgspec.Struct, frozen=True):
    """A name and a secret, and where they came from."""

    name: str
    secret: str
    origin: str = ""


class Token(msgspec.Struct, frozen=True):
    """The one of a login."""

    token: str


@internal("auth.identify", Credential, Identity)
async def _identify(office: Office, arguments: Credential) -> Identity:
    return await office.keys.identify(arguments.name, arguments.secret, arguments.origin)


@internal("auth.open", Credential, Login)
async def _open(office: Office, arguments: Credential) -> Login:
    await office.keys.identify(arguments.name, arguments.secret, arguments.origin)
    login = await office.keys.open(arguments.name)
    _log.info("admin.login", by=login.name, ip=arguments.origin)
    return login


@internal("auth.whose", Token, Identity)
async def _whose(office: Office, arguments: Token) -> Identity:
    return await office.keys.whose(arguments.token)


@internal("auth.close", Token, Nothing)
async def _close(office: Office, arguments: Token) -> None:
    await office.keys.close(arguments.token)


@internal("auth.begin", Nothing, Any)
async def _begin(office: Office, arguments: Nothing) -> FirstKey | None:
    return await office.keys.begin()


@internal("auth.tidy", Nothing, Nothing)
async def _tidy(office: Office, arguments: Nothing) -> None:
    await office.keys.tidy()
