"""Overlapping subscriptions merged into what each session gets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from broker.routes import (
    NO_WAY,
    TO_CLIENTS,
    TO_NODES,
    TO_QUEUES,
    Entry,
    RemoteNode,
    Route,
    Subscriber,
    Subscription,
    merge,
)
from broker.session.counted import TopicCount

NO_LOCAL, AS_PUBLISHED = 4, 8


def _subscriber(name: str) -> Subscriber:
    return Subscriber(name.encode(), name, 1, False)


def _entry(*subscriptions: tuple[int, int]) -> Entry:
    subscriber = _subscriber("a")
    return Entry([Subscription(subscriber, options, identifier) for options, identifier in subscriptions])


def _shape(entry: Entry | None) -> tuple[int, bool, bool, Sequence[int]] | None:
    if entry is None:
        return None
    return entry.qos, entry.no_local, entry.retain_as_published, entry.subscription_ids


@pytest.mark.parametrize(
    "options, qos, no_local, as_published",
    [
        (0, 0, False, False),
        (1, 1, False, False),
        (2, 2, False, False),
        (6, 2, True, False),
        (8, 0, False, True),
        (13, 1, True, True),
        (0x20, 0, False, False),
    ],
)
def test_options(options: int, qos: int, no_local: bool, as_published: bool) -> None:
    subscription = Subscription(_subscriber("a"), options, 0)
    assert (subscription.qos, subscription.no_local, subscription.retain_as_published) == (qos, no_local, as_published)


@pytest.mark.parametrize(
    "subscriptions, whole, own",
    [
        ([(0, 0)], (0, False, False, ()), None),
        ([(1, 7)], (1, False, False, (7,)), None),
        # the highest QoS [MQTT-3.3.4-2] and all identifiers [MQTT-3.3.4-4]
        ([(0, 1), (2, 2), (1, 3)], (2, False, False, (1, 2, 3)), None),
        ([(1, 0), (0, 5)], (1, False, False, (5,)), None),
        ([(1 | AS_PUBLISHED, 0), (2, 0)], (2, False, True, ()), None),
        # No Local: what the session gets of its own messages is what the other subscriptions give
        ([(2 | NO_LOCAL, 1)], (2, True, False, (1,)), None),
        ([(2 | NO_LOCAL, 1), (0, 2)], (2, True, False, (1, 2)), (0, False, False, (2,))),
        ([(1 | NO_LOCAL, 1), (2 | NO_LOCAL, 2)], (2, True, False, (1, 2)), None),
        ([(2 | NO_LOCAL | AS_PUBLISHED, 1), (1, 0), (0, 3)], (2, True, True, (1, 3)), (1, False, False, (3,))),
    ],
)
def test_one_copy_for_overlapping_subscriptions(
    subscriptions: list[tuple[int, int]],
    whole: tuple[int, bool, bool, Sequence[int]],
    own: tuple[int, bool, bool, Sequence[int]] | None,
) -> None:
    entry = _entry(*subscriptions)
    assert _shape(entry) == whole
    assert _shape(entry.own) == own


def test_each_session_has_one_entry() -> None:
    a, b = _subscriber("a"), _subscriber("b")
    matched = [Subscription(a, 0, 0), Subscription(b, 2, 0), Subscription(a, 1, 0)]
    route = merge("t", b"t", matched)
    assert [(entry.subscriber.client_id, entry.qos) for entry in route.entries] == [("a", 1), ("b", 2)]
    assert not route.groups
    assert route.topic_name == "t"
    assert route.topic == b"t"


def test_nobody() -> None:
    route = merge("t", b"t", [])
    assert not route.entries
    assert not route.groups
    assert route.live0 == []


@pytest.mark.parametrize(
    "subscriptions, direct",
    [
        ([(0, 0)], True),
        ([(2, 0), (1 | AS_PUBLISHED, 0)], True),
        ([(0, 1)], False),
        ([(NO_LOCAL, 0)], False),
    ],
)
def test_qos0_packets_pass_unchanged_only_where_nothing_is_added(
    subscriptions: list[tuple[int, int]], direct: bool
) -> None:
    other = Entry([Subscription(_subscriber("other"), 0, 0)])
    route = Route("t", b"t", [other, _entry(*subscriptions)], [])
    if direct:
        assert route.live0 is not None
        assert [subscriber.client_id for subscriber in route.live0] == ["other", "a"]
    else:
        assert route.live0 is None


@pytest.mark.parametrize(
    "subscriptions, run_qos",
    [
        ([(2, 0)], 1),
        ([(1, 0)], 1),
        ([(0, 0)], 0),
        ([(0, 0), (1 | AS_PUBLISHED, 0)], 1),
        ([(2, 7)], 0),
        ([(2 | NO_LOCAL, 0)], 0),
    ],
)
def test_who_gets_messages_at_their_own_qos(subscriptions: list[tuple[int, int]], run_qos: int) -> None:
    other = Entry([Subscription(_subscriber("other"), 1, 0)])
    route = Route("t", b"t", [other, _entry(*subscriptions)], [])
    assert route.run_qos == run_qos
    if run_qos:
        assert [subscriber.client_id for subscriber in route.live0 or ()] == ["other", "a"]
        route.leave_direct_ways()
        assert (route.live0, route.run_way, route.run_qos) == (None, NO_WAY, 0)


def test_the_way_of_runs() -> None:
    """All receivers have it in common."""
    here = Subscription(_subscriber("a"), 2, 0)
    kept = Subscription(Subscriber(b"k", "kept", 1, True), 2, 0)
    zero = Subscription(Subscriber(b"z", "zero", 1, True), 0, 0)
    node = RemoteNode(b"b:1")
    ways: dict[tuple[Subscription | RemoteNode, ...], tuple[int, int]] = {
        (here,): (TO_CLIENTS, 2),
        (kept,): (TO_QUEUES, 1),
        (node,): (TO_NODES, 1),
        (): (NO_WAY, 0),
        (here, node): (NO_WAY, 0),
        (kept, node): (NO_WAY, 0),
        (here, kept): (NO_WAY, 0),
        (kept, zero): (NO_WAY, 0),
    }
    for matched, way in ways.items():
        route = merge("t", b"t", matched)
        assert (route.run_way, route.run_qos) == way
    for route in (merge("t", b"t", [here], refusal=0x87), merge("t", b"t", [here], counts=[TopicCount()])):
        assert (route.run_way, route.run_qos) == (NO_WAY, 0)


def test_each_other_node_is_there_once() -> None:
    subscriber = _subscriber("a")
    b, c = RemoteNode(b"b:1"), RemoteNode(b"c:1")
    route = merge("t", b"t", [b, Subscription(subscriber, 0, 0), c, b])
    assert [node.node for node in route.nodes] == [b"b:1", b"c:1"]
    assert all(node.live and not node.groups for node in route.nodes)
    assert route.live0 == [subscriber]
    assert not route.nobody
    assert not merge("t", b"t", [b]).nobody
    assert merge("t", b"t", []).nobody


def test_packets_of_other_nodes_are_for_ephemeral_sessions() -> None:
    kept = Subscriber(b"k", "kept", 1, True)
    plain, numbered = _subscriber("plain"), _subscriber("numbered")
    matched = [Subscription(kept, 0, 0), Subscription(plain, NO_LOCAL, 0), Subscription(numbered, 0, 7)]
    for _ in range(2):
        unchanged, others = merge("t", b"t", matched).arrivals()
        assert unchanged == [plain]
        assert [entry.subscription_ids for entry in others] == [(7,)]
