"""What nodes ask each other: questions by name, that every node answers from what it has at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from broker.admin.office import Office

#: `(office, arguments) -> JSON`, or a coroutine of it.
Answering = Callable[["Office", dict[str, Any]], Any]

#: By name. Complete once `broker.admin.catalogue` is imported.
QUESTIONS: Final[dict[str, Answering]] = {}


#: Names of those that look through all that a node knows, and change nothing.
LOOKS: Final[set[str]] = set()


def question(name: str, looks: bool = False) -> Callable[[Answering], Answering]:
    """Declares how a node answers; long work lets others have their turn (`trio.lowlevel.checkpoint`). It may raise
    AdminError, which is what the one who asked gets where he asked one node only.

    One that `looks` through all that the node knows, and changes nothing, has few at its side, and is cancelled when
    nobody waits for the answer any more."""

    def declare(handler: Answering) -> Answering:
        assert name not in QUESTIONS, f"{name} is declared twice"
        QUESTIONS[name] = handler
        if looks:
            LOOKS.add(name)
        return handler

    return declare


class Answers:
    """What the nodes said, by name of the node; `missing` did not answer in time or could not."""

    __slots__ = ("by_node", "missing")

    def __init__(self) -> None:
        self.by_node: dict[str, Any] = {}
        self.missing: list[str] = []
