"""Clients that come and go too often, and those who guess passwords: counted on all nodes together, then banned.

- A client id whose connections end more often than `flapping_limit` in the window is banned. Only connections that had
  the session count: nobody can have the client id of somebody else banned by using it in vain.
- An address with more failed logins than `login_failures_limit` in the window is banned: for new connections, those
  that proved who they are may stay. An IPv6 client counts, and is banned, with its /64. Never by this: loopback, Unix
  sockets, and the proxies that listeners trust.
- A user name is never banned by this: else a stranger could lock out every user whose name is known. After as many
  failures for one name, from wherever, each further answer of "wrong password" takes its time; a right one does not.

Where the store cannot count, nothing is counted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

import trio

from broker.auth.users import canonical
from broker.errors import ClusterError
from broker.limits.bans import CLIENT_ID, IP, Ban, address_of
from broker.limits.places import origin_of
from broker.peer import network_of
from cluster.registry import Registry

if TYPE_CHECKING:
    from broker.config import Settings

FLAPPING: Final = "flapping"
LOGIN_FAILURES: Final = "login_failures"

#: Ends of connections that are nobody's fault at the other end: reasons of `Connection.close_reason`.
NOT_COUNTED: Final = frozenset(
    {"server_shutting_down", "server_unavailable", "server_busy", "use_another_server", "server_moved", "fenced"}
    | {"stopped", "administrative_action", "banned", "not_authorized", "maximum_connect_time"}
)
#: How long an answer to a wrong password takes at most where a name was tried too often, and how fast that grows.
SLOWEST_S: Final = 2.0
SLOWER_S: Final = 0.1
#: Answers that wait at a time; further ones do not.
MAX_WAITING: Final = 1000


class Attempts:
    """`ban` writes a ban, and counts as soon as it returns."""

    def __init__(
        self, registry: Registry, ban: Callable[[Ban], Awaitable[None]], now_s: Callable[[], float], settings: Settings
    ) -> None:
        self._registry = registry
        self._ban = ban
        self._now_s = now_s
        self._waiting = 0
        self.take_settings(settings)

    def take_settings(self, settings: Settings) -> None:
        """They changed."""
        self._flapping = (settings.flapping_limit, settings.flapping_window_s, settings.flapping_ban_s)
        self._failures = (
            settings.login_failures_limit,
            settings.login_failures_window_s,
            settings.login_failures_ban_s,
        )
        self._proxies = [network_of(text) for listener in settings.listen for text in listener.options.trusted_proxies]

    def counts_ends(self, close_reason: str) -> bool:
        """Whether `ended` has anything to do."""
        return bool(self._flapping[0]) and close_reason not in NOT_COUNTED

    async def ended(self, client_id: str) -> None:
        """A connection that had the session of this client id has ended."""
        limit, window_s, ban_s = self._flapping
        if await self._count(f"flapping:{client_id}", window_s) > limit:
            reason = f"more than {limit} connections within {window_s:g} s"
            await self._ban(Ban(CLIENT_ID, client_id, self._now_s() + ban_s, reason, FLAPPING))

    async def failed(self, host: str, username: str | None) -> None:
        """A login failed; returns when it may be answered."""
        limit, window_s, ban_s = self._failures
        if not limit:
            return
        origin = self._origin(host)
        if origin and await self._count(f"login-failures:ip:{origin}", window_s) > limit:
            reason = f"more than {limit} failed logins within {window_s:g} s"
            await self._ban(Ban(IP, origin, self._now_s() + ban_s, reason, LOGIN_FAILURES, new_only=True))
        elif username and self._waiting < MAX_WAITING:
            over = await self._count(f"login-failures:user:{_known_as(username)}", window_s) - limit
            if over > 0:
                self._waiting += 1
                try:
                    await trio.sleep(min(SLOWEST_S, SLOWER_S * over))
                finally:
                    self._waiting -= 1

    def _origin(self, host: str) -> str:
        """What is to be banned; "" for what must not be."""
        address = address_of(host)
        if address is None or address.is_loopback or _among(address, self._proxies):
            return ""
        return origin_of(host)

    async def _count(self, name: str, window_s: float) -> int:
        try:
            return await self._registry.count(name, window_s)
        except ClusterError:
            return 0


def _among(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> bool:
    return any(address in network for network in networks)


def _known_as(username: str) -> str:
    """The same for all spellings that some directory may take for one name: else each gives a guesser a new start."""
    return (canonical(username) or username).casefold()
