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
from broker.auth.hashes import of_verifier, parse_hash
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
        users, _, stand_in = self._loaded
        name = canonical(username)
        texts = users.get(name)
        entry = _entry(name, texts or stand_in)  # for unknown names too: the same work
        return None if texts is None else entry

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


#: The hash and verifiers of a user, as they stand in the file: most are never asked for.
_Texts = tuple[str, ...]


def _entry(name: str, texts: _Texts) -> Entry:
    password = None
    verifiers: list[scram.Verifier] = []
    for text in texts:
        if text.startswith("SCRAM-"):
            verifiers.append(scram.parse_verifier(text))
        else:
            password = parse_hash(text)
    return Entry(password, verifiers, username=name)


def _loaded(path: Path) -> tuple[Mapping[str, _Texts], Models, _Texts]:
    """The users, what they look like, and the texts of one of them."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"user file {str(path)!r}: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"user file {str(path)!r}: more than {MAX_FILE_BYTES} bytes")
    users: dict[str, _Texts] = {}
    models = Models()
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        try:
            name, text = split_line(line)
            _add(users.setdefault(name, ()), text, models)
        except (ValueError, ConfigError) as error:
            said = f"user {name!r:.60} is there twice" if isinstance(error, _TwiceError) else error
            # From None: the cause may hold the line, and with it somebody's password.
            raise ConfigError(f"user file {str(path)!r}, line {number}: {said}") from None
        users[name] += (text,)
    return users, models, next(iter(users.values()), ())


class _TwiceError(ValueError):
    """A user has two lines of a kind."""


def _add(before: _Texts, text: str, models: Models) -> None:
    """Check one more line of a user, beside those `before`. Raises ValueError, ConfigError."""
    method = text.partition("$")[0] if text.startswith("SCRAM-") else ""
    if any((other.partition("$")[0] if other.startswith("SCRAM-") else "") == method for other in before):
        raise _TwiceError
    if method:
        verifier = scram.parse_verifier(text)
        # Passwords are checked against the first verifier of who has no hash.
        models.add(None if before else of_verifier(verifier), (verifier,))
    else:
        models.add(parse_hash(text), ())


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
