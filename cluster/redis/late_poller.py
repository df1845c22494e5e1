"""The poller, which comes when the cluster is served, for parts that are made before."""

from __future__ import annotations

from broker.errors import StateError
from cluster.api import Poller, Readiness


class LatePoller:
    """A `Poller` that stands for another, set later."""

    __slots__ = ("poller",)

    def __init__(self) -> None:
        self.poller: Poller | None = None

    def _get(self) -> Poller:
        if self.poller is None:
            raise StateError("the cluster is not served yet")
        return self.poller

    def register(self, fd: int, handler: Readiness) -> None:
        self._get().register(fd, handler)

    def watch_writable(self, fd: int, wanted: bool) -> None:
        self._get().watch_writable(fd, wanted)

    def unregister(self, fd: int) -> None:
        self._get().unregister(fd)

    def wake(self) -> None:
        self._get().wake()
