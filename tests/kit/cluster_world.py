"""A cluster under test with what it needs: a small reactor, events that are kept, and calls that wait for answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import trio

from broker.codec.runs import split_run
from broker.message import Message
from broker.session.run import Run
from cluster.api import (
    ROUND_ROBIN,
    Attachment,
    AttachRequest,
    Cluster,
    Extension,
    GroupEntry,
    GroupMemberState,
    GroupTarget,
    NodeRoute,
    NodeTarget,
    Publication,
    Route,
    RouteChange,
    SessionRef,
    StoredSubscription,
    StoredWill,
    Target,
    shared_group_id,
)
from tests.kit.poller import EpollPoller

LIMIT_S = 20.0


class Maker(Protocol):
    """Makes a cluster on an empty store, with limits other than the default ones."""

    def __call__(self, **limits: float) -> Cluster: ...


class Events:
    """Keeps what the cluster tells; `until` waits for something to have been told."""

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self.nodes: list[NodeRoute] = []
        self.changes: list[RouteChange] = []
        self.gone: list[bytes] = []
        #: What other nodes passed on: (message, live, groups), (family, frame), (session id, seq, message).
        self.delivered: list[tuple[Message, bool, list[bytes]]] = []
        self.frames: list[tuple[int, bytes]] = []
        self.stored: list[tuple[bytes, int, Message | None]] = []
        #: Entries of each group in the order in which they came, and the length of its queue told last.
        self.entries: dict[bytes, list[GroupEntry]] = {}
        self.depths: dict[bytes, int] = {}
        self.delayed: list[Message] = []
        self.delayed_errors: list[Exception] = []
        #: What waits for the answer, if none is given.
        self.delayed_held: list[Callable[[Exception | None], None]] | None = None
        self.dropped: dict[str, int] = {}
        #: Client ids that `session_wanted` says to be connected here.
        self.here: set[str] = set()
        self.wanted: list[str] = []
        self.wills: list[tuple[str, StoredWill]] = []
        self.ended: list[tuple[str, list[str]]] = []
        self.lost: list[SessionRef] = []
        #: What the sessions that `World.subscribe` subscribed have, by token.
        self.subscribed: dict[bytes, dict[str, StoredSubscription]] = {}
        self.available: list[bool] = []
        #: What happened, in order.
        self.log: list[str] = []
        self.will_errors: list[Exception] = []
        self._changed = trio.Event()

    def _note(self, what: str) -> None:
        self.log.append(what)
        self._changed.set()
        self._changed = trio.Event()

    def restore(self, routes: Iterable[Route], nodes: Iterable[NodeRoute]) -> None:
        self.routes = list(routes)
        self.nodes = list(nodes)
        self._note("restore")

    def routes_changed(self, changes: Sequence[RouteChange]) -> None:
        self.changes += changes
        self._note("routes changed")

    def node_gone(self, node: bytes) -> None:
        self.gone.append(node)
        self._note(f"gone {node.decode()}")

    def deliver(self, message: Message, live: bool, groups: Sequence[bytes]) -> None:
        self.delivered.append((message, live, list(groups)))
        self._note("deliver")

    def deliver_frame(self, family: int, run: bytes, count: int = 1) -> None:
        for frame in split_run(run, count):
            self.frames.append((family, frame))
            self._note("frame")

    def deliver_packets(self, packets: Run) -> None:
        self.delivered += [(message, True, []) for message in packets.messages()]
        self._note("packets")

    def deliver_stored(
        self,
        session_id: bytes,
        seq: int,
        message: Message | None,
        qos: int,
        retain: bool,
        subscription_ids: Sequence[int],
    ) -> None:
        self.stored.append((session_id, seq, message))
        self._note("stored")

    def group_entries(self, group_id: bytes, entries: Sequence[GroupEntry], depth: int) -> None:
        self.entries.setdefault(group_id, []).extend(entries)
        if depth >= 0:
            self.depths[group_id] = depth
        self._note("group entries")

    def delayed_due(self, message: Message, then: Callable[[Exception | None], None]) -> None:
        self.delayed.append(message)
        if self.delayed_held is None:
            then(self.delayed_errors.pop() if self.delayed_errors else None)
        else:
            self.delayed_held.append(then)
        self._note(f"delayed {message.topic.decode()}")

    def messages_dropped(self, reason: str, count: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self._note(f"dropped {reason}")

    def session_wanted(self, client_id: str) -> bool:
        self.wanted.append(client_id)
        self._note(f"wanted {client_id}")
        return client_id in self.here

    async def will_due(self, client_id: str, will: StoredWill) -> None:
        await trio.lowlevel.checkpoint()
        self.wills.append((client_id, will))
        self._note(f"will {client_id}")
        if self.will_errors:
            raise self.will_errors.pop()

    async def session_ended(
        self, client_id: str, session_id: bytes, birth: int, subscriptions: Sequence[StoredSubscription]
    ) -> None:
        await trio.lowlevel.checkpoint()
        self.ended.append((client_id, sorted(each.topic_filter for each in subscriptions)))
        self._note(f"ended {client_id}")

    def session_lost(self, ref: SessionRef) -> None:
        self.lost.append(ref)
        self._note(f"lost {ref.client_id}")

    def subscriptions(self, ref: SessionRef) -> Sequence[StoredSubscription] | None:
        found = self.subscribed.get(ref.token)
        return None if found is None else list(found.values())

    def store_emptied(self) -> None:
        self._note("store emptied")

    def store_changed(self, available: bool) -> None:
        self.available.append(available)
        self._note(f"store {available}")

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(LIMIT_S):
            while not condition():
                await self._changed.wait()

    async def within(self, condition: Callable[[], object]) -> None:
        """As `until`, for what no event tells."""
        with trio.fail_after(LIMIT_S):
            while not condition():
                await trio.sleep(0.01)


class WaitingPublication(Publication):
    """A publication that can be awaited and counts its answers; `more` is what its next rematch finds."""

    __slots__ = ("answers", "done", "more", "rematches")

    def __init__(
        self,
        message: Message,
        targets: Sequence[Target] = (),
        groups: Sequence[GroupTarget] = (),
        retain: bool = False,
        deduplicate: bool = False,
        nodes: Sequence[NodeTarget] = (),
        delay_s: int = 0,
        packets: Run | None = None,
    ) -> None:
        super().__init__(message, list(targets), list(groups), retain, deduplicate, list(nodes), delay_s, packets)
        self.answers = 0
        self.rematches = 0
        self.more: Extension | None = None
        self.done = trio.Event()

    def rematch(self) -> Extension | None:
        self.rematches += 1
        more, self.more = self.more, None
        if more is not None:
            self.targets = [*self.targets, *more.targets]
            self.groups = [*self.groups, *more.groups]
            self.nodes = [*self.nodes, *more.nodes]
        return more

    def stored(self) -> None:
        self.answers += 1
        self.done.set()


class Answer:
    """The `then` of a batched call."""

    def __init__(self) -> None:
        self.errors: list[Exception | None] = []
        self.done = trio.Event()

    def __call__(self, error: Exception | None) -> None:
        self.errors.append(error)
        self.done.set()


def message(topic: str = "a/b", payload: bytes = b"x", qos: int = 1, **other: object) -> Message:
    made = Message(topic.encode(), payload, qos, False)
    for name, value in other.items():
        setattr(made, name, value)
    return made


def target(at: Attachment | SessionRef, qos: int = 1, retain: bool = False, ids: Sequence[int] = ()) -> Target:
    ref = at.ref if isinstance(at, Attachment) else at
    return Target(ref.session_id, ref.birth, qos, retain, ids)


def entry_order(entry_id: bytes) -> tuple[int, int]:
    """Ids of group entries sort as one or two numbers."""
    first, _, second = entry_id.partition(b"-")
    return int(first), int(second or b"0")


class World:
    """One node on a cluster."""

    #: Whether `connect` calls `attach_then` in the place of `attach`.
    called_back = False

    def __init__(self, cluster: Cluster, poller: EpollPoller, events: Events) -> None:
        self.cluster = cluster
        self.poller = poller
        self.events = events

    async def connect(
        self,
        client_id: str,
        clean_start: bool = False,
        expiry_s: int = 3600,
        will: StoredWill | None = None,
        identity: str | None = None,
    ) -> Attachment:
        request = AttachRequest(client_id, clean_start, expiry_s, will, identity)
        with trio.fail_after(LIMIT_S):
            if not self.called_back:
                return await self.cluster.attach(request)
            answered = trio.Event()
            outcomes: list[Attachment | Exception | Callable[[], Awaitable[Attachment]]] = []

            def then(outcome: Attachment | Exception | Callable[[], Awaitable[Attachment]]) -> None:
                outcomes.append(outcome)
                answered.set()

            self.cluster.attach_then(request, then)
            await answered.wait()
            [outcome] = outcomes
            if isinstance(outcome, Exception):
                raise outcome
            return outcome if isinstance(outcome, Attachment) else await outcome()

    def start(self, publication: WaitingPublication) -> WaitingPublication:
        self.cluster.publish(publication)
        self.poller.wake()
        return publication

    async def publish(
        self,
        sent: Message,
        targets: Sequence[Target] = (),
        groups: Sequence[GroupTarget] = (),
        retain: bool = False,
        deduplicate: bool = False,
        nodes: Sequence[NodeTarget] = (),
        delay_s: int = 0,
    ) -> WaitingPublication:
        publication = self.start(WaitingPublication(sent, targets, groups, retain, deduplicate, nodes, delay_s))
        await self.finished(publication)
        return publication

    async def finished(self, *waiting: WaitingPublication | Answer) -> None:
        self.poller.wake()
        with trio.fail_after(LIMIT_S):
            for each in waiting:
                await each.done.wait()

    async def send(self, at: Attachment, *payloads: bytes, qos: int = 1) -> list[int]:
        """Publishes to one session; returns the seqs."""
        publications = [
            self.start(WaitingPublication(message(payload=each, qos=qos), [target(at, qos)])) for each in payloads
        ]
        await self.finished(*publications)
        assert all(each.error is None for each in publications)
        return [each.targets[0].seq for each in publications]

    async def subscribe(self, at: Attachment, *topic_filters: str, qos: int = 1) -> None:
        """Subscriptions of a persistent session."""
        stored = [StoredSubscription(each, qos) for each in topic_filters]
        self.events.subscribed.setdefault(at.ref.token, {}).update((each.topic_filter, each) for each in stored)
        with trio.fail_after(LIMIT_S):
            await self.cluster.subscribe(at.ref, stored, True)

    async def queue(self, ref: SessionRef, limit: int = 100) -> list[bytes]:
        """All payloads of a session's queue, page by page."""
        result: list[bytes] = []
        after = 0
        while page := await self.cluster.page(ref, after, limit):
            assert len(page) <= limit
            assert [each.seq for each in page] == sorted({each.seq for each in page})
            assert page[0].seq > after
            after = page[-1].seq
            result += [each.message.payload for each in page]
        return result

    async def settle(self, ref: SessionRef) -> None:
        """Returns when everything batched before was answered: a release goes the same way as acknowledgements."""
        answer = Answer()
        self.cluster.release(ref, 65535, b"nothing", answer)
        await self.finished(answer)
        assert answer.errors == [None]


