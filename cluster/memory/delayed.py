"""Delayed messages of a `MemoryCluster`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from broker.errors import StoreFull
from broker.log import get_logger
from broker.message import Message
from cluster.api import ClusterEvents, Publication
from cluster.policy import DELAYED_AT_ONCE, TIMER_LEASE_S

_log = get_logger("cluster")


class _Kept:
    """A delayed message; `taken` once it is due."""

    __slots__ = ("due_ms", "message", "taken")

    def __init__(self, message: Message, due_ms: int) -> None:
        self.message = message
        self.due_ms = due_ms
        self.taken = False


class Delayed:
    """Keeps at most `most` messages. `arm` has `ripen` called with a message after so many seconds; `wake` has
    `publish` called soon, `now_ms` is store time."""

    def __init__(
        self,
        most: int,
        arm: Callable[[float, Message], None],
        wake: Callable[[], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._most = most
        self._arm = arm
        self._wake = wake
        self._now_ms = now_ms
        #: By message id.
        self._kept: dict[bytes, _Kept] = {}
        #: Those that are due, and how many of them are being published.
        self._ripe: deque[Message] = deque()
        self._publishing = 0

    def keep(self, publication: Publication) -> None:
        """Keep a message, or set the error of its publication."""
        message = publication.message
        if message.message_id in self._kept:  # a repetition
            return
        if len(self._kept) >= self._most:
            publication.error = StoreFull(f"more than {self._most} delayed messages")
            return
        self._kept[message.message_id] = _Kept(message, self._now_ms() + publication.delay_s * 1000)
        self._arm(publication.delay_s, message)

    def ripen(self, message: Message) -> None:
        """It is due, if nobody took it back."""
        kept = self._kept.get(message.message_id)
        if kept is not None and kept.message is message:
            kept.taken = True
            self._ripe.append(message)

    def places(self) -> list[tuple[int, bytes, Message]]:
        """When each is due, its message id, and the message itself; in no order."""
        return [(kept.due_ms, message_id, kept.message) for message_id, kept in self._kept.items()]

    def cancel(self, message_id: bytes, due_ms: int) -> bool:
        """Take one back that is not due yet; whether it was there."""
        kept = self._kept.get(message_id)
        if kept is None or kept.taken or kept.due_ms != due_ms:
            return False
        del self._kept[message_id]
        return True

    def publish(self, events: ClusterEvents) -> None:
        """A bounded number at once, without waiting for their answers; nothing else waits for the rest."""
        for _ in range(min(len(self._ripe), DELAYED_AT_ONCE - self._publishing)):
            message = self._ripe.popleft()
            self._publishing += 1
            then = partial(self._published, message)
            try:
                events.delayed_due(message, then)
            except Exception as error:
                then(error)
        if self._ripe and self._publishing < DELAYED_AT_ONCE:
            self._wake()

    def _published(self, message: Message, error: Exception | None) -> None:
        self._publishing -= 1
        if error is not None:
            _log.warning("cluster.delayed_failed", error=repr(error))
            self._arm(TIMER_LEASE_S, message)
        else:
            del self._kept[message.message_id]
        if self._ripe:
            self._wake()
