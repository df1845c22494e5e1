"""Long lists in parts: cursors that survive changes, and parts of several nodes that become one.

Lists are ordered by a key, a tuple of texts. A cursor holds the key of the last item that was told, so whatever comes
or goes meanwhile, nothing else is told twice or left out.
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
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).rstrip(b"=").decode()


def key_of(cursor: str, length: int = 1) -> Key | None:
    """The key of a cursor; None for "". Raises AdminError (400) for what is none of a list with keys of this length."""
    if not cursor:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        key = msgspec.json.decode(raw, type=tuple[str, ...])
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
    """Of many items, the first `limit` by key behind `after`: not more than a few times that is kept meanwhile."""

    def __init__(self, limit: int, after: Key | None) -> None:
        self._limit = limit
        self._after = after
        self._cut: Key | None = None
        self._found: dict[Key, V] = {}

    def wants(self, key: Key) -> bool:
        """Whether an item of this key may be among them."""
        return (self._after is None or key > self._after) and (self._cut is None or key <= self._cut)

    def get(self, key: Key) -> V | None:
        """The item of this key that was put."""
        return self._found.get(key)

    def put(self, key: Key, value: V) -> None:
        """One more, which is wanted."""
        self._found[key] = value
        if len(self._found) > 4 * self._limit + 100:
            kept = heapq.nsmallest(self._limit, self._found)
            self._cut = kept[-1]
            self._found = {each: self._found[each] for each in kept}

    def part(self) -> Part[V]:
        """What was found."""
        keys = sorted(key for key in self._found if self.wants(key))
        until = self._cut
        if len(keys) > self._limit:
            keys = keys[: self._limit]
            until = keys[-1]
        return Part([(key, self._found[key]) for key in keys], until)


def merged(
    parts: Iterable[Part[T]], limit: int, added: Callable[[T, T], T] | None = None
) -> tuple[list[T], Key | None]:
    """One part of several, with at most `limit` items, and the key to go on behind. Of several items of one key the
    first counts, or what `added` makes of them."""
    parts = list(parts)
    until = min((part.until for part in parts if part.until is not None), default=None)
    found: dict[Key, T] = {}
    for part in parts:
        for key, item in part.items:
            if until is not None and key > until:
                continue
            found[key] = item if key not in found else found[key] if added is None else added(found[key], item)
    keys = sorted(found)
    if len(keys) > limit:
        keys = keys[:limit]
        until = keys[-1]
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
