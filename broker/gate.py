"""What stands between messages and a client: what it may not read, and what is not below its mountpoint.

A connection without rules and without a mountpoint has no gate, and pays nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from broker.message import Message
from broker.mount import Mount
from broker.session.encoding import Encoding
from broker.topics.names import split_shared

NOT_AUTHORIZED = "not_authorized"
OUTSIDE = "outside_mountpoint"


class Permissions(Protocol):
    """What one client may do; topics are real ones, in UTF-8. See `broker.auth.permissions`."""

    #: Nothing is asked.
    unrestricted: bool
    #: Per topic a bit for each QoS and retain that is known to be allowed: 1 << (2 * QoS + retain). The same object for
    #: good.
    cleared: dict[bytes, int]
    #: Called, if set, when rules of this client alone changed.
    changed: Callable[[], None] | None

    def may_publish(self, topic: bytes, qos: int, retain: bool) -> bool | None:
        """None: `ask_publish` has to be awaited."""
        ...

    async def ask_publish(self, topic: bytes, qos: int, retain: bool) -> bool:
        """As `may_publish`, with whatever time it takes. Raises BackendError if nobody can tell now."""
        ...

    def may_read(self, topic: bytes) -> bool:
        """Whether a message of this topic may be delivered."""
        ...

    async def may_subscribe(self, topic_filter: str, qos: int) -> bool:
        """`topic_filter` is without `$share/NAME/`. Raises BackendError if nobody can tell now."""
        ...

    def unsubscribed(self, topic_filter: str) -> None:
        """There is no subscription of it any more; `topic_filter` is without `$share/NAME/`."""
        ...

    def covers(self, topic_filter: str) -> bool:
        """All that matches the filter may be delivered."""
        ...

    def subscribable(self, topic_filter: str, qos: int) -> bool | None:
        """None: `may_subscribe` has to be awaited."""
        ...

    async def renew(self) -> bool:
        """Rules changed: forget what is known. False if it cannot have been those of this client."""
        ...

    def close(self) -> None:
        """The connection has ended."""
        ...


class Gate:
    """The gate of one client. `reason` is why the last message did not pass."""

    __slots__ = ("_prefix", "_shared", "_uncovered", "permissions", "reason", "told")

    def __init__(
        self, permissions: Permissions | None, mount: Mount | None, told: Callable[[Message], None] | None = None
    ) -> None:
        """`told` is called with each message that was written."""
        self.permissions = permissions
        self.told = told
        self.reason = ""
        self._prefix = mount.prefix if mount is not None else b""
        #: Subscriptions of which not everything may be read.
        self._uncovered: set[str] = set()
        #: What those of them that are shared come to without `$share/NAME/`, and how often.
        self._shared: Counter[str] = Counter()

    def open(self) -> bool:
        """Whether live messages at QoS 0 may pass without being looked at."""
        return not (self._uncovered or self._prefix or self.told is not None)

    def watch(self, topic_filter: str) -> None:
        """A subscription is about to be in force."""
        permissions = self.permissions
        if permissions is None:
            return
        share_name, plain = split_shared(topic_filter)
        if permissions.covers(plain):
            self._covered(topic_filter)
        elif topic_filter not in self._uncovered:
            self._uncovered.add(topic_filter)
            if share_name:
                self._shared[plain] += 1

    def forget(self, topic_filter: str) -> None:
        """It is not any more."""
        self._covered(topic_filter)
        plain = split_shared(topic_filter)[1]
        if self.permissions is not None and plain not in self._uncovered and plain not in self._shared:
            self.permissions.unsubscribed(plain)

    def _covered(self, topic_filter: str) -> None:
        if topic_filter in self._uncovered:
            self._uncovered.discard(topic_filter)
            share_name, plain = split_shared(topic_filter)
            if share_name:
                self._shared[plain] -= 1
                if not self._shared[plain]:
                    del self._shared[plain]

    def lets(self, topic: bytes) -> bool:
        """Whether a message of this topic may pass."""
        if self.permissions is not None and not self.permissions.may_read(topic):
            self.reason = NOT_AUTHORIZED
            return False
        if self._prefix and not (topic.startswith(self._prefix) and len(topic) > len(self._prefix)):
            self.reason = OUTSIDE
            return False
        return True

    def view(self, encoding: Encoding) -> Encoding | None:
        """The message as the client sees it; None: it does not pass."""
        if not self.lets(encoding.message.topic):
            return None
        return encoding.below(self._prefix) if self._prefix else encoding


class Concealing(Gate):
    """A gate in the place of `gate` (None: there was none) that lets nothing pass whose topic begins with one of
    `hidden`, whatever rules say: it waits in the queue of a session from before it was looked at who may have it."""

    __slots__ = ("_hidden",)

    def __init__(self, gate: Gate | None, hidden: tuple[bytes, ...]) -> None:
        super().__init__(None, None)
        self._hidden = hidden
        if gate is not None:
            self.permissions, self.told, self._prefix = gate.permissions, gate.told, gate._prefix
            self._uncovered, self._shared = gate._uncovered, gate._shared

    def lets(self, topic: bytes) -> bool:
        """Whether a message of this topic may pass."""
        if topic.startswith(self._hidden):
            self.reason = NOT_AUTHORIZED
            return False
        return super().lets(topic)