class GroupHand:
    """A shared subscription as one node has it: its connected members and the entries that it was given."""

    def __init__(self, world: World, topic_filter: str = "$share/g/a", strategy: str = ROUND_ROBIN) -> None:
        self.world = world
        self.topic_filter = topic_filter
        self.group_id = shared_group_id(topic_filter)
        self.strategy = strategy

    async def members(self, *sessions: Attachment, window: int = 100, persistent: bool = True) -> None:
        """These are the connected members now."""
        states = [GroupMemberState(each.ref.session_id, each.ref.birth, persistent, window) for each in sessions]
        with trio.fail_after(LIMIT_S):
            await self.world.cluster.group_members(self.topic_filter, self.strategy, states)

    async def put(self, *payloads: bytes, qos: int = 1, **other: object) -> list[GroupTarget]:
        """Publishes to the group alone; what was given at once stands in `entries`, too."""
        sent = [
            self.world.start(
                WaitingPublication(
                    message(payload=each, qos=qos, **other),  # type: ignore[arg-type]
                    groups=[GroupTarget(self.group_id)],
                )
            )
            for each in payloads
        ]
        await self.world.finished(*sent)
        assert all(each.error is None for each in sent)
        for each in sent:
            entry = each.groups[0].entry
            if entry is not None:
                self.entries.append(entry)
        return [each.groups[0] for each in sent]

    @property
    def entries(self) -> list[GroupEntry]:
        """What was given to this node, again and again if it was given back."""
        return self.world.events.entries.setdefault(self.group_id, [])

    def payloads(self) -> list[bytes]:
        return [entry.message.payload for entry in self.entries]

    async def until(self, count: int) -> list[bytes]:
        """The payloads of what was given, once it is as many (and not more)."""
        await self.world.events.until(lambda: len(self.entries) >= count)
        assert len(self.entries) == count
        return self.payloads()

    async def settle(self, *entries: GroupEntry, keep_for: bytes = b"", again: bool = False) -> None:
        """Acknowledges, keeps or gives back, and waits for the answer."""
        answers = [Answer() for _ in entries]
        for entry, answer in zip(entries, answers, strict=True):
            self.world.cluster.group_acknowledge(self.group_id, entry.entry_id, answer, keep_for, again)
        await self.world.finished(*answers)
        assert all(answer.errors == [None] for answer in answers)


@contextlib.asynccontextmanager
async def served(cluster: Cluster) -> AsyncIterator[World]:
    """A cluster that has joined, until the end of the block: then it leaves in good order."""
    with EpollPoller() as poller:
        poller.flushing.append(cluster)
        async with trio.open_nursery() as outer:
            outer.start_soon(poller.serve)
            async with trio.open_nursery() as nursery:
                events = Events()

                async def serve(task_status: object) -> None:
                    await cluster.serve(events, poller, task_status=task_status)

                with trio.fail_after(LIMIT_S):
                    await nursery.start(serve)
                yield World(cluster, poller, events)
                nursery.cancel_scope.cancel()
            outer.cancel_scope.cancel()
