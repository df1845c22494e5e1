"""The ways with the least work, for packets that come one behind the other: each run is handled as one.

A run of PUBLISH packets (`broker.codec.runs`) takes the way of its route, a run of acknowledgements is taken note of in
one go. What becomes of each packet is what would become of it alone; whatever a packet has beyond the simplest ends the
run before it, and the general way takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    def _run(
        self,
        routes: Mapping[bytes, Route],
        cleared: Mapping[bytes, int] | None,
        data: bytes,
        at: int,
        start: int,
        end: int,
        limit: int,
    ) -> int:
        """The packet in `data[at:end]` with a first byte of `PLAIN`, and those behind it that are of its run, at most
        `limit`: how many were handled; 0: they go another way. `cleared` are the topics that may be published to
        (see `Permitted`), `start` is where the remaining length ends."""
        body = start + 2 + (data[start] << 8 | data[start + 1])
        topic = data[start + 2 : body]
        route = routes.get(topic)
        if route is None:
            return 0
        receivers = route.live0
        qos = data[at] >> 1 & 3
        if (qos and qos > route.run_qos) or not (qos or receivers is not None):
            return 0
        if cleared is not None and not cleared.get(topic, 0) >> 2 * qos & 1:
            return 0
        after = body + 2 if qos else body  # the packet id
        if self.version == V5:
            family = 5
            if after >= end or data[after]:
                return 0
        else:
            family = 4
            if after > end:
                return 0
        if qos:
            inbound = self.inbound
            assert inbound is not None
            same = data[at:body]
            if not data.startswith(same, end) and route.run_way != TO_NODES:
                return 0
            limit = min(limit, inbound.run_room(route, qos))
            if limit <= 0:
                return 0
            count = run_length(data, at, end, same, limit)
            return inbound.publish_run(route, data[at : at + count * (end - at)], count, family, body - at)
        assert receivers is not None
        count = 1
        same = data[at : body + family - 4]
        if data.startswith(same, end):
            count = run_length(data, at, end, same, limit)
            end = at + count * (end - at)
        run = data[at:end]
        dispatch = self._server.dispatch
        if receivers:
            dispatch.passed = True
        if dispatch.forward_verbatim(receivers, route.topic, run, family, body - at, count) or route.nodes:
            assert self.ref is not None
            dispatch.forward_on(route, route.topic, run, family, body - at, count, self.ref.session_id)
        return count

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
