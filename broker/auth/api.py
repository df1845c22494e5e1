"""What the connection knows about authentication: exchanges, password checks and the registry of both.

Everything here refuses with `PeerError` and nothing else:

- 0x86 bad user name or password (CONNECT with a user name that does not check out)
- 0x87 not authorized (no user name where one is needed; an enhanced authentication that failed)
- 0x8C bad authentication method (not known here)

The texts of these errors may reach the client: they are the same for an unknown user and for a wrong password.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from broker.errors import PeerError

ANONYMOUS: Final = ""
"""The one identity of all clients that nobody checked; no mechanism may hand it out for a user."""


class Step:
    """One answer of an exchange: the Authentication Data to send, and the identity once `done`.

    Not done: send AUTH 0x18 with `data`. Done: CONNACK (or AUTH 0x00 after a re-authentication) carries `data`.
    """

    __slots__ = ("data", "done", "identity")

    def __init__(self, data: bytes, done: bool, identity: str | None) -> None:
        self.data = data
        self.done = done
        self.identity = identity

    def __repr__(self) -> str:
        return f"Step({len(self.data)} bytes, done={self.done}, identity={self.identity!r})"


class Exchange(Protocol):
    """One enhanced authentication of one client; after a failure or the end every further step fails."""

    async def step(self, data: bytes) -> Step:
        """Take the client's next Authentication Data; PeerError 0x87 if it does not authenticate."""
        ...


class EnhancedAuthenticator(Protocol):
    """One Authentication Method of MQTT 5."""

    @property
    def method(self) -> str:
        """The Authentication Method, as clients name it in CONNECT."""
        ...

    def begin(self, client_id: str, username: str | None) -> Exchange:
        """Start an exchange; with a `username` only that user may come out of it."""
        ...


class PasswordAuthenticator(Protocol):
    """Checks the User Name and Password of CONNECT."""

    async def authenticate(self, username: str, password: bytes) -> str:
        """Return the identity of the user, never ANONYMOUS; PeerError 0x86 otherwise, after the same work."""
        ...


class Authenticators:
    """All ways to become an identity on this node."""

    __slots__ = ("_allow_anonymous", "_enhanced", "_password")

    def __init__(
        self,
        allow_anonymous: bool,
        password: PasswordAuthenticator | None = None,
        enhanced: Iterable[EnhancedAuthenticator] = (),
    ) -> None:
        self._allow_anonymous = allow_anonymous
        self._password = password
        self._enhanced = {authenticator.method: authenticator for authenticator in enhanced}

    @property
    def methods(self) -> tuple[str, ...]:
        """The Authentication Methods that `begin` accepts."""
        return tuple(self._enhanced)

    def begin(self, method: str, client_id: str, username: str | None) -> Exchange:
        """Start an enhanced authentication; PeerError 0x8C if the method is not known.

        `username` is the User Name of CONNECT, if any. For a re-authentication pass the identity of the
        connection instead, so that it cannot become somebody else half way.
        """
        authenticator = self._enhanced.get(method)
        if authenticator is None:  # [MQTT-4.12.0-1]
            raise PeerError(0x8C, f"unknown authentication method {method!r:.60}")
        return authenticator.begin(client_id, username)

    async def authenticate(self, username: str | None, password: bytes | None) -> str:
        """Return the identity behind a CONNECT without an Authentication Method, or raise PeerError 0x86 or 0x87.

        Without a user name (a lone password proves nothing) `allow_anonymous` decides. With one it is checked; where
        nothing is configured to check it, it is nobody's: ANONYMOUS if allowed, and never the claimed name.
        """
        if username is not None and self._password is not None:
            return await self._password.authenticate(username, password or b"")
        if self._allow_anonymous:
            return ANONYMOUS
        if username is None:
            raise PeerError(0x87, "a user name is needed here")
        raise PeerError(0x86, "bad user name or password")
