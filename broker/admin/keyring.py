"""Who may ask for what: API keys and logins of the whole cluster, as one node checks them.

A key that was deleted counts for `FRESH_S` more. While the store cannot be reached, or does not answer in time, keys
and logins that were seen lately go on counting, at once: operators need to see most when something is broken.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import trio

from broker.admin.api import FORBIDDEN, UNAUTHORIZED, UNAVAILABLE, AdminError, Scope
from broker.admin.guesses import Guesses
from broker.admin.key_document import (
    ADMIN_KEY,
    KeyDocument,
    fast_hash,
    looks_generated,
    new_secret,
    stored_hash,
)
from broker.auth.checking import Busy, Checks
from broker.auth.hashes import PasswordHash, credential_of, default_decoy, parse_hash
from broker.config import Settings, first_line
from broker.errors import ClusterError, ConfigError, StoreUnavailable
from broker.log import get_logger
from cluster.registry import KEYS, LOGINS, Registry

#: How long a document that was read counts without asking the store.
FRESH_S: Final = 1.0
#: How long a right answer about a secret that was chosen counts without hashing it again.
REMEMBERED_S: Final = 60.0
#: How long it counts while others guess at the same key from the same address.
KNOWN_S: Final = 3600.0
#: How long what was read goes on counting while the store cannot be reached.
STALE_S: Final = 600.0
#: How long the store may take where there is something that goes on counting; then, for how long it is not asked.
PATIENCE_S: Final = 0.5
PAUSE_S: Final = 1.0
#: Logins of all keys.
LOGINS_MAX: Final = 1000
#: Of each memory below.
_KEPT: Final = 2000

_log = get_logger("admin")


class Identity(msgspec.Struct, frozen=True):
    """Somebody who proved who he is: the name of the key, its scope, and until when (seconds since the epoch). `csrf`
    is set for logins."""

    name: str
    scope: Scope
    expires: float | None = None
    csrf: str | None = None


class Login(msgspec.Struct, frozen=True):
    """A new one. `token` goes into a cookie, `csrf` into a header of each request that changes something."""

    token: str
    csrf: str
    name: str
    scope: Scope
    expires: float


class FirstKey(msgspec.Struct, frozen=True):
    """What the nodes had to make: shown once."""

    name: str
    secret: str


class _LoginDocument(msgspec.Struct, kw_only=True):
    """`of` is a digest of the hash of the key: a login ends when the secret of its key changes."""

    key: str
    of: str
    expires: float
    version: int = 1


class KeyRing:
    """Of one life of a node. `now_ms` is the store's clock."""

    def __init__(self, registry: Registry, settings: Settings, now_ms: Callable[[], int]) -> None:
        self._registry = registry
        self._now_ms = now_ms
        self._admin_secret = admin_secret(settings)
        self._login_s = settings.http_login_s
        self._checks = Checks(threads=1, waiting=16)
        self._decoy = default_decoy()
        self._documents: dict[tuple[str, str], tuple[float, bytes]] = {}
        #: When it was found right.
        self._right: dict[bytes, float] = {}
        #: Secrets that are being checked.
        self._checking: dict[bytes, trio.Event] = {}
        self._guesses = Guesses(registry)
        #: While the store does not answer: when it is asked again for what is known.
        self._ask_again: float | None = None
        #: The document of `admin` that is known to have the secret of the settings.
        self._taken = b""
        self._taking = trio.Lock()

    @property
    def now_s(self) -> float:
        """By the store's clock, since the epoch."""
        return self._now_ms() / 1000

    @property
    def admin_is_set(self) -> bool:
        """Whether the settings say what the secret of `admin` is."""
        return bool(self._admin_secret)

    # -- keys

    async def identify(self, name: str, secret: str, origin: str) -> Identity:
        """Whoever has the secret of a key; `origin` is where he asks from. Raises AdminError (401, 429, 503) and
        ClusterError. A wrong secret, a name that does not exist and a key that expired look the same."""
        is_set = name == ADMIN_KEY and self.admin_is_set
        document, raw = (None, b"") if is_set else await self._key(name)
        if looks_generated(secret):
            return self._identify_generated(name, secret, document)
        digest = credential_of(name.encode(), secret.encode(), raw)
        while (under_way := self._checking.get(digest)) is not None:
            await under_way.wait()  # who asks for many things at once tries one secret once
        if not self._was_right(digest, REMEMBERED_S):
            checked = self._checking[digest] = trio.Event()
            try:
                await self._try(name, secret, document, digest, origin)
            finally:
                del self._checking[digest]
                checked.set()
        if document is None:
            if is_set:
                return Identity(name, "admin")
            raise unauthorized()
        return Identity(name, document.scope, document.expires)

    async def _try(self, name: str, secret: str, document: KeyDocument | None, digest: bytes, origin: str) -> None:
        """Returns if the secret is right. Raises AdminError (401, 429, 503)."""
        try:
            await self._guesses.begin(name, origin)
        except AdminError:
            if self._was_right(digest, KNOWN_S):
                return
            raise
        if name == ADMIN_KEY and self.admin_is_set:
            right = self._is_set(secret)
            if not right:
                await self._check(self._decoy, secret)
        else:
            right = await self._check(self._slow_hash(name, document), secret) and document is not None
        if not right:
            await self._guesses.failed(origin)
            raise unauthorized()
        _keep(self._right, digest, trio.current_time())

    def _was_right(self, digest: bytes, within_s: float) -> bool:
        """A digest is of the document as well: where the key is another one, nothing was right."""
        at = self._right.get(digest)
        return at is not None and trio.current_time() - at < within_s

    def _identify_generated(self, name: str, secret: str, document: KeyDocument | None) -> Identity:
        """Nobody guesses these, so wrong ones are not counted: a forgotten client with an old key locks nobody out."""
        if name == ADMIN_KEY and self.admin_is_set:
            if self._is_set(secret):
                return Identity(name, "admin")
        elif document is not None and document.is_generated_secret(secret):
            return Identity(name, document.scope, document.expires)
        raise unauthorized()

    def _is_set(self, secret: str) -> bool:
        given, wanted = (hashlib.sha256(text.encode()).digest() for text in (secret, self._admin_secret))
        return bool(self._admin_secret) and hmac.compare_digest(given, wanted)

    def _slow_hash(self, name: str, document: KeyDocument | None) -> PasswordHash:
        if document is None or document.generated:
            return self._decoy
        try:
            return parse_hash(document.hash)
        except (ValueError, ConfigError):
            _log.warning("admin.key_unreadable", name=name)
            return self._decoy

    async def _check(self, found: PasswordHash, secret: str) -> bool:
        try:
            return await self._checks.check(found, secret.encode())
        except Busy:
            raise AdminError(UNAVAILABLE, "too many secrets are checked", "try again in some seconds") from None

    async def _key(self, name: str) -> tuple[KeyDocument | None, bytes]:
        """The key of this name, None if there is none that counts; and its document."""
        raw = await self._document(KEYS, name)
        if raw is None:
            return None, b""
        try:
            document = KeyDocument.read(raw)
        except ValueError as error:
            _log.warning("admin.key_unreadable", name=name, error=str(error)[:200])
            return None, b""
        return (None, b"") if document.is_over(self.now_s) else (document, raw)

    async def _document(self, kind: str, name: str) -> bytes | None:
        now = trio.current_time()
        known = self._documents.get((kind, name))
        if known is not None and now - known[0] < FRESH_S:
            return known[1]
        if known is None or now - known[0] >= STALE_S:
            raw = await self._registry.document(kind, name)
        else:
            try:
                raw = await self._asked_in_time(kind, name)
            except ClusterError:
                return known[1]
        if raw is None:
            self._documents.pop((kind, name), None)
        else:
            _keep(self._documents, (kind, name), (now, raw))
        return raw

    async def _asked_in_time(self, kind: str, name: str) -> bytes | None:
        """Raises StoreUnavailable where the store does not answer soon, and at once where it lately did not."""
        now = trio.current_time()
        if self._ask_again is not None:
            if now < self._ask_again:
                raise StoreUnavailable("the store does not answer")
            self._ask_again = now + PAUSE_S  # one waits, the others do not
        with trio.move_on_after(PATIENCE_S):
            raw = await self._registry.document(kind, name)
            self._ask_again = None
            return raw
        self._ask_again = trio.current_time() + PAUSE_S
        raise StoreUnavailable("the store does not answer")

    def forget(self, kind: str, name: str) -> None:
        """A document was changed here."""
        self._documents.pop((kind, name), None)

    # -- logins

    async def open(self, name: str) -> Login:
        """A login for a key whose secret was checked. Raises AdminError, ClusterError."""
        if name == ADMIN_KEY and self.admin_is_set:
            await self._take_setting()  # perhaps nobody had the time yet
        document, _ = await self._key(name)
        if document is None:
            raise unauthorized()
        await self._make_room()
        token = secrets.token_hex(32)
        expires = self.now_s + self._login_s
        if document.expires is not None:
            expires = min(expires, document.expires)
        login = _LoginDocument(key=name, of=_digest(document.hash), expires=expires)
        await self._registry.change(LOGINS, {_digest(token): msgspec.json.encode(login)})
        return Login(token, _csrf(token), name, document.scope, expires)

    async def whose(self, token: str) -> Identity:
        """Whose login this is. Raises AdminError (401), ClusterError."""
        raw = await self._document(LOGINS, _digest(token))
        login = _read_login(raw)
        if login is None or login.expires <= self.now_s:
            raise unauthorized()
        document, _ = await self._key(login.key)
        if document is None or not hmac.compare_digest(_digest(document.hash), login.of):
            raise unauthorized()
        return Identity(login.key, document.scope, login.expires, _csrf(token))

    async def close(self, token: str) -> None:
        """The end of a login. Idempotent. Raises ClusterError."""
        await self._registry.change(LOGINS, {_digest(token): None})
        self.forget(LOGINS, _digest(token))

    async def tidy(self) -> None:
        """Remove logins that expired. Raises ClusterError."""
        logins = await self._registry.documents(LOGINS)
        over = {name: raw for name, raw in logins.items() if _expiry(raw) <= self.now_s}
        if over:
            await self._registry.remove(LOGINS, over)

    async def _make_room(self) -> None:
        """Who logs in without end loses the logins that end first."""
        logins = await self._registry.documents(LOGINS)
        if len(logins) >= LOGINS_MAX:
            first = sorted(logins, key=lambda name: _expiry(logins[name]))[: len(logins) - LOGINS_MAX + 1]
            await self._registry.remove(LOGINS, {name: logins[name] for name in first})

    # -- the first key

    async def begin(self) -> FirstKey | None:
        """See that there is a way in: the key `admin` with the secret of the settings, or else, where there is no key
        of the scope admin, one with a secret that is made now. Raises ClusterError."""
        if self._admin_secret:
            await self._take_setting()
            return None
        keys = await self._registry.documents(KEYS)
        if any(_is_admin(raw) for raw in keys.values()):
            return None
        secret = new_secret()
        document = KeyDocument(scope="admin", hash=fast_hash(secret), created=self.now_s)
        if not await self._registry.create(KEYS, ADMIN_KEY, document.write()):
            return None  # another node was first
        _log.warning("admin.first_key", name=ADMIN_KEY)
        return FirstKey(ADMIN_KEY, secret)

    async def _take_setting(self) -> None:
        async with self._taking:  # logins are bound to the hash, and two would make two
            await self._write_setting()

    async def _write_setting(self) -> None:
        raw = await self._registry.document(KEYS, ADMIN_KEY)
        if raw is not None and raw == self._taken:
            return
        if raw is not None:
            try:
                known = KeyDocument.read(raw)
                same = known.lasts() and await self._is_hash_of_setting(known)
            except (ValueError, ConfigError):
                same = False
            if same:
                self._taken = raw
                return
        made = await trio.to_thread.run_sync(stored_hash, self._admin_secret)
        document = KeyDocument(scope="admin", hash=made, created=self.now_s)
        written = document.write()
        if raw is not None:
            await self._registry.change(KEYS, {ADMIN_KEY: written})
        elif not await self._registry.create(KEYS, ADMIN_KEY, written):
            await self._write_setting()  # another node was first, and has perhaps the same secret
            return
        self._taken = written
        self.forget(KEYS, ADMIN_KEY)

    async def _is_hash_of_setting(self, known: KeyDocument) -> bool:
        if known.generated:
            return known.is_generated_secret(self._admin_secret)
        return await self._check(parse_hash(known.hash), self._admin_secret)


