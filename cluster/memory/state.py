"""What the memory of a `MemoryCluster` is made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from cluster.api import QueuedMessage, SessionRef, StoredSubscription, StoredWill
from cluster.policy import SERVED_RELEASED_S, SERVED_S

Then = Callable[[Exception | None], None]

#: Kinds of batched calls.
ACKNOWLEDGE: Final = 0
RECEIVED: Final = 1
RESERVE: Final = 2
RELEASE: Final = 3
GROUP_ACKNOWLEDGE: Final = 4
#: Order of timers that are due at the same time: a will goes out before its session ends.
WILL: Final = 0
FIRED: Final = 1
EXPIRY: Final = 2
DELAYED: Final = 3


class Session:
    """A session; while `token` is b"" no connection owns it."""

    __slots__ = (
        "birth",
        "bytes",
        "client_id",
        "created_ms",
        "expires_at",
        "expiry_s",
        "identity",
        "inbound",
        "queue",
        "releasing",
        "sent_seq",
        "seq",
        "session_id",
        "subscriptions",
        "token",
        "will",
        "will_at",
        "wills_under_way",
    )

    def __init__(self, client_id: str, session_id: bytes, birth: int, created_ms: int = 0) -> None:
        self.client_id = client_id
        self.created_ms = created_ms
        self.session_id = session_id
        self.birth = birth
        #: b"" while no connection owns the session.
        self.token = b""
        #: Whose it is; None: the first one's that comes with an identity.
        self.identity: str | None = None
        self.expiry_s = 0
        self.seq = 0
        self.sent_seq = 0
        self.queue: dict[int, QueuedMessage] = {}
        self.bytes = 0
        self.releasing: set[int] = set()
        self.inbound: dict[int, bytes] = {}
        self.subscriptions: dict[str, StoredSubscription] = {}
        self.will: StoredWill | None = None
        #: When set, the timer that has this very time is the valid one.
        self.will_at = -1.0
        self.expires_at = -1.0
        self.wills_under_way = 0


class Call:
    """A batched call other than `publish`. `number` is a seq, a packet id, or (GROUP_ACKNOWLEDGE) 1 to give back."""

    __slots__ = ("keep_for", "kind", "message_id", "name", "number", "ref", "sent_seq", "then")

    def __init__(
        self,
        kind: int,
        ref: SessionRef | None,
        number: int,
        sent_seq: int,
        then: Then | None,
        name: bytes = b"",
        message_id: bytes = b"",
        keep_for: bytes = b"",
    ) -> None:
        self.keep_for = keep_for
        self.kind = kind
        self.ref = ref
        self.number = number
        self.sent_seq = sent_seq
        self.then = then
        self.name = name
        self.message_id = message_id


class FiredWill:
    """A will that is to be published now, until `will_due` has returned."""

    __slots__ = ("client_id", "session", "will")

    def __init__(self, client_id: str, will: StoredWill, session: Session | None) -> None:
        self.client_id = client_id
        self.will = will
        self.session = session


class Served:
    """Which sessions and groups already got a message, by message id, for as long as that is remembered."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, tuple[float, set[bytes]]] = {}
        self._released: deque[tuple[float, bytes]] = deque()

    def of(self, message_id: bytes) -> set[bytes]:
        """Who has it; to be added to."""
        entry = self._by_id.get(message_id)
        if entry is None:
            self._forget()
            entry = self._by_id[message_id] = (trio.current_time() + SERVED_S, set())
        return entry[1]

    def release(self, message_id: bytes) -> None:
        """PUBREL came: it need not be remembered for much longer."""
        if message_id in self._by_id:
            self._released.append((trio.current_time() + SERVED_RELEASED_S, message_id))

    def _forget(self) -> None:
        now = trio.current_time()
        while self._released and self._released[0][0] <= now:
            self._by_id.pop(self._released.popleft()[1], None)
        for message_id, (deadline, _) in list(self._by_id.items()):
            if deadline > now:
                break
            del self._by_id[message_id]
