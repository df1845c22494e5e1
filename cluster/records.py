"""Records as they lie in the store: a format byte, then struct or msgpack. A reader keeps what it cannot read.

Format 1 of a message is a msgpack array, so a later writer may append fields: readers ignore what is behind
those they know.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, cast

import msgpack

from broker.message import Message
from cluster.api import NodeRoute, QueuedMessage, Route, StoredSubscription, StoredWill

FORMAT: Final = 1
_FORMAT: Final = b"\x01"

_packer = msgpack.Packer(use_bin_type=True)
#: For arguments of functions: Lua knows one kind of string.
_argument_packer = msgpack.Packer(use_bin_type=False)

_QUEUE_HEAD: Final = struct.Struct(">BBH")
_BIRTH: Final = struct.Struct(">Q")
#: Headers of queue records without subscription identifiers, by qos * 2 + retain.
_PLAIN: Final = tuple(_QUEUE_HEAD.pack(FORMAT, qos | retain << 2, 0) for qos in range(4) for retain in range(2))


def pack_arguments(value: object) -> bytes:
    """msgpack for a function of the store."""
    return cast(bytes, _argument_packer.pack(value))


def unpack_answer(data: bytes) -> list[int | bytes]:
    """A list packed by a function of the store."""
    return cast("list[int | bytes]", msgpack.unpackb(data, raw=True))


def pack_body(message: Message) -> bytes:
    """A message without format byte: the part that all copies share. Functions of the store read it, too."""
    return cast(
        bytes,
        _argument_packer.pack(
            (
                message.topic,
                message.payload,
                message.qos,
                message.retain,
                message.properties,
                message.expiry_s,
                message.accepted_at_ms,
                message.message_id,
                message.publisher,
            )
        ),
    )


def pack_bodies(message: Message, payloads: Sequence[bytes]) -> list[bytes]:
    """As `pack_body`, of messages that are alike but for their payloads, which have one length."""
    message.payload = first = payloads[0]
    body = pack_body(message)
    # An array of less than 16 has one byte in front.
    at = 1 + len(_argument_packer.pack(message.topic)) + len(_argument_packer.pack(first)) - len(first)
    head, tail = body[:at], body[at + len(first) :]
    return [head + payload + tail for payload in payloads]


def _message(fields: Sequence[object]) -> Message:
    return Message(*fields[:9])  # type: ignore[arg-type]


def unpack_body(body: bytes) -> Message:
    """The opposite of `pack_body`."""
    return _message(msgpack.unpackb(body, raw=True))


def unpack_message(record: bytes) -> Message | None:
    """None for a format that this version does not know."""
    if record[:1] != _FORMAT:
        return None
    return _message(msgpack.unpackb(memoryview(record)[1:], raw=True))


def queue_prefix(qos: int, retain: bool, subscription_ids: Sequence[int]) -> bytes:
    """What stands before the body in a session's queue: format, flags, subscription identifiers."""
    if not subscription_ids:
        return _PLAIN[qos << 1 | retain]
    count = len(subscription_ids)
    return struct.pack(f">BBH{count}I", FORMAT, qos | retain << 2, count, *subscription_ids)


def unpack_queued(seq: int, record: bytes) -> QueuedMessage | None:
    """None for a format that this version does not know."""
    if record[:1] != _FORMAT:
        return None
    _, flags, count = _QUEUE_HEAD.unpack_from(record)
    ids = struct.unpack_from(f">{count}I", record, 4) if count else ()
    message = _message(msgpack.unpackb(memoryview(record)[4 + 4 * count :], raw=True))
    return QueuedMessage(seq, message, flags & 3, bool(flags & 4), ids)


def pack_will(client_id: str, will: StoredWill) -> bytes:
    """A will, with whose it is."""
    return _FORMAT + cast(bytes, _packer.pack((client_id, will.delay_s, pack_body(will.message))))


def unpack_will(record: bytes) -> tuple[str, StoredWill] | None:
    """The client id and the will; None for a format that this version does not know."""
    if record[:1] != _FORMAT:
        return None
    client_id, delay_s, body = msgpack.unpackb(memoryview(record)[1:])[:3]
    return client_id, StoredWill(unpack_body(body), delay_s)


