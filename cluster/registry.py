"""What the nodes of a cluster share beside messages: documents (users, rules, bans) and counts.

`Cluster.registry` has one. Names of documents and of counters may be anything that clients chose: they are arguments
in the store, never part of a key (counters are hashed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

USERS: Final = "users"
RULES: Final = "rules"
BANS: Final = "bans"
KEYS: Final = "keys"
LOGINS: Final = "logins"
TOPICS: Final = "topic_metrics"


class Occupied:
    """A place that a connection takes: one of at most `limit` under `name`, such as `user:anna` or `ip:10.0.0.1`."""

    __slots__ = ("limit", "name")

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit


class Registry(Protocol):
    """All methods raise StoreUnavailable (the outcome is unknown) or StoreFull (nothing changed)."""

    async def version(self) -> int:
        """A number that is another one (a higher one, unless the store lost data) after every change of a document,
        whatever its kind; cheap, asked twice a second by every node."""
        ...

    async def versions(self) -> dict[str, int]:
        """The version at which documents of each kind were changed last."""
        ...

    async def document(self, kind: str, name: str) -> bytes | None:
        """One document."""
        ...

    async def documents(self, kind: str) -> dict[str, bytes]:
        """All documents of a kind, read in portions."""
        ...

    async def change(self, kind: str, changes: Mapping[str, bytes | None]) -> int:
        """Set (or with None remove) documents in one step; returns the new version. Idempotent."""
        ...

    async def create(self, kind: str, name: str, document: bytes) -> bool:
        """Set a document unless there is one of this name, in one step; whether it was set. Not idempotent: after
        StoreUnavailable it may have been set."""
        ...

    async def remove(self, kind: str, documents: Mapping[str, bytes]) -> int:
        """Remove documents that still are as told; returns the version. Idempotent; works in a full store."""
        ...

    async def count(self, name: str, window_s: float) -> int:
        """Count an event; returns how many there were in the last `window_s`, this one included, on all nodes.

        A fixed number of slices makes the window slide, so events are forgotten up to a tenth of it early; the counter
        goes away by itself. Not idempotent: after StoreUnavailable it may have been counted."""
        ...

    async def occupy(self, places: Sequence[Occupied]) -> str | None:
        """Take one place under each name, or none of them: the name of the first that is full, None for success.

        Places of nodes that are not members any more do not count. Not idempotent: after StoreUnavailable a place may
        be taken; the node's next `recount` mends it. Works in a full store."""
        ...

    def vacate(self, names: Sequence[str]) -> None:
        """Give places back; sent with the next batch, nothing is waited for."""
        ...

    async def recount(self, taken: Mapping[str, int]) -> None:
        """These are all the places of this node, those with `occupy` under way included: what else the store has for it
        goes. To be called within every hour, or the store forgets them. Idempotent."""
        ...

    async def draw(self, name: str, amount: int, rate: float, burst: float) -> int:
        """Take up to `amount` tokens from a bucket that fills by `rate` a second up to `burst`, and begins full;
        returns how many. By the store's clock; not idempotent."""
        ...
