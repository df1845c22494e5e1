"""The messages of a run for the members of shared subscriptions: made one by one only where that is needed."""

from __future__ import annotations

from collections.abc import Sequence

from broker.message import Message
from broker.session.encoding import Encoding
from broker.session.ports import GroupRun
from broker.session.run import Run
from cluster.api import GroupEntry


class GroupMessages:
    """What the messages of `run` are."""

    __slots__ = ("payloads", "run")

    def __init__(self, run: Run, payloads: Sequence[bytes]) -> None:
        self.run = run
        self.payloads = payloads

    def message(self, place: int) -> Message:
        """One of them."""
        return self.run.message(self.payloads[place])

    def entry(self, place: int, entry_id: bytes, member: bytes = b"") -> tuple[GroupEntry, Encoding]:
        """One of them, as an entry of a group's queue."""
        message = self.message(place)
        return GroupEntry(entry_id, message, b"", member), Encoding(message)


def entry_of(run: GroupRun) -> GroupEntry:
    """The first message that is in the hands of a member."""
    assert isinstance(run.messages, GroupMessages)
    return run.messages.entry(run.places[0], run.entry_ids[0])[0]
