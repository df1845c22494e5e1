"""The checkers: each takes a history and returns what it violates, one line each; an empty list is a pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from tests.history.events import FAULT
from tests.history.timeline import Connection, Publication, Session, Subscription, Timeline

#: Redelivery after a crash: this many above the client's receive maximum (G9).
REDELIVERY_MARGIN = 64


def acked_loss(timeline: Timeline) -> list[str]:
    """G2, G3, G9, and the first half of G5: what was acknowledged reached every session it was promised to.

    Promised to: persistent sessions that exist at the end, and ephemeral ones whose connection is open at the end,
    with a subscription acknowledged before the message was sent first and not given up before its acknowledgement.
    The run has to give the sessions time to get all before it ends.
    """
    problems: list[str] = []
    got: dict[int, set[str]] = {}
    for session in timeline.sessions:
        got[id(session)] = {each.event.payload for each in session.deliveries if not each.late}
    for publication in timeline.publications.values():
        if not publication.qos or not publication.acked:
            continue
        for session, subscription in timeline.matching(publication.topic):
            if subscription.share or not _promised(publication, session, subscription):
                continue
            if publication.payload not in got[id(session)]:
                problems.append(
                    f"lost: {publication.payload} on {publication.topic} (sent at {publication.first_at:.3f}, "
                    f"acked at {publication.ack_at:.3f}) never reached {session}, "
                    f"subscribed to {subscription.topic_filter} since {subscription.since:.3f}"
                )
    return problems


def _promised(publication: Publication, session: Session, subscription: Subscription) -> bool:
    if not subscription.qos or subscription.since >= publication.first_at or session.ended_at < inf:
        return False
    # A delayed message goes to those who match when it is due.
    needed_until = inf if publication.delay_s else publication.ack_at
    return subscription.until > needed_until or subscription.until == inf


def duplicates(timeline: Timeline) -> list[str]:
    """G3: a QoS 2 message comes to a persistent QoS 2 session once; packet ids name one message until released.

    To an ephemeral session it comes once at any QoS, if its publisher sent it in one session that was kept.
    """
    problems = [
        f"packet id {event.packet_id} of {session} names {event.payload} before {before} was released"
        for session, event, before in timeline.reused_ids
    ]
    for session in timeline.sessions:
        times: dict[str, int] = defaultdict(int)
        shared = any(subscription.share for subscription in session.subscriptions)
        for event in session.taken():
            publication = timeline.publications.get(event.payload)
            if session.persistent:
                counts = event.qos == 2 and (publication is None or publication.qos == 2)
            else:
                counts = (
                    not shared and publication is not None and publication.qos == 2 and _kept(timeline, publication)
                )
            if counts:
                times[event.payload] += 1
        problems += [f"duplicate: {payload} came {n} times to {session}" for payload, n in times.items() if n > 1]
    return problems


def _kept(timeline: Timeline, publication: Publication) -> bool:
    """Whether all its repetitions were sent in the persistent session that sent it first."""
    connections = [timeline.connections[number] for number in publication.connections]
    first = connections[0].number
    return all(each.asked.value > 0 and (each.number == first or each.present) for each in connections)


def at_most_once(timeline: Timeline) -> list[str]:
    """G1: nothing published at QoS 0 comes twice to one session."""
    problems: list[str] = []
    for session in timeline.sessions:
        seen: set[str] = set()
        for event in session.taken():
            publication = timeline.publications.get(event.payload)
            if publication is None or publication.qos:
                continue
            if event.payload in seen:
                problems.append(f"repeated: QoS 0 message {event.payload} came twice to {session}")
            seen.add(event.payload)
    return problems


def order(timeline: Timeline) -> list[str]:
    """G4: per publisher connection, topic and QoS, each session first gets the messages in the order of sending.

    Delayed messages are published when they are due, by any node: no order is promised among those of several.
    """
    problems: list[str] = []
    lines: list[list[str]] = []
    for sent in timeline.sent.values():
        by_line: dict[tuple[str, int], list[str]] = defaultdict(list)
        for event in sent:
            if timeline.publications[event.payload].delay_s:
                continue
            by_line[(event.topic, event.qos)].append(event.payload)
        lines += [line for line in by_line.values() if len(line) > 1]
    for session in timeline.sessions:
        if any(subscription.share for subscription in session.subscriptions):
            continue
        place: dict[str, int] = {}
        for index, event in enumerate(session.taken()):
            place.setdefault(event.payload, index)
        for line in lines:
            last, before = -1, ""
            for payload in line:
                index = place.get(payload, -1)
                if index < 0:
                    continue
                if index < last:
                    problems.append(f"order: {session} got {payload} before {before}, which was sent earlier")
                else:
                    last, before = index, payload
    return problems


def nothing_foreign(timeline: Timeline) -> list[str]:
    """G5, second half: a session gets only what was published and what it was subscribed to when that was sent.

    Also what a subscription got after its UNSUBACK is a violation if it was published after the UNSUBACK. Payloads
    of wills are known from the CONNECT packets.
    """
    problems: list[str] = []
    wills = {each.asked.text for each in timeline.connections.values() if each.asked.text}
    for session in timeline.sessions:
        for delivery in session.deliveries:
            event = delivery.event
            publication = timeline.publications.get(event.payload)
            if publication is None:
                if event.payload not in wills:
                    problems.append(f"foreign: {session} got {event.payload!r}, which nobody sent")
                continue
            if publication.topic != event.topic:
                problems.append(f"foreign: {session} got {event.payload} on {event.topic}, not {publication.topic}")
            due_at = publication.first_at + publication.delay_s
            for holder, subscription in timeline.matching(event.topic):
                if holder is session and subscription.asked_at < event.at and subscription.gone >= due_at:
                    break
            else:
                problems.append(
                    f"invisible: {session} got {event.payload} on {event.topic} at {event.at:.3f}, "
                    f"published at {publication.first_at:.3f}, without a subscription then"
                )
    return problems


def one_owner(timeline: Timeline, ends: bool = True) -> list[str]:
    """G8: after the CONNACK of a newer connection the older one gets and acknowledges nothing newer.

    Nothing sent after that CONNACK comes on the older connection (of a persistent session), no QoS 2 message sent on
    the older one after it is acknowledged. If `ends`, the older one is closed in the end, with 0x8E if it said
    anything and was not told to go for another reason.
    """
    problems: list[str] = []
    persistent = {number for each in timeline.sessions if each.persistent for number in each.connections}
    for session in timeline.sessions:
        for delivery in session.deliveries:
            event = delivery.event
            if not delivery.late or event.connection not in persistent:
                continue
            replaced_at = timeline.connections[event.connection].replaced_at
            publication = timeline.publications.get(event.payload)
            if publication is not None and publication.first_at > replaced_at:
                problems.append(
                    f"two owners: {event.payload}, sent at {publication.first_at:.3f}, came on connection "
                    f"{event.connection} of {session}, replaced at {replaced_at:.3f}"
                )
    for connection in timeline.connections.values():
        if connection.replaced_at == inf:
            continue
        for event in timeline.sent[connection.number]:
            publication = timeline.publications[event.payload]
            if (
                event.at > connection.replaced_at
                and event.qos == 2
                and publication.acked
                and set(publication.connections) == {connection.number}
            ):
                problems.append(
                    f"two owners: {event.payload} was acked on connection {connection.number} after it ended"
                )
        if ends and connection.closed_at == inf:
            problems.append(f"two owners: connection {connection.number} of {connection.client} was never closed")
        if connection.disconnected not in (-1, 0x8E, 0x89, 0x8B, 0x8D):
            problems.append(f"connection {connection.number} was ended with 0x{connection.disconnected:02x}, not 0x8E")
    return problems


def kept_sessions(timeline: Timeline, tolerance_s: float = 0.0) -> list[str]:
    """G7, G9, G10: a client that comes back in time finds its session; one that asks for none gets none.

    A session ends no earlier than its expiry interval after the connection, whatever node died.
    """
    problems: list[str] = []
    for client in timeline.clients():
        before = None
        for connection in timeline.connections_of(client):
            asked = connection.asked
            if connection.present and asked.code:
                problems.append(f"{client}: clean start, but session present on connection {connection.number}")
            if before is not None and not asked.code and before.asked.value > 0 and not connection.present:
                away_s = asked.at - min(before.closed_at, asked.at)
                if away_s < before.asked.value - tolerance_s:
                    problems.append(
                        f"session lost: {client} came back after {away_s:.3f} s of {before.asked.value:g} s "
                        f"(connection {connection.number} to {connection.node}) and found none"
                    )
            before = connection
    return problems


def expired_sessions(timeline: Timeline, late_s: float = 5.0) -> list[str]:
    """G10: a session that was left for longer than its interval and `late_s` is gone."""
    problems: list[str] = []
    for client in timeline.clients():
        before = None
        for connection in timeline.connections_of(client):
            if before is not None and connection.present and before.closed_at < inf:
                away_s = connection.asked.at - before.closed_at
                if away_s > before.asked.value + late_s:
                    problems.append(f"session kept: {client} was away for {away_s:.3f} s of {before.asked.value:g} s")
            before = connection
    return problems


def consumed(timeline: Timeline) -> list[str]:
    """G7, G8: what a persistent session was sent and never acknowledged on a connection of its own was sent again.

    Acknowledgements on a connection that a newer one had replaced count for nothing, so if they had an effect, then
    the message is missing from those that the client acknowledged in the end.
    """
    problems: list[str] = []
    for session in timeline.sessions:
        if not session.persistent or session.ended_at < inf:
            continue
        shared = any(subscription.share for subscription in session.subscriptions)
        sent = {
            each.event.payload: each.event for each in session.deliveries if each.event.qos and not each.event.retain
        }
        for payload in sent.keys() - session.confirmed:
            if not (shared and sent[payload].qos == 1):
                problems.append(f"consumed: {session} got {payload}, did not acknowledge it, and never got it again")
    return problems


def redelivery(timeline: Timeline, receive_maximum: int = 100) -> list[str]:
    """G9: what a session gets again carries DUP, and is at most `receive_maximum` + 64 messages per connection.

    Only messages that their publisher sent once count: a repeated publication may be stored twice.
    """
    problems: list[str] = []
    for session in timeline.sessions:
        if any(subscription.share for subscription in session.subscriptions):
            continue
        seen: dict[str, int] = {}
        again: dict[int, int] = defaultdict(int)
        for delivery in session.deliveries:
            event = delivery.event
            publication = timeline.publications.get(event.payload)
            if publication is None or not event.qos or event.retain or publication.retain or delivery.late:
                continue
            if publication.sends > 1 or publication.delay_s:
                continue
            before = seen.setdefault(event.payload, event.connection)
            if before == event.connection:
                continue
            again[event.connection] += 1
            if not event.dup:
                problems.append(f"{session} got {event.payload} again on connection {event.connection} without DUP")
        limit = receive_maximum + REDELIVERY_MARGIN
        problems += [f"{session} got {n} messages again, at most {limit}" for n in again.values() if n > limit]
    return problems


def _fault_near(timeline: Timeline, connection: Connection) -> bool:
    """Whether the DISCONNECT of a client may not have been read: its node broke about then."""
    return any(
        fault.node in ("", connection.node) and abs(fault.at - min(connection.closed_at, timeline.end)) < 3.0
        for fault in timeline.history.of(FAULT)
    )


def wills(timeline: Timeline, observers: Iterable[str], due: Iterable[str] = ()) -> list[str]:
    """G11: a will comes at most once to each observer (QoS 2), never after DISCONNECT; those in `due` do come.

    `observers` are clients that saw the whole run; `due` has payloads of wills that have to be published.
    """
    problems: list[str] = []
    watching = set(observers)
    count: dict[str, dict[str, int]] = {client: defaultdict(int) for client in watching}
    for session in timeline.sessions:
        if session.client in watching:
            for event in session.taken():
                count[session.client][event.payload] += 1
    by_will = {each.asked.text: each for each in timeline.connections.values() if each.asked.text}
    for payload, connection in by_will.items():
        for client, seen in count.items():
            if seen[payload] > 1:
                problems.append(f"will {payload} came {seen[payload]} times to {client}")
            if seen[payload] and connection.left == "bye" and not _fault_near(timeline, connection):
                problems.append(f"will {payload} was published although its client said goodbye")
    for payload in due:
        for client, seen in count.items():
            if not seen[payload]:
                problems.append(f"will {payload} never came to {client}")
    return problems


def retained(timeline: Timeline, readers: Mapping[str, Mapping[str, str]] | None = None) -> list[str]:
    """G12: a new subscriber gets a value of each retained topic that is not older than the last acknowledged one.

    `readers`: reader at the end of the run (one per node) -> topic -> payload; they have to agree. Writes that were
    repeated are not used to judge the age of others: an older copy may still have been on its way.
    """
    problems: list[str] = []
    by_topic: dict[str, list[Publication]] = defaultdict(list)
    for publication in timeline.publications.values():
        if publication.retain:
            by_topic[publication.topic].append(publication)
    for session in timeline.sessions:
        for delivery in session.deliveries:
            event = delivery.event
            if not event.retain or delivery.late:
                continue
            asked_at = min(
                (each.asked_at for holder, each in timeline.matching(event.topic) if holder is session), default=inf
            )
            newer = _overwritten(timeline.publications.get(event.payload), by_topic[event.topic], asked_at)
            if newer is not None:
                problems.append(
                    f"retained: {session} asked at {asked_at:.3f} and got {event.payload} on {event.topic}, "
                    f"but {newer.payload} was acked at {newer.ack_at:.3f}"
                )
    if not readers:
        return problems
    for topic, writes in by_topic.items():
        seen = {reader: values.get(topic, "") for reader, values in readers.items()}
        if len(set(seen.values())) > 1:
            problems.append(f"retained: the nodes do not agree on {topic}: {seen}")
        value = next(iter(seen.values()))
        if not value and any(each.acked for each in writes):
            problems.append(f"retained: nothing on {topic}, although a value was acked")
        newer = _overwritten(timeline.publications.get(value), writes, inf)
        if newer is not None:
            problems.append(f"retained: {topic} has {value} in the end, but {newer.payload} was written after it")
    return problems


def _overwritten(value: Publication | None, writes: Sequence[Publication], before: float) -> Publication | None:
    """An acknowledged write that surely came after `value` and before the time, if there is one."""
    if value is None or value.sends > 1 or value.ack_at == inf:
        return None
    for write in writes:
        if write.acked and write.ack_at < before and write.first_at > value.ack_at:
            return write
    return None


def delayed(timeline: Timeline, late_s: float = 1.0, early_s: float = 0.005) -> list[str]:
    """G13: a delayed message comes not before it is due, at most `late_s` after that, and only once."""
    problems: list[str] = []
    for session in timeline.sessions:
        times: dict[str, int] = defaultdict(int)
        for event in session.taken():
            publication = timeline.publications.get(event.payload)
            if publication is None or not publication.delay_s:
                continue
            times[event.payload] += 1
            after_s = event.at - publication.first_at
            if after_s < publication.delay_s - early_s:
                problems.append(f"delayed: {event.payload} came after {after_s:.3f} s of {publication.delay_s} s")
            if event.at > publication.ack_at + publication.delay_s + late_s and times[event.payload] == 1:
                late = event.at - publication.ack_at - publication.delay_s
                problems.append(f"delayed: {event.payload} came {late:.3f} s late")
            if times[event.payload] > 1 and publication.sends == 1 and not event.dup:
                problems.append(f"delayed: {event.payload} came again to {session}")
    return problems
