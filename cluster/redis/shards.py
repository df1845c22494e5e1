"""A Redis Cluster as one link: each command goes to the primary of its key, whatever becomes of slots and servers.

All answers that say "not here, not now" end in `_Routed.answered`. None of them was executed, so the command is sent
again: after MOVED where the slot is now, after ASK to where it is going. A function (FCALL) is not sent after an ASK:
it uses keys that it does not declare, and would take those that have not arrived yet for missing. Its declared key is
a bare prefix that exists nowhere, so the old server answers ASK from the first moment of the move to the last, and
the command waits until the whole slot has arrived.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import hiredis
import trio

from broker.errors import ClusterError, StoreUnavailable
from broker.log import get_logger
from cluster.api import Poller
from cluster.redis.address import ClusterAddress, StoreAddress
from cluster.redis.durability import weakest
from cluster.redis.link import RedisLink
from cluster.redis.pipeline import Part
from cluster.redis.requests import Caller, Then, result, run
from cluster.redis.slots import SLOTS, Place, read_map, slot_of, slot_of_command
from cluster.telemetry import LinkCounters

#: How often the map is read while all is well, and how soon again while it is not.
_CALM_S = 30.0
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 0.5
#: A server that has no slot, but was asked for some that are on their way to it, is kept so long.
_VISIT_S = 10.0
#: A command that was sent to so many servers waits until the map is read again.
_TRIES = 3

_log = get_logger("store")


class ClusterLink:
    """A `Link` with one RedisLink for each primary.

    `on_up` runs on each new connection to any of them. `on_ready` is called when all are up, `on_part` when one more
    is, `on_down` whenever one is lost. Commands for the others go on. Order is kept per slot as long as that does not
    move.
    """

    def __init__(
        self,
        address: ClusterAddress,
        poller: Poller,
        *,
        on_up: Callable[[RedisLink], Awaitable[None]] | None = None,
        on_ready: Callable[[], None] | None = None,
        on_down: Callable[[Exception], None] | None = None,
        on_part: Callable[[], None] | None = None,
        answer_timeout_s: float = 5.0,
        name: str = "rookery",
        counters: LinkCounters | None = None,
    ) -> None:
        self.address = address
        self._counters = counters or LinkCounters()
        self._poller = poller
        self._on_up, self._on_ready, self._on_down, self._on_part = on_up, on_ready, on_down, on_part
        self._answer_timeout_s = answer_timeout_s
        self._name = name
        self._shards: dict[Place, RedisLink] = {}
        #: The shards that have slots.
        self._owners: set[RedisLink] = set()
        self._slots: list[RedisLink | None] = [None] * SLOTS
        self._visited: dict[Place, float] = {}
        #: Not executed so far, to be sent again; and what is to be refused at the next flush.
        self._later: list[_Routed] = []
        self._refused: list[tuple[_Routed, StoreUnavailable]] = []
        self._up = self._closed = False
        self._attention = trio.Event()
        self._ended = trio.Event()
        self._nursery: trio.Nursery | None = None

    @property
    def up(self) -> bool:
        """See `Link.up`."""
        return self._up

    def up_for(self, key: bytes) -> bool:
        """See `Link.up_for`."""
        shard = self._slots[slot_of(key)]
        return shard is not None and shard.up

    @property
    def pending_bytes(self) -> int:
        """See `Link.pending_bytes`."""
        return sum(shard.pending_bytes for shard in self._shards.values())

    @property
    def unanswered(self) -> int:
        """See `Link.unanswered`."""
        waiting = len(self._later) + len(self._refused)
        return waiting + sum(shard.unanswered for shard in self._shards.values())

    @property
    def round_trip_ms(self) -> float:
        """See `Link.round_trip_ms`."""
        return max((shard.round_trip_ms for shard in self._owners), default=0.0)

    @property
    def server(self) -> dict[str, object]:
        """See `Link.server`."""
        return next((shard.server for shard in self._shards.values() if shard.server), {})

    @property
    def durability(self) -> str:
        """See `Link.durability`."""
        return weakest([shard.durability for shard in self._owners if shard.durability])

    @property
    def short_s(self) -> float:
        """See `Link.short_s`."""
        return max((shard.short_s for shard in self._owners), default=0.0)

    def primaries(self) -> Sequence[RedisLink]:
        """See `Link.primaries`."""
        return [shard for shard in self._shards.values() if shard in self._owners]

    def command(
        self,
        parts: Sequence[Part],
        then: Then | None = None,
        resend: bool = False,
        allow_s: float = 0.0,
        durable: bool = False,
    ) -> None:
        """See `Pipeline.command`; one that is held back for a slot on its way gets StoreUnavailable in the end."""
        _Routed(self, parts, then, resend, allow_s, durable).send()

    async def call(self, *parts: Part, resend: bool = False, allow_s: float = 0.0, durable: bool = False) -> object:
        """See `RedisLink.call`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        caller = Caller(trio.lowlevel.current_task())
        self.command(parts, caller.answered, resend, allow_s, durable)
        self._poller.wake()
        await trio.lowlevel.wait_task_rescheduled(caller.abort)
        return result(caller.reply)

    def flush(self) -> None:
        """See `Link.flush`."""
        if self._refused:
            refused, self._refused = self._refused, []
            for routed, error in refused:
                routed.give_up(error)
        for shard in tuple(self._shards.values()):
            shard.flush()

    async def connect(self) -> None:
        """See `Link.connect`: to all primaries. Raises ClusterError with the first failure."""
        if self._closed or self._shards:
            raise self._unavailable("the link is closed" if self._closed else "the link is connected already")
        try:
            await self._refresh()
            if None in self._slots:
                raise self._unavailable("not all slots of the Redis Cluster have a server (see CLUSTER INFO there)")
            for shard in self.primaries():
                await shard.connect()
        except ClusterError:
            for shard in self._shards.values():
                shard.close()
            self._shards.clear()
            self._owners.clear()
            self._slots = [None] * SLOTS
            raise

    async def keep_connected(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Link.keep_connected`."""
        if not self._shards:
            await self.connect()
        task_status.started()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for shard in self._shards.values():
                nursery.start_soon(shard.stay_connected)
            await self._tend()

    def close(self) -> None:
        """See `Link.close`."""
        self._closed, self._up = True, False
        for shard in self._shards.values():
            shard.close()
        later, self._later = self._later, []
        for routed in later:
            self.refuse(routed, "the link was closed")
        self.flush()
        self._attention.set()
        self._ended.set()

    # The map

    async def _tend(self) -> None:
        """Reads the map when something changed, and sends again what waits for that."""
        wait_s, looked_s = _FIRST_LOOK_S, 0.0
        while True:
            with trio.move_on_after(_CALM_S if self._up and not self._later else wait_s):
                await self._attention.wait()
            since_s = trio.current_time() - looked_s
            if since_s > 2 * _LAST_LOOK_S:
                wait_s = _FIRST_LOOK_S
            else:  # what is sent again may come back at once
                with trio.move_on_after(max(0.0, wait_s - since_s)):
                    await self._ended.wait()
                wait_s = min(_LAST_LOOK_S, 2 * wait_s)
            looked_s = trio.current_time()
            self._attention = trio.Event()
            if self._closed:
                return
            try:
                await self._refresh()
            except ClusterError as error:
                _log.warning("store.map_unreadable", reason=str(error)[:200])
            self._send_later()

    async def _refresh(self) -> None:
        shards = sorted(self._shards.items(), key=lambda item: not item[1].up)
        ranges = await read_map(dict.fromkeys((*(self._at(place) for place, _ in shards), *self.address.seeds)))
        if self._closed:
            return
        slots: list[RedisLink | None] = [None] * SLOTS
        for start, end, place in ranges:
            slots[start : end + 1] = [self._shard(place)] * (end + 1 - start)
        self._slots = slots
        owners = {shard for shard in set(slots) if shard is not None}
        if self._owners:
            self._counters.failovers += len(owners - self._owners)
        self._owners = owners
        self._retire()
        self._look()

    def _at(self, place: Place) -> StoreAddress:
        return replace(self.address.seeds[0], host=place[0], port=place[1])

    def _shard(self, place: Place) -> RedisLink:
        """The link to the server there, made if need be."""
        shard = self._shards.get(place)
        if shard is None:
            shard = self._shards[place] = RedisLink(
                self._at(place),
                self._poller,
                on_up=self._on_up,
                on_ready=self._shard_ready,
                on_down=self._shard_down,
                answer_timeout_s=self._answer_timeout_s,
                name=self._name,
                serves=self._serves,
                counters=self._counters,
            )
            if self._nursery is not None:
                self._nursery.start_soon(shard.stay_connected)
        return shard

    def _serves(self, shard: RedisLink, key: bytes) -> bool:
        return self._slots[slot_of(key)] is shard

    def _retire(self) -> None:
        """Servers without slots are let go; what waits for them is sent to where the slots are now."""
        now_s = trio.current_time()
        for place, shard in tuple(self._shards.items()):
            if shard not in self._owners and now_s - self._visited.get(place, -_VISIT_S) >= _VISIT_S:
                if shard.up and shard.unanswered:
                    self.attend()  # it will say where the slots are now
                    continue
                del self._shards[place]
                self._visited.pop(place, None)
                shard.close()

    def _look(self) -> None:
        """Something changed: whether all is up."""
        was_up = self._up
        self._up = not self._closed and None not in self._slots and all(shard.up for shard in self._owners)
        if self._up and not was_up and self._on_ready is not None:
            self._on_ready()

    def _shard_ready(self) -> None:
        self._look()
        if self._on_part is not None:
            self._on_part()
        self._send_later()

    def _shard_down(self, error: Exception) -> None:
        if not all(shard.up for shard in self._owners):
            self._up = False
            if self._on_down is not None:
                self._on_down(error)
        self.attend()

    def wake(self) -> None:
        """Something was added to a batch outside of a turn."""
        self._poller.wake()

    def attend(self) -> None:
        """The map may be wrong, or something waits for it."""
        self._attention.set()

    # Routing

    def route(self, slot: int) -> RedisLink | None:
        """The link to the server that has a slot; for -1 to any one."""
        if slot >= 0:
            return self._slots[slot]
        return next((shard for shard in self._owners if shard.up), next(iter(self._owners), None))

    def moved(self, slot: int, place: Place) -> None:
        """A server says who has the slot now."""
        shard = self._slots[slot] = self._shard(place)
        self._counters.failovers += shard not in self._owners
        self._owners.add(shard)
        self._visited[place] = trio.current_time()
        if not shard.up:
            self._shard_down(self._unavailable(f"slot {slot} moved to {place[0]}:{place[1]}"))
        self.attend()

    def visit(self, place: Place) -> RedisLink:
        """The link to a server that a slot is on its way to."""
        self._visited[place] = trio.current_time()
        return self._shard(place)

    def hold(self, routed: _Routed) -> None:
        """It was not executed: send it again when the map is known better."""
        if self._closed:
            self.refuse(routed, "the link is closed")
        else:
            self._later.append(routed)
            self.attend()

    def refuse(self, routed: _Routed, text: str) -> None:
        """It has nowhere to go: answered at the next flush."""
        self._refused.append((routed, self._unavailable(text)))
        self._poller.wake()

    def _send_later(self) -> None:
        later, self._later = self._later, []
        now_s = trio.current_time()
        for routed in later:
            if now_s - routed.held_s > self._answer_timeout_s and not routed.resend:
                self.refuse(routed, f"slot {routed.slot} has no server that takes it, or is on its way to another one")
            else:
                routed.send()
        if later:
            self._poller.wake()

    def _unavailable(self, text: str) -> StoreUnavailable:
        return StoreUnavailable(f"store {self.address}: {text}")


class _Routed:
    """One command on its way to the right server."""

    __slots__ = ("_allow_s", "_cluster", "_durable", "_parts", "_shard", "_then", "_tries", "held_s", "resend", "slot")

    def __init__(
        self,
        cluster: ClusterLink,
        parts: Sequence[Part],
        then: Then | None,
        resend: bool,
        allow_s: float,
        durable: bool,
    ) -> None:
        self._cluster = cluster
        self._parts = parts
        self._then = then
        self._allow_s = allow_s
        self._durable = durable
        self._shard: RedisLink | None = None
        self._tries = 0
        self.slot = slot_of_command(parts)
        self.resend = resend
        #: Since when it is held back; 0.0: it never was.
        self.held_s = 0.0

    def send(self) -> None:
        """To the server that has the slot, as far as is known."""
        shard = self._shard = self._cluster.route(self.slot)
        if shard is None:
            if self.resend:
                self._hold()
            else:
                self._cluster.refuse(self, f"no server has slot {self.slot}")
        elif self.held_s and not shard.up:
            self._cluster.hold(self)
        else:
            shard.command(self._parts, self.answered, self.resend, self._allow_s, self._durable)

    def answered(self, reply: object) -> None:
        """The `then` of the request at that server."""
        if isinstance(reply, hiredis.ReplyError):
            word, _, rest = str(reply).partition(" ")
            if word == "MOVED":
                self._cluster.moved(*_where(rest, self._shard))
                self._again()
                return
            if word == "ASK":
                self._ask(rest)
                return
            if word in ("TRYAGAIN", "CLUSTERDOWN"):
                self._hold()
                return
        elif self.resend and isinstance(reply, StoreUnavailable) and self._shard is not None and self._shard.closed:
            self._again()  # the slot has another server now, and this link to the old one was closed
            return
        self.give_up(reply)

    def give_up(self, reply: object) -> None:
        """This is the answer."""
        if self._then is not None:
            run(self._then, reply)

    def _again(self) -> None:
        shard = self._cluster.route(self.slot)
        self._tries += 1
        if shard is not None and shard.up and self._tries <= _TRIES and not self.held_s:
            self._cluster.wake()
            self.send()
        else:
            self._hold()

    def _hold(self) -> None:
        self.held_s = self.held_s or trio.current_time()
        self._cluster.hold(self)

    def _ask(self, rest: str) -> None:
        name = self._parts[0]
        if name in (b"FCALL", "FCALL"):
            self._hold()
            return
        shard = self._cluster.visit(_where(rest, self._shard)[1])
        if not shard.up:
            self._hold()
            return
        self._shard = shard
        shard.command(("ASKING",))
        shard.command(self._parts, self.answered, self.resend, self._allow_s, self._durable)
        self._cluster.wake()


def _where(text: str, asked: RedisLink | None) -> tuple[int, Place]:
    """Slot and server of `<slot> <host>:<port>`; no host: the one that said so."""
    slot, _, place = text.partition(" ")
    host, _, port = place.rpartition(":")
    return int(slot), (host or (asked.address.host if asked is not None else ""), int(port))
