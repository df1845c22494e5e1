"""The port between transports and what speaks a protocol over them: streams of bytes, and their owners."""

from __future__ import annotations

from typing import Protocol

from broker.peer import Peer


class StreamProtocol(Protocol):
    """What a stream tells its owner."""

    def data_received(self, data: bytes) -> None:
        """A chunk of bytes came."""

    def resume(self) -> None:
        """Go on with work left over from the last turn."""

    def connection_lost(self, reason: str) -> None:
        """The peer closed, or the connection failed; called at most once, and not after `close`."""

    def peer_gone(self) -> None:
        """The peer has ended while reading is paused. What it sent before is in the kernel still, and `connection_lost`
        follows once that was read. Called once for a pause."""

    def output_congested(self) -> None:
        """The output buffer is over its bound."""

    def output_drained(self) -> None:
        """The output buffer fell below its bound again."""


class Nobody:
    """The protocol of a stream that nobody is interested in."""

    def data_received(self, data: bytes) -> None: ...

    def resume(self) -> None: ...

    def connection_lost(self, reason: str) -> None: ...

    def peer_gone(self) -> None: ...

    def output_congested(self) -> None: ...

    def output_drained(self) -> None: ...


class Stream(Protocol):
    """A network connection. Output is collected by `write` and leaves at the end of the turn.

    `peer` says who is at the other end; it is complete before `start`. `congested` is true while more than the bound
    waits after a flush: then droppable output should be dropped and other output held. `overrun`: twice the bound
    waits, of answers that can be neither dropped nor held, and nothing more is read meanwhile. `stalled_since` is when
    the peer last took anything (monotonic seconds; 0.0: nothing waits).
    """

    @property
    def peer(self) -> Peer: ...

    @property
    def congested(self) -> bool: ...

    @property
    def overrun(self) -> bool: ...

    @property
    def stalled_since(self) -> float: ...

    @property
    def closed(self) -> bool:
        """True once `close` took effect or the connection was lost."""
        ...

    def start(self, protocol: StreamProtocol) -> None:
        """Begin to read; `protocol` gets what comes."""

    def write(self, data: bytes) -> None:
        """Append to the output of this turn."""

    def write_parts(self, head: bytes, middle: bytes, tail: bytes) -> None:
        """Append three pieces that follow each other."""

    def flush(self) -> None:
        """Write once, without blocking. Streams see to it themselves at the end of a turn."""

    def call_again(self) -> None:
        """`resume` of the protocol is called in the next turn."""

    def pause_reading(self, paused: bool) -> None:
        """Leave what the peer sends in the kernel."""

    def pending_bytes(self) -> int:
        """Bytes that the peer has not taken yet."""
        ...

    def close(self) -> None:
        """Close once the output written so far is gone; nothing more is read. Idempotent."""

    def abort(self) -> None:
        """Close at once, whatever waits. Idempotent."""
