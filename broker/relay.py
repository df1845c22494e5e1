"""Runs of QoS 1 packets whose receivers are all on other nodes: one publication and one place for their PUBACKs.

They go as they came, and each receiver puts its own packet ids in (`broker.codec.runs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.dispatch import Delivery
from broker.message import Message
from broker.routes import AckSlot, Route
from broker.session.run import Run
from cluster.api import Extension, Publication

if TYPE_CHECKING:
    from broker.dispatch import Dispatch


def relay(dispatch: Dispatch, route: Route, run: Run, slot: AckSlot) -> None:
    """Sends them on their way; `slot.settle` is called later. Only where `Cluster.relays` is true."""
    dispatch.cluster.publish(Relay(dispatch, route, run, slot))


class Relay(Publication):
    """A run on its way. `message` says what its packets have in common."""

    __slots__ = ("_children", "_dispatch", "_route", "_run", "_slot")

    def __init__(self, dispatch: Dispatch, route: Route, run: Run, slot: AckSlot) -> None:
        super().__init__(run.message(b""), nodes=route.nodes, packets=run)
        self._dispatch = dispatch
        self._route: Route | None = route
        self._run = run
        self._slot = slot
        #: Publications of single packets that are not stored yet.
        self._children = 0

    @property
    def patient(self) -> bool:
        """As the publisher is."""
        return self._slot.patient

    def rematch(self) -> Extension | None:
        """Who was not known when it was matched gets each message by itself; the run waits until these are stored."""
        route = self._route
        if route is None or self._dispatch.route(route.topic) is route:
            return None
        self._route = self._dispatch.route(route.topic)
        for message in self._run.messages():
            child = _Single(self._dispatch, message, route, _Child(self))
            if child.rematch() is None:
                break
            self._route = None  # from now on the children are matched again
            self._children += 1
            self._dispatch.cluster.publish(child)
        return None

    def child_stored(self, error: Exception | None) -> None:
        """One of the messages by itself is stored, or it could not be."""
        self.error = self.error or error
        self._children -= 1
        if self._children < 0:
            self._slot.settle(self.error)

    def stored(self) -> None:
        """Acknowledge, unless children are under way: the last one does it."""
        self.child_stored(None)


class _Single(Delivery):
    """A packet of a run by itself, for those who were not known when the run was matched."""

    __slots__ = ("_before",)

    def __init__(self, dispatch: Dispatch, message: Message, route: Route, slot: AckSlot) -> None:
        super().__init__(dispatch, message, None, route, (), (), False, slot)
        #: Nodes that get the run.
        self._before = self.nodes
        self.nodes = ()

    def rematch(self) -> Extension | None:
        """Without those who get the run."""
        fresh = self.nodes
        self.nodes = [*self._before, *fresh]
        found = super().rematch()
        self.nodes = [*fresh, *(found.nodes if found is not None else ())]
        return found


class _Child(AckSlot):
    """Where a message by itself tells that it is stored."""

    __slots__ = ("_relay",)

    def __init__(self, whole: Relay) -> None:
        self._relay = whole

    @property
    def patient(self) -> bool:
        return self._relay.patient

    def settle(self, error: Exception | None) -> None:
        self._relay.child_stored(error)
