"""Answers remembered by topic, within bounds that no client can move: topics may have 65,535 bytes each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

#: Answers, and bytes of all their topics; the oldest are forgotten.
REMEMBERED: Final = 1024
REMEMBERED_BYTES: Final = 128 * 1024
#: Answers about longer topics are not kept.
LONGEST: Final = 1024

K = TypeVar("K")
V = TypeVar("V")


class Memory(Generic[K, V]):
    """`known` is for looking up, and stays the same object; `size` tells the bytes of a key."""

    __slots__ = ("_bytes", "_most", "_size", "known")

    def __init__(self, size: Callable[[K], int], most: int = REMEMBERED) -> None:
        self.known: dict[K, V] = {}
        self._size = size
        self._most = most
        self._bytes = 0

    def put(self, key: K, value: V) -> None:
        """From now on it is the youngest."""
        self.drop(key)
        size = self._size(key)
        if size > LONGEST:
            return
        known = self.known
        known[key] = value
        self._bytes += size
        while len(known) > self._most or self._bytes > REMEMBERED_BYTES:
            self.drop(next(iter(known)))

    def drop(self, key: K) -> None:
        """Forget one, if it is there."""
        if key in self.known:
            del self.known[key]
            self._bytes -= self._size(key)

    def clear(self) -> None:
        """Forget all."""
        self.known.clear()
        self._bytes = 0
