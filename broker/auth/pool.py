"""A bounded pool of connections of synchronous drivers, each question asked in a thread.

A question has one time-out for everything: waiting for its turn, connecting and the answer. Taking a connection,
using it and giving it back all happen in the thread: a caller that goes away leaves nothing half used, and its
connection is cut, so that the thread comes back at once. Questions only read, so one that met a connection which had
died while it was idle is asked once more over a new one.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

import trio

from broker.auth.api import BackendError

#: Questions that wait for their turn; more are refused at once.
MAX_WAITING: Final = 4096
#: A connection that was idle for longer is not used again: somebody between here and there may have forgotten it.
IDLE_S: Final = 60.0
#: After a connection could not be made, none is tried for so long; it doubles up to the second.
BACKOFF_S: Final = (0.05, 2.0)
_CLOSE_S: Final = 1.0

C = TypeVar("C")
T = TypeVar("T")


class Driver(Protocol[C]):
    """A library. All methods but `abort` are called in threads, for one connection in one thread at a time."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What its calls raise when something is wrong."""
        ...

    def connect(self, timeout_s: float) -> C:
        """A connection that is ready for questions; blocks for about `timeout_s` at most."""
        ...

    def usable(self, connection: C) -> bool:
        """Whether it can be asked again after a question failed."""
        ...

    def fileno(self, connection: C) -> int:
        """Its socket; -1 if it has none any more. Called in any thread."""
        ...

    def close(self, connection: C) -> None:
        """Give it up."""
        ...


class _Task(Generic[C]):
    """What one question has in its hands, as far as others may have to take it away."""

    __slots__ = ("connection", "given_up", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: C | None = None
        self.given_up = False


class Pool(Generic[C]):
    """At most `size` connections, made when needed."""

    def __init__(
        self, driver: Driver[C], size: int, timeout_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.timeout_s = timeout_s
        self._driver = driver
        self._clock = clock
        self._limiter = trio.CapacityLimiter(size)
        self._asked = 0
        #: Guards what follows; held for a few instructions only, as the trio thread takes it too.
        self._lock = threading.Lock()
        self._idle: deque[tuple[C, float]] = deque()  # the longest idle at the left
        self._closed = False
        self._failures = 0
        self._not_before = 0.0
        self._failure = ""

    async def run(self, work: Callable[[C], T]) -> T:
        """What `work` returns for a connection; it runs in a thread, maybe twice. Raises BackendError (that of `work`
        too: with the connection nothing is wrong then), and whatever `work` raises that is no error of the driver."""
        if self._asked >= MAX_WAITING + self._limiter.total_tokens:
            raise BackendError(f"{self._asked} questions wait already")
        task: _Task[C] = _Task()
        deadline = self._clock() + self.timeout_s
        self._asked += 1
        try:
            with trio.move_on_after(self.timeout_s):
                return await trio.to_thread.run_sync(
                    self._ask, task, work, deadline, abandon_on_cancel=True, limiter=self._limiter
                )
            raise BackendError(f"no answer within {self.timeout_s:g} s")
        finally:
            self._asked -= 1
            self._give_up(task)

    async def close(self) -> None:
        """Close what is idle, within a second; what is in use follows when its question ends. None is made after it."""
        with self._lock:
            self._closed = True
            idle = [connection for connection, _ in self._idle]
            self._idle.clear()
        if idle:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_S):
                await trio.to_thread.run_sync(self._close, idle, abandon_on_cancel=True)

    def _give_up(self, task: _Task[C]) -> None:
        with task.lock:
            task.given_up = True
            if task.connection is not None:
                _cut(self._driver.fileno(task.connection))

    # Everything below runs in threads.

    def _ask(self, task: _Task[C], work: Callable[[C], T], deadline: float) -> T:
        connection = self._take(task)
        fresh = connection is None
        while True:
            if connection is None:
                connection = self._connect(task, deadline)
            try:
                result = work(connection)
            except BackendError:
                self._give_back(task, connection, True)
                raise
            except self._driver.errors as error:
                keep = self._driver.usable(connection)
                self._give_back(task, connection, keep)
                if keep or fresh or task.given_up:
                    raise BackendError(_text(error)) from None
                self._forget_idle()
                connection, fresh = None, True
            except BaseException:
                self._give_back(task, connection, False)
                raise
            else:
                self._give_back(task, connection, True)
                return result

    def _take(self, task: _Task[C]) -> C | None:
        old: list[C] = []
        found: C | None = None
        with self._lock:
            while self._idle and self._idle[0][1] < self._clock() - IDLE_S:
                old.append(self._idle.popleft()[0])
            if self._idle:
                found = self._idle.pop()[0]
        self._close(old)
        if found is not None:
            self._hold(task, found)
        return found

    def _connect(self, task: _Task[C], deadline: float) -> C:
        now = self._clock()
        with self._lock:
            if self._closed:
                raise BackendError("the pool is closed")
            if now < self._not_before:
                raise BackendError(f"not tried again yet after: {self._failure}")
        try:
            connection = self._driver.connect(max(deadline - now, 0.01))
        except self._driver.errors as error:
            least, most = BACKOFF_S
            with self._lock:
                self._failure = _text(error)
                delay = min(least * 2.0 ** min(self._failures, 16), most) * random.uniform(0.75, 1.25)
                self._not_before = self._clock() + delay
                self._failures += 1
            raise BackendError(_text(error)) from None
        with self._lock:
            self._failures = 0
            self._not_before = 0.0
        self._hold(task, connection)
        return connection

    def _hold(self, task: _Task[C], connection: C) -> None:
        with task.lock:
            if not task.given_up:
                task.connection = connection
                return
        self._keep(connection)
        raise BackendError("nobody waits for the answer")

    def _give_back(self, task: _Task[C], connection: C, keep: bool) -> None:
        with task.lock:
            task.connection = None
            cut = task.given_up
        if keep and not cut:
            self._keep(connection)
        else:
            self._close([connection])

    def _keep(self, connection: C) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append((connection, self._clock()))
                return
        self._close([connection])

    def _forget_idle(self) -> None:
        with self._lock:
            old = [connection for connection, _ in self._idle]
            self._idle.clear()
        self._close(old)

    def _close(self, connections: list[C]) -> None:
        for connection in connections:
            try:
                self._driver.close(connection)
            except self._driver.errors:
                continue


def _cut(fileno: int) -> None:
    """Whoever waits for this socket sees its end; closing it stays with its owner. Never blocks."""
    if fileno < 0:
        return
    try:
        with socket.socket(fileno=os.dup(fileno)) as same:
            same.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
