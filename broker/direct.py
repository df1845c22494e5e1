"""The ways with the least work, for packets that come one behind the other: each run is handled as one.

A run of PUBLISH packets (`broker.codec.runs`) takes the way of its route, a run of acknowledgements is taken note of in
one go. What becomes of each packet is what would become of it alone; whatever a packet has beyond the simplest ends the
run before it, and the general way takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.codec.packets import PUBCOMP, PUBREL, V5
from broker.codec.runs import run_length
from broker.paced import Paced
from broker.routes import TO_NODES, Route
from broker.transport.api import Stream

if TYPE_CHECKING:
    from broker.inbound import Inbound
    from broker.services import Services

#: First bytes of PUBLISH with neither DUP nor RETAIN.
PLAIN: Final = frozenset((0x30, 0x32, 0x34))


class Direct(Paced):
    """A connection whose packets may take these ways."""

    __slots__ = ("inbound",)

    def __init__(self, stream: Stream, server: Services) -> None:
        super().__init__(stream, server)
        self.inbound: Inbound | None = None

    def _run0(self, route: Route, data: bytes, at: int, body: int, end: int, limit: int) -> int:
        """The QoS 0 packet in `data[at:end]`, and those behind it that are of its run, at most `limit`: how many were
        handled; 0: they go another way. `body` is where the topic ends. The caller counts them."""
        receivers = route.live0
        family = 4
        if self.version == V5:
            family = 5
            if body >= end or data[body]:
                return 0
        elif body > end:
            return 0
        if receivers is None:
            return 0
        count = run_length(data, at, end, data[at : body + family - 4], limit)
        run = data[at : at + count * (end - at)]
        if self._server.dispatch.forward_verbatim(receivers, route.topic, run, family, body - at, count) or route.nodes:
            self._forward_on(route, run, count, family, body - at)
        return count

    def _forward_on(self, route: Route, run: bytes, count: int, family: int, body_at: int) -> None:
        assert self.ref is not None
        self._server.dispatch.forward_on(route, route.topic, run, family, body_at, count, self.ref.session_id)

    def _run(self, route: Route, data: bytes, at: int, body: int, end: int, limit: int) -> int:
        """The same at QoS 1 and 2; `body` is where the packet id is."""
        qos = data[at] >> 1 & 3
        if qos > route.run_qos:
            return 0
        family = 4
        if self.version == V5:
            family = 5
            if body + 2 >= end or data[body + 2]:
                return 0
        elif body + 2 > end:
            return 0
        inbound = self.inbound
        assert inbound is not None
        same = data[at:body]
        if not data.startswith(same, end) and route.run_way != TO_NODES:
            return inbound.publish_alone(route, same, data[body:end], family) if qos == 1 else 0
        limit = min(limit, inbound.run_room(route, qos))
        if limit <= 0:
            return 0
        count = run_length(data, at, end, same, limit)
        return inbound.publish_run(route, data[at : at + count * (end - at)], count, family, body - at)

    def _acknowledgements(self, head: int, data: bytes, at: int, budget: int) -> int:
        """Take note of what begins at `at`: acknowledgements with this first byte, at most `budget`. How many it
        were."""
        session = self.session
        inbound = self.inbound
        assert session is not None and inbound is not None
        run = data[at : at + 4 * min(budget, (len(data) - at) // 4)]
        answer = 0
        if head == 0x40:
            count = session.acked_run(run)
        elif head == 0x70:
            count = session.completed_run(run)
        elif head == 0x50:
            count = session.received_run(run)
            answer = PUBREL << 4 | 2
        else:
            count = inbound.released_run(run)
            answer = PUBCOMP << 4
        self.metrics.packets_received[head >> 4] += count
        if count and answer:
            answers = bytearray(run[: 4 * count])
            answers[::4] = bytes((answer,)) * count  # the rest of each is as it came
            self.stream.write(bytes(answers))
            self.metrics.packets_sent[answer >> 4] += count
        return count
