"""A cluster under test with what it needs: a small reactor, events that are kept, and calls that wait for answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

import trio

from broker.message import Message
from cluster.api import (
    Attachment,
    AttachRequest,
    Cluster,
    GroupTarget,
    Publication,
    Route,
    SessionRef,
    StoredSubscription,
    StoredWill,
    Target,
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
        self.wills: list[tuple[str, StoredWill]] = []
        self.ended: list[tuple[str, list[str]]] = []
        self.lost: list[SessionRef] = []
        self.available: list[bool] = []
        #: What happened, in order.
        self.log: list[str] = []
        self.will_errors: list[Exception] = []
        self._changed = trio.Event()

    def _note(self, what: str) -> None:
        self.log.append(what)
        self._changed.set()
        self._changed = trio.Event()

    def restore(self, routes: Iterable[Route]) -> None:
        self.routes = list(routes)
        self._note("restore")

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

    def store_emptied(self) -> None:
        self._note("store emptied")

    def store_changed(self, available: bool) -> None:
        self.available.append(available)
        self._note(f"store {available}")

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(LIMIT_S):
            while not condition():
                await self._changed.wait()


class WaitingPublication(Publication):
    """A publication that can be awaited and counts its answers."""

    __slots__ = ("answers", "done")

    def __init__(
        self,
        message: Message,
        targets: Sequence[Target] = (),
        groups: Sequence[GroupTarget] = (),
        retain: bool = False,
        deduplicate: bool = False,
    ) -> None:
        super().__init__(message, targets, groups, retain, deduplicate)
        self.answers = 0
        self.done = trio.Event()

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


class World:
    """One node on a cluster."""

    def __init__(self, cluster: Cluster, poller: EpollPoller, events: Events) -> None:
        self.cluster = cluster
        self.poller = poller
        self.events = events

    async def connect(
        self, client_id: str, clean_start: bool = False, expiry_s: int = 3600, will: StoredWill | None = None
    ) -> Attachment:
        with trio.fail_after(LIMIT_S):
            return await self.cluster.attach(AttachRequest(client_id, clean_start, expiry_s, will))

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
    ) -> WaitingPublication:
        publication = self.start(WaitingPublication(sent, targets, groups, retain, deduplicate))
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
