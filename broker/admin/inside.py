"""The node as a subscriber of its own: messages of the whole cluster for whoever watches, and private topics.

It is a subscriber without a connection: nobody sees it in a list, and it costs nothing while nobody watches.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from broker.admin.api import UNAVAILABLE, AdminError
from broker.errors import ClusterError, StoreUnavailable
from broker.message import Message
from broker.routes import Subscriber
from broker.topics.names import matches
from cluster.api import AttachRequest, SessionRef, StoredSubscription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.gate import Gate
    from broker.server import Server
    from broker.session.encoding import Encoding
    from broker.transport.api import Stream

#: Client ids and topics that begin so belong to the nodes; clients can use neither.
PRIVATE: Final = "$rookery/"

#: Messages that wait for somebody who watches; more are dropped, and counted in `Watching.dropped`.
WAITING_MAX: Final = 1000

#: How long the store may take to be told of filters.
STORE_S: Final = 10.0


#: Title and detail of the error that ends what was followed.
CUT_OFF: Final = ("cut off from the cluster", "what was followed is over; begin anew")


def is_private(topic_filter: str) -> bool:
    """Whether a filter, without `$share/NAME/`, is about topics of the nodes: no wildcard stands for that level."""
    return f"{topic_filter}/".startswith(PRIVATE)


class Watching:
    """Messages as they come: iterate over it. `dropped` is how many came too fast."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Message](WAITING_MAX)
        self.dropped = 0

    def put(self, message: Message) -> None:
        """A message came; never waits."""
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            self.dropped += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def __aiter__(self) -> Watching:
        return self

    async def __anext__(self) -> Message:
        return await self.receive()

    async def receive(self) -> Message:
        """The next message. Raises AdminError when the watching was cut off: the store lost its data, or the node left
        the cluster, perhaps to join it anew. What was told meanwhile is lost, so whoever watches has to begin anew."""
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise AdminError(UNAVAILABLE, *CUT_OFF) from None

    def end(self) -> None:
        """Nothing more will come: what came is read, then there is an error."""
        self._send.close()


class Ear:
    """Takes messages of QoS 0 for a subscriber. Implements `broker.routes.Receiver`."""

    gate: Gate | None = None
    #: Never used while `plain` is 0.
    stream: Stream

    def __init__(self, hear: Callable[[Message], None], gone: Callable[[], None]) -> None:
        self.plain = 0
        self.sent_qos0 = 0
        self._hear = hear
        self._gone = gone

    def session_gone(self) -> None:
        """The store has no such session any more."""
        self._gone()

    def send_qos0(self, encoding: Encoding, retain: bool, subscription_ids: Sequence[int]) -> None:
        """A message."""
        self._hear(encoding.message)


class _Watched:
    """A filter: who watches it, and whether the store knows it (or why not)."""

    __slots__ = ("all", "error", "known")

    def __init__(self) -> None:
        self.all: list[Watching] = []
        self.known = trio.Event()
        self.error: ClusterError | None = None


