"""`rookery ctl users`: users in the cluster's store, for the authenticator `store`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from broker.cli.documents import Opened, documents, store_options
from broker.cli.passwords import asked_password, checked_name, hashed, password_options
from cluster.registry import USERS

if TYPE_CHECKING:
    from broker.auth.stored_users import UserDocument


@click.group()
def users() -> None:
    """Users in the cluster's store, for the authenticator `store`.

    Changes count on every node within about a second: clients of a user that was removed, disabled, or has a new
    password are disconnected.
    """


_superuser = click.option("--superuser/--no-superuser", default=None, help="May do everything, whatever the rules say.")
_attributes = click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    help="A client attribute; empty: it goes. Repeatable.",
)
_name = click.argument("name")


@users.command()
@store_options
@_attributes
@_superuser
@password_options
@_name
def add(
    name: str,
    kind: str | None,
    scram: bool,
    from_stdin: bool,
    iterations: int | None,
    superuser: bool | None,
    attributes: tuple[str, ...],
    **store: object,
) -> None:
    """Make a user."""
    from broker.auth.accounts import give_password

    name = checked_name(name)
    with documents(store) as opened:
        if opened.document(USERS, name) is not None:
            raise click.ClickException(f"there is a user {name!r} already")
        document = _new()
        _give_attributes(document, attributes)
        document.superuser = bool(superuser)
        give_password(document, hashed(asked_password(name, from_stdin), kind, scram, iterations))
        opened.change(USERS, {name: document.write()})


@users.command()
@store_options
@password_options
@_name
def passwd(name: str, kind: str | None, scram: bool, from_stdin: bool, iterations: int | None, **store: object) -> None:
    """Give a user another password."""
    from broker.auth.accounts import give_password, scram_methods

    name = checked_name(name)
    with documents(store) as opened:
        document = _existing(opened, name)
        had = scram_methods(document)
        give_password(document, hashed(asked_password(name, from_stdin), kind, scram, iterations, had))
        opened.change(USERS, {name: document.write()})


@users.command()
@store_options
@_attributes
@_superuser
@_name
def change(name: str, superuser: bool | None, attributes: tuple[str, ...], **store: object) -> None:
    """Change what a user is."""
    name = checked_name(name)
    with documents(store) as opened:
        document = _existing(opened, name)
        _give_attributes(document, attributes)
        if superuser is not None:
            document.superuser = superuser
        opened.change(USERS, {name: document.write()})


@users.command()
@store_options
@_name
def remove(name: str, **store: object) -> None:
    """Remove a user."""
    name = checked_name(name)
    with documents(store) as opened:
        if opened.document(USERS, name) is None:
            raise click.ClickException(f"there is no user {name!r}")
        opened.change(USERS, {name: None})


@users.command()
@store_options
@_name
def disable(name: str, **store: object) -> None:
    """Let a user in no more, until `enable`."""
    _set_disabled(name, True, store)


@users.command()
@store_options
@_name
def enable(name: str, **store: object) -> None:
    """Let a user in again."""
    _set_disabled(name, False, store)


@users.command("list")
@store_options
def list_users(**store: object) -> None:
    """Print the names of all users, and what they are."""
    with documents(store) as opened:
        for name, raw in sorted(opened.documents(USERS).items()):
            print(user_line(name, raw))


@users.command()
@store_options
@_name
def show(name: str, **store: object) -> None:
    """Print what is known of a user, without the hashes."""
    from broker.auth.accounts import kind_of, scram_methods

    name = checked_name(name)
    with documents(store) as opened:
        document = _existing(opened, name)
    known = {
        "name": name,
        "password": kind_of(document.password),
        "scram": scram_methods(document),
        "superuser": document.superuser,
        "disabled": document.disabled,
        "attributes": document.attributes,
    }
    print(json.dumps(known, indent=2, ensure_ascii=False))


def user_line(name: str, raw: bytes) -> str:
    """What `list` prints."""
    return " ".join([name if name.isprintable() else repr(name), *_marks(raw)])


def _marks(raw: bytes) -> list[str]:
    from broker.auth.stored_users import UserDocument

    try:
        document = UserDocument.read(raw)
    except ValueError:
        return ["unreadable"]
    return [word for word in ("superuser", "disabled") if getattr(document, word)]


def _new() -> UserDocument:
    from broker.auth.stored_users import UserDocument

    return UserDocument()


def _existing(opened: Opened, name: str) -> UserDocument:
    from broker.auth.stored_users import UserDocument

    raw = opened.document(USERS, name)
    if raw is None:
        raise click.ClickException(f"there is no user {name!r}")
    try:
        return UserDocument.read(raw)
    except ValueError as error:
        raise click.ClickException(f"the document of {name!r} cannot be read: {error}; remove it") from None


def _give_attributes(document: UserDocument, attributes: tuple[str, ...]) -> None:
    for pair in attributes:
        name, found, value = pair.partition("=")
        if not found or not name.isidentifier() or not name.isascii():
            raise click.UsageError(f"--attribute {pair!r:.60}: write NAME=VALUE")
        if value:
            document.attributes[name] = value
        else:
            document.attributes.pop(name, None)


def _set_disabled(name: str, disabled: bool, store: dict[str, object]) -> None:
    name = checked_name(name)
    with documents(store) as opened:
        document = _existing(opened, name)
        document.disabled = disabled
        opened.change(USERS, {name: document.write()})
