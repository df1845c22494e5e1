"""The bans of the registry in a node's memory: what did not change is not read again.

Reading is done in portions: with a hundred thousand bans it takes seconds, and clients are served meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import trio

from broker.limits.bans import Ban, BanError, Bans, read_ban

#: Documents that are read, and that are looked at, without a pause.
READ: Final = 50
LOOKED_AT: Final = 2000


class BanMirror:
    """`bans` are those that hold. One `update` at a time."""

    def __init__(self) -> None:
        self.bans = Bans()
        #: By the document's name: what it says, None for one that cannot be read.
        self._known: dict[str, tuple[bytes, Ban | None]] = {}
        #: Documents that are not named as their bans are, so that another one may be about the same.
        self._odd: dict[str, Ban] = {}

    def stored(self, ban: Ban, document: bytes) -> None:
        """This node wrote it."""
        self._known[ban.name] = (document, ban)
        self.bans.add(ban)

    async def update(
        self, documents: Mapping[str, bytes], now_s: float
    ) -> tuple[list[Ban], dict[str, bytes], list[str]]:
        """These are all documents. Returns what is new of the bans, the documents of those that are over, and what is
        wrong with documents that are new."""
        new: list[Ban] = []
        over: dict[str, bytes] = {}
        wrong: list[str] = []
        left = LOOKED_AT
        for name, document in documents.items():
            left -= 1
            if left <= 0:
                await trio.lowlevel.checkpoint()
                left = LOOKED_AT
            known = self._known.get(name)
            if known is None or known[0] != document:
                ban = self._read(name, document, wrong)
                if known is not None:
                    self._forget(name, known[1])
                self._known[name] = (document, ban)
                if ban is not None and ban.holds(now_s):
                    self._add(name, ban)
                    if known is None or known[1] is None or known[1].until_s != ban.until_s:
                        new.append(ban)
                left -= LOOKED_AT // READ
            else:
                ban = known[1]
            if ban is not None and not ban.holds(now_s):
                self._forget(name, ban)
                over[name] = document
        if len(self._known) > len(documents):
            for number, name in enumerate(list(self._known), 1):
                if name not in documents:
                    self._forget(name, self._known.pop(name)[1])
                if number % LOOKED_AT == 0:
                    await trio.lowlevel.checkpoint()
        # Those that this node made and could not store.
        for number, ban in enumerate(list(self.bans), 1):
            if not ban.holds(now_s):
                self.bans.remove(ban)
            if number % LOOKED_AT == 0:
                await trio.lowlevel.checkpoint()
        return new, over, wrong

    @staticmethod
    def _read(name: str, document: bytes, wrong: list[str]) -> Ban | None:
        try:
            return read_ban(name, document)
        except BanError as error:
            wrong.append(str(error))
            return None

    def _add(self, name: str, ban: Ban) -> None:
        self.bans.add(ban)
        if name != ban.name:
            self._odd[name] = ban

    def _forget(self, name: str, ban: Ban | None) -> None:
        if ban is None:
            return
        self._odd.pop(name, None)
        self.bans.remove(ban)
        # Another document may be about the same.
        for other in (self._known.get(ban.name, (b"", None))[1], *self._odd.values()):
            if other is not None and other is not ban and other.name == ban.name:
                self.bans.add(other)
