"""A client moves from node to node: the old node is asked to let its session go, and says when it has.

The store decides who owns a session (`rk1_attach`); this only makes the old connection end in good order, and soon.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from broker.log import get_logger
from cluster.api import ClusterEvents
from cluster.keys import Keys, session_id
from cluster.redis.links import Link
from cluster.redis.membership import Membership
from cluster.redis.signals import Signals, channel, freed, kick

#: So long a node has to let a session go before it is taken by force.
FORCE_S: Final = 1.0
#: A node that lost a session by force is told again after so long, since its connection may not know.
_REMIND_S: Final = 1.0
_MAX_NOTES: Final = 10_000

#: A member and the number under which it wants to be told.
_Asker = tuple[bytes, int]

#: What became of a session that its owner was asked for.
LET_GO, ABSENT, SILENT = range(3)

_log = get_logger("cluster")


class Takeover:
    """Both sides: asks the owners of sessions that are wanted here, and lets go those that are wanted elsewhere."""

    def __init__(self, keys: Keys, link: Link, member: Membership, signals: Signals, wake: Callable[[], None]) -> None:
        self.events: ClusterEvents | None = None
        self._keys = keys
        self._link = link
        self._member = member
        self._wake = wake
        self._numbers = itertools.count(1)
        #: What this node waits for, by the number it asked under.
        self._asked: dict[int, Callable[[bool], None]] = {}
        #: Sessions that others want from this node.
        self._wanted: dict[bytes, list[_Asker]] = {}
        #: Calls under way that may make, or end, this node's ownership.
        self._busy: dict[bytes, int] = {}
        #: Sessions to be asked for at the end of the turn.
        self.later: list[str] = []
        #: Those taken by force from a member that has not said that it knows, with client id and member.
        self._robbed: dict[bytes, tuple[str, bytes]] = {}
        self._robbery = trio.Event()
        signals.on_kick = self._kicked
        signals.on_freed = self._freed

    # The node that wants a session

    async def ask(self, client_id: str, owner: bytes) -> int:
        """Whether the owner let the session go (LET_GO). Else it has to be robbed, if the session still is its: it is
        not there or has no connection for it (ABSENT), or does not answer (SILENT). Raises StoreUnavailable."""
        number = next(self._numbers)
        done = trio.Event()
        outcome = ABSENT

        def answered(value: bool) -> None:
            nonlocal outcome
            outcome = LET_GO if value else ABSENT
            done.set()

        self._asked[number] = answered
        try:
            message = kick(client_id, self._member.member, number)
            if await self._link.call("SPUBLISH", channel(self._keys, owner), message):
                outcome = SILENT
                with trio.move_on_after(FORCE_S):
                    await done.wait()
            return outcome
        finally:
            del self._asked[number]

    def robbed(self, client_id: str, owner: bytes) -> None:
        """The session was taken by force: its owner is told until it says that no connection of it has it."""
        if len(self._robbed) < _MAX_NOTES:
            self._robbed[session_id(client_id)] = client_id, owner
            self._robbery.set()

    async def serve(self) -> None:
        """Reminds the robbed, until cancelled."""
        numbers: list[int] = []
        while True:
            await self._robbery.wait()
            await trio.sleep(_REMIND_S)
            for number in numbers:
                self._asked.pop(number, None)
            numbers.clear()
            for identifier, (client_id, owner) in list(self._robbed.items()):
                if owner not in self._member.members:
                    del self._robbed[identifier]
                    continue
                number = next(self._numbers)
                self._asked[number] = partial(self._knows, identifier)
                numbers.append(number)
                message = kick(client_id, self._member.member, number)
                self._link.command(("SPUBLISH", channel(self._keys, owner), message))
            self._wake()
            if not self._robbed:
                self._robbery = trio.Event()

    def _knows(self, identifier: bytes, _: bool) -> None:
        self._robbed.pop(identifier, None)

    def _freed(self, number: int, detached: bool) -> None:
        if told := self._asked.get(number):
            told(detached)

    # The node that has it

    def began(self, identifier: bytes) -> None:
        """A call is under way that makes this node the owner, or no longer the owner."""
        self._busy[identifier] = self._busy.get(identifier, 0) + 1

    def busy(self, identifier: bytes) -> bool:
        """Whether such a call is under way."""
        return identifier in self._busy

    def attached(self, identifier: bytes, client_id: str) -> None:
        """Such a call to attach was answered: whoever wants the session meanwhile gets it now."""
        self._ended(identifier)
        if identifier in self._wanted:
            # Whoever called must first know that it has a session.
            self.later.append(client_id)
            self._wake()

    def detached(self, identifier: bytes) -> None:
        """Such a call to detach was answered: the session is free."""
        self._robbed.pop(identifier, None)
        self._ended(identifier)
        if identifier not in self._busy:
            self._free(identifier, True)

    def flush(self) -> None:
        """The end of a turn."""
        if self.later:
            later, self.later = self.later, []
            for client_id in later:
                self._ask_broker(client_id)

    def _ended(self, identifier: bytes) -> None:
        left = self._busy[identifier] - 1
        if left:
            self._busy[identifier] = left
        else:
            del self._busy[identifier]

    def _kicked(self, client_id: str, asker: bytes, number: int) -> None:
        if len(self._wanted) >= _MAX_NOTES:
            self._wanted.clear()  # their askers do not wait any more
        self._wanted.setdefault(session_id(client_id), []).append((asker, number))
        self._ask_broker(client_id)

    def _ask_broker(self, client_id: str) -> None:
        identifier = session_id(client_id)
        if identifier in self._busy or identifier not in self._wanted:
            return
        try:
            leaving = self.events is not None and self.events.session_wanted(client_id)
        except Exception:
            _log.exception("cluster.callback_failed")
            leaving = False
        # Where a connection ends, its `detach` follows.
        if not leaving:
            self._free(identifier, False)

    def _free(self, identifier: bytes, detached: bool) -> None:
        for asker, number in self._wanted.pop(identifier, ()):
            self._link.command(("SPUBLISH", channel(self._keys, asker), freed(number, detached)))
            self._wake()
