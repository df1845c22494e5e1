"""Telling the cluster which members of a shared subscription are connected to this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from broker.errors import ClusterError

if TYPE_CHECKING:
    from broker.groups import Group
    from broker.table import Table

#: Pause before the members are told to a store again that did not take them.
RETRY_S = 1.0


class Announcing:
    """One call at a time, each with all members; changes meanwhile are told by the next."""

    __slots__ = ("_error", "_group", "_table", "_told", "_turned", "_wanted", "busy")

    def __init__(self, table: Table, group: Group) -> None:
        self._table = table
        self._group = group
        #: Numbers of the last change, and of the last one that the cluster knows.
        self._wanted = 0
        self._told = 0
        self._turned = trio.Event()
        self._error: Exception | None = None
        #: The cluster does not know of all changes yet.
        self.busy = False

    def changed(self) -> None:
        """Somebody came or left."""
        self._wanted += 1
        if not self.busy:
            self.busy = True
            self._table.spawn(self._announce)

    async def _announce(self) -> None:
        group = self._group
        while self._told != self._wanted:
            wanted = self._wanted
            try:
                await self._table.cluster.group_members(group.name, group.strategy, group.member_states())
            except ClusterError as error:
                self._turn(error)
                await trio.sleep(RETRY_S)
            else:
                self._told = wanted
                self._turn(None)
        self.busy = False
        group.members_told()

    def _turn(self, error: Exception | None) -> None:
        self._error = error
        self._turned.set()
        self._turned = trio.Event()

    async def done(self) -> None:
        """Returns when the cluster knows what has changed by now. Raises ClusterError if it did not take that just
        now; it is told again all the same."""
        wanted = self._wanted
        while self._told < wanted:
            await self._turned.wait()
            if self._told < wanted and self._error is not None:
                raise self._error
