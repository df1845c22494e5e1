"""What a session has to do with others: where its packets go, the store, and who follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from broker.message import Message
from broker.session.encoding import Encoding
from broker.session.run import Run

if TYPE_CHECKING:
    from broker.session.session import Session


class SessionOutput(Protocol):
    """Where the packets of a session go. `version` is the protocol version."""

    version: int

    def room(self) -> bool:
        """False while the connection's output buffer is over its bound: hold QoS > 0, drop QoS 0."""

    def send_message(self, encoding: Encoding, flags: int, packet_id: int, subscription_ids: Sequence[int]) -> str:
        """Returns "", or why the message was not sent: it is larger than the client accepts, or not for its eyes."""

    def send_run(self, run: Run, first_id: int) -> bool:
        """Sends the packets of a run with packet ids from `first_id` on; False if they cannot be passed on as they are,
        and nothing was done."""

    def send_release(self, packet_id: int, reason_code: int) -> None:
        """Send PUBREL."""


class SessionStore(Protocol):
    """What a session tells about its stored messages; see `cluster.api.Cluster`."""

    def acknowledge(self, seq: int, sent_seq: int) -> None:
        """Remove from the queue."""

    def received(self, packet_id: int, seq: int, sent_seq: int) -> None:
        """Move to releasing, then call `Session.release` with the packet id."""

    def want_page(self, after_seq: int, limit: int) -> None:
        """Fetch a page, then call `Session.page`."""

    def group_done(self, entry: GroupDelivery) -> None:
        """The receiver is done with a shared-subscription message."""

    def group_run_done(self, group: object, entry_ids: Sequence[bytes]) -> None:
        """The same for messages that came in runs."""

    def dropped(self, message: Message, reason: str) -> None:
        """A message will not be delivered to this session."""

    def has_room(self) -> None:
        """The window or the output buffer has room again: retained messages and groups may go on."""

    def missing(self) -> None:
        """A message came before an older one, which is to come another way: call `Session.look` if it does not."""


class SessionWatch(Protocol):
    """Is told, before it happens, of messages of a session that is followed."""

    def waits(self, session: Session, message: Message) -> None:
        """It is to wait in memory."""

    def stored(self, session: Session, message: Message, seq: int) -> None:
        """It is in the queue of the store; where it cannot be sent now, it waits there."""

    def from_group(self, session: Session, message: Message, delivery: GroupDelivery) -> None:
        """A shared subscription gives it to this session."""


class GroupDelivery:
    """A message of a shared subscription in the hands of one member."""

    __slots__ = ("entry", "group", "subscription_ids")

    def __init__(self, group: object, entry: object, subscription_ids: Sequence[int]) -> None:
        self.group = group
        self.entry = entry
        self.subscription_ids = subscription_ids


class GroupRun:
    """Messages of a shared subscription that came as a run, in the hands of one member.

    `messages` knows what all of the run are, and `places` which of them these are. Their packet ids are those from
    `first` on."""

    __slots__ = ("entry_ids", "first", "group", "messages", "places")

    def __init__(self, group: object, messages: object, places: Sequence[int], entry_ids: Sequence[bytes]) -> None:
        self.group = group
        self.messages = messages
        self.places = places
        self.entry_ids = entry_ids
        self.first = 0

    def only(self, packet_id: int) -> GroupRun:
        """A run of the one with this packet id."""
        at = packet_id - self.first
        return GroupRun(self.group, self.messages, (self.places[at],), (self.entry_ids[at],))


class Waiting:
    """A message of an ephemeral session that waits for the window."""

    __slots__ = ("counts", "flags", "message", "subscription_ids")

    def __init__(self, encoding: Encoding, flags: int, subscription_ids: Sequence[int]) -> None:
        self.message = encoding.message
        self.counts = encoding.counts
        self.flags = flags
        self.subscription_ids = subscription_ids


class StoredDelivery:
    """A message of the store's queue on its way to a persistent session."""

    __slots__ = ("encoding", "qos", "retain", "seq", "subscription_ids")

    def __init__(self, seq: int, encoding: Encoding, qos: int, retain: bool, subscription_ids: Sequence[int]) -> None:
        self.seq = seq
        self.encoding = encoding
        self.qos = qos
        self.retain = retain
        self.subscription_ids = subscription_ids
