"""The data types of the wire, and the framing of a byte stream into packets.

Readers take `(data, pos, end)` and return the value and the position after it; bytes that are missing
or that break a rule of the type raise MalformedPacket.
"""

from __future__ import annotations

from collections.abc import Iterator

from broker.errors import MalformedPacket, PeerError, ProtocolError, StateError
from broker.reasons import PACKET_TOO_LARGE, TOPIC_NAME_INVALID

MAXIMUM_REMAINING_LENGTH = 268_435_455

# Compacting a stream buffer below this many consumed bytes costs more than it frees.
_COMPACT_BYTES = 65_536


def _encode_variable_byte_integer(value: int) -> bytes:
    if value < 0 or value > MAXIMUM_REMAINING_LENGTH:
        raise StateError(f"{value} does not fit a variable byte integer (0 to {MAXIMUM_REMAINING_LENGTH})")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


# Most packets are shorter than this.
_TABLE_SIZE = 2048
REMAINING_LENGTHS: tuple[bytes, ...] = tuple([_encode_variable_byte_integer(n) for n in range(_TABLE_SIZE)])


def remaining_length(value: int) -> bytes:
    """Return `value` as a variable byte integer; StateError if it cannot be one."""
    if 0 <= value < _TABLE_SIZE:
        return REMAINING_LENGTHS[value]
    return _encode_variable_byte_integer(value)


