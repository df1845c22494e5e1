"""Builds that break a promise on purpose: `python -m tests.fault.broken KIND serve ...` is a node that does.

The checkers are worth something only if they fail on these. Each kind takes away one mechanism and leaves the rest.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker import cli
from broker.dispatch import Dispatch
from cluster.redis import library
from cluster.redis.arrivals import Arrivals
from cluster.redis.feed import Entries
from cluster.redis.membership import Membership
from cluster.redis.publish import Item, PartitionLane
from cluster.redis.versions import Versions
from tests.kit.broker_process import BrokerProcess


def ack_early() -> None:
    """PUBACK and PUBREC leave before the store has replied."""
    publish = Dispatch.publish

    def at_once(self: Dispatch, *what: Any) -> bool:
        publish(self, *what)
        return True

    Dispatch.publish = at_once  # type: ignore[method-assign, assignment]


def no_fence() -> None:
    """Neither tokens nor incarnations are compared: whoever owned a session once may change it for ever."""
    text = library.source().decode()
    for before, after in (
        ("s[1] ~= item[2]", "not s[1]"),
        ("s[1] ~= args[2]", "not s[1]"),
        ("'token') ~= item[2]", "'token') == ''"),
        ("if f[1] and tonumber(f[1]) >= inc then", "if false then"),
    ):
        if before not in text:
            raise SystemExit(f"the function library does not say {before!r} any more")
        text = text.replace(before, after)
    library.source = lambda: text.encode()  # type: ignore[assignment]
    Membership.fenced = lambda self: None  # type: ignore[method-assign]


def no_mid() -> None:
    """The store remembers no message ids: what is published again is stored again."""

    def none(self: PartitionLane, item: Item, ids: list[bytes]) -> int:
        return 0

    PartitionLane._index_of_id = none  # type: ignore[method-assign]


def no_version() -> None:
    """Whatever version of the route table is read, the own one is taken for the newest."""

    def proven(self: Versions, count: int, reply: object) -> None:
        self._prove(count)

    Versions._answered = proven  # type: ignore[method-assign]


def pubsub_only() -> None:
    """Some of what other nodes send never arrives, as with a subscriber that Redis could not wait for."""
    pushed, stored, chance = Arrivals.pushed, Arrivals.stored, random.Random(1)

    def some_pushed(self: Arrivals, entries: Entries) -> None:
        pushed(self, [entry for entry in entries if chance.random() > 0.1])

    def some_stored(self: Arrivals, partition: int, entries: Entries) -> None:
        stored(self, partition, [entry for entry in entries if chance.random() > 0.1])

    Arrivals.pushed = some_pushed  # type: ignore[method-assign]
    Arrivals.stored = some_stored  # type: ignore[method-assign]


KINDS: dict[str, Callable[[], None]] = {
    "ack-early": ack_early,
    "no-fence": no_fence,
    "no-mid": no_mid,
    "no-version": no_version,
    "pubsub-only": pubsub_only,
}


class BrokenProcess(BrokerProcess):
    """A node of a broken build."""

    kind = ""

    def command(self) -> list[str]:
        """As of a whole one, through this module."""
        command = super().command()
        at = command.index("-m")
        return [*command[:at], "-m", "tests.fault.broken", self.kind, *command[at + 2 :]]


def broken_process(kind: str, directory: Path, store: str, arguments: tuple[str, ...]) -> BrokerProcess:
    """The process of a broken node."""
    process = BrokenProcess(directory, store, arguments=arguments)
    process.kind = kind
    return process


def main() -> int:
    """Break it and run it."""
    KINDS[sys.argv[1]]()
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
