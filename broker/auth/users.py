"""Users with passwords, wherever they are kept: one authenticator over anything that finds a user by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import trio

from broker.auth import scram
from broker.auth.api import (
    ALLOW,
    DENIED,
    IGNORED,
    NO_ATTRIBUTES,
    ConnectRequest,
    EnhancedAuthenticator,
    Verdict,
)
from broker.auth.base import BaseAuthenticator
from broker.auth.checking import check
from broker.auth.decoys import DecoySecret, Models
from broker.auth.hashes import PasswordHash, credential_of, of_verifier, parse_hash
from broker.auth.scram import MECHANISMS, Mechanism, Scram, Verifier
from cluster.registry import Registry

_TRUE = frozenset(("1", "true", "t", "yes", "y", "on"))


class Entry:
    """What is known of one user. `username` is the name as the directory spells it, None: as it was asked for.

    `credential` changes with all that lets the user in or says what the user may do."""

    __slots__ = ("attributes", "credential", "disabled", "password", "superuser", "username", "verifiers")

    def __init__(
        self,
        password: PasswordHash | None,
        verifiers: Sequence[Verifier] = (),
        *,
        username: str | None = None,
        superuser: bool = False,
        disabled: bool = False,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
    ) -> None:
        self.verifiers = tuple(verifiers)
        self.password = password
        if password is None and self.verifiers:
            self.password = of_verifier(self.verifiers[0])
        self.username = username
        self.superuser = superuser
        self.disabled = disabled
        self.attributes = attributes
        self.credential = credential_of(
            b"" if password is None else password.credential,
            *(str(verifier).encode() for verifier in self.verifiers),
            b"%d%d" % (superuser, disabled),
            *(f"{name}={attributes[name]}".encode() for name in sorted(attributes)),
        )

    def verdict(self, username: str) -> Verdict:
        """For who has proved to be this user."""
        return Verdict(
            ALLOW,
            self.username if self.username is not None else username,
            superuser=self.superuser,
            attributes=self.attributes,
            credential=self.credential,
        )


class Directory(Protocol):
    """Where users are kept."""

    async def find(self, request: ConnectRequest, username: str) -> Entry | None:
        """The user of this name, None if there is none. Raises BackendError."""
        ...


class DirectoryAuthenticator(BaseAuthenticator):
    """User name and password, and SCRAM, over a directory that is asked for each client.

    Unknown users are left to the next authenticator, wrong passwords are not; both cost the same.
    """

    def __init__(
        self, name: str, directory: Directory, registry: Registry | None = None, algorithm: str = "auto"
    ) -> None:
        super().__init__(name)
        self._directory = directory
        self._secret = DecoySecret(registry)
        self._models = Models(algorithm)

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        username = request.username
        if not username:
            return IGNORED
        entry = await self._directory.find(request, username)
        decoy = self._models.password(self._secret.value, username)  # for known names too: the same work
        found = decoy if entry is None or entry.password is None or entry.disabled else entry.password
        right = await check(found, request.password or b"")
        if entry is None:
            return IGNORED
        self._seen(entry)
        return entry.verdict(username) if right and not entry.disabled else DENIED

    async def spend(self, request: ConnectRequest) -> None:
        """What an unknown user costs, without asking anybody: see `Chain`."""
        if request.username:
            await check(self._models.password(self._secret.value, request.username), request.password or b"")

    async def verifier(self, request: ConnectRequest, username: str, mechanism: Mechanism) -> tuple[Verifier, Verdict]:
        """See `scram.Verifiers`."""
        entry = await self._directory.find(_named(request, username), username)
        decoy = self._models.verifier(self._secret.value, username, mechanism)
        if entry is None:
            return decoy, DENIED
        self._seen(entry)
        of_mechanism = [each for each in entry.verifiers if each.mechanism is mechanism]
        if not of_mechanism or entry.disabled:
            return decoy, DENIED
        verdict = entry.verdict(username)
        verdict.authenticator = self.name
        return of_mechanism[0], verdict

    def _seen(self, entry: Entry) -> None:
        """Decoys look like the user seen last; directories that know all their users look through them instead."""
        self._models.seen(entry.password, entry.verifiers)

    def exchanges(self) -> Mapping[str, EnhancedAuthenticator]:
        """See `Authenticator`."""
        return {method: Scram(mechanism, (self,)) for method, mechanism in MECHANISMS.items()}

    async def refresh(self) -> None:
        """See `Base`."""
        await self._secret.load()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Authenticator`."""
        await self._secret.load()
        task_status.started()
        await trio.sleep_forever()


def entry_of(
    password_hash: str,
    salt: bytes = b"",
    superuser: object = None,
    *,
    verifiers: Sequence[str] = (),
    username: str | None = None,
    attributes: Mapping[str, str] = NO_ATTRIBUTES,
    algorithm: str = "auto",
    place: str = "prefix",
    iterations: int = 0,
) -> Entry:
    """A user as databases have them; ValueError says what is wrong without repeating any of it.

    `superuser` is true as databases tell it: a boolean, a number, or text such as 1 or true. A SCRAM verifier in
    `password_hash` serves for both ways."""
    parsed = [scram.parse_verifier(text) for text in verifiers]
    password = None
    if password_hash.startswith("SCRAM-"):
        parsed.insert(0, scram.parse_verifier(password_hash))
    elif password_hash:
        password = parse_hash(password_hash, algorithm, salt, place, iterations)
    if password is None and not parsed:
        raise ValueError("there is no password hash")
    return Entry(password, parsed, username=username, superuser=truth(superuser), attributes=attributes)


def truth(value: object) -> bool:
    """Whether a database says yes."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = bytes(value).decode("utf-8", "replace")
    if isinstance(value, str):
        return value.strip().lower() in _TRUE
    return value is not None and value != 0 and bool(value)


def canonical(username: str) -> str:
    """The one spelling of a name where names are ours to spell: after SASLprep, or as it is where that refuses it.

    Empty for what can be no user's name. Names that SASLprep refuses (newer scripts, emoji) cannot use SCRAM."""
    if len(username) > scram.MAX_SECRET_BYTES or len(username.encode("utf-8", "replace")) > scram.MAX_SECRET_BYTES:
        return ""
    try:
        return scram.saslprep(username)
    except ValueError:
        return username


def _named(request: ConnectRequest, username: str) -> ConnectRequest:
    """The request with the name of the exchange, which the User Name of CONNECT need not repeat."""
    return ConnectRequest(request.client_id, username, None, request.peer, request.version, request.user_properties)
