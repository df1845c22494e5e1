"""`rookery ctl keys`: API keys in the cluster's store, for whoever has none that works (any more)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from broker.cli.documents import Opened, documents, store_options
from broker.cli.passwords import asked_password
from broker.values import Duration
from cluster.registry import KEYS

if TYPE_CHECKING:
    from broker.admin.key_document import KeyDocument

_SCOPES = ("viewer", "operator", "admin")


@click.group()
def keys() -> None:
    """API keys in the cluster's store: the way in for whoever has lost his.

    The store is changed directly, with the configuration of a node. Changes count on every node within two seconds.
    """


_name = click.argument("name")
_stdin = click.option("--stdin", "from_stdin", is_flag=True, help="Read the secret from standard input (one line).")
_ask = click.option("--ask", is_flag=True, help="Ask for the secret. Without this and --stdin one is made and printed.")
_expires = click.option("--expires", metavar="TIME", help="How long the key counts, such as 30d. [default: for ever]")


@keys.command()
@store_options
@_expires
@_stdin
@_ask
@click.option("--scope", type=click.Choice(_SCOPES), required=True, help="What the key may do.")
@_name
def create(name: str, scope: str, ask: bool, from_stdin: bool, expires: str | None, **store: object) -> None:
    """Make a key. Without --ask and --stdin its token is printed."""
    from broker.admin.key_document import ADMIN_KEY, KeyDocument, valid_name

    if not valid_name(name):
        raise click.UsageError("a name has up to 64 letters, digits, dots and dashes")
    if name == ADMIN_KEY and (scope != "admin" or expires is not None):
        raise click.UsageError(f"{ADMIN_KEY} is a key of the scope admin that does not expire")
    now_s = time.time()
    until = now_s + _seconds(expires) if expires is not None else None
    with documents(store) as opened:
        if not _is_free(opened.document(KEYS, name)):
            raise click.ClickException(f"there is a key {name!r} already; rotate it, or delete it first")
        document = KeyDocument(scope=scope, hash="", created=now_s, expires=until)  # type: ignore[arg-type]
        _give_secret(opened, name, document, ask, from_stdin)


@keys.command()
@store_options
@_stdin
@_ask
@_name
def rotate(name: str, ask: bool, from_stdin: bool, **store: object) -> None:
    """Give a key a new secret; the old one counts no more, and logins of the key end."""
    with documents(store) as opened:
        document = _existing(opened, name)
        if document.is_over(time.time()):
            raise click.ClickException(f"{name!r} expired; create it anew")
        _give_secret(opened, name, document, ask, from_stdin)


@keys.command()
@store_options
@_name
def delete(name: str, **store: object) -> None:
    """Delete a key, be it the last one: nodes then make a new `admin` and show its secret once."""
    with documents(store) as opened:
        if opened.document(KEYS, name) is None:
            raise click.ClickException(f"there is no key {name!r}")
        opened.change(KEYS, {name: None})


@keys.command("list")
@store_options
def list_keys(**store: object) -> None:
    """Print names, scopes and ends of all keys."""
    with documents(store) as opened:
        for name, raw in sorted(opened.documents(KEYS).items()):
            print(key_line(name, raw))


def key_line(name: str, raw: bytes) -> str:
    """What `list` prints."""
    from broker.admin.key_document import KeyDocument

    shown = name if name.isprintable() else repr(name)
    try:
        document = KeyDocument.read(raw)
    except ValueError:
        return f"{shown} unreadable"
    until = ""
    if document.expires is not None:
        until = time.strftime(" until %Y-%m-%dT%H:%M:%SZ", time.gmtime(document.expires))
    return f"{shown} {document.scope}{until}{' expired' if document.is_over(time.time()) else ''}"


def _is_free(raw: bytes | None) -> bool:
    """Whether a name has no key, or one that expired."""
    from broker.admin.key_document import KeyDocument

    try:
        return raw is None or KeyDocument.read(raw).is_over(time.time())
    except ValueError:
        return False


def _existing(opened: Opened, name: str) -> KeyDocument:
    from broker.admin.key_document import KeyDocument

    raw = opened.document(KEYS, name)
    if raw is None:
        raise click.ClickException(f"there is no key {name!r}")
    try:
        return KeyDocument.read(raw)
    except ValueError as error:
        raise click.ClickException(f"the document of {name!r} cannot be read: {error}; delete it") from None


def _give_secret(opened: Opened, name: str, document: KeyDocument, ask: bool, from_stdin: bool) -> None:
    from broker.admin.key_document import LONGEST_SECRET, SHORTEST_SECRET, new_secret, stored_hash, token_of

    if ask or from_stdin:
        secret = asked_password(name, from_stdin)
        if not SHORTEST_SECRET <= len(secret) <= LONGEST_SECRET or not secret.isprintable():
            raise click.UsageError(f"a secret has {SHORTEST_SECRET} to {LONGEST_SECRET} characters that can be printed")
        document.hash = stored_hash(secret)
        opened.change(KEYS, {name: document.write()})
        return
    secret = new_secret()
    document.hash = stored_hash(secret)
    opened.change(KEYS, {name: document.write()})
    print(token_of(name, secret))


def _seconds(text: str) -> float:
    try:
        found = Duration().parse(text)
    except ValueError as error:
        raise click.UsageError(f"--expires {text!r}: {error}") from None
    if not 1 <= found <= 315_360_000:
        raise click.UsageError(f"--expires {text!r}: 1 second to 10 years")
    return found
