"""QoS 2 messages of shared subscriptions on their way to the member that they were given to for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.routes import Subscriber
from broker.session.encoding import Encoding
from cluster.api import REFUSED_FULL, GroupEntry, Publication, Target

if TYPE_CHECKING:
    from broker.groups import Group


class Handover(Publication):
    """A QoS 2 message of the group on its way into the queue of the persistent member that it was given to for good.

    The queue of the group keeps whose it is until this is stored, so that after a crash nobody else gets it.
    """

    __slots__ = ("_encoding", "_entry", "_group", "_promised", "_subscriber")

    def __init__(
        self,
        group: Group,
        subscriber: Subscriber,
        subscription_ids: Sequence[int],
        entry: GroupEntry,
        encoding: Encoding,
    ) -> None:
        target = Target(subscriber.session_id, subscriber.birth, 2, False, subscription_ids)
        super().__init__(entry.message, [target], deduplicate=True)
        self._group = group
        self._subscriber = subscriber
        self._entry = entry
        self._encoding = encoding
        self._promised = subscriber.session
        if self._promised is not None:
            self._promised.promised += 1

    def stored(self) -> None:
        """The session has it now: the group is done with it."""
        if self._promised is not None:
            self._promised.promised -= 1
        if self.error is not None:
            self._group.give_back_later(self._entry)
        else:
            self._group.done(self._entry)

    def reached(self, target: Target) -> None:
        """Send it like any live message."""
        session = self._subscriber.session
        if target.seq < 0:
            self._group.lost("queue_full" if target.seq == REFUSED_FULL else "session_gone")
        elif session is None:
            self._subscriber.stored_seq = max(self._subscriber.stored_seq, target.seq)
            self._subscriber.unsure = self._subscriber.unsure or not target.seq
        elif target.seq:
            session.stored(target.seq, self._encoding, 2, False, target.subscription_ids)
        else:
            session.look()
