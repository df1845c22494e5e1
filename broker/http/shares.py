"""How much of a server one credential may take at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from broker.admin.api import ADMIN, TOO_MANY, AdminError, Caller


class Shares:
    """`most` places in all, `each` for one credential; the last `kept` are for the scope admin."""

    __slots__ = ("_by_name", "_each", "_kept", "_most", "_taken", "_what")

    def __init__(self, what: str, most: int, each: int, kept: int) -> None:
        self._what = what
        self._most = most
        self._each = each
        self._kept = kept
        self._taken = 0
        self._by_name: Counter[str] = Counter()

    @contextmanager
    def taken(self, caller: Caller) -> Iterator[None]:
        """While a place is in use. Raises AdminError (429) when it is entered."""
        if self._by_name[caller.name] >= self._each:
            raise self._refusal(f"{caller.name!r:.80} has {self._each} of them")
        if self._taken >= (self._most if caller.scope == ADMIN else self._most - self._kept):
            raise self._refusal(f"there are {self._taken} of them")
        self._taken += 1
        self._by_name[caller.name] += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._by_name[caller.name] -= 1
            if not self._by_name[caller.name]:
                del self._by_name[caller.name]

    def _refusal(self, detail: str) -> AdminError:
        return AdminError(TOO_MANY, f"too many {self._what} at a time", detail)
