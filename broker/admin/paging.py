"""Long lists in parts: cursors that survive changes, and parts of several nodes that become one.

Lists are ordered by a key, a tuple of texts. A cursor holds the key of the last item that was told, so whatever comes
or goes meanwhile, nothing else is told twice or left out. A part is bounded in bytes too, whatever the limit: items are
as large as what clients choose (ids and filters of 64 KiB). It has one item at least, where there is any.
"""

from __future__ import annotations

import base64
import binascii
import heapq
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Annotated, Final, Generic, TypeAlias, TypeVar

import msgspec
import trio

from broker.admin.api import BAD_REQUEST, AdminError

#: How many items a part has at most, and without a word about it.
LIMIT_MAX: Final = 1000
LIMIT: Final = 100

#: Bytes of the items that one answer to an operator has, as JSON.
PAGE_BYTES: Final = 1024 * 1024

#: The same of the part that one node tells another. The parts of all nodes together come through the store connection
#: of the one who asks, and few of them are needed where there are many nodes.
PART_BYTES: Final = 256 * 1024
_PART_BYTES_MIN: Final = 32 * 1024

#: So many are looked at before others have their turn.
PORTION: Final = 250

Key: TypeAlias = tuple[str, ...]
Limit: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX, description="At most so many items.")]
Cursor: TypeAlias = Annotated[
    str, msgspec.Meta(max_length=200_000, description="The cursor of the part before; empty for the first part.")
]
#: What names something; also what names begin with.
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=65535)]

T = TypeVar("T")
V = TypeVar("V")


def cursor_of(key: Key | None) -> str | None:
    """What the next part is asked for with; None stays None: there is none."""
    if key is None:
        return None
    # Not JSON: what it has to escape would make the cursor of a long key too long for a URL.
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(key)).rstrip(b"=").decode()


def key_of(cursor: str, length: int = 1) -> Key | None:
    """The key of a cursor; None for "". Raises AdminError (400) for what is none of a list with keys of this length."""
    if not cursor:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        key = msgspec.msgpack.decode(raw, type=tuple[str, ...])
    except (binascii.Error, msgspec.DecodeError, ValueError):
        key = ()
    if len(key) != length:
        raise AdminError(BAD_REQUEST, "invalid arguments", "the cursor is not one of this list")
    return key


class Part(Generic[T]):
    """Items by key, all there are up to `until` (None: to the end)."""

    __slots__ = ("items", "until")

    def __init__(self, items: Sequence[tuple[Key, T]], until: Key | None) -> None:
        self.items = items
        self.until = until


class Smallest(Generic[V]):
    """Of many items, the first `limit` by key behind `after`, or as many as have `most_bytes` of keys: not more than a
    few times that is kept meanwhile."""

    def __init__(self, limit: int, after: Key | None, most_bytes: int = PAGE_BYTES) -> None:
        self._limit = limit
        self._after = after
        self._most_bytes = most_bytes
        self._cut: Key | None = None
        self._found: dict[Key, V] = {}
        self._bytes = 0

    def wants(self, key: Key) -> bool:
        """Whether an item of this key may be among them."""
        return (self._after is None or key > self._after) and (self._cut is None or key <= self._cut)

    def get(self, key: Key) -> V | None:
        """The item of this key that was put."""
        return self._found.get(key)

    def put(self, key: Key, value: V) -> None:
        """One more, which is wanted."""
        if key not in self._found:
            self._bytes += sum(map(len, key))
        self._found[key] = value
        if len(self._found) > 4 * self._limit + 100 or self._bytes > 4 * self._most_bytes:
            kept = self._first()
            if len(kept) < len(self._found):
                self._cut = kept[-1]
                self._found = {each: self._found[each] for each in kept}
                self._bytes = sum(len(text) for each in kept for text in each)

    def part(self) -> Part[V]:
        """What was found."""
        keys = self._first()
        until = keys[-1] if len(keys) < len(self._found) else self._cut
        return Part([(key, self._found[key]) for key in keys], until)

    def _first(self) -> list[Key]:
        keys = heapq.nsmallest(self._limit, self._found)
        size = 0
        for number, key in enumerate(keys):
            size += sum(map(len, key))
            if size > self._most_bytes and number:
                return keys[:number]
        return keys


def part_bytes(nodes: int) -> int:
    """How much each of so many nodes may tell for one page."""
    return max(_PART_BYTES_MIN, min(PART_BYTES, PAGE_BYTES // max(1, nodes)))


def size_of(item: object) -> int:
    """Of an item, as JSON."""
    return len(msgspec.json.encode(item))


async def cut(part: Part[T], most_bytes: int) -> Part[T]:
    """The part as a node tells another, shorter where it would be larger, with turns of others in between."""
    size = 0
    for number, keyed in enumerate(part.items):
        if number and number % PORTION == 0:
            await trio.lowlevel.checkpoint()
        size += size_of(keyed)
        if size > most_bytes and number:
            return Part(part.items[:number], part.items[number - 1][0])
    return part


def merged(
    parts: Iterable[Part[T]], limit: int, added: Callable[[T, T], T] | None = None, most_bytes: int = PAGE_BYTES
) -> tuple[list[T], Key | None]:
    """One part of several, with at most `limit` items and about `most_bytes`, and the key to go on behind. Of several
    items of one key the first counts, or what `added` makes of them."""
    parts = list(parts)
    until = min((part.until for part in parts if part.until is not None), default=None)
    found: dict[Key, T] = {}
    for part in parts:
        for key, item in part.items:
            if until is not None and key > until:
                continue
            found[key] = item if key not in found else found[key] if added is None else added(found[key], item)
    keys = sorted(found)
    size = 0
    for number, key in enumerate(keys):
        size += size_of(found[key])
        if number and (number >= limit or size > most_bytes):
            keys = keys[:number]
            until = keys[-1]
            break
    return [found[key] for key in keys], until


def packed(part: Part[T]) -> dict[str, object]:
    """A part as another node is told of it."""
    return {"items": [[list(key), item] for key, item in part.items], "until": part.until}


def unpacked(told: dict[str, object], kind: type[T]) -> Part[T]:
    """The part that another node told of."""
    items = msgspec.convert(told["items"], list[tuple[tuple[str, ...], kind]])  # type: ignore[valid-type]
    return Part(items, msgspec.convert(told["until"], tuple[str, ...] | None))


async def portions(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """All of them, with turns of others in between."""
    for at in range(0, len(items), PORTION):
        if at:
            await trio.lowlevel.checkpoint()
        yield items[at : at + PORTION]
