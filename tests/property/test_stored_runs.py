"""What is done once for a run is what would be done for each of its messages."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from broker.codec.encode import encode
from broker.codec.packets import Publish
from broker.codec.runs import acknowledgements, plain_ids, run_length, with_packet_ids
from broker.message import Message
from broker.session.encoding import Encoding
from broker.session.ports import GroupDelivery, StoredDelivery
from broker.session.run import Run
from broker.session.runs import SEQ_MODULUS
from broker.session.session import Session
from cluster.records import pack_bodies, pack_body


def run_of(payloads: Sequence[bytes], first_id: int = 1, version: int = 5) -> Run:
    packets = [encode(Publish("t", each, 1, False, False, first_id + at), version) for at, each in enumerate(payloads)]
    data = b"".join(packets)
    return Run(5 if version == 5 else 4, data, len(packets), 0, b"")


@given(
    st.integers(0, 300),
    st.integers(2, 20),
    st.integers(1, 65000),
    st.integers(1, 57000),
    st.sampled_from((4, 5)),
    st.binary(max_size=9),
)
def test_packets(size: int, count: int, first: int, given_id: int, version: int, rest: bytes) -> None:
    payloads = [bytes([at]) * size for at in range(count)]
    run = run_of(payloads, first, version)
    assert run.payloads() == payloads
    one = len(run.data) // count
    assert run_length(run.data + rest, 0, one, run.data[: run.id_at], 100) in (count, count + bool(rest))
    ids = plain_ids(run.data, count, run.id_at, version == 5)
    assert acknowledgements(ids, 0x40) == b"".join(b"\x40\x02" + (first + at).to_bytes(2, "big") for at in range(count))
    assert with_packet_ids(run.data, count, run.id_at, given_id) == run_of(payloads, given_id, version).data


@given(st.binary(max_size=300), st.lists(st.binary(min_size=40, max_size=40), min_size=1), st.integers(0, 300))
def test_bodies(topic: bytes, payloads: list[bytes], length: int) -> None:
    payloads = [(each * 8)[:length] for each in payloads]
    message = Message(topic, b"", 1, False, b"", -1, 1_700_000_000_000, b"", b"p" * 16)
    each = [Message(topic, payload, 1, False, b"", -1, 1_700_000_000_000, b"", b"p" * 16) for payload in payloads]
    assert pack_bodies(message, payloads) == [pack_body(one) for one in each]


class Ends:
    """Both ports of a session. It may refuse to pass a run on."""

    version = 5

    def __init__(self, runs: bool) -> None:
        self.runs = runs
        self.log: list[tuple[object, ...]] = []
        self.full = False

    def room(self) -> bool:
        return not self.full

    def send_message(self, encoding: Encoding, flags: int, packet_id: int, subscription_ids: Sequence[int]) -> str:
        self.log.append(("publish", encoding.message.payload, packet_id, flags))
        return ""

    def send_run(self, run: Run, first_id: int) -> bool:
        if self.runs:
            self.log += [("publish", each, first_id + at, 2) for at, each in enumerate(run.payloads())]
        return self.runs

    def send_release(self, packet_id: int, reason_code: int) -> None:
        self.log.append(("release", packet_id))

    def acknowledge(self, seq: int, sent_seq: int) -> None:
        self.log.append(("acknowledge", seq, sent_seq))

    def received(self, packet_id: int, seq: int, sent_seq: int) -> None:
        self.log.append(("received", packet_id, seq, sent_seq))

    def want_page(self, after_seq: int, limit: int) -> None:
        self.log.append(("page", after_seq, limit))

    def group_done(self, entry: GroupDelivery) -> None:
        self.log.append(("group", entry.entry))

    def group_run_done(self, group: object, entry_ids: Sequence[bytes]) -> None:
        self.log += [("group", entry_id) for entry_id in entry_ids]

    def missing(self) -> None:
        self.log.append(("missing",))

    def dropped(self, message: Message, reason: str) -> None:
        self.log.append(("dropped", message.payload, reason))

    def has_room(self) -> None:
        self.log.append(("room",))


def state(session: Session) -> list[object]:
    hidden = {"output", "store", "watch"}
    # Compiled, it has no `__slots__`.
    values = [getattr(session, name) for name in dir(session) if name not in hidden and not name.startswith("__")]
    return [value for value in values if not callable(value)]


@given(st.integers(0, 2**32), st.integers(2, 40))
def test_a_session_told_of_a_run(seed: int, window: int) -> None:
    rng = random.Random(seed)
    ends = Ends(True), Ends(False)
    one, other = (Session(each, each, True, window, 5, 1000) for each in ends)
    seq = rng.choice((0, 5, SEQ_MODULUS - 20))
    sent = seq + rng.choice((-3, 0, 3))
    low = seq + 1 - rng.choice((0, 0, 2))
    for session in (one, other):
        session.resume(seq, low, sent, ())
    for _ in range(30):
        choice = rng.random()
        if choice < 0.4:
            seq += rng.choice((0, 0, 0, 1))
            count = rng.randint(1, 8)
            payloads = [b"%09d" % (seq + 1 + at) for at in range(count)]
            run = run_of(payloads)
            for session in (one, other):
                if not session.stored_run(seq + 1, run):
                    for at, payload in enumerate(payloads):
                        session.stored(seq + 1 + at, Encoding(Message(b"t", payload, 1, False)), 1, False, ())
            seq += count
        elif choice < 0.8 and one.inflight:
            packet_id = rng.choice(list(one.inflight)[: rng.choice((1, 1, 5))])
            for session in (one, other):
                session.acked(packet_id, 0)
        elif choice < 0.9:
            limit = rng.randint(0, 5)
            after = one._cursor
            seqs = range(after + 1, min(after + limit, seq) + 1)
            for session in (one, other):
                if session._paging:
                    items = [
                        StoredDelivery(at, Encoding(Message(b"t", b"%09d" % at, 1, False)), 1, False, ()) for at in seqs
                    ]
                    session.page(items, not items)
        else:
            full = rng.random() < 0.3
            for session, end in zip((one, other), ends, strict=True):
                end.full = full
                if not full:
                    session.drained(0)
        assert state(one) == state(other)
        assert ends[0].log == ends[1].log
