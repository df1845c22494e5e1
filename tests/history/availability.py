"""Checkers of what clients may notice of faults (G9, G15, G16, G17), and how long it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import pairwise
from math import inf

from tests.history import events as ev
from tests.history.timeline import Timeline


def nothing_acked(
    timeline: Timeline, begin: float, end: float, nodes: Collection[str] = (), grace_s: float = 0.0
) -> list[str]:
    """G16: while nodes (all, if none are named) cannot reach the store, they ack nothing sent to them meanwhile.

    `grace_s` is for messages that need no store. CONNECT is not accepted either.
    """
    problems: list[str] = []
    sent: dict[tuple[int, str], float] = {}
    for event in timeline.history.events:
        if nodes and event.node not in nodes:
            continue
        if event.kind in (ev.PUBLISH, ev.SUBSCRIBE, ev.UNSUBSCRIBE):
            sent.setdefault((event.connection, event.payload or event.topic), event.at)
        elif event.kind == ev.CONNECT:
            sent[(event.connection, ev.CONNECT)] = event.at
        if not begin <= event.at < end:
            continue
        if event.kind in (ev.ACK, ev.SUBACK, ev.UNSUBACK) and event.code < 0x80:
            what = event.payload or event.topic
            asked_at = sent.get((event.connection, what), -inf)
            if asked_at > begin and (event.kind != ev.ACK or event.at > begin + grace_s):
                problems.append(
                    f"{event.kind} of {what} by {event.node} at {event.at:.3f}, asked at {asked_at:.3f}, "
                    f"while it had no store since {begin:.3f}"
                )
        elif event.kind == ev.CONNACK and event.code == 0 and sent[(event.connection, ev.CONNECT)] > begin:
            problems.append(
                f"{event.node} accepted {event.client} at {event.at:.3f}, without a store since {begin:.3f}"
            )
    return problems


def recovery(timeline: Timeline, at: float, limit_s: float) -> list[str]:
    """G9, G16: every client that publishes after `at` gets an acknowledgement within `limit_s` of it."""
    problems: list[str] = []
    for client, took_s in recovery_times(timeline, at).items():
        if took_s > limit_s:
            problems.append(f"recovery: {client} waited {took_s:.2f} s from {at:.3f} on, at most {limit_s:g} s")
    return problems


def recovery_times(timeline: Timeline, at: float) -> dict[str, float]:
    """Per publisher the seconds from `at` to its next acknowledgement; inf if none came."""
    publishers = {event.client for event in timeline.history.of(ev.PUBLISH) if event.qos and event.at > at}
    result = dict.fromkeys(sorted(publishers), inf)
    for event in timeline.history.of(ev.ACK):
        if event.at > at and event.client in result and event.code < 0x80:
            result[event.client] = min(result[event.client], event.at - at)
    return result


def longest_gap(timeline: Timeline, client: str) -> float:
    """The longest time in which a client got no message, in seconds."""
    times = [event.at for event in timeline.history.of(ev.DELIVER) if event.client == client]
    return max((after - before for before, after in pairwise(times)), default=0.0)


def disconnections(timeline: Timeline, restarted: Collection[str] | Mapping[str, int]) -> list[str]:
    """G17: in a rolling restart each client loses one connection per node that it was on when that one stopped.

    `restarted` are these nodes, each once or as often as it says."""
    problems: list[str] = []
    stops = restarted if isinstance(restarted, Mapping) else dict.fromkeys(restarted, 1)
    lost: dict[tuple[str, str], int] = defaultdict(int)
    for connection in timeline.connections.values():
        if connection.accepted_at < inf and connection.closed_at < inf and not connection.left:
            lost[(connection.client, connection.node)] += 1
    for (client, node), times in lost.items():
        if times > stops.get(node, 0):
            problems.append(f"{client} lost {times} connections to {node}")
    return problems


def counted(accepted: int, received: int, refused: float) -> list[str]:
    """G15: what was accepted from publishers and did not come was counted by the nodes, each once."""
    if accepted - received != refused:
        return [
            f"{accepted} accepted, {received} received: {accepted - received} are missing, {refused:g} were counted"
        ]
    return []
