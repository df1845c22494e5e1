"""Users of a file: `USER:HASH` in each line, as mosquitto_passwd and `rookery passwd` write it.

HASH is any that says its own kind (`broker.auth.hashes`). A user may have one line with a hash for user name and
password, and one more for each SCRAM mechanism; with SCRAM lines alone, passwords are checked against the first of
them. `#` begins a comment line, blank lines are skipped. Names have no colon before a hash of Mosquitto's; they are
compared after SASLprep where that takes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from broker.auth import scram
from broker.auth.api import ConnectRequest, Principal
from broker.auth.decoys import Models
from broker.auth.hashes import PasswordHash, parse_hash
from broker.auth.users import DirectoryAuthenticator, Entry, canonical
from broker.errors import ConfigError
from broker.options.authentication import PasswordFile
from cluster.registry import Registry

MAX_FILE_BYTES: Final = 64 * 1024 * 1024

#: Where a hash begins, the last time in a line: names may contain anything of this, hashes do not.
_HASH = re.compile(r":(?=\$|SCRAM-SHA-|pbkdf2_|PBKDF2\$|\{)")


class UserFile:
    """The users of one file, in memory; reads it when made (ConfigError) and again on `reload`."""

    __slots__ = ("_loaded", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        # One attribute, so that a reload in another thread replaces both at once.
        self._loaded = _loaded(path)

    def __len__(self) -> int:
        return len(self._loaded[0])

    @property
    def models(self) -> Models:
        """What its users look like."""
        return self._loaded[1]

    def reload(self) -> None:
        """Read the file again; on ConfigError, which names file and line, everything stays as it was.

        Blocks for the time of reading; may be called from a thread, as readers see the old users or the new ones.
        """
        self._loaded = _loaded(self.path)

    def get(self, username: str) -> Entry | None:
        """A user; the name in any spelling that means the same."""
        return self._loaded[0].get(canonical(username))

    async def find(self, request: ConnectRequest, username: str) -> Entry | None:
        """See `Directory`."""
        return self.get(username)


class PasswordFileUsers(DirectoryAuthenticator):
    """Implements `Authenticator`."""

    #: The decision depends on nothing but user name and password.
    cached: frozenset[str] | None = frozenset()

    def __init__(self, options: PasswordFile, registry: Registry | None = None) -> None:
        self._users = UserFile(options.path)
        super().__init__(options.label, self._users, registry)
        self._models = self._users.models

    def _seen(self, entry: Entry) -> None:
        pass  # the models are all users

    async def still_valid(self, principal: Principal) -> bool:
        """See `Authenticator`."""
        entry = self._users.get(principal.identity)
        return entry is not None and entry.credential == principal.credential

    def files(self) -> Sequence[Path]:
        """See `Base`."""
        return (self._users.path,)

    def reload(self) -> None:
        """See `Authenticator`."""
        self._users.reload()
        self._models = self._users.models


def _loaded(path: Path) -> tuple[Mapping[str, Entry], Models]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"user file {str(path)!r}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"user file {str(path)!r}: more than {MAX_FILE_BYTES} bytes")
    passwords: dict[str, PasswordHash] = {}
    verifiers: dict[str, dict[str, scram.Verifier]] = {}
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            name, text = split_line(line)
            of_user = verifiers.setdefault(name, {})
            if text.startswith("SCRAM-"):
                verifier = scram.parse_verifier(text)
                if of_user.setdefault(verifier.mechanism.method, verifier) is not verifier:
                    raise ValueError(f"user {name!r:.60} is there twice")
            else:
                parsed = parse_hash(text)
                if passwords.setdefault(name, parsed) is not parsed:
                    raise ValueError(f"user {name!r:.60} is there twice")
        except (ValueError, ConfigError) as error:
            # From None: the cause may hold the line, and with it somebody's password.
            raise ConfigError(f"user file {str(path)!r}, line {number}: {error}") from None
    models = Models()
    users: dict[str, Entry] = {}
    for name, of_user in verifiers.items():
        entry = users[name] = Entry(passwords.get(name), tuple(of_user.values()), username=name)
        models.add(entry.password, entry.verifiers)
    return users, models


def split_line(line: bytes) -> tuple[str, str]:
    """Name (as `canonical`) and hash of a line; ValueError says what is wrong without repeating any of the hash."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    places = list(_HASH.finditer(text))
    if not places or not places[-1].start():
        raise ValueError("not <user>:<hash>; `rookery passwd -U` hashes a file of plain passwords")
    found = places[-1]
    name, rest = text[: found.start()], text[found.end() :]
    if len(name.encode()) > scram.MAX_SECRET_BYTES:
        raise ValueError(f"the user name has more than {scram.MAX_SECRET_BYTES} bytes")
    if any(character in name for character in "\0\r\n"):
        raise ValueError(f"user name {name!r:.60}: control characters are not allowed")
    return canonical(name), rest