class Inside:
    """Of one server, as long as that lives.

    One task tells the store of filters that came and went, as many as there are at a time. Whoever begins to watch
    waits for it, and may give up; nobody else waits when the store does not answer."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._subscriber: Subscriber | None = None
        self._ref: SessionRef | None = None
        self._watching: dict[str, _Watched] = {}
        #: Filters that the store knows, and those that it has to be told of, if they changed really.
        self._known: set[str] = set()
        self._changed: dict[str, None] = {}
        self._telling = False
        #: Topics of `listen`.
        self._listening = 0

    def listen(self, topic: str, hear: Callable[[Message], None]) -> None:
        """Have messages of a private topic that other nodes send to this one (`Publication.nodes`). It need not be told
        to anybody: whoever sends names the node."""
        assert topic.startswith(PRIVATE)
        listener = Subscriber(os.urandom(16), PRIVATE + topic, 0, False)
        listener.connection = Ear(hear, _ignore)
        self._server.dispatch.add(listener, StoredSubscription(topic, 0))
        self._listening += 1

    @asynccontextmanager
    async def subscription(self, topic_filter: str) -> AsyncIterator[Watching]:
        """Messages of the whole cluster that match, at QoS 0, from when this is entered. Raises ClusterError."""
        if self._server.abandoned:
            raise StoreUnavailable("the node was taken for dead, and has to join the cluster anew")
        watching = Watching()
        watched = self._watching.get(topic_filter)
        if watched is None:
            watched = self._watching[topic_filter] = _Watched()
            if topic_filter in self._known and self._subscriber is not None:
                self._server.dispatch.add(self._subscriber, StoredSubscription(topic_filter, 0))
                watched.known.set()
            else:
                self._change(topic_filter)
        watched.all.append(watching)
        try:
            await watched.known.wait()
            if watched.error is not None:
                raise watched.error
            yield watching
        finally:
            watching.end()
            watched.all.remove(watching)
            if not watched.all and self._watching.get(topic_filter) is watched:
                del self._watching[topic_filter]
                if self._subscriber is not None:
                    self._server.dispatch.remove(self._subscriber, topic_filter)
                self._change(topic_filter)

    def _change(self, topic_filter: str) -> None:
        self._changed[topic_filter] = None
        if not self._telling:
            self._telling = True
            self._server.start(self._tell)

    async def _tell(self) -> None:
        try:
            while self._changed:
                changed, self._changed = self._changed, {}
                added = [each for each in changed if each in self._watching and each not in self._known]
                removed = [each for each in changed if each not in self._watching and each in self._known]
                if added:
                    await self._add(added)
                if removed:
                    await self._remove(removed)
        finally:
            self._telling = False

    async def _add(self, topic_filters: Sequence[str]) -> None:
        ref: SessionRef | None = None
        error: ClusterError | None = StoreUnavailable("the node stops")
        try:
            with trio.fail_after(STORE_S):
                ref = await self._subscribe(topic_filters)
            error = None
        except ClusterError as found:
            error = found
        except trio.TooSlowError:
            error = StoreUnavailable(f"no answer of the store within {STORE_S:g} s")
        finally:
            if error is not None or ref is self._ref:  # otherwise all was reset meanwhile
                for each in topic_filters:
                    self._told(each, error)

    async def _subscribe(self, topic_filters: Sequence[str]) -> SessionRef:
        server = self._server
        if self._subscriber is None or self._ref is None:
            client_id = PRIVATE + os.urandom(12).hex()
            attachment = await server.cluster.attach(AttachRequest(client_id, True, 0, None, identity=PRIVATE))
            self._ref = attachment.ref
            self._subscriber = Subscriber(attachment.ref.session_id, client_id, attachment.ref.birth, False)
            self._subscriber.connection = Ear(self._hear, self.reset)
        ref, stored = self._ref, [StoredSubscription(each, 0) for each in topic_filters]
        for each in stored:
            server.dispatch.add(self._subscriber, each)
        await server.cluster.subscribe(ref, stored, False)
        return ref

    def _told(self, topic_filter: str, error: ClusterError | None) -> None:
        """The store knows of the filter, or does not."""
        watched = self._watching.get(topic_filter)
        if error is None:
            self._known.add(topic_filter)
        elif watched is not None:
            del self._watching[topic_filter]
        subscriber = self._subscriber
        if subscriber is not None:
            if error is not None or watched is None:
                self._server.dispatch.remove(subscriber, topic_filter)
            elif topic_filter not in subscriber.subscriptions:  # somebody left meanwhile, and somebody came
                self._server.dispatch.add(subscriber, StoredSubscription(topic_filter, 0))
        if watched is not None:
            watched.error = error
            watched.known.set()

    async def _remove(self, topic_filters: Sequence[str]) -> None:
        gone = [each for each in topic_filters if each not in self._watching]  # somebody may have come back
        self._known.difference_update(gone)
        if gone and self._ref is not None:
            # Where this fails the store forgets the filters with the node.
            with suppress(ClusterError), trio.move_on_after(STORE_S):
                await self._server.cluster.unsubscribe(self._ref, gone, False)

    def _hear(self, message: Message) -> None:
        topic = message.topic.decode()
        for topic_filter, watched in self._watching.items():
            if matches(topic_filter, topic):
                for each in watched.all:
                    each.put(message)

    def subscription_count(self) -> int:
        """Subscriptions of its own, which no client has."""
        return self._listening + (len(self._subscriber.subscriptions) if self._subscriber is not None else 0)

    def subscriber_count(self) -> int:
        """Sessions of its own that have them."""
        return self._listening + (self._subscriber is not None and bool(self._subscriber.subscriptions))

    def reset(self) -> None:
        """What the cluster knew of it is gone: whoever watches has to begin anew."""
        if self._subscriber is not None:
            self._server.dispatch.drop(self._subscriber)
        self._subscriber = self._ref = None
        self._known.clear()
        watching, self._watching = self._watching, {}
        for watched in watching.values():
            for each in watched.all:
                each.end()
            watched.known.set()

    async def close(self) -> None:
        """Before the node leaves the cluster."""
        ref = self._ref
        self.reset()
        if ref is not None:
            with suppress(ClusterError), trio.move_on_after(2):
                await self._server.cluster.detach(ref, 0, 0, False)


def _ignore() -> None:
    pass
