"""Which version of the route table this node matches with, and which publications may have been matched too early.

A publication of QoS 1 or 2 may be answered when a version that was read after it came is one that this node has adopted
(GUARANTEES G5). Whatever another node subscribed before is then in the table that it was matched with, or was found
by `Publication.rematch`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from broker.log import get_logger
from cluster.api import ClusterEvents, Extension, RouteChange
from cluster.redis.publish import Item

if TYPE_CHECKING:
    from cluster.redis.links import Link

#: Tags of so many adopted versions are remembered.
_TAGS = 10_000

_log = get_logger("cluster")


class Waiting(Protocol):
    """What waits for a version to be read and adopted."""

    def answered(self) -> None:
        """It is."""


class _Waiter:
    """A call instead of a publication."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def answered(self) -> None:
        """It is."""
        self._then()


def parse_version(reply: bytes | None) -> tuple[int, bytes]:
    """Number and tag of a version as it lies in the store; (0, b"") before the first."""
    if not reply:
        return 0, b""
    number, _, tag = reply.partition(b":")
    return int(number), tag


class Versions:
    """`number` is the version that is adopted: the broker's table has at least all its changes."""

    def __init__(self, key: bytes, link: Link) -> None:
        self.number = 0
        #: The store tells of a history that is not the one adopted here: load the table anew.
        self.on_foreign: Callable[[], None] = lambda: None
        self.events: ClusterEvents | None = None
        #: Sends what matched in addition.
        self.extend: Callable[[Item, Extension], None] = lambda _item, _found: None
        self._key = key
        self._link = link
        self._tags: dict[int, bytes] = {0: b""}
        #: Matched, and not proven to be matched with the newest version; oldest first.
        self._flying: dict[Item, None] = {}
        #: Those that wait, oldest first: a version that proves one proves all before it. They are counted from the
        #: first that ever was; `_proven` were answered, for those up to `_asked` a version was asked for.
        self.waiting: deque[Waiting] = deque()
        self._proven = 0
        self._asked = 0
        #: Versions that were read but not adopted yet, with the count of those that they prove.
        self._ahead: list[tuple[int, bytes, int]] = []

    def add(self, item: Item) -> None:
        """A publication that was matched now; it waits for one more answer. One that is also retained has to be
        given to `read` once that is written: else a subscriber might get neither the retained message nor this one."""
        item.checked = True
        self._flying[item] = None
        if not item.publication.retain:
            self.waiting.append(item)

    def read(self, waiting: Waiting) -> None:
        """Tells it when a version that is read from now on is adopted."""
        self.waiting.append(waiting)

    def newest(self, then: Callable[[], object]) -> None:
        """As `read`, with a call."""
        self.waiting.append(_Waiter(then))

    async def caught_up(self, wake: Callable[[], None]) -> None:
        """Returns when a version that was read after the call is adopted."""
        event = trio.Event()
        self.newest(event.set)
        wake()
        await event.wait()

    def flush(self) -> None:
        """Asks for the version, once for all that came since."""
        count = self._proven + len(self.waiting)
        if count > self._asked and self._link.up_for(self._key):
            self._asked = count
            self._link.command((b"GET", self._key), partial(self._answered, count))

    def _answered(self, count: int, reply: object) -> None:
        if not (reply is None or isinstance(reply, bytes)):
            self._asked = self._proven
            return
        number, tag = parse_version(reply)
        if number > self.number:
            self._ahead.append((number, tag, count))
        elif self.has(number, tag):
            self._prove(count)
        else:
            self._ahead.append((number, tag, count))
            self.on_foreign()

    def has(self, number: int, tag: bytes) -> bool:
        """Whether this version was adopted: then so was the same history up to it."""
        return self._tags.get(number) == tag

    def _prove(self, count: int) -> None:
        flying, waiting = self._flying, self.waiting
        while self._proven < count:
            self._proven += 1
            each = waiting.popleft()
            flying.pop(each, None)  # type: ignore[call-overload]
            each.answered()

    def adopt(self, number: int, tags: Sequence[tuple[int, bytes]], changes: Sequence[RouteChange]) -> None:
        """The changes up to a version, with the tags of the versions among them: tells the broker, matches what is on
        its way once more, and lets go what waited for this."""
        self.number = number
        for each, tag in tags:
            self._tags[each] = tag
        while len(self._tags) > _TAGS:
            del self._tags[next(iter(self._tags))]
        if changes and self.events is not None:
            self.events.routes_changed(changes)
            self._rematch()
        foreign = False
        ahead, self._ahead = self._ahead, []
        for entry in ahead:
            if entry[0] <= number and self.has(entry[0], entry[1]):
                self._prove(entry[2])
            else:
                # The log was read from another server than the version, or from the same one in another life.
                foreign = foreign or entry[0] <= number
                self._ahead.append(entry)
        if foreign:
            self.on_foreign()

    def start(self, number: int, tag: bytes, changes: Sequence[RouteChange] = ()) -> None:
        """The whole table was loaded at a version, which may be of another history: what waits reads again."""
        self._tags = {}
        self._ahead = []
        self._asked = self._proven
        self.adopt(number, [(number, tag)], changes)

    def _rematch(self) -> None:
        for item in list(self._flying):
            try:
                found = item.publication.rematch()
            except Exception:
                _log.exception("cluster.callback_failed")
                continue
            if found is not None:
                self.extend(item, found)
