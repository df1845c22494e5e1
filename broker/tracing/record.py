"""One trace on one node: what it is about, and its lines, in a ring that is bounded in number, bytes and time."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any, Final

import msgspec

#: Lines, and bytes of lines, that a node keeps of a trace; older ones go.
LINES_MAX: Final = 10_000
BYTES_MAX: Final = 8 * 1024 * 1024

#: Lines a second; of what comes faster only the number is told.
LINES_PER_S: Final = 1000


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What is followed: one of `client_id`, `topic_filter` and `ip` (an address or a network) is not "". Times are
    store time; with `payload` lines have the first bytes of payloads."""

    id: str
    client_id: str = ""
    topic_filter: str = ""
    ip: str = ""
    payload: bool = False
    started_at_ms: int
    ends_at_ms: int


class Line(msgspec.Struct):
    """Something that happened. `seq` counts from 1 on each node; `at_ms` is store time; `text` is one line in which
    what clients chose is escaped, `client_id` and `details` hold it as it is."""

    at_ms: int
    node: str
    seq: int
    client_id: str
    peer: str
    #: packet, connection, authentication, session, acl, route, queue, drop, takeover, will, disconnect or trace.
    kind: str
    #: Of a packet: in (from the client) or out; else "".
    direction: str
    text: str
    details: dict[str, Any]


class Trace:
    """Ask `takes` before a line is made."""

    __slots__ = (
        "_bytes",
        "_lines",
        "_node",
        "_room",
        "_second",
        "_skipped",
        "ended_at_ms",
        "left_out",
        "seq",
        "spec",
        "told",
    )

    def __init__(self, spec: Spec, node: str) -> None:
        self.spec = spec
        self._node = node
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._second = 0
        self._room = LINES_PER_S
        self._skipped = 0
        #: The number of the last line.
        self.seq = 0
        #: How many came too fast.
        self.left_out = 0
        #: 0: it runs.
        self.ended_at_ms = 0
        #: The last line that those who follow were told of.
        self.told = 0

    def takes(self, now_ms: int) -> bool:
        """Whether a line may be added now; a line that may not is counted."""
        if self.ended_at_ms or now_ms >= self.spec.ends_at_ms:
            return False
        if now_ms // 1000 != self._second:
            self._begin_second(now_ms)
        if self._room <= 0:
            self._skipped += 1
            self.left_out += 1
            return False
        return True

    def _begin_second(self, now_ms: int) -> None:
        self._second = now_ms // 1000
        self._room = LINES_PER_S
        skipped, self._skipped = self._skipped, 0
        if skipped:
            text = f"{skipped} lines were left out: more than {LINES_PER_S} in a second"
            self.add(now_ms, "", "", "trace", "", text, {"left_out": skipped})

    def add(
        self, now_ms: int, client_id: str, peer: str, kind: str, direction: str, text: str, details: dict[str, Any]
    ) -> None:
        """Add a line."""
        self._room -= 1
        self.seq += 1
        line = msgspec.json.encode(Line(now_ms, self._node, self.seq, client_id, peer, kind, direction, text, details))
        self._lines.append(line)
        self._bytes += len(line)
        while len(self._lines) > LINES_MAX or self._bytes > BYTES_MAX:
            self._bytes -= len(self._lines.popleft())

    def tick(self, now_ms: int) -> None:
        """Time passed: what was left out is told."""
        if self._skipped and now_ms // 1000 != self._second:
            self._begin_second(now_ms)

    def end(self, now_ms: int, why: str) -> None:
        """Take no lines any more."""
        if not self.ended_at_ms:
            if self._skipped:
                self._begin_second(now_ms)
            self.add(now_ms, "", "", "trace", "", f"the trace ends: {why}", {"left_out": self.left_out})
            self.ended_at_ms = now_ms

    @property
    def first(self) -> int:
        """The number of the oldest line that is still there."""
        return self.seq - len(self._lines) + 1

    def after(self, seq: int, limit: int) -> list[bytes]:
        """Up to `limit` lines behind number `seq` that are still there, in order, as JSON."""
        start = min(max(0, seq + 1 - self.first), len(self._lines))
        return list(islice(self._lines, start, start + limit))
