"""Runs: PUBLISH packets that follow each other in one chunk and differ in packet id and payload alone.

All packets of a run have the same first bytes (type and flags, remaining length, topic) and so the same size; no
properties, neither DUP nor RETAIN. A client that sends as fast as it may sends in runs, and most of
what is to be done for a packet can be done once for its run. A packet alone is a run of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: High and low bytes of all packet ids in their order.
_HIGH: Final = bytes(number >> 8 for number in range(65536))
_LOW: Final = bytes(number & 255 for number in range(65536))


def run_length(data: bytes, at: int, end: int, same: bytes, limit: int) -> int:
    """How many packets of the size of the one in `data[at:end]` begin with `same`, that one and those right behind it;
    at most `limit`."""
    size = end - at
    limit = min(limit, (len(data) - at) // size)
    count = 1
    while count < limit and data.startswith(same, end):
        end += size
        count += 1
    return count


def topic_bounds(packet: bytes) -> tuple[int, int]:
    """Where the topic of a PUBLISH begins and ends."""
    start = 2
    while packet[start - 1] & 128:
        start += 1
    return start + 2, start + 2 + (packet[start] << 8 | packet[start + 1])


def plain_ids(run: bytes, count: int, at: int, properties: bool) -> bytes:
    """The packet ids of a run, all high bytes and then all low ones; `at` is where they begin in a packet. Those of the
    packets before the first of which the id is 0 [MQTT-2.2.1-3] or, with `properties` (MQTT 5), that has some."""
    size = len(run) // count
    high = run[at::size]
    low = run[at + 1 :: size]
    if properties:
        lengths = run[at + 2 :: size]
        if lengths.count(0) != count:
            count -= len(lengths.lstrip(b"\0"))
    if 0 in low:
        for index in range(count):
            if not (high[index] or low[index]):
                count = index
                break
    return high[:count] + low[:count]


def packet_ids(ids: bytes) -> list[int]:
    """What `plain_ids` gives, as numbers."""
    count = len(ids) // 2
    return [high << 8 | low for high, low in zip(ids[:count], ids[count:], strict=True)]


def with_packet_ids(run: bytes, count: int, at: int, first: int) -> bytes:
    """The run with the packet ids from `first` on."""
    if count == 1:
        return run[:at] + first.to_bytes(2, "big") + run[at + 2 :]
    size = len(run) // count
    changed = bytearray(run)
    changed[at::size] = _HIGH[first : first + count]
    changed[at + 1 :: size] = _LOW[first : first + count]
    return bytes(changed)


def acknowledgements(ids: bytes, head: int) -> bytes:
    """A PUBACK or PUBREC (`head` is its first byte) for each of the ids, as `plain_ids` gives them."""
    count = len(ids) // 2
    packets = bytearray((head, 2, 0, 0)) * count
    packets[2::4] = ids[:count]
    packets[3::4] = ids[count:]
    return bytes(packets)


def split_run(run: bytes, count: int) -> Sequence[bytes]:
    """Its packets."""
    if count == 1:
        return (run,)
    size = len(run) // count
    return [run[at : at + size] for at in range(0, len(run), size)]
