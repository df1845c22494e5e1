"""A connection as its session sees it: what is told to the store and to the groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.ending import Ending
from broker.errors import StoreUnavailable
from broker.groups import Group
from broker.message import Message
from broker.routes import Subscriber
from broker.session.ports import GroupDelivery
from broker.transport.api import Stream
from cluster.api import SessionRef

if TYPE_CHECKING:
    import trio

    from broker.services import Services


class SessionSide(Ending):
    """Implements `SessionStore`."""

    __slots__ = ("feed_scopes", "feed_wanted", "ref", "subscriber")

    def __init__(self, stream: Stream, server: Services) -> None:
        super().__init__(stream, server)
        self.ref: SessionRef | None = None
        self.subscriber: Subscriber | None = None
        #: Retained messages that are being sent, and what they wait for.
        self.feed_scopes: list[trio.CancelScope] = []
        self.feed_wanted: trio.Event | None = None

    def persistent(self) -> bool:
        """The session outlives the connection."""
        return self.subscriber is not None and self.subscriber.persistent

    def session_gone(self) -> None:
        """The store has no such session any more: usually a clean start at another node ended it, and that node's word
        is still on its way."""
        self.disconnect(0x8E, "the session was ended by another connection")

    def acknowledge(self, seq: int, sent_seq: int) -> None:
        assert self.ref is not None
        self._server.cluster.acknowledge(self.ref, seq, sent_seq)

    def received(self, packet_id: int, seq: int, sent_seq: int) -> None:
        assert self.ref is not None
        session = self.session

        def then(error: Exception | None) -> None:
            if isinstance(error, StoreUnavailable):
                self.disconnect(0x89, "the store cannot be reached")
            elif error is None and session is not None:
                session.release(packet_id)

        self._server.cluster.received(self.ref, seq, sent_seq, then)

    def want_page(self, after_seq: int, limit: int) -> None:
        self._server.fetch_page(self, after_seq, limit)

    def group_done(self, entry: GroupDelivery) -> None:
        self._server.group_done(entry)

    def group_run_done(self, group: object, entry_ids: Sequence[bytes]) -> None:
        assert isinstance(group, Group)
        group.done_run(entry_ids)

    def missing(self) -> None:
        if self.session is not None:
            self._server.watch_gap(self.session)

    def dropped(self, message: Message, reason: str) -> None:
        self.metrics.dropped[reason] += 1
        for count in self._server.dispatch.counts_of(message.topic):
            count.dropped += 1

    def has_room(self) -> None:
        session = self.session
        if session is not None and session.idle():
            session.hungry = False
            self._wake_feed()
            if self.subscriber is not None:
                for group in self._server.dispatch.groups_of(self.subscriber):
                    group.feed()

    def _wake_feed(self) -> None:
        if self.feed_wanted is not None:
            self.feed_wanted.set()
            self.feed_wanted = None
