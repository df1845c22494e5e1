"""The port to whoever keeps clients out: bans, and limits on connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from broker.auth.api import ConnectRequest, Principal
from broker.errors import PeerError
from broker.options.listener import Listener
from broker.transport.api import Stream

if TYPE_CHECKING:
    from broker.connection import Connection


class Guard(Protocol):
    """Asked in this order: `accepts`, `screen`, then `failed` or `admit`; and `left` of all that were accepted."""

    def accepts(self, stream: Stream, listener: Listener) -> str | None:
        """A network connection: None, or why it is closed without a word (a reason in the metrics)."""
        ...

    async def screen(self, request: ConnectRequest) -> None:
        """A CONNECT, before it is authenticated. Raises PeerError."""

    def screens(self, request: ConnectRequest) -> bool:
        """Whether it is known at once that `screen` has nothing against it."""
        ...

    async def failed(self, request: ConnectRequest, error: PeerError) -> None:
        """It was not authenticated."""

    async def admit(self, connection: Connection) -> None:
        """It was: `connection.principal`, `client_id` and `listener` are set. Raises PeerError."""

    def admits(self, connection: Connection) -> bool:
        """As `admit` where nothing has to be awaited, refused, or given back; False: nothing was done."""
        ...

    def left(self, connection: Connection) -> None:
        """A connection that was accepted has ended; once more if that was while `admit` was under way."""

    def store_available(self) -> None:
        """The store can be reached again."""

    def ban_of(self, principal: Principal) -> str | None:
        """Why a client that is connected may not stay, for its reason string; without I/O."""
        ...


class NoGuard:
    """Everybody is welcome."""

    def accepts(self, stream: Stream, listener: Listener) -> str | None:
        return None

    async def screen(self, request: ConnectRequest) -> None: ...

    def screens(self, request: ConnectRequest) -> bool:
        return True

    async def failed(self, request: ConnectRequest, error: PeerError) -> None: ...

    async def admit(self, connection: Connection) -> None: ...

    def admits(self, connection: Connection) -> bool:
        return True

    def left(self, connection: Connection) -> None: ...

    def store_available(self) -> None: ...

    def ban_of(self, principal: Principal) -> str | None:
        return None
