"""The sending side of a session, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from broker.codec.encode import encode
from broker.codec.packets import Puback, Publish
from broker.errors import ProtocolError
from broker.message import Message
from broker.session.encoding import Encoding
from broker.session.ports import GroupDelivery, GroupRun, StoredDelivery
from broker.session.run import Run
from broker.session.runs import SEQ_MODULUS
from broker.session.session import AHEAD_LIMIT, Session

NOW_MS = 1_000_000


class Ends:
    """Both ports of a session; `log` is what it asked for, in order."""

    version = 5

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []
        self.full = False
        self.limit = 0

    def taken(self) -> list[tuple[object, ...]]:
        """What it asked for since the last look."""
        log, self.log = self.log, []
        return log

    # SessionOutput

    def room(self) -> bool:
        return not self.full

    def send_message(self, encoding: Encoding, flags: int, packet_id: int, subscription_ids: Sequence[int]) -> str:
        payload = encoding.message.payload
        if self.limit and len(payload) > self.limit:
            return "packet_too_large"
        self.log.append(("publish", payload, packet_id, flags))
        return ""

    def send_run(self, run: Run, first_id: int) -> bool:
        if self.limit:
            return False
        self.log += [("publish", each, first_id + at, 2) for at, each in enumerate(run.payloads())]
        return True

    def send_release(self, packet_id: int, reason_code: int) -> None:
        self.log.append(("pubrel", packet_id))

    # SessionStore

    def acknowledge(self, seq: int, sent_seq: int) -> None:
        self.log.append(("acknowledge", seq, sent_seq))

    def received(self, packet_id: int, seq: int, sent_seq: int) -> None:
        self.log.append(("received", packet_id, seq, sent_seq))

    def want_page(self, after_seq: int, limit: int) -> None:
        self.log.append(("page", after_seq, limit))

    def group_done(self, entry: GroupDelivery) -> None:
        self.log.append(("group_done", entry.entry))

    def group_run_done(self, group: object, entry_ids: Sequence[bytes]) -> None:
        self.log += [("group_done", entry_id) for entry_id in entry_ids]

    def missing(self) -> None:
        self.log.append(("missing",))

    def dropped(self, message: Message, reason: str) -> None:
        self.log.append(("dropped", message.payload, reason))

    def has_room(self) -> None:
        self.log.append(("has_room",))


def _ends(window: int = 10, persistent: bool = True, messages: int = 5, size: int = 1000) -> tuple[Session, Ends]:
    ends = Ends()
    return Session(ends, ends, persistent, window, messages, size), ends


def _encoding(payload: bytes, remaining_s: int = -1) -> Encoding:
    return Encoding(Message(b"t", payload, 2, False), remaining_s)


def _stored(session: Session, seq: int, qos: int = 1, remaining_s: int = -1) -> None:
    session.stored(seq, _encoding(b"%d" % seq, remaining_s), qos, False, ())


def _page(session: Session, *seqs: int, qos: int = 1, remaining_s: int = -1, complete: bool | None = None) -> None:
    items = [StoredDelivery(seq, _encoding(b"%d" % seq, remaining_s), qos, False, ()) for seq in seqs]
    session.page(items, not items if complete is None else complete)


def _published(log: list[tuple[object, ...]]) -> list[object]:
    return [item[2] for item in log if item[0] == "publish"]


def _deliver(session: Session, payload: bytes, qos: int = 1, retain: bool = False) -> bool:
    return session.deliver(_encoding(payload), qos, retain, ())


# -- ephemeral sessions


def test_packet_ids_in_turn_and_flags() -> None:
    session, ends = _ends(persistent=False)
    _deliver(session, b"a")
    _deliver(session, b"b", 2)
    _deliver(session, b"c", 1, True)
    assert ends.taken() == [("publish", b"a", 1, 2), ("publish", b"b", 2, 4), ("publish", b"c", 3, 3)]
    assert session.credit() == 7


def test_ids_wrap_and_leave_out_those_in_use() -> None:
    session, ends = _ends(window=3, persistent=False)
    _deliver(session, b"first")
    _deliver(session, b"second", 2)
    session.received(2, 0, NOW_MS)
    ends.taken()
    used = []
    for _ in range(SEQ_MODULUS):
        _deliver(session, b"x")
        [packet_id] = _published(ends.taken())
        assert isinstance(packet_id, int)
        used.append(packet_id)
        assert session.acked(packet_id, NOW_MS)
    assert used == [*range(3, SEQ_MODULUS + 1), 3, 4]


def test_the_queue_is_bounded_in_messages() -> None:
    session, ends = _ends(window=1, persistent=False, messages=2)
    assert [_deliver(session, b"%d" % n) for n in range(5)] == [True, True, True, False, False]
    assert session.waiting() == 2
    assert ends.taken()[1:] == [("dropped", b"3", "queue_full"), ("dropped", b"4", "queue_full")]
    session.acked(1, NOW_MS)
    assert _deliver(session, b"5"), "there is room again"
    assert _published(ends.taken()) == [2]
    session.acked(2, NOW_MS)
    session.acked(3, NOW_MS)
    assert [item[1] for item in ends.taken()] == [b"2", b"5"]


def test_the_queue_is_bounded_in_bytes() -> None:
    session, ends = _ends(window=1, persistent=False, messages=100, size=100)
    assert _deliver(session, b"first")
    assert _deliver(session, b"x" * 98), "99 bytes with its topic"
    assert not _deliver(session, b"x")
    assert ends.taken()[-1] == ("dropped", b"x", "queue_full")
    session.acked(1, NOW_MS)
    assert _deliver(session, b"x" * 99)
    assert not _deliver(session, b"")
    session.acked(2, NOW_MS)
    session.acked(3, NOW_MS)
    assert session.waiting() == 0
    assert session.inflight == {}


def test_expired_and_too_large_messages_give_way_to_the_next() -> None:
    session, ends = _ends(window=1, persistent=False)
    ends.limit = 10
    _deliver(session, b"first")
    session.deliver(Encoding(Message(b"t", b"old", 1, False, b"", 5, NOW_MS - 5000)), 1, False, ())
    _deliver(session, b"x" * 11)
    session.deliver(Encoding(Message(b"t", b"young", 1, False, b"", 5, NOW_MS - 4999)), 1, False, ())
    ends.taken()
    session.acked(1, NOW_MS)
    log = ends.taken()
    assert log[:2] == [("dropped", b"old", "expired"), ("dropped", b"x" * 11, "packet_too_large")]
    assert [item[1] for item in log[2:]] == [b"young"]
    assert session.waiting() == 0


def test_who_is_hungry_is_told_when_nothing_waits_any_more() -> None:
    session, ends = _ends(window=1, persistent=False)
    _deliver(session, b"first")
    session.deliver(Encoding(Message(b"t", b"old", 1, False, b"", 5, 0)), 1, False, ())
    session.hungry = True
    ends.taken()
    session.acked(1, NOW_MS)
    assert ends.taken() == [("dropped", b"old", "expired"), ("has_room",)]


def test_nobody_is_told_while_messages_wait() -> None:
    session, ends = _ends(window=1, persistent=False)
    for payload in (b"a", b"b", b"c"):
        _deliver(session, payload)
    session.hungry = True
    ends.taken()
    session.acked(1, NOW_MS)
    assert [item[0] for item in ends.taken()] == ["publish"]
    session.acked(2, NOW_MS)
    assert [item[0] for item in ends.taken()] == ["publish", "has_room"]


def test_a_full_output_holds() -> None:
    session, ends = _ends(persistent=False)
    ends.full = True
    assert session.credit() == 0
    assert not session.idle()
    _deliver(session, b"a")
    assert ends.taken() == []
    ends.full = False
    session.drained(NOW_MS)
    assert ends.taken() == [("publish", b"a", 1, 2)]


def test_after_close_nothing_is_sent() -> None:
    session, ends = _ends(window=1, persistent=False)
    _deliver(session, b"a")
    _deliver(session, b"b")
    ends.taken()
    session.close()
    session.drained(NOW_MS)
    session.acked(1, NOW_MS)
    session.release(1)
    session.look()
    _stored(session, 1)
    _page(session, 1)
    assert _published(ends.taken()) == []
    assert session.waiting() == 0


# -- answers of the receiver


def test_answers_for_what_is_not_in_flight() -> None:
    session, ends = _ends(persistent=False)
    assert not session.acked(1, NOW_MS)
    assert not session.received(1, 0, NOW_MS)
    assert not session.completed(1, NOW_MS)
    _deliver(session, b"a")
    assert session.acked(1, NOW_MS)
    assert not session.acked(1, NOW_MS)
    assert [item[0] for item in ends.taken()] == ["publish"]


def test_answers_of_the_wrong_qos() -> None:
    session, _ = _ends(persistent=False)
    _deliver(session, b"a", 1)
    _deliver(session, b"b", 2)
    with pytest.raises(ProtocolError):
        session.received(1, 0, NOW_MS)
    with pytest.raises(ProtocolError):
        session.acked(2, NOW_MS)
    assert not session.completed(2, NOW_MS), "PUBCOMP before PUBREC"
    assert session.credit() == 8


def test_qos2_of_an_ephemeral_session() -> None:
    session, ends = _ends(window=1, persistent=False)
    _deliver(session, b"a", 2)
    _deliver(session, b"b", 2)
    assert session.received(1, 0, NOW_MS)
    assert session.received(1, 0, NOW_MS), "repeated: PUBREL again"
    assert ends.taken() == [("publish", b"a", 1, 4), ("pubrel", 1), ("pubrel", 1)]
    assert session.credit() == 0, "until PUBCOMP"
    assert session.completed(1, NOW_MS)
    assert ends.taken() == [("publish", b"b", 2, 4)]


@pytest.mark.parametrize("reason_code, refused", [(0, False), (0x10, False), (0x7F, False), (0x80, True), (0x97, True)])
def test_a_pubrec_with_an_error_ends_the_exchange(reason_code: int, refused: bool) -> None:
    """[MQTT-4.3.3-4]"""
    session, ends = _ends()
    _stored(session, 1, 2)
    ends.taken()
    assert session.received(2, reason_code, NOW_MS)
    assert ends.taken() == ([("acknowledge", 1, 1)] if refused else [("received", 2, 1, 1)])
    assert session.credit() == (10 if refused else 9)
    assert session.completed(2, NOW_MS) != refused


def test_qos2_of_a_persistent_session() -> None:
    session, ends = _ends()
    _stored(session, 5 * SEQ_MODULUS, 2)
    session, ends = _ends()
    session.resume(6, 7, 6, [])
    _stored(session, 7, 2)
    assert ends.taken() == [("publish", b"7", 8, 4)]
    assert session.received(8, 0, NOW_MS)
    assert ends.taken() == [("received", 8, 7, 7)]
    assert session.received(8, 0, NOW_MS), "repeated before the store answered: nothing yet"
    assert ends.taken() == []
    session.release(8)
    assert ends.taken() == [("pubrel", 8)]
    assert session.received(8, 0, NOW_MS)
    assert ends.taken() == [("pubrel", 8)]
    assert session.completed(8, NOW_MS)
    assert ends.taken() == [("acknowledge", 7, 7)]
    session.release(8)
    assert ends.taken() == [], "not after PUBCOMP"


# -- persistent sessions


def test_packet_ids_come_from_the_seq() -> None:
    session, ends = _ends()
    session.resume(SEQ_MODULUS - 2, SEQ_MODULUS - 1, SEQ_MODULUS - 2, [])
    for seq in range(SEQ_MODULUS - 1, SEQ_MODULUS + 2):
        _stored(session, seq)
    assert _published(ends.taken()) == [SEQ_MODULUS, 1, 2]
    session.acked(1, NOW_MS)
    assert ends.taken() == [("acknowledge", SEQ_MODULUS, SEQ_MODULUS + 1)]


def test_resume_with_nothing_to_do() -> None:
    session, ends = _ends()
    session.resume(5, 6, 5, [])
    assert ends.taken() == []
    assert not session.behind
    assert session.idle()


def test_resume_sends_pubrel_first_and_marks_what_was_sent() -> None:
    """[MQTT-4.4.0-1], [MQTT-3.3.1-1]"""
    session, ends = _ends()
    session.resume(9, 4, 7, [4, 5])
    assert ends.taken() == [("pubrel", 5), ("pubrel", 6), ("page", 3, 8)]
    assert not session.idle()
    _page(session, 6, 7, 8)
    assert ends.taken() == [
        ("publish", b"6", 7, 2 | 8),
        ("publish", b"7", 8, 2 | 8),
        ("publish", b"8", 9, 2),
        ("page", 8, 5),
    ]
    _page(session, 9)
    assert _published(ends.taken()) == [10]
    assert not session.behind
    session.completed(5, NOW_MS)
    assert ends.taken() == [("acknowledge", 4, 9)]


def test_live_messages_wait_for_the_pages() -> None:
    session, ends = _ends()
    session.resume(2, 1, 0, [])
    assert ends.taken() == [("page", 0, 10)]
    _stored(session, 3)
    assert ends.taken() == [], "one page at a time"
    _page(session, 1, 2)
    assert [item[0] for item in ends.taken()] == ["publish", "publish", "page"]
    _page(session, 3)
    assert ends.taken() == [("publish", b"3", 4, 2)]
    _stored(session, 4)
    assert ends.taken() == [("publish", b"4", 5, 2)]


def test_a_full_window_makes_a_session_fall_behind() -> None:
    session, ends = _ends(window=2)
    for seq in (1, 2, 3, 4):
        _stored(session, seq)
    assert _published(ends.taken()) == [2, 3]
    assert session.behind
    session.acked(2, NOW_MS)
    assert ends.taken() == [("acknowledge", 1, 2), ("page", 2, 1)]
    _page(session, 3)
    assert _published(ends.taken()) == [4]
    session.acked(3, NOW_MS)
    session.acked(4, NOW_MS)
    assert ("page", 3, 1) in ends.taken()
    _page(session, 4)
    assert not session.behind


def test_a_page_larger_than_the_room_is_read_again() -> None:
    session, ends = _ends(window=2)
    session.resume(4, 1, 0, [])
    _page(session, 1, 2, 3, 4)
    assert _published(ends.taken()) == [2, 3]
    session.acked(2, NOW_MS)
    assert ("page", 2, 1) in ends.taken()


def test_a_message_that_comes_before_an_older_one_is_sent_at_once() -> None:
    """Messages of other nodes come another way than those of this one (GUARANTEES section 4, rule 11)."""
    session, ends = _ends()
    for seq in (1, 4, 3, 6):
        _stored(session, seq)
    assert ends.taken() == [
        ("publish", b"1", 2, 2),
        ("publish", b"4", 5, 2),
        ("missing",),
        ("publish", b"3", 4, 2),
        ("publish", b"6", 7, 2),
    ]
    assert session.gap() == 1
    for seq in (4, 2, 3):
        _stored(session, seq)
    assert _published(ends.taken()) == [3]
    assert session.gap() == 4
    _stored(session, 5)
    assert session.gap() == -1
    _stored(session, 7)
    assert _published(ends.taken()) == [6, 8]
    assert not session.behind


def test_a_gap_is_looked_up() -> None:
    session, ends = _ends()
    _stored(session, 1)
    _stored(session, 3)
    session.look()
    assert ends.taken()[2:] == [("missing",), ("page", 1, 8)]
    assert session.gap() == -1
    _page(session, 2, 3)
    assert ends.taken() == [("publish", b"2", 3, 2), ("page", 3, 7)]
    _page(session)
    assert not session.behind
    _stored(session, 4)
    assert _published(ends.taken()) == [5]


def test_a_gap_without_a_message_closes() -> None:
    session, ends = _ends()
    for seq in (1, 3, 4, 7):
        _stored(session, seq)
    session.look()
    ends.taken()
    _page(session, 3, 4, 7)
    assert ends.taken() == [("page", 7, 6)]
    _page(session)
    assert not session.behind
    assert session.gap() == -1
    _stored(session, 8)
    assert _published(ends.taken()) == [9]


def test_messages_sent_before_older_ones_are_bounded() -> None:
    session, ends = _ends(window=AHEAD_LIMIT + 10)
    for seq in range(2, AHEAD_LIMIT + 3):
        _stored(session, seq)
    assert session.behind
    assert ends.taken()[-1] == ("page", 0, 10)
    _page(session, *range(1, AHEAD_LIMIT + 3))
    assert _published(ends.taken()) == [2, AHEAD_LIMIT + 3]
    assert not session.behind


def test_seqs_without_a_message_are_passed_over() -> None:
    session, ends = _ends()
    session.resume(9, 1, 9, [])
    ends.taken()
    _page(session)
    assert not session.behind
    _stored(session, 10)
    assert _published(ends.taken()) == [11]


def test_an_empty_page_does_not_hide_what_was_stored_since() -> None:
    session, ends = _ends()
    session.resume(9, 9, 9, [9])
    assert ends.taken() == [("pubrel", 10), ("page", 8, 9)]
    _stored(session, 10)
    _page(session)
    assert ends.taken() == [("page", 9, 9)]
    _page(session, 10)
    assert _published(ends.taken()) == [11]


def test_what_was_sent_is_not_sent_again() -> None:
    session, ends = _ends()
    _stored(session, 1)
    _stored(session, 1)
    _stored(session, 2)
    _stored(session, 1)
    assert _published(ends.taken()) == [2, 3]


def test_a_page_that_failed() -> None:
    session, ends = _ends()
    session.resume(2, 1, 0, [])
    ends.taken()
    session.page_failed()
    assert ends.taken() == []
    session.drained(NOW_MS)
    assert ends.taken() == [("page", 0, 10)]


def test_looking_for_what_was_not_told() -> None:
    session, ends = _ends()
    _stored(session, 1)
    ends.taken()
    session.look()
    assert ends.taken() == [("page", 1, 9)]
    session.look()  # while the page is under way, which may have been read before
    _page(session, 2)
    assert ends.taken() == [("publish", b"2", 3, 2), ("page", 2, 8)]
    session.look()
    _page(session)
    assert ends.taken() == [("page", 2, 8)]
    _page(session)
    assert not session.behind


@pytest.mark.parametrize("paged", [False, True])
def test_expired_and_too_large_messages_leave_the_queue(paged: bool) -> None:
    session, ends = _ends()
    ends.limit = 3
    if paged:
        session.resume(2, 1, 0, [])
        ends.taken()
        session.page(
            [
                StoredDelivery(1, _encoding(b"old", 0), 1, False, ()),
                StoredDelivery(2, _encoding(b"large"), 2, False, ()),
            ],
            False,
        )
    else:
        session.stored(1, _encoding(b"old", 0), 1, False, ())
        session.stored(2, _encoding(b"large"), 2, False, ())
    assert ends.taken() == [
        ("dropped", b"old", "expired"),
        ("acknowledge", 1, 1),
        ("dropped", b"large", "packet_too_large"),
        ("acknowledge", 2, 2),
    ]
    assert not session.behind
    assert session.credit() == 10


def test_a_packet_id_that_is_still_in_use() -> None:
    """A whole turn of packet ids ahead of a message without its answer: wait."""
    session, ends = _ends()
    session.resume(0, 1, 0, [])
    _stored(session, 1)
    session.resume(SEQ_MODULUS, SEQ_MODULUS + 1, SEQ_MODULUS, [])  # as if all between had been answered
    ends.taken()
    _stored(session, SEQ_MODULUS + 1)
    assert ends.taken() == [("page", SEQ_MODULUS, 9)]
    _page(session, SEQ_MODULUS + 1)
    assert ends.taken() == [], "and ask no more until something moves"
    session.acked(2, NOW_MS)
    assert ("page", SEQ_MODULUS, 10) in ends.taken()
    _page(session, SEQ_MODULUS + 1)
    assert _published(ends.taken()) == [2]


def test_one_page_at_a_time_and_as_much_as_there_is_room() -> None:
    session, ends = _ends(window=10)
    session.resume(100, 1, 0, [])
    ends.taken()
    _page(session, *range(1, 11))
    ends.taken()
    asked = []
    for packet_id in range(2, 12):
        session.acked(packet_id, NOW_MS)
        asked += [item for item in ends.taken() if item[0] == "page"]
    assert asked == [("page", 10, 1)]
    _page(session, 11)
    assert ("page", 11, 9) in ends.taken()


# -- shared subscriptions


def _delivery(name: bytes) -> GroupDelivery:
    return GroupDelivery(None, name, ())


def test_group_packet_ids_are_apart() -> None:
    session, ends = _ends(window=20_000)
    for n in range(65535 - SEQ_MODULUS + 2):
        assert session.deliver_group(_encoding(b"g"), 1, _delivery(b"%d" % n))
        if n:
            [packet_id] = _published(ends.taken())[-1:]
            assert isinstance(packet_id, int)
            session.acked(packet_id, NOW_MS)
            ends.taken()
    assert list(session.inflight) == [SEQ_MODULUS + 1], "the first one's id was left out on the second round"


def test_group_messages_share_the_window_and_are_done_once_acked() -> None:
    session, ends = _ends(window=2)
    session.deliver_group(_encoding(b"g"), 1, _delivery(b"1-0"))
    _stored(session, 1)
    _stored(session, 2)
    assert _published(ends.taken()) == [SEQ_MODULUS + 1, 2]
    session.acked(SEQ_MODULUS + 1, NOW_MS)
    assert ("group_done", b"1-0") in ends.taken()
    assert session.take_group_entries() == []


def test_group_messages_without_answer_go_back_oldest_first() -> None:
    session, _ = _ends(persistent=False)
    for name in (b"1-0", b"2-0", b"3-0"):
        session.deliver_group(_encoding(name), 1, _delivery(name))
    session.acked(SEQ_MODULUS + 2, NOW_MS)
    left = session.take_group_entries()
    assert [each.entry for each in left if isinstance(each, GroupDelivery)] == [b"1-0", b"3-0"]
    assert session.take_group_entries() == []


def _group_run(first: int, count: int) -> tuple[Run, GroupRun]:
    packet = encode(Publish("t", b"g", 1, False, False, 1), 5)
    names = [b"%d-0" % (first + at) for at in range(count)]
    return Run(5, packet * count, count, 0, b""), GroupRun(None, None, range(count), names)


def _pubacks(*packet_ids: int) -> bytes:
    return b"".join(encode(Puback(packet_id), 5) for packet_id in packet_ids)


def test_a_run_of_a_group_without_answer_goes_back_oldest_first() -> None:
    session, ends = _ends(persistent=False)
    first = SEQ_MODULUS + 1
    session.deliver_group(_encoding(b"g"), 1, _delivery(b"0-0"))
    assert session.deliver_group_run(*_group_run(1, 3))
    assert session.deliver_group_run(*_group_run(4, 3))
    assert session.credit() == 3
    assert _published(ends.taken()) == list(range(first, first + 7))
    assert session.acked(first + 2, NOW_MS)
    assert session.acked_run(_pubacks(first + 4, first + 3, first + 6, first, first + 5)) == 3
    assert ends.taken() == [("group_done", b"%d-0" % number) for number in (2, 4, 3, 6)]
    assert session.credit() == 7
    left = session.take_group_entries()
    assert [each.entry_ids[0] if isinstance(each, GroupRun) else each.entry for each in left] == [
        b"0-0",
        b"1-0",
        b"5-0",
    ]
    assert [each.places for each in left if isinstance(each, GroupRun)] == [(0,), (1,)]


def test_packet_ids_of_runs_of_groups_wrap() -> None:
    session, ends = _ends(window=20_000)
    session._next_group_id = 65530
    assert session.deliver_group_run(*_group_run(0, 5))
    assert session.deliver_group_run(*_group_run(0, 5))
    assert _published(ends.taken()) == [*range(65531, 65536), *range(SEQ_MODULUS + 1, SEQ_MODULUS + 6)]
    session._next_group_id = 65528
    assert not session.deliver_group_run(*_group_run(0, 5)), "some ids are in flight"
    session._next_group_id = 65533
    assert not session.deliver_group_run(*_group_run(0, 5))
    assert len(session.inflight) == 10


def test_what_is_no_plain_acknowledgement_of_a_run() -> None:
    session, _ = _ends()
    first = SEQ_MODULUS + 1
    assert session.acked_run(_pubacks(first)) == 0
    session.deliver_group_run(*_group_run(0, 4))
    assert session.acked_run(_pubacks(first + 9, first)) == 0
    assert session.acked_run(bytes((0x50, 2)) + first.to_bytes(2, "big")) == 0
    assert session.acked_run(_pubacks(first, first)) == 1
    session.behind = True
    assert session.acked_run(_pubacks(first + 1)) == 0


def test_a_group_message_that_is_too_large() -> None:
    session, ends = _ends()
    ends.limit = 3
    assert not session.deliver_group(_encoding(b"large"), 1, _delivery(b"1-0"))
    assert ends.taken() == [("dropped", b"large", "packet_too_large")]
    assert session.credit() == 10
    assert session.take_group_entries() == []


def test_promised_messages_count_for_those_who_offer() -> None:
    session, _ = _ends(window=2)
    session.promised = 1
    assert session.idle()
    session.promised = 2
    assert not session.idle()
    assert session.credit() == 2
