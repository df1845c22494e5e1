"""The user file: one `name:SCRAM-SHA-256$...` per line, for SCRAM and for plain user names and passwords alike.

`#` begins a comment line, blank lines are skipped. The name may contain colons; names are stored after SASLprep.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

import trio

from broker.auth.scram import (
    MAX_SECRET_BYTES,
    METHOD,
    Verifier,
    check_password,
    make_decoy,
    parse_verifier,
    saslprep,
)
from broker.errors import ConfigError, PeerError

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
CHECK_THREADS: Final = 2


class UserFile:
    """The users of one file, in memory; reads it when made (ConfigError) and again on `reload`.

    `secret` makes up the salts shown for users that do not exist. Nodes that share a user file should share it too:
    with a secret of its own each, an unknown name is the one whose salt differs from node to node.
    """

    __slots__ = ("_path", "_secret", "_users")

    def __init__(self, path: Path, secret: bytes | None = None) -> None:
        self._path = path
        self._secret = secrets.token_bytes(32) if secret is None else secret
        # One attribute, so that a reload in another thread replaces both at once: by name, and as models for decoys.
        self._users = _loaded(path)

    def __len__(self) -> int:
        return len(self._users[0])

    def reload(self) -> None:
        """Read the file again; on ConfigError, which names file and line, everything stays as it was.

        Blocks for the time of reading; may be called from a thread, as readers see the old users or the new ones.
        """
        self._users = _loaded(self._path)

    def lookup(self, username: str) -> Verifier:
        """Return the verifier of a user (name after SASLprep), a decoy if there is none."""
        verifiers, models = self._users
        decoy = make_decoy(self._secret, username, models)  # made for known names too: the same work
        return verifiers.get(username, decoy)


class UserFilePasswords:
    """Checks User Name and Password of CONNECT against the verifiers that SCRAM uses.

    The work (PBKDF2) runs in at most `limiter.total_tokens` threads, further checks wait; a check that has begun is
    finished even if its caller is cancelled.
    """

    __slots__ = ("_limiter", "_users")

    def __init__(self, users: UserFile, limiter: trio.CapacityLimiter | None = None) -> None:
        self._users = users
        self._limiter = trio.CapacityLimiter(CHECK_THREADS) if limiter is None else limiter

    async def authenticate(self, username: str, password: bytes) -> str:
        """Return the user's name after SASLprep; PeerError 0x86, after the same work, if anything is wrong."""
        name = _prepared(username)
        verifier = self._users.lookup(name)
        if not await trio.to_thread.run_sync(check_password, verifier, password, limiter=self._limiter):
            raise PeerError(0x86, "bad user name or password")
        return name


def _prepared(username: str) -> str:
    """The name to look up; what can be no user's name becomes one that no file contains."""
    try:
        if len(username.encode()) <= MAX_SECRET_BYTES:
            return saslprep(username)
    except ValueError:
        pass
    return ""


def _loaded(path: Path) -> tuple[dict[str, Verifier], tuple[Verifier, ...]]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"user file {str(path)!r}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"user file {str(path)!r}: more than {MAX_FILE_BYTES} bytes")
    users: dict[str, Verifier] = {}
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            name, verifier = _entry(line)
            if name in users:
                raise ValueError(f"user {name!r:.60} is there twice")
        except ValueError as error:
            # From None: the cause may hold the line, and with it somebody's password.
            raise ConfigError(f"user file {str(path)!r}, line {number}: {error}") from None
        users[name] = verifier
    return users, tuple(users.values())


def _entry(line: bytes) -> tuple[str, Verifier]:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    name, found, rest = text.rpartition(f":{METHOD}$")
    if not found:
        raise ValueError(f"not <user>:{METHOD}$<iterations>:<salt>$<stored key>:<server key>")
    if len(name.encode()) > MAX_SECRET_BYTES:
        raise ValueError(f"the user name has more than {MAX_SECRET_BYTES} bytes")
    try:
        prepared = saslprep(name)
    except ValueError as error:
        raise ValueError(f"user name {name!r:.60}: {error}") from None
    return prepared, parse_verifier(f"{METHOD}${rest}")
