"""What the memory of a `MemoryCluster` is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cluster.api import QueuedMessage, SessionRef, StoredSubscription, StoredWill

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


class Session:
    """A session; while `token` is b"" no connection owns it."""

    __slots__ = (
        "birth",
        "bytes",
        "client_id",
        "expires_at",
        "expiry_s",
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

    def __init__(self, client_id: str, session_id: bytes, birth: int) -> None:
        self.client_id = client_id
        self.session_id = session_id
        self.birth = birth
        #: b"" while no connection owns the session.
        self.token = b""
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
    """A batched call other than `publish`."""

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
