"""Publications that wait for the version of the route table are answered in order, whatever happens to the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from broker.errors import StoreUnavailable
from cluster.redis.links import Link
from cluster.redis.versions import Versions


class Asked:
    """A link that keeps what is to be told to whoever asked."""

    def __init__(self) -> None:
        self.thens: list[Callable[[object], None]] = []

    def up_for(self, key: bytes) -> bool:
        return True

    def command(self, parts: Sequence[object], then: Callable[[object], None]) -> None:
        assert parts[0] == b"GET"
        self.thens.append(then)

    def answer(self, reply: object) -> None:
        thens, self.thens = self.thens, []
        for then in thens:
            then(reply)


class Publications:
    """Numbers, and those that were answered."""

    def __init__(self) -> None:
        self.link = Asked()
        self.versions = Versions(b"ver", cast(Link, self.link))
        self.answered: list[int] = []

    def ask(self, *numbers: int) -> None:
        """Those of one turn."""
        for number in numbers:
            self.versions.newest(partial(self.answered.append, number))
        self.versions.flush()


def test_after_a_lost_connection_all_are_asked_about_in_their_order() -> None:
    turns = Publications()
    turns.ask(1, 2)
    turns.ask(3)
    turns.ask(4, 5)
    turns.link.answer(StoreUnavailable("cut"))
    turns.ask(6)
    turns.link.answer(b"0:")
    assert turns.answered == [1, 2, 3, 4, 5, 6]


def test_a_reloaded_table_asks_about_the_oldest_first() -> None:
    turns = Publications()
    turns.ask(1)
    turns.ask(2)
    turns.link.answer(b"7:tag")  # not adopted yet
    turns.ask(3)
    turns.link.answer(StoreUnavailable("cut"))
    turns.ask()
    turns.versions.start(9, b"other")
    turns.ask(4)
    turns.link.answer(b"9:other")
    assert turns.answered == [1, 2, 3, 4]


def test_a_version_of_another_history_proves_nothing() -> None:
    turns = Publications()
    reloads: list[None] = []
    turns.versions.on_foreign = lambda: reloads.append(None)
    turns.versions.start(5, b"five")
    turns.ask(1)
    turns.link.answer(b"7:seven")
    # The log is still read from the server that was the primary before.
    turns.versions.adopt(7, [(6, b"old"), (7, b"older")], ())
    assert (turns.answered, len(reloads)) == ([], 1)
    turns.versions.start(7, b"seven")
    turns.ask()
    turns.link.answer(b"7:seven")
    assert turns.answered == [1]
