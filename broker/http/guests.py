"""Who is connected to the HTTP server, and who goes when there is no room.

Strangers must not keep operators out: whoever has no credential that counts, or asks for nothing just now, makes room
for who comes. Only those who are being served with a credential stay, and `broker.http.operations` bounds these.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import trio

CONNECTIONS_MAX: Final = 512
#: Of one address (the /64 of IPv6).
OF_ADDRESS_MAX: Final = CONNECTIONS_MAX // 2
#: Bytes of answers that clients have not taken yet, of all connections.
UNREAD_MAX: Final = 64 << 20

#: Where a request has its `Guest`: in the state of the ASGI scope.
GUEST: Final = "guest"

_steps = itertools.count()


class Guest:
    """One connection. Its task runs in `scope`."""

    __slots__ = ("known", "origin", "scope", "served", "since")

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.scope = trio.CancelScope()
        #: The last request whose credential was looked at had one that counts.
        self.known = False
        #: A request of somebody known holds one of the places for those: the connection need not make room.
        self.served = False
        #: Rises with each request that ends.
        self.since = next(_steps)

    def rests(self) -> None:
        """A request is answered, and none is there."""
        self.since = next(_steps)


def guest_of(scope: Mapping[str, Any]) -> Guest:
    """Whose request this is."""
    found = scope.get("state", {}).get(GUEST)
    return found if isinstance(found, Guest) else Guest("")


class Guests:
    """Of one server."""

    def __init__(
        self, most: int = CONNECTIONS_MAX, of_address: int = OF_ADDRESS_MAX, unread_max: int = UNREAD_MAX
    ) -> None:
        self._most = most
        self._of_address = of_address
        self._unread_max = unread_max
        self._guests: set[Guest] = set()
        self._by_origin: Counter[str] = Counter()
        #: What each is being sent, who began first comes first.
        self._sizes: dict[Guest, int] = {}
        self._unread = 0

    def admit(self, origin: str) -> Guest | None:
        """A place for who comes, perhaps that of another, whose scope is cancelled; None: all places are in use.
        `origin` "": a proxy, which has no share of its own; its requests tell whom it `serves`."""
        if origin and self._by_origin[origin] >= self._of_address:
            if not self._make_room({guest for guest in self._guests if guest.origin == origin}):
                return None
        elif len(self._guests) >= self._most and not self._make_room(self._guests):
            return None
        guest = Guest(origin)
        self._guests.add(guest)
        self._by_origin[origin] += 1
        return guest

    def serves(self, guest: Guest, origin: str) -> bool:
        """From now on this connection of a proxy is one of `origin`; False if that has too many, and it stays what it
        was."""
        if guest not in self._guests or guest.origin == origin:
            return True
        full = bool(origin) and self._by_origin[origin] >= self._of_address
        if full and not self._make_room({other for other in self._guests if other.origin == origin}):
            return False
        self._leave_origin(guest)
        guest.origin = origin
        self._by_origin[origin] += 1
        return True

    def leave(self, guest: Guest) -> None:
        """The connection has ended, or is about to. Idempotent."""
        if guest not in self._guests:
            return
        self._guests.remove(guest)
        self._leave_origin(guest)

    def _leave_origin(self, guest: Guest) -> None:
        self._by_origin[guest.origin] -= 1
        if not self._by_origin[guest.origin]:
            del self._by_origin[guest.origin]

    @contextmanager
    def sending(self, guest: Guest, size: int) -> Iterator[None]:
        """While these bytes wait for the client. Where too many wait, who has most of them goes."""
        self._sizes[guest] = size
        self._unread += size
        while self._unread > self._unread_max and len(self._sizes) > 1:
            most = max((other for other in self._sizes if other is not guest), key=self._sizes.__getitem__)
            self._unread -= self._sizes.pop(most)
            self._send_away(most)
        try:
            yield
        finally:
            self._unread -= self._sizes.pop(guest, 0)

    def _make_room(self, among: set[Guest]) -> bool:
        """First those who never had a credential, of these who does least for longest."""
        goes = min(
            (guest for guest in among if not guest.served), key=lambda each: (each.known, each.since), default=None
        )
        if goes is None:
            return False
        self._send_away(goes)
        return True

    def _send_away(self, guest: Guest) -> None:
        guest.scope.cancel()
        self.leave(guest)
