"""What a publisher's packets wait for: places in the order of acknowledgements, and packet ids of QoS 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.codec.packets import PUBACK
from broker.routes import AckSlot

if TYPE_CHECKING:
    from broker.inbound_runs import InboundRuns

#: How far an inbound QoS 2 packet id got.
PENDING: Final = 0
RESUMED: Final = 1
RECEIVED: Final = 2
RELEASING: Final = 3


class PublishSlot(AckSlot):
    """The place of one PUBACK or PUBREC in the order of acknowledgements [MQTT-4.6.0-2], [MQTT-4.6.0-3]."""

    __slots__ = ("_inbound", "again", "count", "done", "kind", "packet_id", "reason_code")

    def __init__(self, inbound: InboundRuns, kind: int, packet_id: int, reason_code: int) -> None:
        self._inbound = inbound
        self.kind = kind
        self.packet_id = packet_id
        self.reason_code = reason_code
        self.done = False
        #: An older connection began with it.
        self.again = False
        #: So many packets are acknowledged.
        self.count = 1

    @property
    def patient(self) -> bool:
        """Without reason codes there is no way to refuse it, nor is there where it may be stored already.

        Once the connection is gone nobody waits: the client sends it again."""
        return self._inbound.patient(self.again)

    def settle(self, error: Exception | None) -> None:
        self._inbound.settled(self, error)


class RunSlot(PublishSlot):
    """The place of the PUBACKs of a run (see `broker.codec.runs`)."""

    __slots__ = ("ids",)

    def __init__(self, inbound: InboundRuns, ids: bytes) -> None:
        super().__init__(inbound, PUBACK, 0, 0)
        self.ids = ids
        self.count = len(ids) // 2


class Exactly:
    """An inbound QoS 2 packet id: its message id and how far it got.

    `counted`: its PUBLISH came on this connection, so it uses up the server's Receive Maximum.
    """

    __slots__ = ("counted", "message_id", "state")

    def __init__(self, message_id: bytes, state: int) -> None:
        self.message_id = message_id
        self.state = state
        self.counted = False
