"""What a fuzzer does with its bytes. Anything but a PeerError is a finding.

Each target takes bytes and returns; the first bytes choose what the rest is taken for. They run under a
coverage-guided fuzzer (`python -m tests.fuzz.run`) and with the kept cases (`test_cases.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.packets import AUTH, PUBLISH, V5, Acknowledgement, Auth, Disconnect, Packet, Publish
from broker.codec.primitives import FrameBuffer
from broker.codec.publish import forwardable_to_properties, properties_to_forwardable, scan_publish_properties
from broker.errors import PeerError, ProtocolError
from broker.message import Message
from broker.session.effects import ChangeSubscriptions, ContinueAuthentication, Effect, Finish, Open, Send
from broker.session.encoding import Encoding
from broker.session.machine import CLOSED, CONNECTING, NEW, OPEN, ConnectionMachine
from broker.session.ports import GroupDelivery
from broker.session.run import Run
from broker.session.session import Session
from broker.topics.names import check_topic_filter, check_topic_name, split_shared

VERSIONS = (3, 4, 5)
LARGEST = 65_536


def codec(data: bytes) -> None:
    """Frames of one version: what decodes has one spelling that decodes to the same."""
    if not data:
        return
    version = VERSIONS[data[0] % 3]
    from_client = bool(data[0] & 128)
    for head, body in _frames(data[1:]):
        packet = _decoded(head, body, version, from_client)
        if head >> 4 == PUBLISH and version == V5 and from_client:
            _same_as_scanned(head, body, packet)
        if packet is None:
            continue
        try:
            spelled = encode(packet, version)
        except PeerError:
            raise AssertionError(f"{packet!r} was decoded and cannot be encoded") from None
        [(again_head, again_body)] = _frames(spelled)
        again = decode(again_head, again_body, 0, len(again_body), version, from_client)
        assert encode(again, version) == spelled, packet
        if version == V5 and isinstance(packet, Publish):
            forwardable = properties_to_forwardable(packet.properties)
            assert properties_to_forwardable(forwardable_to_properties(forwardable)) == forwardable


def splits(data: bytes) -> None:
    """The frames of a stream do not depend on how it was cut."""
    if len(data) < 2:
        return
    step, stream = 1 + data[0] % 7, data[1:]
    whole, whole_error = _collect([stream])
    pieces, pieces_error = _collect([stream[at : at + step] for at in range(0, len(stream), step)])
    assert whole == pieces
    assert whole_error == pieces_error


def names(data: bytes) -> None:
    """Topic names and filters: refused with a reason, or in order."""
    text = data.decode("utf-8", "ignore")
    try:
        check_topic_name(text)
        assert not set("+#") & set(text)
        assert text
    except PeerError:
        pass
    try:
        check_topic_filter(text)
    except PeerError:
        return
    share_name, plain = split_shared(text)
    assert plain
    assert not set("/+#") & set(share_name)
    assert "#" not in plain[:-1]


def machine(data: bytes) -> None:
    """A connection that gets packets, and a server that answers in all the ways it may."""
    if not data:
        return
    made = ConnectionMachine()
    choices = data[0]
    for head, body in _frames(data[1:]):
        packet = _decoded(head, body, made.version or VERSIONS[choices % 3], True)
        if packet is None:
            continue
        before = made.state
        try:
            effect = made.receive(packet)
        except ProtocolError:
            if before == CLOSED:
                assert made.state == CLOSED
            else:
                made.close()
            continue
        assert before != CLOSED, "a closed machine took a packet"
        choices = choices * 5 + 1 & 255
        _perform(made, effect, before, choices, isinstance(packet, Acknowledgement | Publish))


def session(data: bytes) -> None:
    """A session that is told of messages, pages and acknowledgements in any order."""
    if len(data) < 4:
        return
    receiver = _Receiver()
    persistent = bool(data[0] & 1)
    made = Session(receiver, receiver, persistent, 1 + data[1] % 20, 1 + data[2] % 30, 64 + data[3])
    if persistent:
        made.resume(data[1], 1 + data[2] % (data[1] + 1), data[3] % (data[1] + 1), ())
    seq = data[1]
    at = 4
    while at + 2 <= len(data):
        action, value = data[at], data[at + 1]
        at += 2
        if action % 8 == 0:
            seq += 1
        try:
            _act(made, receiver, action % 8, value, seq)
        except PeerError:
            break  # the client did wrong, and is disconnected
        assert all(0 < each <= 65_535 for each in made.inflight)
    made.close()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "codec": codec,
    "splits": splits,
    "names": names,
    "machine": machine,
    "session": session,
}


class _Receiver:
    """`SessionOutput` and `SessionStore` that check what they are told."""

    version = V5

    def __init__(self) -> None:
        self.full = False
        self.asked = False

    def room(self) -> bool:
        return not self.full

    def send_message(self, encoding: Encoding, flags: int, packet_id: int, subscription_ids: Sequence[int]) -> str:
        assert 0 < packet_id <= 65_535
        assert flags >> 1 & 3 in (1, 2)
        return "" if packet_id % 17 else "packet_too_large"

    def send_run(self, run: Run, first_id: int) -> bool:
        return False

    def send_release(self, packet_id: int, reason_code: int) -> None:
        assert 0 < packet_id <= 65_535

    def acknowledge(self, seq: int, sent_seq: int) -> None:
        assert seq > 0

    def received(self, packet_id: int, seq: int, sent_seq: int) -> None:
        assert seq > 0

    def want_page(self, after_seq: int, limit: int) -> None:
        assert limit > 0
        assert not self.asked, "two pages at a time"
        self.asked = True

    def group_done(self, entry: GroupDelivery) -> None: ...

    def group_run_done(self, group: object, entry_ids: Sequence[bytes]) -> None: ...

    def dropped(self, message: Message, reason: str) -> None: ...

    def has_room(self) -> None: ...

    def missing(self) -> None: ...


_ENCODING = Encoding(Message(b"a/b", b"payload", 2, False))


def _act(made: Session, receiver: _Receiver, kind: int, value: int, seq: int) -> None:
    packet_id = value or 1
    if kind == 0 and made.persistent:
        made.stored(seq, _ENCODING, 1 + value % 2, bool(value & 4), ())
    elif kind == 0:
        made.deliver(_ENCODING, 1 + value % 2, bool(value & 4), ())
    elif kind == 1:
        made.acked(packet_id, 1)
    elif kind == 2:
        made.received(packet_id, 0x80 if value & 64 else 0, 1)
    elif kind == 3:
        made.completed(packet_id, 1)
    elif kind == 4:
        made.release(packet_id)
    elif kind == 5:
        receiver.full = bool(value & 1)
        made.drained(1)
    elif kind == 6 and made.idle():
        made.deliver_group(_ENCODING, 1 + value % 2, GroupDelivery(None, None, ()))
    elif kind == 7 and made.persistent and receiver.asked:
        receiver.asked = False
        made.page([], bool(value & 1))
    elif kind == 7 and made.persistent:
        made.look()


def _perform(made: ConnectionMachine, effect: Effect, before: int, choices: int, direct: bool) -> None:
    assert not direct, "PUBLISH and acknowledgements do not come here"
    if isinstance(effect, Open):
        assert before == NEW
        assert made.state == CONNECTING
        version = effect.connect.protocol_version
        assert version in VERSIONS
        if choices & 1 and version == V5:
            made.authenticating()
        else:
            made.opened(choices)
    elif isinstance(effect, ContinueAuthentication):
        if before == OPEN and choices & 2:
            made.authenticated()
        elif before == CONNECTING and choices & 2:
            made.opened(choices)
    elif isinstance(effect, Finish):
        assert made.state == CLOSED
    else:
        assert isinstance(effect, Send | ChangeSubscriptions)
        assert made.state == OPEN


def _decoded(head: int, body: bytes, version: int, from_client: bool) -> Packet | None:
    try:
        packet = decode(head, body, 0, len(body), version, from_client)
    except PeerError as error:
        if error.reason_code < 0x80:
            raise AssertionError("an error with the reason code of a success") from error
        return None
    assert packet.kind == head >> 4
    if isinstance(packet, Auth | Disconnect) and packet.kind == AUTH:
        assert version == V5
    return packet


def _same_as_scanned(head: int, body: bytes, packet: Packet | None) -> None:
    """The direct way of PUBLISH reads properties by itself: it has to agree with the decoder."""
    if len(body) < 2:
        return
    at = 2 + (body[0] << 8 | body[1])
    if head >> 1 & 3:
        at += 2
    if at >= len(body):
        assert packet is None
        return
    try:
        _, alias, properties, end = scan_publish_properties(body, at, len(body))
    except PeerError:
        assert packet is None, "refused on the direct way only"
        return
    if packet is not None:
        assert isinstance(packet, Publish)
        assert packet.payload == body[end:]
        assert properties == properties_to_forwardable(packet.properties)
        assert alias == ((packet.properties.topic_alias if packet.properties is not None else 0) or 0)


def _frames(stream: bytes) -> list[tuple[int, bytes]]:
    frames = FrameBuffer(LARGEST)
    found: list[tuple[int, bytes]] = []
    frames.feed(stream)
    with contextlib.suppress(PeerError):
        found.extend(frames)
    return found


def _collect(pieces: Sequence[bytes]) -> tuple[list[tuple[int, bytes]], int]:
    frames = FrameBuffer(LARGEST)
    found: list[tuple[int, bytes]] = []
    try:
        for piece in pieces:
            frames.feed(piece)
            found.extend(frames)
    except PeerError as error:
        return found, error.reason_code
    return found, 0
