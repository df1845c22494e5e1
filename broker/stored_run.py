"""Runs of QoS 1 packets whose receivers are all persistent sessions, or all groups: one publication, and one place for
their PUBACKs.

A connected session gets the packets as they came, with packet ids of its own (`broker.codec.runs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.dispatch import Delivery, EntryTarget, make_target
from broker.group_messages import GroupMessages
from broker.message import Message
from broker.routes import AckSlot, Route
from broker.session.counted import encoding_of
from broker.session.run import Run
from cluster.api import Extension, GroupTarget, Target

if TYPE_CHECKING:
    from broker.dispatch import Dispatch


def store_run(dispatch: Dispatch, route: Route, run: Run, slot: AckSlot) -> None:
    """Has them stored, and `slot.settle` is called later."""
    message = run.message(b"")
    targets = [make_target(entry, 1, message) for entry in route.entries]
    dispatch.cluster.publish(RunDelivery(dispatch, message, run, route, targets, slot))


class RunDelivery(Delivery):
    """A run on its way. `message` says what its packets have in common."""

    __slots__ = ("_run",)

    def __init__(
        self,
        dispatch: Dispatch,
        message: Message,
        run: Run,
        route: Route,
        targets: Sequence[Target],
        slot: AckSlot,
    ) -> None:
        super().__init__(dispatch, message, None, route, targets, route.entries, False, slot)
        self.payloads = run.payloads()
        self._run = run

    def rematch(self) -> Extension | None:
        """Sessions and groups get it as a run; other nodes get each message, and the publisher waits for that."""
        found = super().rematch()
        if found is None or not found.nodes:
            return found
        # What `super` added stays there, so that it is known the next time.
        route = Route(self._route.topic_name, self.message.topic, (), (), found.nodes, counts=self._route.counts)
        self.slot = joint = _Joint(self.slot, len(self.payloads) + 1)
        for payload in self.payloads:
            self._dispatch.cluster.publish(
                _Added(self._dispatch, self._run.message(payload), None, route, (), (), False, joint)
            )
        return Extension(found.targets, found.groups, ())

    def stored(self) -> None:
        """As for a single message."""
        slot = self.slot
        if slot is None:
            return
        if self.error is None:
            for target, group in zip(self.groups, self.route_groups, strict=True):
                if target.depths[-1] > 0 and group.hold(slot, self._run.count):
                    return
        slot.settle(self.error)

    def given(self, target: GroupTarget) -> None:
        """As for a single message."""
        group = self.route_groups[self.groups.index(target)]
        for depth in target.depths:
            self.note_depth(group, depth)
        group.offer_run(GroupMessages(self._run, self.payloads), target.entry_ids, target.chosen)

    def reached(self, target: Target) -> None:
        """As for a single message."""
        assert isinstance(target, EntryTarget)
        entry, seqs = target.entry, target.seqs
        first, last = seqs[0], seqs[-1]
        subscriber = entry.subscriber
        session = subscriber.session
        if first > 0 and last - first == self._run.count - 1:
            if session is None:
                subscriber.stored_seq = max(subscriber.stored_seq, last)
                return
            if not target.subscription_ids and session.stored_run(first, self._run):
                self._dispatch.stored_ms = self.message.accepted_at_ms
                return
        for seq, payload in zip(seqs, self.payloads, strict=True):
            self.tell(entry, target, seq, encoding_of(self._run.message(payload), -1, self._route.counts))


class _Added(Delivery):
    """What a run has to reach beside sessions: the run itself is matched with newer routes."""

    __slots__ = ()

    def rematch(self) -> Extension | None:
        return None


class _Joint(AckSlot):
    """One acknowledgement for several parts, which waits for all of them."""

    __slots__ = ("_error", "_slot", "_waiting")

    def __init__(self, slot: AckSlot | None, parts: int) -> None:
        self._slot = slot
        self._waiting = parts
        self._error: Exception | None = None

    @property
    def patient(self) -> bool:
        """As the publisher is."""
        return self._slot is not None and self._slot.patient

    def settle(self, error: Exception | None) -> None:
        """One part is done with."""
        self._error = self._error or error
        self._waiting -= 1
        if not self._waiting and self._slot is not None:
            self._slot.settle(self._error)
