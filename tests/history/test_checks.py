"""Each checker passes on a history that keeps the promise, and finds what is wrong in one that breaks it."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from tests.history import availability, checks, groups
from tests.history.events import History, split_delay, split_share, topic_matches
from tests.history.run import Violated, always, require
from tests.history.script import Script, pair


@pytest.mark.parametrize(
    "topic_filter, topic, expected",
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("+", "", True),
        ("a/+/c", "a//c", True),
    ],
)
def test_topic_matches(topic_filter: str, topic: str, expected: bool) -> None:
    assert topic_matches(topic_filter, topic) is expected


def test_splits() -> None:
    assert split_share("$share/g/a/b") == ("g", "a/b")
    assert split_share("a/b") == ("", "a/b")
    assert split_delay("$delayed/12/a/b") == (12, "a/b")
    assert split_delay("a") == (0, "a")


def test_a_saved_history_is_the_same(tmp_path: Path) -> None:
    script = pair()
    script.sent(2, "m1")
    script.history.save(tmp_path / "h")
    assert History.load(tmp_path / "h").events == script.history.events


def test_require() -> None:
    require([])
    with pytest.raises(Violated, match="30 violations"):
        require(["x"] * 30)


# -- acked loss


def test_loss_good() -> None:
    script = pair()
    script.sent(2, "m1")
    script.deliver(1, "m1")
    script.publish(2, "never-acked")
    script.sent(2, "other", "elsewhere")
    script.publish(2, "refused")
    script.ack(2, "refused", code=0x97)
    assert always(script.timeline()) == []


def test_loss_of_an_acked_message() -> None:
    script = pair()
    script.sent(2, "m1")
    [problem] = checks.acked_loss(script.timeline())
    assert "m1" in problem and "sub" in problem


def test_loss_after_a_subscription_on_another_node_only_if_it_was_acked_before() -> None:
    script = pair(topic_filter="other")
    script.publish(2, "before")
    script.subscribe(1, "t", 1)
    script.ack(2, "before")
    script.sent(2, "after")
    [problem] = checks.acked_loss(script.timeline())
    assert "after" in problem


def test_loss_of_what_only_a_replaced_connection_got() -> None:
    script = pair()
    script.sent(2, "m1")
    script.connect(3, "sub", "c", present=True)
    script.deliver(1, "m1")
    assert len(checks.acked_loss(script.timeline())) == 1
    script.deliver(3, "m1", dup=True)
    assert checks.acked_loss(script.timeline()) == []


def test_loss_by_ephemeral_sessions_counts_while_they_last() -> None:
    script = pair(expiry_s=0)
    script.sent(2, "m1")
    assert len(checks.acked_loss(script.timeline())) == 1
    script.closed(1)
    assert checks.acked_loss(script.timeline()) == []


def test_loss_is_not_counted_for_what_was_unsubscribed_or_wiped() -> None:
    script = pair()
    script.publish(2, "m1")
    script.unsubscribe(1, "t")
    script.ack(2, "m1")
    script.sent(2, "m2")
    assert checks.acked_loss(script.timeline()) == []
    script = pair()
    script.sent(2, "m1")
    script.closed(1, by="bye")
    script.connect(3, "sub", clean=True)
    assert checks.acked_loss(script.timeline()) == []


def test_loss_of_a_delayed_message() -> None:
    script = pair()
    script.sent(2, "m1", "$delayed/5/t")
    assert len(checks.acked_loss(script.timeline())) == 1
    script.wait(5)
    script.deliver(1, "m1")
    assert always(script.timeline()) == []


# -- duplicates


def test_duplicates_good() -> None:
    script = pair()
    script.sent(2, "m1", qos=2)
    script.deliver(1, "m1", qos=2, packet_id=7, confirm=False)
    script.closed(1)
    script.connect(3, "sub", "c", present=True)
    script.deliver(3, "m1", qos=2, packet_id=7, dup=True)
    script.sent(2, "m2", qos=2)
    script.deliver(3, "m2", qos=2, packet_id=7)
    # At QoS 1 a repetition is allowed.
    script.sent(2, "m3")
    script.deliver(3, "m3", packet_id=9)
    script.deliver(3, "m3", packet_id=10)
    assert always(script.timeline()) == []


def test_a_duplicate_under_another_packet_id() -> None:
    script = pair()
    script.sent(2, "m1", qos=2)
    script.deliver(1, "m1", qos=2, packet_id=7)
    script.deliver(1, "m1", qos=2, packet_id=8)
    assert len(checks.duplicates(script.timeline())) == 1


@pytest.mark.parametrize("expiry_s, present, wrong", [(0, False, 0), (100, False, 0), (100, True, 1)])
def test_a_duplicate_of_a_session_without_a_queue(expiry_s: float, present: bool, wrong: int) -> None:
    """That of a publisher whose session ended with its connection is a new message."""
    script = pair(expiry_s=0)
    script.connect(3, "other", "a", expiry_s=expiry_s)
    script.sent(3, "m1", qos=2)
    script.deliver(1, "m1", qos=2, packet_id=7)
    script.closed(3)
    script.connect(4, "other", "b", expiry_s=expiry_s, present=present)
    script.sent(4, "m1", qos=2)
    script.deliver(1, "m1", qos=2, packet_id=8)
    assert len(checks.duplicates(script.timeline())) == wrong


def test_a_duplicate_after_its_release() -> None:
    script = pair()
    script.sent(2, "m1", qos=2)
    script.deliver(1, "m1", qos=2, packet_id=7)
    script.connect(3, "sub", "c", present=True)
    script.deliver(3, "m1", qos=2, packet_id=7, dup=True)
    assert len(checks.duplicates(script.timeline())) == 1


def test_a_packet_id_that_changes_its_message() -> None:
    script = pair()
    script.sent(2, "m1", qos=2)
    script.sent(2, "m2", qos=2)
    script.deliver(1, "m1", qos=2, packet_id=7, confirm=False)
    script.deliver(1, "m2", qos=2, packet_id=7)
    [problem] = checks.duplicates(script.timeline())
    assert "before m1 was released" in problem


def test_qos_0_twice() -> None:
    script = pair()
    script.publish(2, "m1", qos=0)
    script.deliver(1, "m1", qos=0)
    assert always(script.timeline()) == []
    script.deliver(1, "m1", qos=0)
    assert len(checks.at_most_once(script.timeline())) == 1


# -- order


def test_order_good() -> None:
    script = pair(topic_filter="#")
    for payload in ("m1", "m2", "m3"):
        script.publish(2, payload)
    script.publish(2, "o1", "other")
    script.deliver(1, "o1", "other")
    script.deliver(1, "m1")
    script.deliver(1, "m2")
    script.connect(3, "sub", "c", present=True)
    script.deliver(3, "m1", dup=True)
    script.deliver(3, "m2", dup=True)
    script.deliver(3, "m3")
    assert checks.order(script.timeline()) == []


def test_order_bad() -> None:
    script = pair()
    for payload in ("m1", "m2", "m3"):
        script.publish(2, payload)
    for payload in ("m1", "m3", "m2"):
        script.deliver(1, payload)
    [problem] = checks.order(script.timeline())
    assert "m3 before m2" in problem


def test_order_of_what_is_sent_again_and_what_follows() -> None:
    script = pair()
    script.publish(2, "m1")
    script.closed(2)
    script.connect(3, "pub", "c", present=True)
    script.publish(3, "m1", dup=True)
    script.publish(3, "m2")
    script.deliver(1, "m2")
    script.deliver(1, "m1")
    assert len(checks.order(script.timeline())) == 1


# -- visibility


def test_nothing_foreign_good() -> None:
    script = pair()
    script.publish(2, "m1")
    script.unsubscribe(1, "t")
    script.deliver(1, "m1")
    script.connect(3, "w", will="will:w:3")
    script.subscribe(1, "wills")
    script.deliver(1, "will:w:3", "wills")
    assert checks.nothing_foreign(script.timeline()) == []


def test_published_after_the_unsuback() -> None:
    script = pair()
    script.unsubscribe(1, "t")
    script.sent(2, "m1")
    script.deliver(1, "m1")
    [problem] = checks.nothing_foreign(script.timeline())
    assert "invisible" in problem


def test_what_nobody_sent_and_what_came_on_another_topic() -> None:
    script = pair(topic_filter="#")
    script.deliver(1, "ghost")
    script.sent(2, "m1")
    script.deliver(1, "m1", "u")
    assert len(checks.nothing_foreign(script.timeline())) == 2


# -- one owner


def test_one_owner_good() -> None:
    script = pair()
    script.sent(2, "m1")
    script.connect(3, "sub", "c", present=True)
    script.deliver(1, "m1")  # it was on its way
    script.disconnect(1, 0x8E)
    script.closed(1)
    script.deliver(3, "m1", dup=True)
    assert always(script.timeline()) == []


def test_the_older_connection_gets_what_is_new() -> None:
    script = pair()
    script.connect(3, "sub", "c", present=True)
    script.sent(2, "m1")
    script.deliver(1, "m1")
    script.closed(1)
    [problem] = checks.one_owner(script.timeline())
    assert "two owners" in problem


def test_the_older_connection_acks() -> None:
    script = pair()
    script.connect(3, "pub", "c", present=True)
    script.sent(2, "m1", qos=2)
    script.closed(2)
    assert len(checks.one_owner(script.timeline())) == 1


def test_the_older_connection_stays_or_is_told_something_else() -> None:
    script = pair()
    script.connect(3, "sub", "c", present=True)
    assert len(checks.one_owner(script.timeline())) == 1
    assert checks.one_owner(script.timeline(), ends=False) == []
    script.disconnect(1, 0x82)
    script.closed(1)
    assert len(checks.one_owner(script.timeline())) == 1


# -- sessions


def test_sessions_good() -> None:
    script = Script()
    script.connect(1, "c", expiry_s=10)
    script.closed(1)
    script.wait(5)
    script.connect(2, "c", "b", expiry_s=10, present=True)
    script.closed(2)
    script.wait(20)
    script.connect(3, "c", "c", expiry_s=10)
    script.closed(3)
    script.connect(4, "c", "c", expiry_s=10, clean=True)
    timeline = script.timeline()
    assert checks.kept_sessions(timeline) == checks.expired_sessions(timeline) == []


def test_a_session_that_ended_too_early() -> None:
    script = Script()
    script.connect(1, "c", expiry_s=10)
    script.closed(1)
    script.wait(5)
    script.connect(2, "c", "b", expiry_s=10)
    assert len(checks.kept_sessions(script.timeline())) == 1


def test_a_session_that_ended_too_late_or_not_at_all() -> None:
    script = Script()
    script.connect(1, "c", expiry_s=10)
    script.closed(1)
    script.wait(16)
    script.connect(2, "c", "b", present=True)
    assert len(checks.expired_sessions(script.timeline())) == 1
    script.closed(2)
    script.connect(3, "c", "b", clean=True, present=True)
    assert len(checks.kept_sessions(script.timeline())) == 1


def test_consumed() -> None:
    script = pair()
    script.sent(2, "m1")
    script.deliver(1, "m1", confirm=False)
    script.connect(3, "sub", "c", present=True)
    assert len(checks.consumed(script.timeline())) == 1
    script.deliver(1, "m1", dup=True)  # its acknowledgement comes too late
    assert len(checks.consumed(script.timeline())) == 1
    script.deliver(3, "m1", dup=True)
    assert checks.consumed(script.timeline()) == []


def test_redelivery() -> None:
    script = pair(qos=1)
    for number in range(5):
        script.sent(2, f"m{number}")
        script.deliver(1, f"m{number}", confirm=False)
    script.closed(1)
    script.connect(3, "sub", present=True)
    for number in range(5):
        script.deliver(3, f"m{number}", dup=True)
    assert checks.redelivery(script.timeline()) == []
    assert len(checks.redelivery(script.timeline(), receive_maximum=-60)) == 1
    script.closed(3)
    script.connect(4, "sub", present=True)
    script.deliver(4, "m0")
    assert len(checks.redelivery(script.timeline())) == 1


# -- wills


def test_wills() -> None:
    script = pair(topic_filter="w")
    script.connect(3, "dies", will="will:dies:3")
    script.closed(3, by="abort")
    script.connect(4, "leaves", will="will:leaves:4")
    script.closed(4, by="bye")
    due = ["will:dies:3"]
    assert len(checks.wills(script.timeline(), ["sub"], due)) == 1
    script.deliver(1, "will:dies:3", "w", 2)
    assert checks.wills(script.timeline(), ["sub"], due) == []
    script.deliver(1, "will:dies:3", "w", 2)
    script.deliver(1, "will:leaves:4", "w", 2)
    assert len(checks.wills(script.timeline(), ["sub"], due)) == 2


# -- retained


def test_retained_good() -> None:
    script = pair(topic_filter="x")
    script.sent(2, "v1", "k", retain=True)
    script.sent(2, "v2", "k", retain=True)
    script.publish(2, "v3", "k", retain=True)
    script.connect(3, "new", "c")
    script.subscribe(3, "k")
    script.deliver(3, "v2", "k", retain=True)
    script.ack(2, "v3")
    assert checks.retained(script.timeline(), {"r-a": {"k": "v3"}, "r-b": {"k": "v3"}}) == []


def test_retained_bad() -> None:
    script = pair(topic_filter="x")
    script.sent(2, "v1", "k", retain=True)
    script.sent(2, "v2", "k", retain=True)
    script.connect(3, "new", "c")
    script.subscribe(3, "k")
    script.deliver(3, "v1", "k", retain=True)
    timeline = script.timeline()
    assert len(checks.retained(timeline)) == 1
    assert len(checks.retained(timeline, {"r-a": {"k": "v2"}, "r-b": {"k": "v1"}})) == 2
    assert len(checks.retained(timeline, {"r-a": {"k": "v1"}})) == 2
    assert len(checks.retained(timeline, {"r-a": {}})) == 2


# -- delayed


@pytest.mark.parametrize("after_s, wrong", [(1.5, 1), (2.0, 0), (2.9, 0), (4.0, 1)])
def test_delayed(after_s: float, wrong: int) -> None:
    script = pair()
    script.sent(2, "m1", "$delayed/2/t")
    script.wait(after_s - 0.2)
    script.deliver(1, "m1")
    assert len(checks.delayed(script.timeline())) == wrong


@pytest.mark.parametrize("expiry_s", [0, 100])
def test_delayed_twice(expiry_s: float) -> None:
    script = pair(expiry_s=expiry_s)
    script.sent(2, "m1", "$delayed/2/t")
    script.wait(2)
    script.deliver(1, "m1")
    script.deliver(1, "m1")
    assert len(checks.delayed(script.timeline())) == 1


# -- groups


def group(qos: int, expiry_s: float = 3600) -> Script:
    script = Script()
    for connection, name in ((1, "one"), (2, "two")):
        script.connect(connection, name, expiry_s=expiry_s)
        script.subscribe(connection, "$share/g/t", qos)
    script.connect(3, "pub")
    return script


def test_groups_good() -> None:
    script = group(1)
    script.sent(3, "m1")
    script.deliver(1, "m1")
    script.sent(3, "m2")
    script.deliver(1, "m2", confirm=False)
    script.closed(1)
    script.deliver(2, "m2")
    assert always(script.timeline()) == []
    script = group(2)
    script.sent(3, "m1", qos=2)
    script.deliver(2, "m1", qos=2)
    assert always(script.timeline(), groups_exactly=True) == []


def test_a_group_message_that_no_member_acknowledged() -> None:
    script = group(1)
    script.sent(3, "m1")
    script.deliver(1, "m1", confirm=False)
    script.closed(1)
    [problem] = groups.groups(script.timeline())
    assert "acked by no member" in problem


def test_a_group_message_that_came_to_two() -> None:
    script = group(1)
    script.sent(3, "m1")
    script.deliver(1, "m1")
    script.deliver(2, "m1")
    assert groups.groups(script.timeline()) == []
    assert len(groups.groups(script.timeline(), exactly=True)) == 1
    script = group(2)
    script.sent(3, "m1", qos=2)
    script.deliver(1, "m1", qos=2)
    script.deliver(2, "m1", qos=2)
    assert len(groups.groups(script.timeline())) == 1


def test_a_qos_2_group_message_may_end_with_its_session_only() -> None:
    script = group(2)
    script.sent(3, "m1", qos=2)
    assert len(groups.groups(script.timeline())) == 1
    script = group(2, expiry_s=0)
    script.sent(3, "m1", qos=2)
    script.closed(1)
    assert groups.groups(script.timeline()) == []


def test_a_group_that_did_not_exist_all_the_time() -> None:
    script = group(1, expiry_s=0)
    script.sent(3, "m1")
    script.closed(1)
    script.closed(2)
    script.connect(4, "late", expiry_s=0)
    script.subscribe(4, "$share/g/t", 1)
    assert groups.groups(script.timeline()) == []
    script.sent(3, "m2")
    assert len(groups.groups(script.timeline())) == 1


# -- faults


def test_nothing_acked() -> None:
    script = pair()
    script.publish(2, "before")
    begin = script.fault("cut")
    script.ack(2, "before")
    script.publish(2, "meanwhile")
    end = script.fault("back")
    script.ack(2, "meanwhile")
    timeline = script.timeline()
    assert availability.nothing_acked(timeline, begin, end) == []
    assert len(availability.nothing_acked(timeline, begin, inf)) == 1
    assert availability.nothing_acked(timeline, begin, inf, nodes=("b", "c")) == []
    assert availability.nothing_acked(timeline, begin, inf, grace_s=5) == []


def test_nobody_is_accepted() -> None:
    script = pair()
    begin = script.fault("cut")
    script.connect(3, "new", code=0x88)
    assert availability.nothing_acked(script.timeline(), begin, inf) == []
    script.connect(4, "new")
    assert len(availability.nothing_acked(script.timeline(), begin, inf)) == 1


def test_recovery() -> None:
    script = pair()
    at = script.fault("kill", "a")
    script.publish(2, "m1")
    script.wait(3)
    script.ack(2, "m1")
    assert availability.recovery(script.timeline(), at, 4) == []
    assert len(availability.recovery(script.timeline(), at, 3)) == 1
    script.connect(3, "other")
    script.publish(3, "m2")
    assert len(availability.recovery(script.timeline(), at, 4)) == 1


def test_longest_gap() -> None:
    script = pair()
    for number in range(3):
        script.deliver(1, f"m{number}", qos=0)
    script.wait(2)
    script.deliver(1, "m9", qos=0)
    assert availability.longest_gap(script.timeline(), "sub") == pytest.approx(2.1)


def test_disconnections() -> None:
    script = pair()
    script.closed(2)
    script.connect(3, "pub", "b", present=True)
    script.closed(3)
    assert availability.disconnections(script.timeline(), ("a", "b")) == []
    assert len(availability.disconnections(script.timeline(), ("a",))) == 1
    script.connect(4, "pub", "b", present=True)
    script.closed(4)
    assert len(availability.disconnections(script.timeline(), ("a", "b"))) == 1


def test_counted() -> None:
    assert availability.counted(10, 7, 3) == []
    assert len(availability.counted(10, 7, 2)) == 1
