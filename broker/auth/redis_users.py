"""Users in a Redis of somebody else's making: one hash for each, as EMQX keeps them."""

from __future__ import annotations

from typing import Final

import trio

from broker.auth.api import BackendError, ConnectRequest
from broker.auth.redis_client import RedisClient
from broker.auth.template import Template, Unresolved, lookup_of
from broker.auth.users import DirectoryAuthenticator, Entry, entry_of
from broker.errors import ConfigError
from broker.log import get_logger
from broker.options.authentication import RedisUsers
from cluster.registry import Registry

_FIELDS: Final = (b"password_hash", b"salt", b"is_superuser", b"scram_sha_256", b"scram_sha_512")

_log = get_logger("authentication")


class RedisDirectory:
    """HMGET of the user's key. Values of placeholders are part of the key as they are: arguments, never commands."""

    def __init__(self, options: RedisUsers) -> None:
        self._options = options
        self._key = Template(options.key)
        self.names = frozenset(self._key.names)
        self.client = RedisClient(options.url, options.username, options.password, options.timeout_s, options.pool)

    async def find(self, request: ConnectRequest, username: str) -> Entry | None:
        """See `Directory`."""
        try:
            key = self._key.render(lookup_of(request)).encode()
        except Unresolved:
            return None
        try:
            reply = await self.client.call(b"HMGET", key, *_FIELDS)
        except BackendError as error:
            if "WRONGTYPE" in str(error):  # a key of something else: nobody's name
                return None
            raise
        if not isinstance(reply, list) or len(reply) != len(_FIELDS):
            raise BackendError(f"no answer to HMGET: {type(reply).__name__}")
        values = [value if isinstance(value, bytes) else b"" for value in reply]
        password_hash, salt, superuser, *verifiers = values
        if not password_hash and not any(verifiers):
            return None
        options = self._options
        try:
            return entry_of(
                password_hash.decode(),
                salt,
                superuser,
                verifiers=[text.decode() for text in verifiers if text],
                algorithm=options.algorithm,
                place=options.salt,
                iterations=options.iterations,
            )
        except (ValueError, ConfigError) as error:  # a UnicodeDecodeError is one
            said = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            _log.warning("authentication.user_unreadable", username=username, error=said)
            return Entry(None, disabled=True)


class RedisUserAccounts(DirectoryAuthenticator):
    """Implements `Authenticator`. What changes there is seen with the next CONNECT."""

    def __init__(self, options: RedisUsers, registry: Registry | None) -> None:
        try:
            self._users = RedisDirectory(options)
        except ValueError as error:
            raise ConfigError(f"authentication: {options.label}: {error}") from None
        super().__init__(options.label, self._users, registry, options.algorithm)
        self.cached = self._users.names - {"username"}

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Authenticator`."""
        try:
            await super().serve(task_status=task_status)
        finally:
            await self._users.client.aclose()
