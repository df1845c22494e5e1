"""What waits in all shared subscriptions of the cluster together, for metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final, cast

from cluster.inspection import GroupTotals
from cluster.keys import GROUPS, Keys
from cluster.redis.asking import Asking
from cluster.redis.membership import Membership

#: Groups in one call, and calls that are sent together: none holds the store up for long.
_GROUPS: Final = 50
_TOGETHER: Final = 8
_VALUES: Final = 3


class TotalsView:
    """Asks the store for numbers alone: no names, no members."""

    def __init__(self, keys: Keys, asking: Asking, member: Membership) -> None:
        self._prefixes = keys.partitions
        self._asking = asking
        self._member = member

    async def add_up(self) -> GroupTotals:
        """See `Inspection.group_totals`: page by page of all partitions at once."""
        groups = lag = lag_max = pending = 0
        oldest = 0
        seen: set[bytes] = set()
        cursors: dict[bytes, bytes] = dict.fromkeys(self._prefixes, b"0")
        while cursors:
            pages = await self._asking.all(
                [("SSCAN", prefix + GROUPS, cursor, "COUNT", _GROUPS) for prefix, cursor in cursors.items()]
            )
            found: list[tuple[bytes, Sequence[bytes]]] = []
            for prefix, page in zip(list(cursors), cast("list[tuple[bytes, list[bytes]]]", pages), strict=True):
                cursors[prefix], names = page
                if cursors[prefix] == b"0":
                    del cursors[prefix]
                new = [name for name in names if name not in seen]  # a set that grows may tell a name again
                seen.update(new)
                found += [(prefix, batch) for batch in _batches(new)]
            for at in range(0, len(found), _TOGETHER):
                replies = await self._asking.all(
                    [("FCALL", "rk1_group_info", 1, prefix, *batch) for prefix, batch in found[at : at + _TOGETHER]]
                )
                for waiting, given, first in chain.from_iterable(map(_states, replies)):
                    groups += 1
                    lag += waiting
                    lag_max = max(lag_max, waiting)
                    pending += given
                    oldest = min(oldest or first, first) if first else oldest
        return GroupTotals(groups, lag, lag_max, pending, max(0, self._member.now_ms() - oldest) if oldest else 0)


def _batches(names: list[bytes]) -> Iterator[Sequence[bytes]]:
    for first in range(0, len(names), _GROUPS):
        yield names[first : first + _GROUPS]


def _states(reply: object) -> Iterator[tuple[int, int, int]]:
    """Of each group: messages given to nobody, messages given and not acknowledged, the time of the oldest or 0."""
    values = iter(cast("list[int | bytes]", reply))
    for lag, pending, oldest in zip(*[values] * _VALUES, strict=True):
        at_ms = int(cast(bytes, oldest).partition(b"-")[0]) if oldest else 0  # entry ids begin with the store's time
        yield max(cast(int, lag), 0), cast(int, pending), at_ms
