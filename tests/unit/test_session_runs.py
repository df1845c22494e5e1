"""What a session is told in one go: messages that others send, and acknowledgements that come one behind the other."""

from __future__ import annotations

import pytest

from broker.codec.publish import encode_publish
from broker.session.run import Run
from broker.session.runs import SEQ_MODULUS
from broker.session.session import Session
from tests.unit.test_session import NOW_MS
from tests.unit.test_session import _deliver as deliver
from tests.unit.test_session import _delivery as delivery
from tests.unit.test_session import _encoding as encoding
from tests.unit.test_session import _ends as ends_of
from tests.unit.test_session import _stored as stored


def _claim(session: Session, qos: int, count: int = 1) -> int:
    """The packet id of the last message of a run; 0 if it is not sent as one."""
    data = encode_publish(b"t", b"x", qos << 1, 1, 5) * count
    return session._next_packet_id if session.deliver_run(Run(5, data, count, 0, b"")) else 0


def _acks(head: int, *packet_ids: int) -> bytes:
    return b"".join(bytes((head, 2, packet_id >> 8, packet_id & 255)) for packet_id in packet_ids)


def test_claimed_ids_are_those_of_messages_in_turn() -> None:
    session, ends = ends_of(window=4, persistent=False)
    assert [_claim(session, 1), _claim(session, 2)] == [1, 2]
    deliver(session, b"a")
    assert _claim(session, 1) == 4
    assert _claim(session, 1) == 0, "the window is full"
    assert session.inflight == {1: 1, 2: 2, 3: 1, 4: 1}
    assert session.received(2, 0, NOW_MS)
    assert _claim(session, 1) == 0, "what is released counts [MQTT-3.3.4-9]"
    assert session.acked(1, NOW_MS)
    assert _claim(session, 1) == 5
    session.close()
    assert session.completed(2, NOW_MS)
    assert _claim(session, 1) == 0
    del ends


def test_claimed_ids_leave_out_those_in_use() -> None:
    session, ends = ends_of(window=100, persistent=False)
    assert _claim(session, 1, 10) == 10
    session._next_packet_id = 0
    assert _claim(session, 1, 3) == 0, "one by one, they get other ids"
    session._next_packet_id = SEQ_MODULUS - 2
    assert _claim(session, 1, 3) == 0, "likewise"
    assert _claim(session, 2, 2) == SEQ_MODULUS
    assert len(session.inflight) == 12
    del ends


def test_nothing_is_claimed_before_what_waits() -> None:
    session, ends = ends_of(window=3, persistent=False)
    ends.full = True
    deliver(session, b"a")
    ends.full = False
    assert _claim(session, 1) == 0
    session.drained(NOW_MS)
    assert _claim(session, 1) == 2


def test_runs_of_acknowledgements() -> None:
    session, ends = ends_of(persistent=False)
    for qos in (1, 1, 2, 2, 1):
        _claim(session, qos)
    ends.taken()
    data = _acks(0x40, 2, 1, 5)
    assert session.acked_run(data) == 3
    data = _acks(0x50, 3, 4)
    assert session.received_run(data[:4]) == 1
    assert session.owed() == 2
    assert session.received_run(data[4:]) == 1
    data = _acks(0x70, 4, 3)
    assert session.completed_run(data) == 2
    assert session.owed() == 0
    assert ends.taken() == []


@pytest.mark.parametrize(
    "data, taken",
    [
        (_acks(0x40, 1, 2), 1),  # QoS 2
        (_acks(0x40, 1, 1), 1),
        (_acks(0x40, 9), 0),
        (_acks(0x40, 1) + b"\xc0\0\xc0\0", 1),
        (_acks(0x40, 1) + b"\x40\x04\0\x03", 1),
        (_acks(0x40, SEQ_MODULUS + 1), 0),  # of a group
        (_acks(0x50, 2, 1), 1),  # QoS 1
        (_acks(0x50, 2, 2), 1),
        (_acks(0x50, 2, 4), 1),  # again
        (_acks(0x50, 9), 0),
        (_acks(0x70, 4, 2), 1),
        (_acks(0x70, 4, 4), 1),
        (_acks(0x70, SEQ_MODULUS + 2), 0),  # of a group
        (_acks(0x70, 9), 0),
    ],
)
def test_where_a_run_of_acknowledgements_ends(data: bytes, taken: int) -> None:
    session, ends = ends_of(persistent=False)
    for qos in (1, 2, 1, 2):
        _claim(session, qos)
    session.received(4, 0, NOW_MS)
    session.deliver_group(encoding(b"g"), 1, delivery(b"1-0"))
    session.deliver_group(encoding(b"g"), 2, delivery(b"2-0"))
    session.received(SEQ_MODULUS + 2, 0, NOW_MS)
    ends.taken()
    run = {0x40: session.acked_run, 0x50: session.received_run, 0x70: session.completed_run}[data[0]]
    owed = session.owed()
    assert run(data) == taken
    assert session.owed() == owed - (taken if data[0] != 0x50 else 0)
    assert ends.taken() == []


@pytest.mark.parametrize("state", ["waiting", "hungry"])
def test_acknowledgements_that_make_room_are_not_in_a_run(state: str) -> None:
    session, _ = ends_of(window=2, persistent=False)
    _claim(session, 1)
    _claim(session, 2)
    session.received(2, 0, NOW_MS)
    if state == "waiting":
        deliver(session, b"a")
    else:
        session.hungry = True
    assert session.acked_run(_acks(0x40, 1)) == 0
    assert session.completed_run(_acks(0x70, 2)) == 0


def test_acknowledgements_of_stored_messages() -> None:
    """The store is told of each; at QoS 2 it is asked before PUBREL."""
    session, ends = ends_of()
    for seq in range(1, 5):
        stored(session, seq, qos=1 + (seq == 3))
    ends.taken()
    assert session.acked_run(_acks(0x40, 3, 2, 4)) == 2
    assert ends.taken() == [("acknowledge", 2, 4), ("acknowledge", 1, 4)]
    assert session.received_run(_acks(0x50, 4)) == 0
    session.received(4, 0, NOW_MS)
    assert session.completed_run(_acks(0x70, 4)) == 0, "the store has not answered"
    session.release(4)
    ends.taken()
    assert session.completed_run(_acks(0x70, 4)) == 1
    assert ends.taken() == [("acknowledge", 3, 4)]
    assert session.owed() == 1
