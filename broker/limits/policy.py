"""What is read again when users, rules or bans have changed, and who has to be looked at then.

Bans that make themselves (failed logins) may come by the thousand. They are about nobody who is connected, so nobody is
looked at; after other changes of bans every client is asked for its ban and for nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from broker.access import Access
from broker.limits.guard import LimitsGuard
from broker.log import get_logger
from cluster.registry import BANS, Registry

if TYPE_CHECKING:
    from broker.server import Server

#: Clients that are asked for their ban before others get their turn.
_PORTION: Final = 200

_log = get_logger("limits")


class Policy:
    """The `Readers` of `PolicyWatch`, and its `on_change`."""

    def __init__(self, access: Access, guard: LimitsGuard, registry: Registry, server: Server) -> None:
        self._access = access
        self._guard = guard
        self._registry = registry
        self._server = server
        self._versions: dict[str, int] | None = None
        #: What the last `refresh` found: users or rules, bans of those who may be connected. Files: `None`.
        self._found: tuple[bool, bool] | None = None

    def files(self) -> Sequence[Path]:
        """See `broker.auth.watch.Readers`."""
        return self._access.files()

    def reload(self) -> None:
        """See `broker.auth.watch.Readers`."""
        self._access.reload()

    async def refresh(self) -> None:
        """See `broker.auth.watch.Readers`."""
        self._found = None
        versions = await self._registry.versions()
        before = self._versions
        if before is None:
            changed = None
        else:
            changed = {kind for kind in versions | before if versions.get(kind) != before.get(kind)}
        await self._guard.refresh()
        if changed != {BANS}:
            await self._access.refresh()
        self._versions = versions
        self._found = (changed != {BANS}, self._guard.banning())

    def changed(self) -> None:
        """After `refresh` or `reload`."""
        found, self._found = self._found, None
        if found is None or found[0]:
            self._server.recheck()
        elif found[1]:
            self._server.start(self._drop_banned)

    async def _drop_banned(self) -> None:
        for number, connection in enumerate(list(self._server.connections)):
            if number % _PORTION == 0:
                await trio.lowlevel.checkpoint()
            principal = connection.principal
            ban = principal and self._guard.ban_of(principal)
            if ban:
                _log.info("client.banned", client_id=connection.client_id)
                connection.disconnect(0x98, ban)
