"""A bounded memory of what each topic name matched, for the publish path."""

from __future__ import annotations

from itertools import islice
from typing import Final, Generic, TypeVar

from broker.topics.names import has_wildcard, matches

V = TypeVar("V")

MAX_KEY_BYTES: Final = 1024
"""Longer topics are not cached: otherwise 64 KiB names would make the bound on entries worthless."""

SCAN_LIMIT: Final = 256
"""Up to this many entries a filter with wildcards is tested against each, beyond it everything is dropped."""


class MatchCache(Generic[V]):
    """At most `max_entries` values by encoded topic name.

    The publish path reads `entries` directly. At the bound the older half is dropped, so `put` is O(1) amortized.
    """

    __slots__ = ("entries", "max_entries")

    def __init__(self, max_entries: int = 4096) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries is {max_entries}, must be 1 or more")
        self.entries: dict[bytes, V] = {}
        self.max_entries = max_entries

    def put(self, key: bytes, value: V) -> None:
        """Remember the value, unless the topic is too long to be worth it."""
        entries = self.entries
        if len(key) > MAX_KEY_BYTES:
            return
        if len(entries) >= self.max_entries and key not in entries:
            for old in list(islice(entries, (len(entries) + 1) // 2)):
                del entries[old]
        entries[key] = value

    def clear(self) -> None:
        """Forget everything."""
        self.entries.clear()

    def invalidate(self, topic_filter: str) -> None:
        """Forget at least every topic name that the valid plain filter matches."""
        entries = self.entries
        if not entries:
            return
        if not has_wildcard(topic_filter):
            entries.pop(topic_filter.encode(), None)
            return
        if len(entries) > SCAN_LIMIT:
            entries.clear()
            return
        # Most filters begin with a level of their own: comparing bytes spares nearly all full matches.
        # The slash before the wildcard is no part of the prefix, `a/#` matches `a`.
        prefix = _literal_prefix(topic_filter).encode()
        stale = [key for key in entries if key.startswith(prefix) and matches(topic_filter, key.decode())]
        for key in stale:
            del entries[key]


def _literal_prefix(topic_filter: str) -> str:
    """What every matching topic name starts with: the filter up to the slash before its first wildcard."""
    return topic_filter.partition("+")[0].partition("#")[0][:-1]
