"""The way of messages while a trace runs: `Dispatch`, of a class that tells what becomes of them.

As with connections, it is the same object: see `broker.tracing.taps`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from broker.codec.packets import V5
from broker.codec.runs import split_run, topic_bounds
from broker.dispatch import Delivery, Dispatch
from broker.message import Message
from broker.routes import AckSlot, Route
from broker.session.run import Run
from broker.tracing.text import ITEMS_MAX, cut, escaped, message_shown, quoted, topic_text
from cluster.api import REFUSED_FULL

if TYPE_CHECKING:
    from broker.tracing.record import Trace
    from broker.tracing.traces import Traces


class TracedDelivery(Delivery):
    """A message that is stored, with what becomes of it."""

    __slots__ = ()

    def stored(self) -> None:
        dispatch = self._dispatch
        if isinstance(dispatch, TracedDispatch):
            dispatch.told_stored(self)
        super().stored()


class TracedDispatch(Dispatch):
    """See the module."""

    tracer: Traces

    def route(self, topic: bytes) -> Route:
        """Topics that are followed do not take the direct way."""
        route = super().route(topic)
        if (route.live0 is not None or route.run_qos) and self.tracer.by_topic(topic):
            route.leave_direct_ways()
        return route

    def frame_arrived(self, family: int, run: bytes, count: int = 1) -> None:
        start, body = topic_bounds(run)
        topic = run[start:body]
        if self.tracer.by_topic(topic):
            for frame in split_run(run, count):
                self.arrived(Message(topic, frame[body + (family == V5) :], 0, False), True, ())
        else:
            super().frame_arrived(family, run, count)

    def run_arrived(self, packets: Run) -> None:
        messages = packets.messages()
        first = next(messages)
        if self._followed(first)[0]:
            for message in (first, *messages):
                self.arrived(message, True, ())
        else:
            super().run_arrived(packets)

    def arrived(self, message: Message, live: bool, groups: Iterable[bytes]) -> None:
        traces, client_id, peer = self._followed(message)
        if traces:
            words = f"{quoted(topic_text(message.topic))} QoS {message.qos} came from another node"
            details = message_shown(message)
            self.tracer.add(traces, client_id, peer, "route", words, details, "", message.payload)
        super().arrived(message, live, groups)

    def publish(
        self,
        message: Message,
        route: Route,
        slot: AckSlot | None,
        deduplicate: bool = False,
        delivery: type[Delivery] = Delivery,
    ) -> bool:
        traces, client_id, peer = self._followed(message)
        if traces:
            words, details = _routed(route)
            text = f"{quoted(topic_text(message.topic))} QoS {message.qos}"
            text += f"{' retain' if message.retain else ''}, {len(message.payload)} bytes, goes to {words}"
            details = {**message_shown(message), **details}
            self.tracer.add(traces, client_id, peer, "route", text, details, "", message.payload)
            if delivery is Delivery:
                delivery = TracedDelivery
        done = super().publish(message, route, slot, deduplicate, delivery)
        if traces and done and message.qos:
            self.tracer.add(traces, client_id, peer, "queue", "nothing has to be stored", {"stored": 0})
        return done

    def _followed(self, message: Message) -> tuple[list[Trace], str, str]:
        """The traces that a message is in and take a line, and who published it as far as that is known."""
        tracer = self.tracer
        tap = tracer.sessions.get(message.publisher) if message.publisher else None
        traces = tracer.taking(tracer.by_topic(message.topic), tap.traces if tap is not None else ())
        if not traces:
            return traces, "", ""
        if tap is not None:
            return traces, tap.client_id, tap.peer
        publisher = self.subscribers.get(message.publisher)
        if publisher is None:
            return traces, "", ""
        stream = publisher.connection.stream if publisher.connection is not None else None
        return traces, publisher.client_id, str(stream.peer) if stream is not None else ""

    def told_stored(self, delivery: Delivery) -> None:
        """The store answered."""
        traces, client_id, peer = self._followed(delivery.message)
        if traces:
            words, details = _stored(delivery)
            text = f"{quoted(topic_text(delivery.message.topic))} {words}"
            self.tracer.add(traces, client_id, peer, "queue", text, details)


def _routed(route: Route) -> tuple[str, dict[str, Any]]:
    if route.delay is not None:
        seconds = route.delay.seconds
        return f"{quoted(topic_text(route.delay.topic))} in {seconds} s", {"delay_s": seconds}
    here = sum(entry.subscriber.connection is not None for entry in route.entries)
    away = len(route.entries) - here
    groups = [group.name for group in route.groups]
    nodes = sorted(target.node.decode().rpartition(":")[0] for target in route.nodes)
    words: list[str] = []
    if here:
        words.append(f"{here} sessions connected here")
    if away:
        words.append(f"{away} sessions that are not")
    if groups:
        words.append("shared subscriptions " + ", ".join(map(quoted, groups[:ITEMS_MAX])))
    if nodes:
        words.append(f"nodes {', '.join(nodes[:ITEMS_MAX])}")
    details = {"here": here, "elsewhere": away, "groups": [cut(name) for name in groups[:ITEMS_MAX]], "nodes": nodes}
    return "; ".join(words) or "nobody: no subscription matches", details


def _stored(delivery: Delivery) -> tuple[str, dict[str, Any]]:
    if delivery.error is not None:
        return f"is not stored: {escaped(str(delivery.error))}", {"error": str(delivery.error)[:256]}
    queued: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for target, entry in zip(delivery.targets, delivery.entries, strict=True):
        client_id = entry.subscriber.client_id
        if target.seq > 0:
            queued.append({"client_id": cut(client_id), "queue_seq": target.seq})
        elif target.seq < 0:
            reason = "queue_full" if target.seq == REFUSED_FULL else "session_gone"
            refused.append({"client_id": cut(client_id), "reason": reason})
    lengths: dict[str, int] = {}
    for group_target, group in zip(delivery.groups, delivery.route_groups, strict=True):
        if group_target.depth < 0:
            reason = "group_queue_full" if group_target.depth == REFUSED_FULL else "group_gone"
            refused.append({"group": cut(group.name), "reason": reason})
        else:
            lengths[cut(group.name)] = group_target.depth
    words = [f"is stored for {len(queued)} sessions"]
    if queued:
        names = [f"{quoted(each['client_id'])} as {each['queue_seq']}" for each in queued[:5]]
        words[0] += f" ({', '.join(names)}{', ...' if len(queued) > 5 else ''})"
    words += [f"shared subscription {quoted(name)} has {length}" for name, length in list(lengths.items())[:5]]
    words += [f"refused for {quoted(str(next(iter(each.values()))))}: {each['reason']}" for each in refused[:5]]
    return "; ".join(words), {
        "queued": queued[:ITEMS_MAX],
        "groups": dict(list(lengths.items())[:ITEMS_MAX]),
        "refused": refused[:ITEMS_MAX],
    }
