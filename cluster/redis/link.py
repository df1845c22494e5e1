"""One pipelined connection to Redis, served by the node's reactor: batches of commands out, replies in order."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from broker.errors import ClusterError, StoreUnavailable
from broker.log import get_logger
from cluster.redis.pipeline import Part, Pipeline, pack
from cluster.redis.replies import NOT_HERE, NOT_THIS_SHARD, check_hello, login_error
from cluster.redis.requests import Caller, Request, result
from cluster.redis.wire import Wire, open_wire

if TYPE_CHECKING:
    from cluster.api import Poller
    from cluster.redis.address import StoreAddress
    from cluster.telemetry import LinkCounters

_TICK_S = 1.0
#: A connection that lasted this long ends the backoff.
_SETTLED_S = 10.0
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 2.0
#: The same where others tell who the primary is: it is likely that there soon is one.
_LAST_LOOK_S = 0.5

_log = get_logger("store")


class RedisLink(Pipeline):
    """A Pipeline that connects and stays connected; `call`, `connect` and `keep_connected` wait, nothing else does.

    `on_up` runs on each new connection before anything else is sent on it; it uses `setup_call` and `subscribe`.
    `on_ready` is called when the connection then is everyone's, `on_down` once when such a connection is lost, before
    the requests that fail with it. `locate`, if given, tells for each connection where the primary is now, and `serves`
    which keys it has (all). A link `bound` to one slot of a Redis Cluster connects anew where that slot moves.
    Replies are those of RESP3: maps are dicts, sets are sets, strings are bytes.
    """

    def __init__(
        self,
        address: StoreAddress,
        poller: Poller,
        *,
        on_down: Callable[[Exception], None] | None = None,
        on_up: Callable[[RedisLink], Awaitable[None]] | None = None,
        on_ready: Callable[[], None] | None = None,
        on_push: Callable[[list[object]], None] | None = None,
        answer_timeout_s: float = 5.0,
        name: str = "rookery",
        locate: Callable[[], Awaitable[StoreAddress]] | None = None,
        serves: Callable[[RedisLink, bytes], bool] | None = None,
        bound: bool = False,
        counters: LinkCounters | None = None,
    ) -> None:
        super().__init__(address, poller, on_down, on_push, counters)
        #: Of the last HELLO: server, version, mode, role, ...
        self.server: dict[str, object] = {}
        #: The class of GUARANTEES section 2 on this connection; "" before the first one.
        self.durability = ""
        if bound:
            self._elsewhere = NOT_HERE + NOT_THIS_SHARD
        self._on_up, self._on_ready = on_up, on_ready
        self._locate, self._serves = locate, serves
        self._answer_timeout_s = answer_timeout_s
        self._name = name
        #: The server of the connection before.
        self._connected_to: StoreAddress | None = None

    def up_for(self, key: bytes) -> bool:
        """See `Link.up_for`."""
        return self._up

    def serves(self, key: bytes) -> bool:
        """Whether this key, or the keys with this prefix, live on this server."""
        return self._serves is None or self._serves(self, key)

    def primaries(self) -> Sequence[RedisLink]:
        """See `Link.primaries`."""
        return (self,)

    async def call(self, *parts: Part, resend: bool = False, allow_s: float = 0.0, durable: bool = False) -> object:
        """Sends a command and waits for its reply. After cancellation the outcome is unknown.

        Raises StoreUnavailable (outcome unknown), StoreFull, or ClusterError with the server's text."""
        await trio.lowlevel.checkpoint_if_cancelled()
        caller = Caller(trio.lowlevel.current_task())
        self.command(parts, caller.answered, resend, allow_s, durable)
        self._poller.wake()
        await trio.lowlevel.wait_task_rescheduled(caller.abort)
        return result(caller.reply)

    async def setup_call(self, *parts: Part) -> object:
        """As `call`, for `on_up` alone: needs no reactor, and nothing of others is on the connection yet.

        Raises StoreUnavailable also after `answer_timeout_s` without a reply."""
        if self._wire is None or self._up:
            raise self._lost_error or self._unavailable("no connection is being set up")
        replies: list[object] = []
        self._append(Request(b"", replies.append), pack(parts))
        with trio.move_on_after(self._answer_timeout_s):
            while not replies:
                await self._turn()
        if not replies:
            self._drop(self._unavailable(f"no answer within {self._answer_timeout_s:g} s; is it a Redis?"))
        return result(replies[0])

    async def _turn(self) -> None:
        """What the reactor does once the connection is everyone's: write, wait, read."""
        self.flush()
        wire = self._wire
        if wire is None:
            return
        try:
            if wire.blocked_bytes:
                await trio.lowlevel.wait_writable(wire.fd)
                self.writable()
            else:
                await trio.lowlevel.wait_readable(wire.fd)
                self.readable()
        except trio.ClosedResourceError:
            pass  # dropped meanwhile: the request has its answer

    async def connect(self) -> None:
        """Connects, logs in, runs `on_up`, and sends what was kept. Raises ClusterError (StoreUnavailable where
        trying again may help) with one line that says what is wrong; the link is then as before."""
        self._check_free()
        wire: Wire | None = None
        with trio.move_on_after(self._answer_timeout_s):
            if self._locate is not None:
                self.address = await self._locate()
            wire = await open_wire(self.address)
        if wire is None:
            hint = " (is it a TLS port?)" if self.address.tls else ""
            raise self._unavailable(f"no connection within {self._answer_timeout_s:g} s{hint}")
        finished = False
        try:
            self._check_free()
            self._attach(wire)
            await self._login()
            if self._on_up is not None:
                await self._on_up(self)
            self._check_attached(wire)
            finished = True
        finally:
            if not finished:
                self._drop(self._unavailable("the connection could not be set up"))
                wire.close()
        if self._connected_to is not None:
            self.counters.reconnects += 1
            self.counters.failovers += self._connected_to != self.address
        self._connected_to = self.address
        resent = self._open(wire)
        version = str(self.server.get("version"))
        _log.info("store.connected", store=str(self.address), version=version, resent=resent)
        if self._on_ready is not None and self._up:
            self._on_ready()

    def _check_free(self) -> None:
        if self._closed or self._wire is not None:
            raise self._unavailable("the link is closed" if self._closed else "the link is connected already")

    def _check_attached(self, wire: Wire) -> None:
        if self._wire is not wire:
            raise self._lost_error or self._unavailable("connection lost")

    async def _login(self) -> None:
        address = self.address
        login: tuple[Part, ...] = ("AUTH", address.username or "default", address.password) if address.password else ()
        try:
            self.server = check_hello(await self.setup_call("HELLO", 3, *login, "SETNAME", self._name), address)
            if address.db:
                await self.setup_call("SELECT", address.db)
            await self.setup_call("PING")  # HELLO and SELECT also work while the data set is loading
        except StoreUnavailable:
            raise
        except ClusterError as error:
            raise login_error(error, address) from error

    async def keep_connected(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connects (if `connect` was not called) and stays connected until `close`; watches for a dead peer.

        The first connection's failure is raised as from `connect`; later ones are retried, with backoff and jitter,
        for ever. What `on_up` raises beside ClusterError ends this task."""
        if not self._up:
            await self.connect()
        task_status.started()
        await self.stay_connected()

    async def stay_connected(self) -> None:
        """Connects whenever it is not, until `close`, however often that fails."""
        failures = 0
        while not self._closed:
            if self._up:
                since = trio.current_time()
                await self._watch()
                if trio.current_time() - since > _SETTLED_S:
                    failures = 0
            failures = await self._reconnect(failures)

    async def _reconnect(self, failures: int) -> int:
        """Tries until connected or closed; returns the number of tries since the last lasting connection."""
        last_s = _LAST_RETRY_S if self._locate is None else _LAST_LOOK_S
        while not self._closed:
            delay_s = min(last_s, _FIRST_RETRY_S * 2 ** min(failures, 10))
            with trio.move_on_after(delay_s * random.uniform(0.5, 1.0)):
                await self._ended.wait()
            failures += 1
            try:
                await self.connect()
                return failures
            except ClusterError as error:
                if not self._ended.is_set() and failures & (failures - 1) == 0:  # ever more rarely
                    _log.warning("store.unreachable", reason=str(error), failures=failures)
        return failures

    async def _watch(self) -> None:
        """Returns when the connection is lost; drops it if the oldest request waits too long."""
        # Silence is counted in ticks, not read off a clock: a node that was itself stopped for a while
        # must first get the chance to read what came meanwhile.
        tick_s = min(_TICK_S, self._answer_timeout_s / 4)
        silent_s, reads = 0.0, self._reads
        while not self._lost.is_set():
            with trio.move_on_after(tick_s):
                await self._lost.wait()
                return
            if not self._unanswered:
                silent_s = 0.0
                self.command(("PING",))
                self._poller.wake()
            elif self._reads != reads:
                silent_s = 0.0
            else:
                silent_s += tick_s
                if silent_s > self._answer_timeout_s + self._unanswered[0].allow_s:
                    self._drop(self._unavailable(f"no answer for {silent_s:g} s"))
            reads = self._reads
