"""Who tries secrets that somebody may have chosen, and how often: counted on all nodes together.

Guesses at one key from one address are bounded, so that whoever guesses locks out nobody but those who give the name of
the same key from the same address; guesses at whatever from one address have a bound that is much higher. Where the
store cannot count in time, each node counts for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio

from broker.admin.api import TOO_MANY, AdminError
from broker.errors import ClusterError
from broker.log import get_logger
from cluster.registry import Registry

#: Tries at one key from one address within the window. A right one counts too, where it was not right lately.
TRIES: Final = 20
#: Wrong secrets from one address within the window, whatever the keys.
FAILURES: Final = 200
WINDOW_S: Final = 60.0
#: How long the store may take to count.
PATIENCE_S: Final = 0.5
#: Counters that are remembered; those that were used longest ago go first.
_KEPT: Final = 2000

_log = get_logger("admin")


class Guesses:
    """Of one node. `now` is a monotonic clock, in seconds."""

    def __init__(self, registry: Registry, now: Callable[[], float] = trio.current_time) -> None:
        self._registry = registry
        self._now = now
        #: Counted here: since when, and how many.
        self._counts: dict[str, tuple[float, int]] = {}
        self._refused: dict[str, float] = {}

    async def begin(self, name: str, origin: str) -> None:
        """Somebody at `origin` tries a secret for the key `name`. Raises AdminError (429) where that is too often."""
        by_origin, by_key = f"api_failures:{origin}", f"api_tries:{origin}:{name}"
        now = self._now()
        if max(self._refused.get(by_origin, 0.0), self._refused.get(by_key, 0.0)) > now:
            raise _too_many()
        # Before the secret is looked at: those that are tried at once, and on many nodes, count all.
        count = await self._count(by_key)
        if count > TRIES:
            _log.info("admin.tries_refused", name=name[:64], ip=origin)
            _keep(self._refused, by_key, now + WINDOW_S)
            raise _too_many()

    async def failed(self, origin: str) -> None:
        """A secret was wrong."""
        name = f"api_failures:{origin}"
        count = await self._count(name)
        _log.info("admin.refused", ip=origin, failures=count)
        if count >= FAILURES:
            _keep(self._refused, name, self._now() + WINDOW_S)

    async def _count(self, name: str) -> int:
        now = self._now()
        since, here = self._counts.get(name, (now, 0))
        if now - since >= WINDOW_S:
            since, here = now, 0
        here += 1
        _keep(self._counts, name, (since, here))
        with trio.move_on_after(PATIENCE_S):
            try:
                return max(here, await self._registry.count(name, WINDOW_S))
            except ClusterError:
                pass
        return here


def _too_many() -> AdminError:
    return AdminError(TOO_MANY, "too many wrong secrets", "wait a minute")


V = TypeVar("V")


def _keep(memory: dict[str, V], key: str, value: V) -> None:
    memory.pop(key, None)
    if len(memory) >= _KEPT:
        del memory[next(iter(memory))]
    memory[key] = value