def read_variable_byte_integer(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a variable byte integer of at most four bytes, in its shortest form."""
    value = 0
    shift = 0
    while pos < end:
        byte = data[pos]
        pos += 1
        if byte < 128:
            if byte == 0 and shift:
                # [MQTT-1.5.5-1] one value, one encoding
                raise MalformedPacket("variable byte integer is not in its shortest form")
            return value | byte << shift, pos
        value |= (byte & 127) << shift
        shift += 7
        if shift > 21:
            raise MalformedPacket("variable byte integer is longer than 4 bytes")
    raise MalformedPacket("packet ends inside a variable byte integer")


def remaining_length_at(data: bytes, at: int) -> tuple[int, int]:
    """The remaining length (over 127, or too many bytes for what it is) of the packet that begins at `at`, and where it
    ends; -1 while bytes of it are missing."""
    length = data[at + 1] & 127
    shift = 7
    for start in range(at + 2, min(at + 5, len(data))):
        byte = data[start]
        length |= (byte & 127) << shift
        if not byte & 128:
            if not byte:  # [MQTT-1.5.5-1]
                raise MalformedPacket("the remaining length is longer than it need be")
            return length, start + 1
        shift += 7
    if shift > 21:
        raise MalformedPacket("the remaining length has more than four bytes")
    return -1, at


def read_two_byte_integer(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a big-endian 16-bit integer."""
    after = pos + 2
    if after > end:
        raise MalformedPacket("packet ends inside a two byte integer")
    return data[pos] << 8 | data[pos + 1], after


def read_four_byte_integer(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a big-endian 32-bit integer."""
    after = pos + 4
    if after > end:
        raise MalformedPacket("packet ends inside a four byte integer")
    return data[pos] << 24 | data[pos + 1] << 16 | data[pos + 2] << 8 | data[pos + 3], after


def read_binary(data: bytes, pos: int, end: int) -> tuple[bytes, int]:
    """Read binary data with its two-byte length."""
    start = pos + 2
    if start > end:
        raise MalformedPacket("packet ends inside a length")
    after = start + (data[pos] << 8 | data[pos + 1])
    if after > end:
        raise MalformedPacket(f"length {after - start} exceeds the {end - start} bytes left")
    return data[start:after], after


def read_utf8(data: bytes, pos: int, end: int) -> tuple[str, int]:
    """Read a UTF-8 encoded string: no surrogates, no U+0000; U+FEFF is kept wherever it stands."""
    raw, after = read_binary(data, pos, end)
    try:
        text = raw.decode("utf-8")  # [MQTT-1.5.4-1] the strict decoder refuses surrogates, [MQTT-1.5.4-3] keeps a BOM
    except UnicodeDecodeError as error:
        raise MalformedPacket(f"string is not UTF-8: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise MalformedPacket("string contains U+0000")  # [MQTT-1.5.4-2]
    return text, after


def has_wildcard(topic_name: str) -> bool:
    """Say whether `topic_name` contains a wildcard character, which only topic filters may."""
    return "+" in topic_name or "#" in topic_name


def check_topic_name(topic_name: str) -> None:
    """Refuse a topic name that is empty or contains a wildcard character (0x90)."""
    if not topic_name:
        raise PeerError(TOPIC_NAME_INVALID, "topic name is empty")  # [MQTT-4.7.3-1]
    if has_wildcard(topic_name):
        # [MQTT-3.3.2-2]
        raise PeerError(TOPIC_NAME_INVALID, f"topic name contains a wildcard: {topic_name[:80]!r}")


def read_packet_id(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a packet identifier, which is never 0. [MQTT-2.2.1-3]"""
    packet_id, pos = read_two_byte_integer(data, pos, end)
    if packet_id == 0:
        raise ProtocolError("packet identifier is 0")
    return packet_id, pos


def two_byte_integer(value: int) -> bytes:
    """Return `value` as a big-endian 16-bit integer; StateError if it does not fit."""
    if value < 0 or value > 65_535:
        raise StateError(f"{value} does not fit a two byte integer")
    return value.to_bytes(2, "big")


def four_byte_integer(value: int) -> bytes:
    """Return `value` as a big-endian 32-bit integer; StateError if it does not fit."""
    if value < 0 or value > 4_294_967_295:
        raise StateError(f"{value} does not fit a four byte integer")
    return value.to_bytes(4, "big")


def binary(value: bytes) -> bytes:
    """Return `value` behind its two-byte length; StateError above 65,535 bytes."""
    return two_byte_integer(len(value)) + value


def utf8(text: str) -> bytes:
    """Return `text` as UTF-8 behind its two-byte length; StateError if it cannot be an MQTT string."""
    if "\0" in text:
        raise StateError(f"string contains U+0000: {text[:40]!r}")
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        raise StateError(f"string contains a surrogate: {text[:40]!r}") from None
    return two_byte_integer(len(raw)) + raw


class FrameBuffer:
    """Cuts a byte stream into packets for tests, tools and clients (the server's loop frames for itself).

    `maximum_packet_size` bounds a whole packet in bytes; 0 means the bound of the encoding.
    After an error every further call raises that error again.
    """

    __slots__ = ("_buffer", "_error", "_maximum_packet_size", "_pos")

    def __init__(self, maximum_packet_size: int = 0) -> None:
        self._buffer = bytearray()
        self._pos = 0
        self._maximum_packet_size = maximum_packet_size
        self._error: PeerError | None = None

    def feed(self, data: bytes) -> None:
        """Append what was received."""
        if self._error is not None:
            raise self._error
        if self._pos == len(self._buffer):
            self._buffer.clear()
            self._pos = 0
        elif self._pos > _COMPACT_BYTES:
            del self._buffer[: self._pos]
            self._pos = 0
        self._buffer += data

    def next_frame(self) -> tuple[int, bytes] | None:
        """Return `(first_byte, body)` of the next complete packet, or None while bytes are missing.

        Raises PeerError 0x95 as soon as a packet's length is known to be too large, MalformedPacket for a
        remaining length of more than four bytes.
        """
        if self._error is not None:
            raise self._error
        buffer = self._buffer
        available = len(buffer)
        first = self._pos
        pos = first + 1
        length = 0
        shift = 0
        while True:
            if pos >= available:
                return None
            byte = buffer[pos]
            pos += 1
            length |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 21:
                self._error = MalformedPacket("remaining length is longer than 4 bytes")
                raise self._error
        if byte == 0 and shift:
            self._error = MalformedPacket("remaining length is not in its shortest form")
            raise self._error
        after = pos + length
        limit = self._maximum_packet_size
        if limit and after - first > limit:
            self._error = PeerError(PACKET_TOO_LARGE, f"packet of {after - first} bytes exceeds the limit of {limit}")
            raise self._error
        if after > available:
            return None
        self._pos = after
        return buffer[first], bytes(buffer[pos:after])

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        frame = self.next_frame()
        while frame is not None:
            yield frame
            frame = self.next_frame()

    def __len__(self) -> int:
        """Bytes received and not yet returned."""
        return len(self._buffer) - self._pos
