"""What is due: wills, delayed messages, session ends, unfinished routes. Polled once a second, or at once when told."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import cast

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from broker.message import Message
from cluster.api import ClusterEvents, Poller
from cluster.keys import Keys
from cluster.policy import DELAYED_AT_ONCE, TIMER_POLL_S
from cluster.records import unpack_message, unpack_will
from cluster.redis.calls import gather
from cluster.redis.links import Link
from cluster.redis.membership import Membership
from cluster.redis.repair import Repair
from cluster.redis.requests import result
from cluster.redis.sessions import subscriptions_of

_LIMIT = 100
#: So many wills of one partition are published at the same time.
_AT_ONCE = 20
#: Kinds of items.
_WILL = b"x"
_DELAYED = b"d"
_EXPIRY = b"e"

_log = get_logger("cluster")


class Timers:
    """Takes due items from every partition. What is not finished comes again by itself."""

    def __init__(self, keys: Keys, link: Link, poller: Poller, member: Membership, repair: Repair) -> None:
        self._prefixes = keys.partitions
        self._link = link
        self._poller = poller
        self._member = member
        self._repair = repair
        self._wake = trio.Event()
        #: Delayed messages that are being published: partition and message id.
        self._publishing: set[tuple[bytes, bytes]] = set()
        self._published = trio.Event()
        #: Partitions whose items are being worked on.
        self._busy: set[bytes] = set()

    def wake(self) -> None:
        """Something is due now."""
        self._wake.set()

    async def serve(self, events: ClusterEvents) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                # Whatever one part of the store holds up, the others go on.
                prefixes = [each for each in self._prefixes if each not in self._busy and self._link.up_for(each)]
                more = False
                if prefixes and self._member.holds_lease():
                    try:
                        more = await self._turn(events, prefixes, nursery)
                    except ClusterError as error:
                        _log.warning("cluster.timers_delayed", reason=str(error)[:200])
                if more:
                    continue
                with trio.move_on_after(TIMER_POLL_S):
                    await self._wake.wait()

    async def _turn(self, events: ClusterEvents, prefixes: Sequence[bytes], nursery: trio.Nursery) -> bool:
        """Whether there is more to be had at once."""
        replies = await gather(
            self._link, self._poller, [("FCALL", "rk1_due", 1, prefix, _LIMIT) for prefix in prefixes]
        )
        more = False
        failure: ClusterError | None = None
        pages: list[tuple[bytes, list[list[object]]]] = []
        for prefix, reply in zip(prefixes, replies, strict=True):
            try:
                items = cast("list[list[object]]", result(reply))
            except ClusterError as error:
                failure = error
                continue
            pages.append((prefix, items))
        self._publish_delayed(events, pages)
        for prefix, items in pages:
            if any(item[0] != _DELAYED for item in items):
                self._busy.add(prefix)
                nursery.start_soon(self._work_off, events, prefix, items)
            else:
                more = more or len(items) >= _LIMIT
        while len(self._publishing) >= DELAYED_AT_ONCE:
            self._published = trio.Event()
            await self._published.wait()
        if failure is not None:
            raise failure
        return more

    def _publish_delayed(self, events: ClusterEvents, pages: Sequence[tuple[bytes, list[list[object]]]]) -> None:
        """In the order of the times that they are due; across partitions that is known of those with one delay only.

        Nothing waits for the answers."""
        found: list[list[tuple[tuple[int, bytes], bytes, Message]]] = []
        for prefix, items in pages:
            page: list[tuple[tuple[int, bytes], bytes, Message]] = []
            for item in items:
                if item[0] != _DELAYED:
                    continue
                _, name, record = cast("list[bytes]", item)
                message = unpack_message(record)
                if message is None:
                    _log.warning("cluster.unknown_record", kind="delayed", format=record[0])
                elif (prefix, name) not in self._publishing:
                    page.append(((message.accepted_at_ms, name), prefix, message))
            found.append(page)
        for (_, name), prefix, message in heapq.merge(*found, key=itemgetter(0)):
            self._publishing.add((prefix, name))
            try:
                events.delayed_due(message, partial(self._delayed_published, prefix, name))
            except Exception as error:
                self._delayed_published(prefix, name, error)

    def _delayed_published(self, prefix: bytes, name: bytes, error: Exception | None) -> None:
        self._publishing.discard((prefix, name))
        self._published.set()
        if error is None:
            self._done(prefix, _DELAYED + name)
        else:
            _log.warning("cluster.timer_failed", kind=str(_DELAYED), error=repr(error)[:200])

    def _done(self, prefix: bytes, name: bytes) -> None:
        self._link.command(("FCALL", "rk1_done", 1, prefix, name), None, resend=True)
        self._poller.wake()

    async def _work_off(self, events: ClusterEvents, prefix: bytes, items: list[list[object]]) -> None:
        try:
            await self._work(events, prefix, items)
        finally:
            self._busy.discard(prefix)
        if len(items) >= _LIMIT:
            self.wake()

    async def _work(self, events: ClusterEvents, prefix: bytes, items: list[list[object]]) -> None:
        # Wills first: they go out before their sessions end.
        slots = trio.Semaphore(_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for item in items:
                if item[0] == _WILL:
                    await slots.acquire()
                    nursery.start_soon(self._publish_will, events, prefix, cast("list[bytes]", item), slots)
        for item in items:
            if item[0] == _WILL or item[0] == _DELAYED:
                continue
            try:
                if item[0] == _EXPIRY:
                    await self._end(events, prefix, item)
                else:
                    await self._repair.repair(prefix, cast(bytes, item[1]))
            except ClusterError as error:
                _log.warning("cluster.timer_failed", kind=str(item[0]), reason=str(error)[:200])

    async def _end(self, events: ClusterEvents, prefix: bytes, item: list[object]) -> None:
        _, session_id, birth, client_id, lease_end, subscriptions = cast("list[bytes]", item)
        if not await self._link.call("FCALL", "rk1_expire", 1, prefix, session_id, birth, lease_end, resend=True):
            return
        ended = subscriptions_of(subscriptions)
        try:
            await events.session_ended(client_id.decode(), session_id, int(birth), ended)
        except Exception:
            _log.exception("cluster.callback_failed")
        if ended:
            await self._repair.repair(prefix, session_id)

    async def _publish_will(
        self, events: ClusterEvents, prefix: bytes, item: list[bytes], slots: trio.Semaphore
    ) -> None:
        try:
            _, name, record = item
            found = unpack_will(record)
            if found is None:
                _log.warning("cluster.unknown_record", kind="will", format=record[0])
                return
            try:
                await events.will_due(*found)
            except Exception as error:
                _log.warning("cluster.timer_failed", kind=str(_WILL), error=repr(error)[:200])
                return
            self._done(prefix, name)
        finally:
            slots.release()
