"""Checkers of shared subscriptions (G14)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import inf

from tests.history.events import topic_matches
from tests.history.timeline import Publication, Session, Subscription, Timeline


def groups(timeline: Timeline, exactly: bool = False) -> list[str]:
    """G14: each QoS 1 message is acknowledged by a member, a QoS 2 message is never seen by two sessions.

    A group exists while any session is a member of it; what was acknowledged to the publisher meanwhile has to come,
    if the group still exists at the end. A QoS 2 message may end with the session that had it. With `exactly`
    (nothing broke) a QoS 1 message comes to one member only.
    """
    members: dict[str, list[tuple[Session, Subscription]]] = defaultdict(list)
    for session in timeline.sessions:
        for subscription in session.subscriptions:
            if subscription.share:
                members[subscription.topic_filter].append((session, subscription))
    problems: list[str] = []
    for name, pairs in members.items():
        problems += _group(timeline, name, pairs, exactly)
    return problems


def _group(timeline: Timeline, name: str, pairs: list[tuple[Session, Subscription]], exactly: bool) -> Iterable[str]:
    plain = pairs[0][1].plain
    granted = min(subscription.qos for _, subscription in pairs)
    times = _existence(pairs)
    sessions = {id(session): session for session, _ in pairs}.values()
    # A session that also has the messages by another subscription would be counted wrongly.
    others = {
        id(session)
        for session in sessions
        for subscription in session.subscriptions
        if not subscription.share and topic_matches(subscription.plain, plain)
    }
    holders: dict[str, list[Session]] = defaultdict(list)
    copies: dict[tuple[int, str], int] = defaultdict(int)
    for session in sessions:
        for delivery in session.deliveries:
            event = delivery.event
            if not topic_matches(plain, event.topic) or id(session) in others:
                continue
            if not any(each is session for each in holders[event.payload]):
                holders[event.payload].append(session)
            copies[(id(session), event.payload)] += delivery.first and not delivery.late
    confirmed: set[str] = set()
    for session in sessions:
        confirmed |= session.confirmed
    for publication in timeline.publications.values():
        if not topic_matches(plain, publication.topic) or not publication.qos:
            continue
        qos = min(publication.qos, granted)
        who = holders.get(publication.payload, [])
        if qos == 2:
            if len(who) > 1:
                yield f"group {name}: QoS 2 message {publication.payload} came to {who}"
            for session in who:
                if session.persistent and copies[(id(session), publication.payload)] > 1:
                    yield f"group {name}: QoS 2 message {publication.payload} came again to {session}"
        elif (
            exactly
            and publication.sends == 1
            and (len(who) > 1 or sum(copies[id(s), publication.payload] for s in who) > 1)
        ):
            yield f"group {name}: {publication.payload} came more than once, to {who}"
        if not publication.acked or not _lasted(times, publication):
            continue
        if qos == 1 and publication.payload not in confirmed:
            yield f"group {name}: {publication.payload} (acked at {publication.ack_at:.3f}) was acked by no member"
        if qos == 2 and not who and not any(session.ended_at < inf for session in sessions):
            yield f"group {name}: {publication.payload} (acked at {publication.ack_at:.3f}) came to no member"


def _existence(pairs: Iterable[tuple[Session, Subscription]]) -> list[tuple[float, float]]:
    """The times during which there was a member, in order and merged."""
    spans = sorted((each.since, min(each.until, session.ended_at)) for session, each in pairs)
    merged: list[tuple[float, float]] = []
    for since, until in spans:
        if merged and since <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], until))
        else:
            merged.append((since, until))
    return merged


def _lasted(times: Iterable[tuple[float, float]], publication: Publication) -> bool:
    return any(since < publication.first_at and until == inf for since, until in times)


def shares(timeline: Timeline, name: str) -> dict[str, int]:
    """How many messages of a group each member acknowledged, by client."""
    result: dict[str, int] = defaultdict(int)
    for session in timeline.sessions:
        if any(subscription.topic_filter == name for subscription in session.subscriptions):
            result[session.client] += len(session.confirmed)
    return result
