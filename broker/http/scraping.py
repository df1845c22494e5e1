"""The answers to scrapes: one is made at a time, and who asks without end gets the last one again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from broker.http.exposition import exposition, knows_openmetrics
from broker.http.report import Source

#: Scrapes are made afresh for so much time at once, and for this share of the time in the long run.
_BURST_S: Final = 0.1
_SHARE: Final = 0.1
#: Beyond that the last answer is given, unless it is older.
_KEPT_S: Final = 1.0

#: What takes longer is made in a thread.
_LONG_S: Final = 0.01


class Scrapes:
    """Of a node, or of all workers of a parent."""

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._lock = trio.Lock()
        self._took_s = 0.0
        #: Time that was spent and is not paid off, as of when.
        self._owed_s = 0.0
        self._owed_at = 0.0
        #: By format (whether it is OpenMetrics): when it was made, the body, its content type.
        self._kept: dict[bool, tuple[float, bytes, str]] = {}

    async def answer(self, accept: str = "") -> tuple[bytes, str]:
        """The body and its content type, for a request with this Accept header."""
        wanted = accept[:1000]
        format_ = knows_openmetrics(wanted)
        async with self._lock:
            began = self._clock()
            self._owed_s = max(0.0, self._owed_s - _SHARE * (began - self._owed_at))
            self._owed_at = began
            if self._owed_s >= _BURST_S and format_ in self._kept:
                made_at, body, content_type = self._kept[format_]
                if began - made_at < _KEPT_S:
                    return body, content_type
            reports = await self._source.reports()
            ended = self._source.ended()
            told_at = self._clock()
            if self._took_s > _LONG_S:
                body, content_type = await trio.to_thread.run_sync(exposition, reports, ended, wanted)
            else:
                body, content_type = exposition(reports, ended, wanted)
            now = self._clock()
            self._took_s = now - told_at
            self._owed_s += now - began
            self._kept[format_] = now, body, content_type
            return body, content_type
