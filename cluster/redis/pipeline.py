"""Commands out in batches, replies in the same order: the part of a link to Redis that never waits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import hiredis
import trio

from broker.errors import StoreUnavailable
from broker.log import get_logger
from cluster.redis.replies import NOT_HERE
from cluster.redis.requests import Request, Then, run
from cluster.redis.wire import Wire, reason
from cluster.telemetry import LinkCounters

if TYPE_CHECKING:
    from cluster.api import Poller
    from cluster.redis.address import StoreAddress
    from cluster.redis.barrier import Barrier

Part = bytes | str | int | float

#: hiredis' own "no reply yet" is False, which is also the RESP3 value false.
_NOTHING = object()
#: A request that was the oldest on this many connections that broke is given up: it may be what breaks them.
_SENDS = 5

pack = cast("Callable[[tuple[Part, ...]], bytes]", hiredis.pack_command)
_log = get_logger("store")


class Pipeline:
    """The queue of requests and whatever connection it has at the moment (RedisLink makes them).

    Every `then` is called exactly once: with the reply, with a `hiredis.ReplyError` (see `replies.error_from`),
    or with StoreUnavailable for an unknown outcome. It is never called from within `command` itself and may
    add commands; what it raises is logged. A request with `resend` gets StoreUnavailable only from `close` or
    where it was the oldest on five connections that broke: else it is sent again, in order, on the next one.
    With a `barrier` the replies of `durable` requests are kept until the store says that they are safe.
    """

    def __init__(
        self,
        address: StoreAddress,
        poller: Poller,
        on_down: Callable[[Exception], None] | None,
        on_push: Callable[[list[object]], None] | None,
        counters: LinkCounters | None = None,
    ) -> None:
        self.address = address
        #: Those of others too, if they are given.
        self.counters = counters or LinkCounters()
        #: Smoothed time from a flush to the reply of its last command.
        self.round_trip_ms = 0.0
        self._poller = poller
        self._on_down, self._on_push = on_down, on_push
        self._wire: Wire | None = None
        self._up = False
        self._closed = False
        self._ended = trio.Event()
        #: Set when the current connection is lost.
        self._lost = trio.Event()
        self._lost_error: StoreUnavailable | None = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._unanswered: deque[Request] = deque()
        #: To be sent on the next connection, oldest first.
        self._held: deque[Request] = deque()
        self._held_bytes = 0
        #: Came while there was no connection: answered at the next flush.
        self._refused: list[Request] = []
        #: What makes durable requests safe on this server; None: its reply alone does.
        self.barrier: Barrier | None = None
        #: Durable requests were sent since the last barrier; a barrier is under way; replies that wait for one.
        self._unsafe = self._safing = False
        self._kept: deque[tuple[Request, object]] = deque()
        #: Error replies (their first word) that say that this is not the right server any more.
        self._elsewhere = NOT_HERE
        self._reads = 0
        self._sample: Request | None = None
        self._sampled_at = 0.0

    @property
    def up(self) -> bool:
        """Connected, logged in, and `on_up` is done."""
        return self._up

    @property
    def closed(self) -> bool:
        """`close` was called."""
        return self._closed

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait for room in the socket, for the next flush, or for a connection."""
        return self._out_bytes + self._held_bytes + (self._wire.blocked_bytes if self._wire else 0)

    @property
    def unanswered(self) -> int:
        """Requests without a reply, sent or not."""
        return len(self._unanswered) + len(self._kept) + len(self._held) + len(self._refused)

    @property
    def short_s(self) -> float:
        """For how long now fewer replicas or disks have what was written than must; 0: all that must."""
        since_s = self.barrier.short_since_s if self.barrier is not None else None
        return 0.0 if since_s is None else time.monotonic() - since_s

    def probe(self) -> None:
        """Asks whether what is written is safe, though nobody waits for it: the next flush does."""
        if self._up and self.barrier is not None:
            self._unsafe = True

    def command(
        self,
        parts: Sequence[Part],
        then: Then | None = None,
        resend: bool = False,
        allow_s: float = 0.0,
        durable: bool = False,
    ) -> None:
        """Adds a command to the batch; never waits, never calls `then` at once.

        `resend`: idempotent by design, survives lost connections. `allow_s`: how long the server may block
        on it on purpose. `durable`: the reply is to come when what was written is as safe as the durability class says.
        While the link is down a command without `resend` gets StoreUnavailable at the next flush.
        """
        data = pack(tuple(parts))
        request = Request(data if resend else b"", then, resend, allow_s, durable=durable)
        if self._up:
            if durable:
                self._unsafe = True
            self._unanswered.append(request)
            self._out.append(data)
            self._out_bytes += len(data)
        elif resend and not self._closed:
            self._held.append(request)
            self._held_bytes += len(data)
        else:
            self._refused.append(request)
            self._poller.wake()

    def subscribe(self, kind: str, channels: Sequence[bytes], then: Then | None = None) -> None:
        """SUBSCRIBE, SSUBSCRIBE and their like, which answer with one push per channel; `then` gets the last push.

        Not sent again after a lost connection: `on_up` does that."""
        if not channels:
            raise ValueError("no channel")
        request = Request(b"", then, kind=kind.lower().encode(), channels=len(channels))
        if self._wire is None:
            self._refused.append(request)
            self._poller.wake()
            return
        self._append(request, pack((kind, *channels)))

    def _append(self, request: Request, data: bytes) -> None:
        self._unanswered.append(request)
        self._out.append(data)
        self._out_bytes += len(data)

    def flush(self) -> None:
        """Writes the batch, if the socket takes it; the rest follows when there is room."""
        if not (self._out or self._refused or self._unsafe):  # most turns have nothing for the store
            return
        if self._refused:
            self._answer_refused()
        wire = self._wire
        if wire is None or wire.blocked_bytes:
            return
        if self._unsafe:
            self._make_safe()
        if not self._out:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self.counters.batch.observe(len(self._out))
        self._out.clear()
        self._out_bytes = 0
        if self._sample is None and self._unanswered and self._unanswered[-1].allow_s == 0.0:
            self._sample, self._sampled_at = self._unanswered[-1], time.perf_counter()
        try:
            if not wire.write(data) and self._up:
                self._poller.watch_writable(wire.fd, True)
        except OSError as error:
            self._drop(self._unavailable(reason(error)))

    def _make_safe(self) -> None:
        """What was sent is to be safe. One barrier at a time: a lagging replica holds nothing else up for long."""
        if self._safing:
            return
        self._unsafe = False
        barrier = self.barrier
        if barrier is not None:
            self._safing = True
            self._append(Request(b"", self._marked), barrier.mark)
            self._append(Request(b"", self._made_safe, allow_s=barrier.timeout_s), barrier.wait)

    def _marked(self, reply: object) -> None:
        if reply != 1 and not isinstance(reply, StoreUnavailable):
            # The store was emptied, or the slot of the mark is elsewhere now: a new connection makes a new one.
            self._drop(self._unavailable(f"cannot mark what was written: {reply!r:.80}"))

    def _made_safe(self, reply: object) -> None:
        self._safing = False
        barrier = self.barrier
        if isinstance(reply, StoreUnavailable) or barrier is None:
            return
        if isinstance(reply, hiredis.ReplyError):
            self._drop(self._unavailable(str(reply)))
            return
        if not barrier.enough(reply, self.address):
            self._unsafe = True
        else:
            kept, self._kept = self._kept, deque()
            for request, answer in kept:
                if request.then is not None:
                    run(request.then, answer)
        if self._unsafe:
            self._poller.wake()

    def writable(self) -> None:
        """Readiness: the socket has room again."""
        wire = self._wire
        if wire is None:
            return
        try:
            if not wire.write_rest():
                return
        except OSError as error:
            self._drop(self._unavailable(reason(error)))
            return
        if self._up:
            self._poller.watch_writable(wire.fd, False)
        self.flush()

    def readable(self) -> None:
        """Readiness: replies, pushes, or the end of the connection."""
        wire, reader = self._wire, self._reader
        if wire is None:
            return
        try:
            data = wire.read()
        except OSError as error:
            self._drop(self._unavailable(reason(error)))
            return
        if self._up and wire.blocked_bytes:
            self._poller.watch_writable(wire.fd, True)  # TLS may have had an answer of its own
        if data is None:
            return
        if not data:
            self._drop(self._unavailable("connection closed by the store"))
            return
        self._reads += 1
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                if not self._answer(reply) or self._reader is not reader:
                    return
        except hiredis.ProtocolError as error:
            self._drop(self._unavailable(f"the answer is not Redis protocol ({reason(error)[:80]})"))

    def _answer(self, reply: object) -> bool:
        """Gives one reply to the request it belongs to; False if the connection was dropped instead."""
        if type(reply) is hiredis.PushNotification:
            return self._push(cast("list[object]", reply))
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            self.counters.failed(text)
            if (self._up or self._subscribing()) and text.startswith(self._elsewhere):
                # Not executed, nor is what follows: a failover or a restart. Look for the primary again.
                self._drop(self._unavailable(text))
                return False
        if not self._unanswered:
            self._drop(self._unavailable("a reply without a request"))
            return False
        self._settle(self._unanswered.popleft(), reply)
        return True

    def _subscribing(self) -> bool:
        """Whether the oldest request is a SUBSCRIBE, for whose error nobody waits while the connection is set up."""
        return bool(self._unanswered and self._unanswered[0].kind)

    def _settle(self, request: Request, reply: object) -> None:
        if request is self._sample:
            self._sample = None
            took_s = time.perf_counter() - self._sampled_at
            self.counters.round_trip.observe(took_s)
            took_ms = took_s * 1000
            self.round_trip_ms = took_ms if self.round_trip_ms == 0.0 else 0.8 * self.round_trip_ms + 0.2 * took_ms
        if request.durable and self.barrier is not None:
            self._kept.append((request, reply))
        elif request.then is not None:
            run(request.then, reply)

    def _push(self, push: list[object]) -> bool:
        head = self._unanswered[0] if self._unanswered else None
        if head is not None and head.channels and push and push[0] == head.kind:
            head.channels -= 1
            if not head.channels:
                self._settle(self._unanswered.popleft(), push)
        elif push and push[0] == b"sunsubscribe":
            # Nobody asked for that: the slot of the channel is elsewhere now.
            self._drop(self._unavailable("the channel moved to another server"))
            return False
        elif self._on_push is not None:
            run(cast("Then", self._on_push), push)
        return True

    def _answer_refused(self) -> None:
        refused, self._refused = self._refused, []
        error = self._unavailable("the link is closed" if self._closed else "not connected")
        for request in refused:
            if request.then is not None:
                run(request.then, error)

    def _attach(self, wire: Wire) -> None:
        """A new connection, so far for those who set it up."""
        self._wire, self._lost, self._lost_error = wire, trio.Event(), None

    def _open(self, wire: Wire) -> int:
        """The connection is set up and everyone's: sends what was kept, before anything newer; returns how many."""
        self._up = True
        self._poller.register(wire.fd, self)
        held, self._held, self._held_bytes = self._held, deque(), 0
        for request in held:
            self._append(request, request.data)
            self._unsafe |= request.durable
        if wire.blocked_bytes:
            self._poller.watch_writable(wire.fd, True)
        self.flush()
        return len(held)

    def close(self) -> None:
        """Ends the connection and the retries; everything unanswered gets StoreUnavailable. Final."""
        self._closed = True
        self._drop(self._unavailable("the link was closed"))
        held, self._held, self._held_bytes = self._held, deque(), 0
        self._refused.extend(held)
        self._answer_refused()
        self._ended.set()
        self._lost.set()

    def _drop(self, error: StoreUnavailable) -> None:
        """The connection is of no use any more: end it, keep what may be sent again, fail the rest in order."""
        wire, was_up = self._wire, self._up
        if wire is None:
            return
        if was_up:
            self._poller.unregister(wire.fd)
        self._wire, self._up, self._lost_error, self._sample = None, False, error, None
        wire.close()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._out.clear()
        self._out_bytes = 0
        unanswered, self._unanswered = self._unanswered, deque()
        failed: list[Request] = []
        if unanswered:
            unanswered[0].sends += 1  # the server was at work on this one, if on any
        unanswered.extendleft(request for request, _ in reversed(self._kept))
        self._kept.clear()
        self._unsafe = self._safing = False
        kept: deque[Request] = deque()
        for request in unanswered:
            if request.resend and request.sends < _SENDS and not self._closed:
                kept.append(request)
                self._held_bytes += len(request.data)
            else:
                failed.append(request)
        kept.extend(self._held)
        self._held = kept
        self._lost.set()
        if was_up and not self._closed:
            _log.warning(
                "store.disconnected", store=str(self.address), reason=str(error), kept=len(kept), failed=len(failed)
            )
            if self._on_down is not None:
                run(cast("Then", self._on_down), error)
        for request in failed:
            if request.then is not None:
                run(request.then, error)

    def _unavailable(self, text: str) -> StoreUnavailable:
        return StoreUnavailable(f"store {self.address}: {text}")