def pack_subscription(subscription: StoredSubscription) -> bytes:
    """The value beside a topic filter in a session's subscriptions."""
    return struct.pack(">BBI", FORMAT, subscription.options, subscription.subscription_identifier)


def unpack_subscription(topic_filter: bytes, record: bytes) -> StoredSubscription | None:
    """None for a format that this version does not know."""
    if record[:1] != _FORMAT:
        return None
    _, options, identifier = struct.unpack_from(">BBI", record)
    return StoredSubscription(topic_filter.decode(), options, identifier)


def queue_flags(prefix: bytes) -> tuple[int, bool, Sequence[int]] | None:
    """QoS, retain flag and subscription identifiers out of what `queue_prefix` made; None for an unknown format."""
    if prefix[:1] != _FORMAT:
        return None
    _, flags, count = _QUEUE_HEAD.unpack_from(prefix)
    return flags & 3, bool(flags & 4), struct.unpack_from(f">{count}I", prefix, 4) if count else ()


#: Kinds of what a node pushes to another, beside 4 and 5: the PUBLISH packet of that MQTT version as it came.
PUSHED_MESSAGE: Final = 1
#: ... more 4 or 5: a run of packets of that MQTT version (see `broker.codec.runs`), since feature level 2.
PUSHED_RUN: Final = 10


def pack_push(parts: Sequence[object]) -> bytes:
    """What a node pushes to another: 4 or 5 and a packet; or PUSHED_MESSAGE, a packed body, whether it is for
    ephemeral sessions, and group ids; or PUSHED_RUN + 4 or 5, packets, how many, and of QoS 1 when they were accepted
    and the publisher, else 0 and b""; all in one list."""
    return _FORMAT + cast(bytes, _packer.pack(parts))


def unpack_push(record: bytes) -> list[object] | None:
    """The list; None for a format that this version does not know."""
    if record[:1] != _FORMAT:
        return None
    return cast("list[object]", msgpack.unpackb(memoryview(record)[1:]))


def unpack_stored(record: bytes) -> list[list[int | bytes]] | None:
    """An entry of an owner's stream: bodies, sessions, groups, all flat; None for a format that is not known."""
    if record[:1] != _FORMAT:
        return None
    return cast("list[list[int | bytes]]", msgpack.unpackb(memoryview(record)[1:], raw=True))


def route_field(session_id: bytes, topic_filter: bytes) -> bytes:
    """The name of a session's route in the route table."""
    return b"s" + session_id + topic_filter


def node_route_field(member: bytes, topic_filter: bytes) -> bytes:
    """The name of a node's route in the route table."""
    return b"n" + member + b"\0" + topic_filter


#: The record of a node's route.
NODE_ROUTE: Final = _FORMAT


def route_birth(birth: int) -> bytes:
    """A birth number whose order as bytes is that of the numbers."""
    return _BIRTH.pack(birth)


def pack_route(birth: int, client_id: str, subscription: bytes) -> bytes:
    """A route; `subscription` is a packed subscription. Bytes 1 to 8 are the birth: the store compares them."""
    return _FORMAT + _BIRTH.pack(birth) + cast(bytes, _packer.pack((client_id, subscription)))


def unpack_route(field: bytes, record: bytes) -> Route | NodeRoute | None:
    """None for a format that this version does not know."""
    if record[:1] != _FORMAT or field[:1] not in (b"s", b"n"):
        return None
    if field[:1] == b"n":
        member, _, topic_filter = field[1:].partition(b"\0")
        return NodeRoute(member, topic_filter.decode())
    (birth,) = _BIRTH.unpack_from(record, 1)
    client_id, packed = msgpack.unpackb(memoryview(record)[9:])[:2]
    subscription = unpack_subscription(field[17:], packed)
    return None if subscription is None else Route(field[1:17], client_id, birth, subscription)


def removed_route(field: bytes, birth: bytes) -> Route | NodeRoute | None:
    """What a removal names; `birth` (packed, empty for a node's route) is that of the change."""
    if field[:1] == b"n":
        return unpack_route(field, NODE_ROUTE)
    if field[:1] != b"s":
        return None
    number = _BIRTH.unpack(birth)[0] if len(birth) == 8 else (1 << 64) - 1
    return Route(field[1:17], "", number, StoredSubscription(field[17:].decode(), 0))
