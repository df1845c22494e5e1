"""The reactor: one trio task that serves all plain sockets of a node.

A turn reads every ready socket, lets the protocols work synchronously, runs the turn hooks (which hand the
batch of the turn to the store), and then flushes each socket that has output, once. It knows file
descriptors, bytes and deadlines, and nothing of MQTT.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from broker.log import get_logger
from broker.transport.others import Others, trio_epoll
from cluster.api import Readiness

_READ = select.EPOLLIN | select.EPOLLRDHUP
#: What is told whether or not it is watched for.
_UNASKED = select.EPOLLERR | select.EPOLLHUP
_NOT_WRITE = ~select.EPOLLOUT

#: Ready descriptors in one round; whoever is ready meanwhile comes in the next.
EVENTS_PER_ROUND = 512

#: Bytes read in one turn, about: each receiver may get all of them before its output buffer is judged.
BYTES_PER_TURN = 1024 * 1024

#: ... and for so long, about: what is sent and what other tasks do does not wait for all that is ready.
TURN_S = 0.004

#: Turns that may follow each other while there is work before other tasks get their chance.
TURNS_PER_WAKE = 8

#: ... and how long they may take together before they give way to the other tasks (HTTP, WebSocket, beats).
WAKE_S = 0.005

#: After turns that took so long these go on until they wait for something ...
LONG_S = 0.001

#: ... but no longer than this.
OTHERS_S = 0.005

#: After so many short wakes, each so soon after the one before, the next descriptor is waited for without trio, whose
#: way there and back costs more than a short turn ...
BRISK_WAKES = 8
BRISK_S = 0.01

#: ... for so long at most, all in all.
LINGER_S = 0.05

#: Pause between turns that may not serve clients.
HOLD_S = 0.01

#: Seconds between two looks at the deadlines.
TICK_S = 0.5

#: Steps that tasks between a stream and its owner (WebSocket) need, at most, to pass on what was read.
TASK_STEPS = 4

#: More than that between two looks: the process was paused, or everything was held back.
LATE_S = 1.0


class Flushable(Protocol):
    """Something with output that a turn collected."""

    def flush(self) -> None:
        """Write once, without blocking."""


class Resumable(Protocol):
    """Something that had more work than its share of a turn."""

    def resume(self) -> None:
        """Go on."""


class Client(Readiness, Protocol):
    """What serves the socket of a client, or the one that clients come by."""

    def abort(self) -> None:
        """Stop at once."""


class Watched(Protocol):
    """Something with a deadline in the timer wheel."""

    def check_deadline(self, now: float) -> float:
        """Look at the clock; returns when to look again (monotonic seconds), or 0.0 for never."""


class Reactor:
    """Serves `Readiness` handlers by file descriptor. All calls come from the trio thread."""

    def __init__(self, lingers: bool = False) -> None:
        """`lingers`: it may wait for its own descriptors, and keep the thread, while no other task has work."""
        self._lingers = lingers
        self._epoll = select.epoll()
        self._handlers: dict[int, Readiness] = {}
        self._masks: dict[int, int] = {}
        self._clients: dict[int, Client] = {}
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._woken = False
        self._dirty: list[Flushable] = []
        self._again: list[Resumable] = []
        #: The round: each that had more work when it began, and each that was ready, is served once before the next
        #: begins. Turns take from them as much as they may.
        self._resuming: Iterator[Resumable] = iter(())
        self._ready: Iterator[tuple[int, int]] = iter(())
        self._in_round = False
        self._wheel: dict[int, list[Watched]] = {}
        self._wheel_at = 0
        self._log = get_logger("reactor")
        self.in_turn = False
        self._finishing = False
        #: Asked at the beginning of a turn. True: what clients sent stays in the kernel, and nothing is sent to them.
        self.hold: Callable[[], bool] = _never
        self._held = False
        #: Monotonic seconds at the beginning of the turn.
        self.now = time.monotonic()
        #: Called at the end of each turn, before the sockets are flushed.
        self.turn_hooks: list[Callable[[], None]] = []
        self.turns = 0
        #: Monotonic seconds at the end of the last turn.
        self.turn_ended = self.now
        self._others = Others()
        #: Of the handler that is being called: what epoll says.
        self.events = 0
        #: By streams, in this turn.
        self.bytes_read = 0
        #: By all streams since the start.
        self.received_bytes = 0
        self.sent_bytes = 0
        #: Bytes that peers have not taken.
        self.unsent_bytes = 0
        #: What the owners of streams say that they handled; for whoever is told of the end of a turn.
        self.handled = 0
        #: Called when a turn has flushed what it wrote, with its duration in seconds.
        self.turn_done: Callable[[float], None] = _ignore

    def register_client(self, fd: int, handler: Client) -> None:
        """Watch for reading, except while `hold` says otherwise."""
        self._clients[fd] = handler
        self.register(fd, handler)

    def register(self, fd: int, handler: Readiness) -> None:
        """Watch for reading."""
        self._handlers[fd] = handler
        self._masks[fd] = _READ
        self._epoll.register(fd, _READ)

    def watch_writable(self, fd: int, wanted: bool) -> None:
        """Watch for writing too, or no longer."""
        self._watch(fd, self._masks[fd] | select.EPOLLOUT if wanted else self._masks[fd] & _NOT_WRITE)

    def watch_readable(self, fd: int, wanted: bool, its_end: bool = False) -> None:
        """Stop or go on reading: what the peer sends then stays in the kernel and slows it down. With `its_end` the
        handler is told meanwhile that the peer has ended, until it takes that back."""
        mask = self._masks[fd] & ~_READ
        if wanted:
            mask |= _READ
        elif its_end:
            mask |= select.EPOLLRDHUP
        self._watch(fd, mask)

    def _watch(self, fd: int, mask: int) -> None:
        if mask != self._masks[fd]:
            self._masks[fd] = mask
            self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Forget the descriptor; call before closing it."""
        if self._handlers.pop(fd, None) is not None:
            del self._masks[fd]
            self._clients.pop(fd, None)
            self._epoll.unregister(fd)

    def wake(self) -> None:
        """Run a turn soon: something was added from outside one, or while its hooks ran."""
        if (not self.in_turn or self._finishing) and not self._woken:
            self._woken = True
            os.eventfd_write(self._wake_fd, 1)

    def mark_dirty(self, stream: Flushable) -> None:
        """Flush `stream` at the end of this turn, or of a turn that is run for it."""
        self._dirty.append(stream)
        if not self.in_turn:
            self.wake()

    def call_again(self, stream: Resumable) -> None:
        """Call `stream.resume` in the next turn, which follows at once."""
        self._again.append(stream)
        if not self.in_turn:
            self.wake()

    @staticmethod
    def clock() -> float:
        """Monotonic seconds, where `now` of the last turn is not new enough."""
        return time.monotonic()

    def watch_deadline(self, watched: Watched, at: float) -> None:
        """Call `watched.check_deadline` at `at` (monotonic) or up to a tick later."""
        self._wheel.setdefault(int(at / TICK_S) + 1, []).append(watched)

    async def run(self) -> None:
        """Serves until cancelled."""
        self._wheel_at = int(time.monotonic() / TICK_S)
        fd = self._epoll.fileno()
        trio_fd = trio_epoll() if self._lingers else None
        brisk = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            while True:
                if self._held:
                    await trio.sleep(HOLD_S)
                elif self._again or self._in_round:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(fd)
                began, ended = time.monotonic(), self.turn_ended
                for _ in range(TURNS_PER_WAKE):
                    if not self._turn() or self.turn_ended > began + WAKE_S:
                        break
                if self.turn_ended > began + LONG_S:
                    with self._others.watched():
                        await self._others.go_on(OTHERS_S)
                elif trio_fd is not None:
                    brisk = brisk + 1 if began - ended < BRISK_S else 0
                    if brisk >= BRISK_WAKES:
                        turns = self.turns
                        await self._linger(fd, trio_fd)
                        # Where that was worth it, so it is after the next wake.
                        brisk = BRISK_WAKES - 1 if self.turns >= turns + BRISK_WAKES else 0

    async def _linger(self, fd: int, trio_fd: int) -> None:
        """Turns for what is ready, until another task has something to do or nothing comes for a while."""
        others = self._others
        with others.watched():
            if not await others.go_on(OTHERS_S):
                return
            next_deadline_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
            end = time.monotonic() + min(LINGER_S, next_deadline_s)
            self.turn_ended = time.monotonic()
            # What trio waits for is waited for here, instead of the other way round: the kernel allows one of both.
            trio.lowlevel.notify_closing(fd)
            self.register(trio_fd, others)
            try:
                while self.turn_ended < end and not (others.woken or self._again or self._in_round):
                    if not self._turn(min(BRISK_S, end - self.turn_ended)):
                        break
            finally:
                self.unregister(trio_fd)

    def drop_clients(self) -> None:
        """Nothing is read from any client or sent to one any more."""
        for client in list(self._clients.values()):
            client.abort()

    def close(self) -> None:
        """Drops all clients and frees the descriptors of the reactor itself."""
        self.drop_clients()
        self._epoll.close()
        os.close(self._wake_fd)

    def _turn(self, wait_s: float = 0.0) -> bool:
        """One turn; False if there was nothing to do, also not within `wait_s` (waited for between rounds only)."""
        events = [] if self._in_round else self._epoll.poll(wait_s, EVENTS_PER_ROUND)
        held = self._held = self.hold()
        if held and self._in_round:  # whoever is left of it is ready again, or has more work, when that is over
            self._again[:0] = self._resuming
            self._in_round = False
            events = self._epoll.poll(0, EVENTS_PER_ROUND)
        if not self._in_round:
            if not events and (held or not (self._again or self._dirty)):  # dirty: since the hold, which is over
                return False
            self._ready = iter(events)
            if self._again and not held:
                self._resuming, self._again = iter(self._again), []
        self.in_turn = True
        self.turns += 1
        self.bytes_read = 0
        self.now = time.monotonic()
        self._in_round = not self._serve(held, self.now + TURN_S)
        self.received_bytes += self.bytes_read
        self._finish()
        self.turn_ended = time.monotonic()
        self.turn_done(self.turn_ended - self.now)
        return not held

    def _serve(self, held: bool, until: float) -> bool:
        """Serve those of the round that have not been served, as far as one turn goes; False if some are left."""
        for stream in self._resuming:
            try:
                stream.resume()
            except Exception:
                self._log.exception("reactor.resume_failed")
            if time.monotonic() > until:
                return False
        handlers = self._handlers
        for fd, events in self._ready:
            handler = handlers.get(fd)
            if handler is None:  # the wake-up descriptor, or closed earlier in this round
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                    self._woken = False
                continue
            if held and fd in self._clients:
                continue
            # Since the round began it may have been told not to read or write, or be another with the same number.
            mask = self.events = events & (self._masks[fd] | _UNASKED)
            try:
                if mask & select.EPOLLOUT:
                    handler.writable()
                if mask & _NOT_WRITE:
                    handler.readable()
            except Exception:
                self._log.exception("reactor.handler_failed", fd=fd)
            if self.bytes_read > BYTES_PER_TURN or time.monotonic() > until:
                return False
        return True

    def _catch_up(self) -> None:
        """The process stood still: what came meanwhile counts before what is missing."""
        for _ in range(1 + len(self._handlers) // EVENTS_PER_ROUND):
            if not self._turn():
                break
            while self._in_round:
                self._turn()

    def _finish(self) -> None:
        """Hands the batch to the store and flushes, until nothing is left of this turn."""
        self.in_turn = self._finishing = True
        for hook in self.turn_hooks:
            try:
                hook()
            except Exception:
                self._log.exception("reactor.hook_failed")
        while self._dirty and not self._held:
            dirty, self._dirty = self._dirty, []
            for stream in dirty:
                try:
                    stream.flush()
                except Exception:
                    self._log.exception("reactor.flush_failed")
        self.in_turn = self._finishing = False

    async def _tick(self) -> None:
        looked_at = time.monotonic()
        while True:
            await trio.sleep(TICK_S)
            self._held = self.hold()
            if self._held:
                continue
            if time.monotonic() - looked_at > LATE_S:
                self._catch_up()
                for _ in range(TASK_STEPS):
                    await trio.lowlevel.checkpoint()
                self._catch_up()
            looked_at = time.monotonic()
            self.in_turn = True
            now = self.now = looked_at
            last = int(now / TICK_S)
            while self._wheel_at < last:
                self._wheel_at += 1
                for watched in self._wheel.pop(self._wheel_at, ()):
                    try:
                        at = watched.check_deadline(now)
                    except Exception:
                        self._log.exception("reactor.deadline_failed")
                        continue
                    if at:
                        self.watch_deadline(watched, max(at, now + TICK_S))
            self._finish()
            if self._again or self._in_round:
                self.wake()  # the turns wait for descriptors, and know nothing of what was done here


def _never() -> bool:
    return False


def _ignore(seconds: float) -> None:
    pass
