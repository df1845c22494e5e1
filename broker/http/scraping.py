"""The answers to scrapes: each is made once, however many ask at a time."""

from __future__ import annotations

import time
from typing import Final

import trio

from broker.http.exposition import exposition
from broker.http.report import Source

#: An answer that took so long is given again for a second: asking for it without end takes a tenth of the time at most.
_DEAR_S: Final = 0.1
_KEPT_S: Final = 1.0

#: What takes longer is made in a thread.
_LONG_S: Final = 0.01


class Scrapes:
    """Of a node, or of all workers of a parent."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = trio.Lock()
        self._took_s = 0.0
        #: By the Accept header's outcome: until when it is good, the body, and its content type.
        self._kept: tuple[float, str, bytes, str] = (0.0, "", b"", "")

    async def answer(self, accept: str = "") -> tuple[bytes, str]:
        """The body and its content type, for a request with this Accept header."""
        wanted = accept[:1000]
        async with self._lock:
            until, kept_for, body, content_type = self._kept
            if time.monotonic() < until and kept_for == wanted:
                return body, content_type
            began = time.monotonic()
            reports = await self._source.reports()
            ended = self._source.ended()
            made_at = time.monotonic()
            if self._took_s > _LONG_S:
                body, content_type = await trio.to_thread.run_sync(exposition, reports, ended, wanted)
            else:
                body, content_type = exposition(reports, ended, wanted)
            now = time.monotonic()
            self._took_s = now - made_at
            self._kept = (now + _KEPT_S if now - began > _DEAR_S else 0.0, wanted, body, content_type)
            return body, content_type
