"""Whether a node has more to do than it can: the event loop is late, or receivers let too much output pile up.

An overloaded node is not ready, so that load balancers send new clients to others; it serves those that it has."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from broker.log import get_logger

#: Between two looks.
LOOK_S: Final = 0.5

#: Overloaded after so many looks in a row that were so late; not any more after so many that were less late than that.
LATE_S: Final = 1.0
LATE_LOOKS: Final = 3
CALM_S: Final = 0.25
CALM_LOOKS: Final = 6

#: Overloaded when more of the memory of the machine (or control group) than that waits for receivers to take it; not
#: any more below the second.
OUTPUT_SHARE: Final = 1 / 4
CALM_SHARE: Final = 1 / 8

#: Looks that `lag_s` is about: 15 seconds.
_WINDOW: Final = 30

_CONTROL_GROUPS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

_log = get_logger("node")


class Overload:
    """`note` is to be called at each look; `why` is empty or what there is too much of."""

    def __init__(self, output_bytes: Callable[[], int], memory_bytes: int | None = None) -> None:
        self._output_bytes = output_bytes
        self._memory_bytes = memory_limit_bytes() if memory_bytes is None else memory_bytes
        self._lags: deque[float] = deque(maxlen=_WINDOW)
        self._late = self._piled = False
        self._looks = 0
        self.why = ""

    @property
    def lag_s(self) -> float:
        """How late the event loop was at most, in the last 15 seconds."""
        return max(self._lags, default=0.0)

    async def serve(self) -> None:
        """Until cancelled."""
        while True:
            due = time.monotonic() + LOOK_S
            await trio.sleep(LOOK_S)
            self.note(max(0.0, time.monotonic() - due), self._output_bytes())

    def note(self, lag_s: float, output_bytes: int) -> None:
        """A look was so late, and so much output waits."""
        self._lags.append(lag_s)
        if lag_s < CALM_S if self._late else lag_s >= LATE_S:
            self._looks += 1
            if self._looks >= (CALM_LOOKS if self._late else LATE_LOOKS):
                self._late = not self._late
                self._looks = 0
        else:
            self._looks = 0
        share = CALM_SHARE if self._piled else OUTPUT_SHARE
        self._piled = output_bytes > share * self._memory_bytes
        self._tell(lag_s, output_bytes)

    def _tell(self, lag_s: float, output_bytes: int) -> None:
        before = self.why
        if self._late:
            self.why = f"the event loop is late, by up to {self.lag_s:.1f} s"
        elif self._piled:
            self.why = f"{output_bytes >> 20} MiB wait for receivers that do not take them"
        else:
            self.why = ""
        if bool(before) != bool(self.why):
            say = _log.warning if self.why else _log.info
            say("node.overloaded", overloaded=bool(self.why), lag_s=round(lag_s, 3), output_bytes=output_bytes)


def memory_limit_bytes() -> int:
    """What this process and its like may use: of the control group, else of the machine."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _CONTROL_GROUPS:
        try:
            limit = min(limit, int(Path(path).read_text("ascii")))
        except (OSError, ValueError):
            continue
    return limit
