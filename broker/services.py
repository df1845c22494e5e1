"""What a connection may ask of the node that it is on; `broker.server` provides it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from broker.codec.packets import Connect, Subscribe, Unsubscribe
from broker.dispatch import Dispatch
from broker.limits.quiet import Quiet
from broker.metrics import Metrics
from broker.session.effects import ContinueAuthentication
from broker.session.ports import GroupDelivery
from broker.session.quotas import Quotas
from broker.session.session import Session
from broker.transport.reactor import Reactor
from cluster.api import Cluster

if TYPE_CHECKING:
    from broker.connection import Connection
    from broker.session_side import SessionSide
    from broker.tracing.traces import Traces


class Opener(Protocol):
    """The way from CONNECT to CONNACK."""

    def open(self, connection: Connection, connect: Connect) -> None:
        """Carry out a CONNECT; `connection.work_done` follows."""

    def continue_authentication(self, connection: Connection, effect: ContinueAuthentication) -> None:
        """Carry out an AUTH; `connection.work_done` follows."""


class Services(Protocol):
    """The node, as its connections see it."""

    reactor: Reactor
    cluster: Cluster
    dispatch: Dispatch
    metrics: Metrics
    quotas: Quotas
    quiet: Quiet
    connect_timeout_s: float
    stall_timeout_s: float
    #: While traces run.
    tracer: Traces | None

    @property
    def opener(self) -> Opener:
        """The way from CONNECT to CONNACK."""

    @property
    def now_ms(self) -> int:
        """Store time."""

    def authenticators(self, connection: Connection) -> list[str]:
        """Who is asked about a client of this listener, in order."""

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` as a task; its errors are logged and touch nobody else."""

    def change_subscriptions(self, connection: Connection, packet: Subscribe | Unsubscribe) -> None:
        """Carry out SUBSCRIBE or UNSUBSCRIBE; `connection.work_done` follows."""

    def fetch_page(self, connection: SessionSide, after_seq: int, limit: int) -> None:
        """Read a page of the session's queue; `session.page` or `session.page_failed` follows."""

    def watch_gap(self, session: Session) -> None:
        """A message came before an older one, which is on its way: have the session look for it if it does not come."""

    def group_done(self, delivery: GroupDelivery) -> None:
        """A member acknowledged a message of a shared subscription."""

    def connection_ended(self, connection: Connection) -> None:
        """The connection can do nothing more."""
