"""Making users: which names they may have, and what is kept of their passwords. For the command line and the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.auth import hashes, scram
from broker.auth.stored_users import UserDocument
from broker.auth.users import canonical
from broker.errors import ConfigError

#: Ways to hash a password; the first where nobody chooses.
HASHES: Final = ("sha512-pbkdf2", "argon2id", "scram-sha-256", "scram-sha-512")


def usable_name(user: str) -> str:
    """The spelling of a user's name that is kept; ValueError for one that cannot be."""
    name = canonical(user)
    if not name or name != name.strip() or name.startswith("#") or not name.isprintable():
        raise ValueError(
            f"user name {user!r:.60}: empty, longer than {scram.MAX_SECRET_BYTES} bytes, begins with #, begins or ends "
            "with a space, or has characters that do not print"
        )
    return name


def hashed(
    password: str,
    kind: str | None = None,
    with_scram: bool = False,
    iterations: int | None = None,
    had: Sequence[str] = (),
) -> list[str]:
    """The hash and verifiers of a password; `had`: methods that the user has verifiers for. Takes a while.

    Without `kind`, somebody who had nothing but verifiers gets a hash in addition. ValueError, ConfigError."""
    scram_iterations = max(iterations or scram.DEFAULT_ITERATIONS, scram.MIN_ITERATIONS)
    methods = dict.fromkeys(had)
    made: list[str] = []
    match kind or HASHES[0]:
        case "sha512-pbkdf2":
            made.append(hashes.make_pbkdf2(password, iterations or hashes.DEFAULT_ITERATIONS))
        case "argon2id":
            made.append(hashes.make_argon2id(password))
        case method:
            methods = {method.upper(): None}
    if with_scram:
        methods = dict.fromkeys(scram.MECHANISMS)
    for method in methods:
        mechanism = scram.MECHANISMS[method]
        made.append(scram.make_verifier(password, scram_iterations, mechanism=mechanism))
    return made


def give_password(document: UserDocument, made: Sequence[str]) -> None:
    """What `hashed` made becomes the user's."""
    document.scram = [text for text in made if text.startswith("SCRAM-")]
    document.password = next((text for text in made if not text.startswith("SCRAM-")), "")


def scram_methods(document: UserDocument) -> list[str]:
    """The methods that the user has verifiers for."""
    return [text.partition("$")[0] for text in document.scram]


def kind_of(password: str) -> str | None:
    """What a hash is, without what could be guessed with."""
    if not password:
        return None
    try:
        return hashes.parse_hash(password).kind
    except (ValueError, ConfigError):
        return "unreadable"
