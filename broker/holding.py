"""Publishers slow down to the pace of a shared subscription's members (docs/adr/0010)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from broker.routes import AckSlot

if TYPE_CHECKING:
    from broker.table import Table

#: How long acknowledgements of publishers are kept back for a group that has too much to do.
HOLD_S = 5.0


class Holding:
    """The acknowledgements that wait for the members of one group. `depth` is the length of the group's queue, as well
    as it is known here."""

    __slots__ = ("_held", "_room", "_table", "depth")

    def __init__(self, table: Table) -> None:
        self._table = table
        #: With how many messages each stands for.
        self._held: deque[tuple[AckSlot, int]] = deque()
        #: So many messages were done with that let none of them go yet: the first stands for more.
        self._room = 0
        self.depth = 0

    def hold(self, slot: AckSlot, count: int = 1) -> bool:
        """Keep back a publisher's acknowledgement, of `count` messages, while there is a long queue to do; False if not
        needed."""
        if self.depth <= self._table.group_high_water:
            return False
        if not self._held:
            self._table.spawn(self._hold_a_while)
        self._held.append((slot, count))
        return True

    async def _hold_a_while(self) -> None:
        """Members that do not move in this time do not hold anybody up: the queue's bound does the rest."""
        await trio.sleep(HOLD_S)
        self.release()

    def release(self) -> None:
        """Let all waiting acknowledgements go."""
        self._room = 0
        while self._held:
            self._held.popleft()[0].settle(None)

    def _let_go(self, count: int) -> None:
        """So many more messages may come."""
        held = self._held
        self._room += count
        while held and held[0][1] <= self._room:
            slot, count = held.popleft()
            self._room -= count
            slot.settle(None)
        if not held:
            self._room = 0

    def measured(self, depth: int) -> None:
        """What the store says now and then: publishers of all nodes share the room that is left."""
        self.depth = depth
        if not self._held:
            return
        if depth <= self._table.group_high_water:
            self.release()
            return
        nodes = max(1, len(self._table.cluster.health().members))
        self._let_go(max(0, self._table.max_group_queue - depth) // (2 * nodes))

    def less(self, count: int = 1) -> None:
        """Members here are done with so many entries: as many more may come."""
        self.depth = max(0, self.depth - count)
        if self._held:
            if self.depth <= self._table.group_high_water:
                self.release()
            else:
                self._let_go(count)