def admin_secret(settings: Settings) -> str:
    """The one of the settings, "" for none. Raises ConfigError if its file cannot be read."""
    path = settings.admin_secret_file
    return settings.admin_secret if path is None else _secret_of(path)


def unauthorized() -> AdminError:
    """Nobody we know."""
    return AdminError(UNAUTHORIZED, "not authenticated", "give an API key or log in")


def wrong_csrf() -> AdminError:
    """A request of a login that a page of somebody else's may have sent."""
    return AdminError(FORBIDDEN, "no proof of origin", "requests with a cookie need the header X-CSRF-Token")


def _secret_of(path: Path) -> str:
    try:
        secret = first_line(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"admin_secret_file = {str(path)!r}: cannot read it: {error}") from None
    if len(secret) < 8:
        raise ConfigError(f"admin_secret_file = {str(path)!r}: its first line must have at least 8 characters")
    return secret


def _is_admin(raw: bytes) -> bool:
    try:
        return KeyDocument.read(raw).lasts()
    except ValueError:
        return False


def _read_login(raw: bytes | None) -> _LoginDocument | None:
    try:
        return None if raw is None else msgspec.json.decode(raw, type=_LoginDocument)
    except msgspec.DecodeError:
        return None


def _expiry(raw: bytes) -> float:
    login = _read_login(raw)
    return 0.0 if login is None else login.expires


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _csrf(token: str) -> str:
    """Follows from the token, and the token cannot be had from it."""
    return hmac.new(token.encode(), b"csrf", "sha256").hexdigest()


K = TypeVar("K")
V = TypeVar("V")


def _keep(memory: dict[K, V], key: K, value: V) -> None:
    """What was kept longest goes first."""
    memory.pop(key, None)
    if len(memory) >= _KEPT:
        del memory[next(iter(memory))]
    memory[key] = value
