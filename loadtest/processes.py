"""What processes use, from /proc: CPU seconds and resident memory of a broker with all its children."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import sleep

SETTLING, SETTLED_S = 20, 0.05  # looks at processes until they use less than a fifth of a processor

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _stat(pid: int | str) -> list[str]:
    """Return the fields of /proc/PID/stat after the command, empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def tree(roots: Iterable[int]) -> list[int]:
    """Return `roots` and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(entry)):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = list(roots)
    for pid in found:  # grows while it is read
        found += children.get(pid, ())
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds that `pids` have used, all threads and ended children, user and system."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid))) / _TICKS_PER_S


def gone(pids: Iterable[int]) -> list[int]:
    """Return those of `pids` that do not run (any more)."""
    return [pid for pid in pids if not (fields := _stat(pid)) or fields[0] in "ZX"]


def resident_kb(pids: Iterable[int]) -> int:
    """Return the sum of the resident memory (VmRSS) of `pids` in KiB."""
    page_kb = os.sysconf("SC_PAGE_SIZE") // 1024
    return sum(int(fields[21]) * page_kb for pid in pids if (fields := _stat(pid)))


def settled(pids: Sequence[int]) -> None:
    """Wait until `pids` have nothing to do, but not for ever."""
    used = -1.0
    for _ in range(SETTLING):
        before, used = used, cpu_s(pids)
        if used - before < SETTLED_S:
            return
        sleep(5 * SETTLED_S)


def busy_s() -> float:
    """Return the seconds that all processors together have been busy."""
    fields = [int(field) for field in Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_PER_S
