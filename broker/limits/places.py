"""How many connections one user or one address may have in the whole cluster.

A place is taken at CONNECT and given back when the connection ends. Nodes that die lose theirs; what was lost on the
way is mended by a recount now and then.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import TYPE_CHECKING, Final

from broker.errors import ClusterError
from broker.limits.bans import address_of
from broker.log import get_logger
from cluster.registry import Occupied, Registry

if TYPE_CHECKING:
    from broker.auth.api import Principal

#: How often the store is told what this node has.
RECOUNT_S: Final = 60.0
#: How soon again if it did not answer.
RECOUNT_AGAIN_S: Final = 5.0
#: A client with IPv6 has a network of this length for itself.
_HOST_BITS_V6: Final = 64

_log = get_logger("limits")


def origin_of(host: str) -> str:
    """What counts as one address: an IPv4 address, the /64 of an IPv6 address; "" for a Unix socket."""
    address = address_of(host)
    if address is None:
        return ""
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address), _HOST_BITS_V6), strict=False))


class Places:
    """The places that the connections of this node have. A limit of 0 is none."""

    def __init__(self, registry: Registry, per_user: int, per_ip: int) -> None:
        self.per_user = per_user
        self.per_ip = per_ip
        self._registry = registry
        self._taken: Counter[str] = Counter()
        #: What was taken changed since the last recount, or that failed.
        self._told = True
        #: How many recounts were sent.
        self._recounts = 0

    def wanted(self, principal: Principal) -> list[Occupied]:
        """The places that a client needs. Clients that nobody checked have no user name that counts."""
        places = []
        if self.per_user and principal.identity:
            places.append(Occupied(f"user:{principal.identity}", self.per_user))
        if self.per_ip and (origin := origin_of(principal.peer.host)):
            places.append(Occupied(f"ip:{origin}", self.per_ip))
        return places

    async def take(self, places: list[Occupied]) -> str | None:
        """None: they are taken, and have to be given back; else the name of the one that is full.

        Raises StoreUnavailable: then they are not."""
        names = [place.name for place in places]
        self._taken.update(names)  # at once, for a recount that is sent meanwhile
        self._told = False
        taken, recounts = False, self._recounts
        try:
            full = await self._registry.occupy(places)
            taken = full is None
            if not taken and recounts != self._recounts:
                # One came behind it, and wrote down as taken what was refused.
                self._registry.vacate(names)
            return full
        finally:
            if not taken:
                self._forget(names)

    def give_back(self, places: list[Occupied]) -> None:
        """The connection has ended."""
        names = [place.name for place in places]
        self._forget(names)
        self._registry.vacate(names)

    def _forget(self, names: list[str]) -> None:
        for name in names:
            self._taken[name] -= 1
            if self._taken[name] <= 0:
                del self._taken[name]

    async def recount(self) -> float:
        """Tells the store what this node has; returns when to do so again."""
        if not self._taken and self._told:
            return RECOUNT_S
        self._told = not self._taken
        self._recounts += 1
        try:
            await self._registry.recount(self._taken)
        except ClusterError as error:
            self._told = False
            _log.warning("limits.recount_delayed", error=str(error))
            return RECOUNT_AGAIN_S
        return RECOUNT_S

    def doubt(self) -> None:
        """What was given back may have been lost: the next recount is sent in any case."""
        if self.per_user or self.per_ip:
            self._told = False
