"""Reading streams as they grow, on a connection that waits for them: one blocking XREAD for all streams of one server.

The streams have the ids 0-1, 0-2, ...: a jump shows that entries were lost before they were read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from cluster.redis.pipeline import Part

if TYPE_CHECKING:
    from cluster.redis.link import RedisLink

#: Entries of one stream in one turn: they may be as large as a call.
_COUNT: Final = 16
_BLOCK_S: Final = 1.0
#: What was read is trimmed when it is so many entries, or when a read found nothing.
_TRIM_ENTRIES: Final = 32

Entries = list[tuple[int, list[bytes]]]
Call = Callable[..., Awaitable[object]]

_log = get_logger("cluster")


class Stream:
    """A stream that is followed from its entry after number `cursor` on.

    `handle` gets the entries; `lost` is called before that if some are missing, or if the stream began anew.
    `trim`, if given, makes the command that deletes all before an id, with the bytes of what was read since the last.
    `opening` is the function that makes the stream if need be; without it the stream is another's."""

    __slots__ = ("asked", "cursor", "handle", "key", "lost", "opening", "read_bytes", "read_entries", "trim")

    def __init__(
        self,
        key: bytes,
        handle: Callable[[Entries], None],
        lost: Callable[[], None],
        trim: Callable[[bytes, int], tuple[Part, ...]] | None = None,
        opening: tuple[Part, ...] | None = None,
    ) -> None:
        self.key = key
        self.cursor = 0
        #: Where the read that is under way began.
        self.asked = 0
        self.handle = handle
        self.lost = lost
        self.trim = trim
        self.opening = opening
        self.read_entries = 0
        self.read_bytes = 0

    def take(self, found: Sequence[tuple[bytes, list[bytes]]]) -> None:
        """What a read brought."""
        if self.asked != self.cursor:
            return  # moved meanwhile: that was read from another place
        entries = [(int(entry_id[2:]), fields) for entry_id, fields in found]
        first, last = entries[0][0], entries[-1][0]
        if last - self.cursor != len(entries):
            _log.warning("cluster.stream_jump", key=self.key.decode("utf-8", "replace"), at=self.cursor, found=first)
            self.asked = self.cursor = last
            self.lost()
            if self.cursor != last:
                return
        self.cursor = last
        self.handle(entries)
        if self.trim is not None:
            self.read_entries += len(entries)
            for _, fields in entries:
                self.read_bytes += len(fields[1])

    def ends_at(self, last: int) -> None:
        """The store says that the last entry has this number: less than was read means another history."""
        if last < self.cursor:
            self.cursor = 0
            self.read_entries = self.read_bytes = 0
            self.lost()


class Feed:
    """Follows streams that share a server."""

    def __init__(
        self, streams: Sequence[Stream], make_link: Callable[[Feed], RedisLink], wake: Callable[[], None]
    ) -> None:
        self._streams = {stream.key: stream for stream in streams}
        self._link = make_link(self)
        self._wake = wake
        self._reading = False
        #: The store refused to be read.
        self._failed = False

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows until cancelled; has started when it is connected. Raises what `RedisLink.connect` does."""
        await self._link.keep_connected(task_status)

    async def check(self, call: Call) -> None:
        """Looks whether the streams are still those that were read, and makes this node's own where they are not there.
        `call` is of a link that nothing blocks. Raises ClusterError."""
        for stream in list(self._streams.values()):
            if stream.opening is not None:
                last = await call(*stream.opening)
                if last is not None:
                    stream.ends_at(int(cast(bytes, last)[2:]))
                continue
            try:
                info = await call("XINFO", "STREAM", stream.key)
            except ClusterError as error:
                if "no such key" not in str(error):
                    raise
                stream.ends_at(0)
            else:
                stream.ends_at(int(cast("dict[bytes, bytes]", info)[b"last-generated-id"][2:]))

    async def up(self, link: RedisLink) -> None:
        """On each new connection."""
        await self.check(link.setup_call)
        self._failed = False
        self._wake()  # the connection is everyone's right after this

    def flush(self) -> None:
        """The end of a turn."""
        if not self._reading and self._link.up and not self._failed:
            self._read_on()
        self._link.flush()

    def close(self) -> None:
        """Final."""
        self._link.close()

    def tick(self) -> None:
        """Now and then: the next turn reads on where an error stopped it."""
        self._failed = False

    def _read_on(self) -> None:
        self._reading = True
        streams = list(self._streams.values())
        for stream in streams:
            stream.asked = stream.cursor
        self._link.command(
            (
                b"XREAD",
                b"COUNT",
                _COUNT,
                b"BLOCK",
                int(_BLOCK_S * 1000),
                b"STREAMS",
                *[stream.key for stream in streams],
                *[b"0-%d" % stream.cursor for stream in streams],
            ),
            self._read,
            allow_s=_BLOCK_S,
        )

    def _read(self, reply: object) -> None:
        self._reading = False
        if isinstance(reply, dict):
            for key, found in reply.items():
                stream = self._streams[key]
                try:
                    stream.take(found)
                except Exception:
                    # One entry must not stop all that follow.
                    _log.exception("cluster.callback_failed")
                    stream.asked = stream.cursor = int(found[-1][0][2:])
                    stream.lost()
                if stream.read_entries >= _TRIM_ENTRIES or stream.read_bytes >= 1 << 20:
                    self._trim(stream)
        elif reply is None:
            for stream in self._streams.values():
                if stream.read_entries:
                    self._trim(stream)
        else:
            if self._link.up:
                self._failed = True
                _log.warning("cluster.feed_delayed", reason=str(reply)[:200])
            return
        self._read_on()

    def _trim(self, stream: Stream) -> None:
        if stream.trim is not None:
            self._link.command(stream.trim(b"0-%d" % (stream.cursor + 1), stream.read_bytes))
        stream.read_entries = stream.read_bytes = 0
