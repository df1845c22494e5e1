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


def question(name: str) -> Callable[[Answering], Answering]:
    """Declares how a node answers; long work lets others have their turn (`trio.lowlevel.checkpoint`). It may raise
    AdminError, which is what the one who asked gets where he asked one node only."""

    def declare(handler: Answering) -> Answering:
        assert name not in QUESTIONS, f"{name} is declared twice"
        QUESTIONS[name] = handler
        return handler

    return declare


class Answers:
    """What the nodes said, by name of the node; `missing` did not answer in time or could not."""

    __slots__ = ("by_node", "missing")

    def __init__(self) -> None:
        self.by_node: dict[str, Any] = {}
        self.missing: list[str] = []
