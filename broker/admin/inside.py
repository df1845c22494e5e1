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


class Inside:
    """Of one server, as long as that lives."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._subscriber: Subscriber | None = None
        self._ref: SessionRef | None = None
        self._watching: dict[str, list[Watching]] = {}
        #: Topics of `listen`.
        self._listening = 0
        self._changing = trio.Lock()

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
        async with self._changing:
            others = self._watching.setdefault(topic_filter, [])
            others.append(watching)
            try:
                if len(others) == 1:
                    await self._subscribe(topic_filter)
            except BaseException:
                self._leave(topic_filter, watching)
                raise
        try:
            yield watching
        finally:
            watching.end()
            with trio.CancelScope(shield=True):
                await self._part(topic_filter, watching)

    async def _subscribe(self, topic_filter: str) -> None:
        server = self._server
        if self._subscriber is None or self._ref is None:
            client_id = PRIVATE + os.urandom(12).hex()
            attachment = await server.cluster.attach(AttachRequest(client_id, True, 0, None, identity=PRIVATE))
            ref = self._ref = attachment.ref
            subscriber = self._subscriber = Subscriber(ref.session_id, client_id, ref.birth, False)
            subscriber.connection = Ear(self._hear, self.reset)
        stored = StoredSubscription(topic_filter, 0)
        server.dispatch.add(self._subscriber, stored)
        await server.cluster.subscribe(self._ref, [stored], False)

    async def _part(self, topic_filter: str, watching: Watching) -> None:
        async with self._changing:
            if self._leave(topic_filter, watching) or self._subscriber is None or self._ref is None:
                return
            self._server.dispatch.remove(self._subscriber, topic_filter)
            # Where this fails the store forgets the filter with the node.
            with suppress(ClusterError), trio.move_on_after(5):
                await self._server.cluster.unsubscribe(self._ref, [topic_filter], False)

    def _leave(self, topic_filter: str, watching: Watching) -> bool:
        """True while others watch the same, or nobody did any more."""
        others = self._watching.get(topic_filter, [])
        if watching in others:
            others.remove(watching)
        if others:
            return True
        return self._watching.pop(topic_filter, None) is None

    def _hear(self, message: Message) -> None:
        topic = message.topic.decode()
        for topic_filter, watching in self._watching.items():
            if matches(topic_filter, topic):
                for each in watching:
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
        watching, self._watching = self._watching, {}
        for each in watching.values():
            for one in each:
                one.end()

    async def close(self) -> None:
        """Before the node leaves the cluster."""
        ref = self._ref
        self.reset()
        if ref is not None:
            with suppress(ClusterError), trio.move_on_after(2):
                await self._server.cluster.detach(ref, 0, 0, False)


def _ignore() -> None:
    pass
