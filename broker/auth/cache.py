"""Successes of user names and passwords, remembered for a while: for backends that are asked for every CONNECT."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Final

import trio

from broker.auth.api import Authenticator, ConnectRequest, Verdict
from broker.auth.template import lookup_of

_DIGEST_BYTES: Final = 32


class Cache:
    """At most `size` verdicts, each for `seconds`; with a size or time of 0 it never has anything.

    Keys are digests under a key of this process: no password is kept, and none can be found out from what is. Only
    ALLOW is remembered, so refusals cost what they always do. `clear` whenever users may have changed; a verdict that
    was under way then is not taken.
    """

    __slots__ = ("_clock", "_generation", "_key", "_seconds", "_size", "_verdicts", "hits")

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = trio.current_time) -> None:
        self._size = size if seconds > 0 else 0
        self._seconds = seconds
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._generation = 0
        #: Key -> until when, whose verdict, and the verdict; in the order they were put.
        self._verdicts: OrderedDict[bytes, tuple[float, str, Verdict]] = OrderedDict()
        self.hits = 0

    def __len__(self) -> int:
        return len(self._verdicts)

    @property
    def generation(self) -> int:
        """To be read before a question is asked, for `put`."""
        return self._generation

    def key(self, request: ConnectRequest, asked: Sequence[Authenticator]) -> bytes | None:
        """The key of a CONNECT before these authenticators; None if its verdict may not be remembered.

        Counted are those up to the first whose verdicts are not: `remembers` tells whose verdict may be `put`."""
        if not self._size or not request.username or not request.password:
            return None
        asked = list(takewhile(remembers, asked))
        if not asked:
            return None
        names = frozenset[str]().union(*(each.cached or () for each in asked))
        lookup = lookup_of(request)
        digest = hashlib.blake2b(key=self._key, digest_size=_DIGEST_BYTES)
        # Each with its length: two CONNECTs never look the same.
        parts = [each.name.encode() for each in asked]
        parts += [b"", request.username.encode(), request.password]
        for name in sorted(names):
            value = lookup(name)
            parts += [name.encode(), b"\0" if value is None else b"\1" + value.encode()]
        for part in parts:
            digest.update(len(part).to_bytes(4, "big") + part)
        return digest.digest()

    def get(self, key: bytes) -> tuple[str, Verdict] | None:
        """Whose verdict it was, and the verdict."""
        verdicts = self._verdicts
        found = verdicts.get(key)
        if found is None:
            return None
        until, name, verdict = found
        if until <= self._clock():
            verdicts.pop(key, None)
            return None
        self.hits += 1
        return name, verdict

    def put(self, key: bytes, name: str, verdict: Verdict, generation: int) -> None:
        """Remember an ALLOW, unless users changed since `generation`; the oldest goes where there is no room."""
        verdicts = self._verdicts  # before the comparison: what `clear` has thrown away may still be added to
        if generation != self._generation or verdict.expires_at_s is not None:
            return
        verdicts[key] = (self._clock() + self._seconds, name, verdict)
        verdicts.move_to_end(key)
        while len(verdicts) > self._size:
            verdicts.popitem(last=False)

    def clear(self) -> None:
        """Forget everything; may be called from any thread."""
        self._generation += 1
        self._verdicts = OrderedDict()


def remembers(authenticator: Authenticator) -> bool:
    """Whether verdicts of this authenticator may be remembered."""
    return authenticator.cached is not None
