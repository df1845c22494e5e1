"""Rules that somebody else keeps: read when a client connects, and again from time to time while it is connected.

Clients about whom the same is asked share what was read. All that connected clients need is read again after
`refresh_s`, a few questions at a time; if that fails, what was read before goes on counting, and it is tried again.
So a rule that is taken away there is in force here after `refresh_s` and a moment.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Final

import trio

from broker.auth.api import BackendError, Principal, Rule
from broker.auth.base import BaseSource
from broker.auth.judging import EntriesJudge
from broker.auth.rules import judge_of
from broker.log import get_logger

#: After a failure it is tried again this soon, or after `refresh_s` if that is sooner.
RETRY_S: Final = 5.0

_log = get_logger("authorization")


class Table:
    """What was read for one key, and the judges that stand on it."""

    __slots__ = ("__weakref__", "error", "judges", "key", "lock", "planned", "read_at", "reads", "rules", "written")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.judges: weakref.WeakSet[RereadJudge] = weakref.WeakSet()
        #: The rules as they are written there, to be compared, and what they mean.
        self.written: object = None
        self.rules: Sequence[Rule] = ()
        self.read_at = float("-inf")
        #: Readings that ended, and how the last one failed.
        self.reads = 0
        self.error = ""
        self.lock = trio.Lock()
        #: Whether it is among what is to be read again.
        self.planned = False


class RereadJudge:
    """Implements `Judge`. `changed` is a method of somebody who holds the judge, and is not kept alive by it: with the
    client goes the judge, and with the last judge the table."""

    __slots__ = ("__weakref__", "_changed", "_judge", "_principal", "_table")

    def __init__(self, table: Table, principal: Principal) -> None:
        self._changed: weakref.WeakMethod[Callable[[], None]] | None = None
        self._table = table
        self._principal = principal
        self._judge: EntriesJudge = judge_of(table.rules, principal)
        table.judges.add(self)

    @property
    def changed(self) -> Callable[[], None] | None:
        """See `Judge`."""
        return None if self._changed is None else self._changed()

    @changed.setter
    def changed(self, method: Callable[[], None] | None) -> None:
        self._changed = None if method is None else weakref.WeakMethod(method)

    def renew(self) -> None:
        """The table has other rules."""
        self._judge = judge_of(self._table.rules, self._principal)
        changed = self.changed
        if changed is not None:
            changed()

    def decide(self, action: int, topic: str, qos: int, retain: bool) -> int:
        """See `Judge`; never None."""
        return self._judge.decide(action, topic, qos, retain)

    def covers(self, topic_filter: str) -> bool:
        """See `Judge`."""
        return self._judge.covers(topic_filter)

    async def ask(self, action: int, topic: str, qos: int, retain: bool) -> int:
        """See `Judge`; nothing has to be waited for."""
        return self._judge.decide(action, topic, qos, retain)


class RereadSource(BaseSource):
    """The base of such sources. `readers`: how many are read again at a time."""

    steady = True

    def __init__(self, name: str, refresh_s: float, readers: int) -> None:
        super().__init__(name)
        self._refresh_s = refresh_s
        self._readers = trio.Semaphore(readers)
        self._tables: weakref.WeakValueDictionary[Hashable, Table] = weakref.WeakValueDictionary()
        #: What is to be read again: time, a number that makes it unique, table.
        self._due: list[tuple[float, int, weakref.ref[Table]]] = []
        self._numbers = count()
        self._added = trio.Event()
        self._failing = False

    def key(self, principal: Principal) -> Hashable:
        """What is asked about a client; None if it has nothing that could be asked about."""
        raise NotImplementedError

    async def fetch(self, key: Hashable) -> object:
        """The rules of a key as they are written there; values that can be compared. Raises BackendError."""
        raise NotImplementedError

    def parse(self, written: object) -> Sequence[Rule]:
        """What they mean; ValueError for one that makes no sense: it may have been one that denies."""
        raise NotImplementedError

    async def open(self, principal: Principal) -> RereadJudge:
        """See `RuleSource`."""
        key = self.key(principal)
        if key is None:
            return RereadJudge(Table(None), principal)
        table = self._tables.get(key)
        if table is None:
            table = self._tables[key] = Table(key)
        if trio.current_time() - table.read_at >= self._refresh_s:
            await self._read(table)
        if not table.planned:
            table.planned = True
            self._plan(table, self._refresh_s)
        return RereadJudge(table, principal)

    async def _read(self, table: Table) -> None:
        """Read it again; those who want it at the same time get the answer that one of them gets."""
        reads = table.reads
        async with table.lock:
            if table.reads > reads:
                if table.error:
                    raise BackendError(table.error)
                return
            try:
                written = await self.fetch(table.key)
                rules = table.rules if written == table.written else self._parsed(written)
            except BackendError as error:
                table.reads += 1
                table.error = str(error)
                raise
            table.reads += 1
            table.error = ""
            table.read_at = trio.current_time()
            if written != table.written:
                table.written, table.rules = written, rules
                for judge in list(table.judges):
                    judge.renew()

    def _parsed(self, written: object) -> Sequence[Rule]:
        try:
            return self.parse(written)
        except ValueError as error:
            raise BackendError(f"a rule makes no sense: {error}") from None

    def _plan(self, table: Table, after_s: float) -> None:
        heapq.heappush(self._due, (trio.current_time() + after_s, next(self._numbers), weakref.ref(table)))
        self._added.set()

    async def reread(self) -> None:
        """Read again what is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while not self._due:
                    self._added = trio.Event()
                    await self._added.wait()
                await trio.sleep_until(self._due[0][0])
                _, _, reference = heapq.heappop(self._due)
                table = reference()
                if table is not None:
                    await self._readers.acquire()
                    nursery.start_soon(self._read_again, table)
                del table  # while this task sleeps nothing but judges may keep it

    async def _read_again(self, table: Table) -> None:
        try:
            await self._read(table)
        except BackendError as error:
            self._plan(table, min(RETRY_S, self._refresh_s))
            if not self._failing:
                self._failing = True
                _log.warning("authorization.stale", source=self.name, error=str(error))
        else:
            self._plan(table, self._refresh_s)
            if self._failing:
                self._failing = False
                _log.info("authorization.fresh", source=self.name)
        finally:
            self._readers.release()
