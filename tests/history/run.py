"""A run: recorded clients on the nodes of a cluster, and what has to hold when it is over."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from tests.history import availability, checks, groups
from tests.history.client import Profile, RecordedClient
from tests.history.events import History
from tests.history.link import Address
from tests.history.timeline import Timeline

#: For everything that was acknowledged to arrive, on a machine that does other things too.
DRAIN_S = 40.0
_POLL_S, _LONG_POLL_S = 0.25, 1.0
_SHOWN = 25


class Targets(Protocol):
    """What clients connect to."""

    @property
    def live(self) -> list[str]: ...

    def address(self, name: str) -> Address: ...


class Violated(AssertionError):
    """A checker found something."""


class Run:
    """The clients of one run with their history. `seed` decides everything that is random."""

    def __init__(self, targets: Targets, nursery: trio.Nursery, seed: int) -> None:
        self.targets = targets
        self.history = History()
        self.random = random.Random(seed)
        self.seed = seed
        self.clients: dict[str, RecordedClient] = {}
        self._nursery = nursery
        self._homes: dict[str, str] = {}

    def pick(self, client: RecordedClient) -> Address:
        """The node that the client is to use if it is live, else any live one."""
        home = self._homes.get(client.name, "")
        live = self.targets.live
        if home not in live:
            # Without a live one any address is as good as another: the client tries again.
            home = self.random.choice(live or self._last)
        self._last = list(live) or self._last
        return self.targets.address(home)

    def client(self, name: str, node: str = "", profile: Profile | None = None) -> RecordedClient:
        """A client that starts to connect now, to `node` as long as that is live."""
        if node:
            self._homes[name] = node
        made = self.clients[name] = RecordedClient(self.history, name, profile or Profile(), self.pick)
        self._last = list(self.targets.live) or self._last
        self._nursery.start_soon(made.run)
        return made

    _last: list[str] = []  # noqa: RUF012

    def move(self, name: str, node: str) -> None:
        """Where the client connects next."""
        self._homes[name] = node

    async def ready(self, *clients: RecordedClient, limit_s: float = DRAIN_S) -> None:
        """Wait until clients (all, if none are named) are connected and subscribed."""
        with trio.fail_after(limit_s):
            for client in clients or tuple(self.clients.values()):
                await client.until(lambda client=client: client.subscribed)  # type: ignore[misc]

    async def until(self, condition: Callable[[], object], what: str, limit_s: float = DRAIN_S) -> None:
        """Wait for something that no event of a client tells; AssertionError with `what` if it does not come."""
        with trio.move_on_after(limit_s):
            while not condition():
                await trio.sleep(_POLL_S / 5)
            return
        raise AssertionError(f"{what}: not within {limit_s:g} s")

    async def drain(self, limit_s: float = DRAIN_S, also: Callable[[Timeline], list[str]] | None = None) -> Timeline:
        """Wait until all that was published is acknowledged and all that was acknowledged has come; else just end.

        The checkers tell what is missing then. `also` is one more that has to pass.
        """
        for client in self.clients.values():
            client.confirm_all()
        with trio.move_on_after(limit_s):
            for client in self.clients.values():
                await client.settled()
            pause_s = _POLL_S
            while True:
                timeline = Timeline(self.history)
                missing = checks.acked_loss(timeline) or groups.groups(timeline)
                if not missing and also is not None:
                    missing = also(timeline)
                if not missing:
                    break
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _LONG_POLL_S)
        # Repetitions and strays would come right behind: one exchange with each node is time for them.
        for client in self.clients.values():
            client.confirm_all()
        await trio.sleep(_POLL_S)
        return Timeline(self.history)

    async def retained_values(self, topic_filter: str, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """What a new subscriber on each live node gets, by reader; waits until each has as many topics as asked."""
        wanted = set(topics)
        readers = {
            f"reader-{node}": self.client(f"reader-{node}", node, Profile(subscriptions=((topic_filter, 1),)))
            for node in self.targets.live
        }
        with trio.move_on_after(DRAIN_S):
            for reader in readers.values():
                await reader.until(lambda reader=reader: wanted <= set(reader.retained))  # type: ignore[misc]
        return {name: dict(reader.retained) for name, reader in readers.items()}

    async def stop(self) -> None:
        """All clients leave."""
        for client in self.clients.values():
            client.stop()


def always(timeline: Timeline, *, groups_exactly: bool = False, ends: bool = True) -> list[str]:
    """What holds in every run, whatever broke."""
    return [
        *checks.acked_loss(timeline),
        *checks.duplicates(timeline),
        *checks.at_most_once(timeline),
        *checks.order(timeline),
        *checks.nothing_foreign(timeline),
        *checks.one_owner(timeline, ends),
        *checks.kept_sessions(timeline),
        *checks.consumed(timeline),
        *checks.redelivery(timeline),
        *groups.groups(timeline, groups_exactly),
    ]


def require(problems: list[str]) -> None:
    """Raise Violated with the first of them."""
    if problems:
        more = f"\n... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise Violated(f"{len(problems)} violations:\n" + "\n".join(problems[:_SHOWN]) + more)


def summary(timeline: Timeline) -> str:
    """One line of what a run did."""
    acked = sum(1 for each in timeline.publications.values() if each.acked and each.qos)
    delivered = sum(len(session.deliveries) for session in timeline.sessions)
    accepted = sum(1 for each in timeline.connections.values() if each.code == 0)
    return (
        f"{timeline.end:.1f} s: {len(timeline.publications)} published, {acked} acked, {delivered} delivered, "
        f"{accepted} connections of {len(timeline.clients())} clients"
    )


@asynccontextmanager
async def recorded(targets: Targets, folder: Path, seed: int = 1) -> AsyncIterator[Run]:
    """A run; its history is kept in `folder` if the block fails."""
    run: Run | None = None
    try:
        async with trio.open_nursery() as nursery:
            run = Run(targets, nursery, seed)
            yield run
            await run.stop()
            nursery.cancel_scope.deadline = trio.current_time() + 2
    except BaseException as error:
        if run is not None:
            path = folder / "history.jsonl"
            run.history.save(path)
            error.add_note(f"seed {seed}, history: {path}")
        raise


__all__ = ["Profile", "Run", "Violated", "always", "availability", "recorded", "require", "summary"]
