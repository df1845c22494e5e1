"""The contract of `cluster.api.Cluster`: sessions, queues, wills, expiry; on every implementation."""

from __future__ import annotations

import pytest

from broker.errors import SessionLost
from broker.message import Message
from cluster.api import REFUSED_FULL, REFUSED_GONE, StoredSubscription, StoredWill, Target
from tests.kit.cluster_world import Answer, Maker, WaitingPublication, message, served, target
from tests.kit.packet_data import attributes

pytestmark = pytest.mark.usefixtures("both_ways")


async def test_a_new_session_is_empty(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        assert not at.session_present
        assert (at.last_seq, at.lowest_seq, at.sent_seq) == (0, 1, 0)
        assert (at.subscriptions, at.releasing, at.inbound, at.ended_will) == ([], [], {}, None)
        assert len(at.ref.session_id) == 16
        assert await world.queue(at.ref) == []


async def test_g7_a_resumed_session_has_everything(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        first = await world.connect("c")
        await world.cluster.subscribe(
            first.ref, [StoredSubscription("a/+", 2, 7), StoredSubscription("$share/g/b", 1)], True
        )
        assert await world.send(first, b"1", b"2", b"3", qos=2) == [1, 2, 3]
        reserved, received = Answer(), Answer()
        world.cluster.reserve(first.ref, 9, b"m" * 16, reserved)
        world.cluster.received(first.ref, 1, 2, received)
        await world.finished(reserved, received)
        await world.cluster.detach(first.ref, 3600, 2, False)
        again = await world.connect("c")
        assert again.session_present
        assert again.ref.birth == first.ref.birth
        assert again.ref.token != first.ref.token
        assert {(s.topic_filter, s.options, s.subscription_identifier) for s in again.subscriptions} == {
            ("a/+", 2, 7),
            ("$share/g/b", 1, 0),
        }
        assert (again.last_seq, again.lowest_seq, again.sent_seq) == (3, 1, 2)
        assert again.releasing == [1]
        assert again.inbound == {9: b"m" * 16}
        assert await world.queue(again.ref) == [b"2", b"3"]


async def test_clean_start_ends_the_old_session(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        first = await world.connect("c")
        await world.cluster.subscribe(first.ref, [StoredSubscription("a", 1)], True)
        await world.send(first, b"1")
        await world.cluster.detach(first.ref, 3600, 0, False)
        second = await world.connect("c", clean_start=True)
        assert not second.session_present
        assert [s.topic_filter for s in second.ended_subscriptions] == ["a"]
        assert second.ref.birth != first.ref.birth
        assert await world.queue(second.ref) == []
        assert (await world.connect("c")).subscriptions == []


async def test_a_target_of_an_older_birth_is_refused(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        old = await world.connect("c")
        new = await world.connect("c", clean_start=True)
        stale, fresh, unknown = target(old), target(new), target(new)
        unknown.session_id = b"u" * 16
        publication = await world.publish(message(), [stale, fresh, unknown])
        assert (stale.seq, fresh.seq, unknown.seq) == (REFUSED_GONE, 1, REFUSED_GONE)
        assert (publication.error, publication.answers) == (None, 1)


async def test_g8_after_a_takeover_the_older_owner_can_change_nothing(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        old = await world.connect("c")
        await world.send(old, b"1")
        new = await world.connect("c")
        with pytest.raises(SessionLost):
            await world.cluster.subscribe(old.ref, [StoredSubscription("a", 1)], True)
        with pytest.raises(SessionLost):
            await world.cluster.unsubscribe(old.ref, ["a"], True)
        received, reserved = Answer(), Answer()
        world.cluster.acknowledge(old.ref, 1, 1)
        world.cluster.received(old.ref, 1, 1, received)
        world.cluster.reserve(old.ref, 1, b"m" * 16, reserved)
        await world.finished(received, reserved)
        assert isinstance(received.errors[0], SessionLost)
        assert isinstance(reserved.errors[0], SessionLost)
        assert world.events.lost == [old.ref]
        await world.cluster.detach(old.ref, 0, 1, True)
        assert await world.queue(new.ref) == [b"1"]
        resumed = await world.connect("c")
        assert (resumed.session_present, resumed.subscriptions, resumed.inbound) == (True, [], {})


async def test_the_queue_keeps_order_and_pages_over_gaps(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        payloads = [b"%d" % number for number in range(1, 401)]
        assert await world.send(at, *payloads) == list(range(1, 401))
        assert await world.queue(at.ref) == payloads
        assert await world.queue(at.ref, 7) == payloads
        for seq in range(3, 390):
            world.cluster.acknowledge(at.ref, seq, 390)
        await world.settle(at.ref)
        assert await world.queue(at.ref, 5) == [b"1", b"2", *payloads[389:]]
        assert [each.seq for each in await world.cluster.page(at.ref, 2, 3)] == [390, 391, 392]
        assert await world.cluster.page(at.ref, 400, 3) == []
        world.cluster.acknowledge(at.ref, 1, 390)
        await world.settle(at.ref)
        assert (await world.connect("c")).lowest_seq == 2


async def test_a_queued_message_keeps_all_its_fields(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at, other = await world.connect("c"), await world.connect("d")
        sent = message(
            "t/ü", b"\x00\xff", 2, properties=b"\x01\x01", expiry_s=9, accepted_at_ms=1_700_000_000_123,
            message_id=b"i" * 16, publisher=b"p" * 16,
        )  # fmt: skip
        await world.publish(sent, [target(at, 1, True, (1, 268_435_455)), target(other, 2)])
        (one,), (two,) = await world.cluster.page(at.ref, 0, 1), await world.cluster.page(other.ref, 0, 1)
        assert (one.qos, one.retain, list(one.subscription_ids)) == (1, True, [1, 268_435_455])
        assert (two.qos, two.retain, list(two.subscription_ids)) == (2, False, [])
        for name in attributes(Message):
            assert getattr(one.message, name) == getattr(sent, name), name


async def test_g15_a_queue_is_bounded_in_messages(make_cluster: Maker) -> None:
    async with served(make_cluster(max_queued_messages=3)) as world:
        at = await world.connect("c")
        assert await world.send(at, b"1", b"2", b"3", b"4") == [1, 2, 3, REFUSED_FULL]
        world.cluster.acknowledge(at.ref, 1, 1)
        await world.settle(at.ref)
        assert await world.send(at, b"5", b"6") == [4, REFUSED_FULL]
        assert await world.queue(at.ref) == [b"2", b"3", b"5"]


async def test_g15_a_queue_is_bounded_in_bytes(make_cluster: Maker) -> None:
    async with served(make_cluster(max_queued_bytes=20_000)) as world:
        at = await world.connect("c")
        big = b"b" * 9000
        assert await world.send(at, big, big, big, b"small") == [1, 2, REFUSED_FULL, 3]
        world.cluster.acknowledge(at.ref, 2, 2)
        await world.settle(at.ref)
        assert await world.send(at, big, big) == [4, REFUSED_FULL]


async def test_acknowledging_twice_frees_once(make_cluster: Maker) -> None:
    async with served(make_cluster(max_queued_messages=3)) as world:
        at = await world.connect("c")
        await world.send(at, b"1", b"2", b"3")
        for _ in range(3):
            world.cluster.acknowledge(at.ref, 1, 1)
        await world.settle(at.ref)
        world.cluster.acknowledge(at.ref, 1, 1)
        await world.settle(at.ref)
        assert await world.send(at, b"4", b"5") == [4, REFUSED_FULL]


async def test_g3_the_release_of_a_received_message(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        await world.send(at, b"1", b"2", qos=2)
        received = Answer()
        world.cluster.received(at.ref, 1, 2, received)
        await world.finished(received)
        assert received.errors == [None]
        assert await world.queue(at.ref) == [b"2"]
        middle = await world.connect("c")
        assert (middle.releasing, middle.lowest_seq) == ([1], 1)
        world.cluster.acknowledge(middle.ref, 1, 2)
        await world.settle(middle.ref)
        last = await world.connect("c")
        assert (last.releasing, last.lowest_seq, last.last_seq) == ([], 2, 2)


async def test_received_of_what_is_not_queued_makes_nothing(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        received = Answer()
        world.cluster.received(at.ref, 5, 5, received)
        await world.finished(received)
        assert (await world.connect("c")).releasing == []


async def test_g3_inbound_ids_are_kept_until_released(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        answers = [Answer() for _ in range(3)]
        world.cluster.reserve(at.ref, 1, b"a" * 16, answers[0])
        world.cluster.reserve(at.ref, 2, b"b" * 16, answers[1])
        await world.finished(*answers[:2])
        world.cluster.release(at.ref, 1, b"a" * 16, answers[2])
        await world.finished(answers[2])
        assert [each.errors for each in answers] == [[None]] * 3
        assert (await world.connect("c")).inbound == {2: b"b" * 16}


async def test_g3_a_repeated_message_id_adds_no_copy(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        one, two = await world.connect("c"), await world.connect("d")
        sent = message(qos=2, message_id=b"i" * 16)
        first = await world.publish(sent, [target(one, 2)], deduplicate=True)
        again = await world.publish(sent, [target(one, 2), target(two, 2)], deduplicate=True)
        assert [each.seq for each in first.targets] == [1]
        assert [each.seq for each in again.targets] == [0, 1]
        assert len(await world.queue(one.ref)) == len(await world.queue(two.ref)) == 1


async def test_unsubscribed_filters_are_gone(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        await world.cluster.subscribe(at.ref, [StoredSubscription("a", 0), StoredSubscription("b", 1)], True)
        await world.cluster.subscribe(at.ref, [StoredSubscription("a", 2, 5)], True)
        await world.cluster.unsubscribe(at.ref, ["b", "never"], True)
        await world.cluster.unsubscribe(at.ref, ["b"], True)
        (left,) = (await world.connect("c")).subscriptions
        assert (left.topic_filter, left.options, left.subscription_identifier) == ("a", 2, 5)


async def test_sent_seq_is_what_the_owner_told_last(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        await world.send(at, *[b"x"] * 10)
        world.cluster.acknowledge(at.ref, 1, 4)
        await world.settle(at.ref)
        await world.cluster.detach(at.ref, 3600, 3, False)
        assert (await world.connect("c")).sent_seq == 4


async def test_a_session_without_expiry_ends_with_its_connection(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c", expiry_s=0)
        await world.cluster.detach(at.ref, 0, 0, False)
        await world.cluster.detach(at.ref, 0, 0, False)
        assert not (await world.connect("c")).session_present
        assert world.events.ended == []


async def test_detach_may_end_a_persistent_session(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        await world.cluster.subscribe(at.ref, [StoredSubscription("a", 1)], True)
        await world.send(at, b"1")
        await world.cluster.detach(at.ref, 0, 0, False)
        gone = target(at)
        await world.publish(message(), [gone])
        assert gone.seq == REFUSED_GONE
        assert not (await world.connect("c")).session_present


def will(delay_s: int = 0, payload: bytes = b"bye") -> StoredWill:
    return StoredWill(message("will", payload, message_id=b"w" * 16), delay_s)


async def test_g10_a_session_expires_after_its_will(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c", will=will(100))
        await world.cluster.subscribe(at.ref, [StoredSubscription("a", 1), StoredSubscription("b", 1)], True)
        began_ms = world.cluster.now_ms()
        await world.cluster.detach(at.ref, 1, 0, True)
        await world.events.until(lambda: world.events.ended)
        # No earlier than due; both times are the store's, the second one with what it took to hear of it.
        assert world.cluster.now_ms() - began_ms >= 990
        assert world.events.log[-2:] == ["will c", "ended c"]
        assert world.events.ended == [("c", ["a", "b"])]
        assert not (await world.connect("c")).session_present


async def test_a_reconnect_cancels_the_expiry(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at, other = await world.connect("c"), await world.connect("other")
        await world.cluster.detach(at.ref, 1, 0, False)
        await world.connect("c")
        # The other session expires later than the first would have done.
        await world.cluster.detach(other.ref, 2, 0, False)
        await world.events.until(lambda: world.events.ended)
        assert world.events.ended == [("other", [])]


async def test_g11_a_will_is_published_with_all_its_fields(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c", will=will())
        await world.cluster.detach(at.ref, 3600, 0, True)
        await world.events.until(lambda: world.events.wills)
        ((client_id, due),) = world.events.wills
        assert (client_id, due.message.topic, due.message.payload) == ("c", b"will", b"bye")
        assert (due.message.message_id, due.delay_s) == (b"w" * 16, 0)
        assert (await world.connect("c")).ended_will is None


async def test_the_will_of_an_ephemeral_session_is_due_at_its_end(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c", expiry_s=0, will=will(1000))
        await world.cluster.detach(at.ref, 0, 0, True)
        # It is due already: a reconnect does not cancel it.
        await world.connect("c", expiry_s=0)
        await world.events.until(lambda: world.events.wills)
        assert [client_id for client_id, _ in world.events.wills] == ["c"]


async def test_wills_that_are_not_published(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        normal = await world.connect("normal", will=will())
        delayed = await world.connect("delayed", will=will(1))
        replaced = await world.connect("replaced", will=will(1))
        await world.cluster.detach(normal.ref, 3600, 0, False)
        await world.cluster.detach(delayed.ref, 3600, 0, True)
        await world.cluster.detach(replaced.ref, 3600, 0, True)
        assert (await world.connect("delayed")).ended_will is None
        again = await world.connect("replaced", will=will(0, b"newer"))
        await world.cluster.detach(again.ref, 3600, 0, True)
        last = await world.connect("last", will=will(2))
        await world.cluster.detach(last.ref, 3600, 0, True)
        await world.events.until(lambda: len(world.events.wills) >= 2)
        assert [(client, due.message.payload) for client, due in world.events.wills] == [
            ("replaced", b"newer"),
            ("last", b"bye"),
        ]


async def test_clean_start_hands_out_a_will_that_was_still_due(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c", will=will(1))
        await world.cluster.detach(at.ref, 3600, 0, True)
        new = await world.connect("c", clean_start=True)
        assert new.ended_will is not None
        assert new.ended_will.message.payload == b"bye"
        other = await world.connect("other", will=will(2))
        await world.cluster.detach(other.ref, 3600, 0, True)
        await world.events.until(lambda: world.events.wills)
        assert [client for client, _ in world.events.wills] == ["other"]


async def test_answers_of_one_session_come_in_order_and_once(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        answered: list[int] = []

        class Noting(WaitingPublication):
            def stored(self) -> None:
                super().stored()
                answered.append(int(self.message.payload))

        sent = [Noting(message(payload=b"%d" % number), [target(at)]) for number in range(500)]
        for publication in sent:
            world.start(publication)
        assert answered == []
        await world.finished(*sent)
        assert answered == list(range(500))
        assert {each.answers for each in sent} == {1}
        assert [each.targets[0].seq for each in sent] == list(range(1, 501))


async def test_a_publication_for_nobody_is_answered_by_flush(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        publication = WaitingPublication(message())
        world.cluster.publish(publication)
        assert publication.answers == 0
        await world.finished(publication)
        assert (publication.answers, publication.error) == (1, None)


async def test_one_publication_reaches_many_sessions(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        sessions = [await world.connect(f"c{number}") for number in range(300)]
        publication = await world.publish(message(), [target(each) for each in sessions])
        assert [each.seq for each in publication.targets] == [1] * 300
        for each in sessions[::50]:
            assert await world.queue(each.ref) == [b"x"]


async def test_large_messages_come_in_smaller_pages(make_cluster: Maker) -> None:
    async with served(make_cluster(max_queued_bytes=64 * 1024 * 1024)) as world:
        at = await world.connect("c")
        payloads = [b"%d" % number + b"-" * 300_000 for number in range(20)]
        await world.send(at, *payloads)
        world.cluster.acknowledge(at.ref, 3, 3)
        await world.settle(at.ref)
        assert await world.queue(at.ref) == payloads[:2] + payloads[3:]


async def test_g4_a_run_is_stored_as_its_messages_would_be(make_cluster: Maker) -> None:
    async with served(make_cluster(max_queued_messages=8)) as world:
        first, second = await world.connect("c"), await world.connect("d")
        gone = Target(b"?" * 16, 1, 1, False, ())
        assert await world.send(first, b"before") == [1]
        run = WaitingPublication(message("t", b""), [target(first, ids=(7,)), gone, target(second)])
        run.payloads = [b"%d" % number for number in range(9)]
        world.start(run)
        await world.finished(run)
        assert run.error is None
        assert run.answers == 1
        assert [list(each.seqs) for each in run.targets] == [
            [*range(2, 9), REFUSED_FULL, REFUSED_FULL],
            [REFUSED_GONE] * 9,
            [*range(1, 9), REFUSED_FULL],
        ]
        assert await world.queue(first.ref) == [b"before", *run.payloads[:7]]
        assert await world.queue(second.ref) == run.payloads[:8]
        queued = (await world.cluster.page(first.ref, 1, 1))[0]
        assert (queued.message.topic, queued.qos, queued.subscription_ids) == (b"t", 1, (7,))


async def test_a_run_and_messages_around_it_keep_their_order(make_cluster: Maker) -> None:
    async with served(make_cluster()) as world:
        at = await world.connect("c")
        sent: list[WaitingPublication] = []
        for number in range(6):
            each = WaitingPublication(message(payload=b"%d" % number), [target(at)])
            if number % 2:
                each.payloads = [b"%d%02d" % (number, more) for more in range(100)]
            sent.append(world.start(each))
        await world.finished(*sent)
        expected = [payload for each in sent for payload in each.payloads or [each.message.payload]]
        assert await world.queue(at.ref) == expected
        seqs = [seq for each in sent for seq in each.targets[0].seqs or [each.targets[0].seq]]
        assert seqs == list(range(1, len(expected) + 1))


async def test_a_burst_for_one_session(make_cluster: Maker) -> None:
    async with served(make_cluster(max_queued_messages=5000)) as world:
        at = await world.connect("c")
        payloads = [b"%d" % number for number in range(4000)]
        assert await world.send(at, *payloads) == list(range(1, 4001))
        assert await world.queue(at.ref) == payloads
        for seq in range(1, 4001):
            world.cluster.acknowledge(at.ref, seq, seq)
        await world.settle(at.ref)
        assert await world.queue(at.ref) == []
        again = await world.connect("c")
        assert (again.lowest_seq, again.last_seq, again.sent_seq) == (4001, 4000, 4000)
