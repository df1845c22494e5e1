"""Reading streams as they grow, on a connection that waits for them: one blocking XREAD for all streams of one server.

The streams have the ids 0-1, 0-2, ...: a jump shows that entries were lost before they were read.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import trio

from broker.errors import ClusterError
from broker.log import get_logger
from cluster.redis.generations import replication_id
from cluster.redis.pipeline import Part

if TYPE_CHECKING:
    from cluster.redis.link import RedisLink

#: Entries of one stream in one turn: they may be as large as a call.
_COUNT: Final = 16
_BLOCK_S: Final = 1.0
#: What was read is trimmed when it is so many entries, or when a read found nothing.
_TRIM_ENTRIES: Final = 32
#: So many entries are known again: as many as a node's stream may have (STREAM_ENTRIES in the functions of the store).
_RECENT: Final = 20_000

Entries = list[tuple[int, list[bytes]]]
Call = Callable[..., Awaitable[object]]

_log = get_logger("cluster")


class Recent:
    """What the last entries that were read said, to know them again where a store gives them out anew."""

    __slots__ = ("_hashes", "_top")

    def __init__(self) -> None:
        self._hashes = array("q")
        #: The highest number that was ever read.
        self._top = 0

    def note(self, number: int, body: bytes) -> None:
        """The entry with this number said this."""
        at = number % _RECENT
        hashes = self._hashes
        if at >= len(hashes):
            hashes.extend([0] * (at + 1 - len(hashes)))
        hashes[at] = hash(body)
        self._top = max(self._top, number)

    def knows(self, number: int, body: bytes) -> bool:
        """Whether an entry with this number said the same, as far as that is remembered."""
        at = number % _RECENT
        return self._top - _RECENT < number <= self._top and at < len(self._hashes) and self._hashes[at] == hash(body)


class Stream:
    """A stream that is followed from its entry after number `cursor` on.

    `handle` gets the entries; `lost` is called before that if some are missing, or if the store has another history of
    the stream than the one that was read: it may lack entries that were read, and have others in their places.
    What to do then is said by the rest:
    - `continues`: whether an entry is the one that was read last. It is read once more on each new connection, so such
      a stream notices another history by itself; after `lost` somebody calls `move`.
    - `again`: what is there is read from its beginning, without what was read before.
    - neither: nothing that is there already is read; `anew` is told the number of the last entry of that.

    `trim`, if given, makes the command that deletes all before an id.
    `opening` is the function that makes the stream if need be; without it the stream is another's."""

    __slots__ = (
        "_doubtful",
        "_fresh",
        "_recent",
        "anew",
        "asked",
        "continues",
        "cursor",
        "handle",
        "key",
        "lost",
        "opening",
        "read_bytes",
        "read_entries",
        "trim",
    )

    def __init__(
        self,
        key: bytes,
        handle: Callable[[Entries], None],
        lost: Callable[[], None],
        trim: Callable[[bytes], tuple[Part, ...]] | None = None,
        opening: tuple[Part, ...] | None = None,
        *,
        continues: Callable[[int, list[bytes]], bool] | None = None,
        again: bool = False,
        anew: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.key = key
        self.cursor = 0
        #: Where the read that is under way began.
        self.asked = 0
        self.handle = handle
        self.lost = lost
        self.trim = trim
        self.opening = opening
        self.continues = continues
        self.anew = anew
        self.read_entries = 0
        self.read_bytes = 0
        self._recent = Recent() if again else None
        #: The entry at the cursor is to be read once more.
        self._doubtful = False
        #: The next entry may have any number.
        self._fresh = False

    def move(self, number: int) -> None:
        """Goes on after this entry."""
        self.cursor = number
        self._doubtful = self.continues is not None and number > 0

    def ask(self) -> int:
        """A read begins: after which entry."""
        self.asked = self.cursor - self._doubtful
        return self.asked

    def take(self, found: Sequence[tuple[bytes, list[bytes]]]) -> None:
        """What a read brought."""
        if self.asked != self.cursor - self._doubtful:
            return  # moved meanwhile: that was read from another place
        entries = [(int(entry_id[2:]), fields) for entry_id, fields in found]
        if self._doubtful:
            self._doubtful = False
            number, fields = entries[0]
            if number != self.cursor or self.continues is None or not self.continues(number, fields):
                self._jump(entries)
                return
            del entries[0]
            if not entries:
                return
        if self._fresh:
            self._fresh = False
            self.cursor = entries[0][0] - 1
        last = entries[-1][0]
        if last - self.cursor != len(entries) and not self._jump(entries):
            return
        self.cursor = last
        if self.trim is not None:
            self.read_entries += len(entries)
            for _, fields in entries:
                self.read_bytes += len(fields[1])
        if self._recent is not None:
            entries = _unknown(entries, self._recent)
            if not entries:
                return
        self.handle(entries)

    def _jump(self, entries: Entries) -> bool:
        """Some are missing, or not those that were read; whether the rest is to be handled nevertheless."""
        first, last = entries[0][0], entries[-1][0]
        _log.warning("cluster.stream_jump", key=self.key.decode("utf-8", "replace"), at=self.cursor, found=first)
        self.asked = self.cursor = last
        self.lost()
        return self.cursor == last

    def connected(self, last: int, changed: bool) -> None:
        """The store says that its last entry has this number. `changed`: perhaps it is another store, or an older state
        of this one; less than was read tells that, too."""
        if last >= self.cursor and (self.continues is not None or not changed):
            self._doubtful = self.continues is not None and self.cursor > 0
            return
        self.read_entries = self.read_bytes = 0
        self._doubtful = False
        if self._recent is not None:
            self.cursor, self._fresh = 0, True
        else:
            self.cursor = 0 if self.continues is not None else last
        self.anew(last)
        self.lost()


def _unknown(entries: Entries, recent: Recent) -> Entries:
    """Those that were not read before."""
    unknown = [entry for entry in entries if not recent.knows(entry[0], entry[1][1])]
    for number, fields in entries:
        recent.note(number, fields[1])
    return unknown


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
        #: The replication id of the store that was read; b"": none was.
        self._history = b""

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows until cancelled; has started when it is connected. Raises what `RedisLink.connect` does."""
        await self._link.keep_connected(task_status)

    async def check(self, call: Call, changed: bool) -> None:
        """Looks whether the streams are still those that were read, and makes this node's own where they are not there.
        `call` is of a link that nothing blocks; `changed`: see `Stream.connected`. Raises ClusterError."""
        for stream in list(self._streams.values()):
            if stream.opening is not None:
                last = await call(*stream.opening)
                if last is not None:
                    stream.connected(int(cast(bytes, last)[2:]), changed)
                continue
            try:
                info = await call("XINFO", "STREAM", stream.key)
            except ClusterError as error:
                if "no such key" not in str(error):
                    raise
                stream.connected(0, changed)
            else:
                stream.connected(int(cast("dict[bytes, bytes]", info)[b"last-generated-id"][2:]), changed)

    async def up(self, link: RedisLink) -> None:
        """On each new connection. A store that started anew, or took over, may have lost what was read, and others may
        have written on since: the numbers of the entries do not tell."""
        history = await replication_id(link.setup_call)
        changed = self._history not in (b"", history)
        if changed:
            _log.info("cluster.streams_checked", store=str(link.address))
        await self.check(link.setup_call, changed)
        self._history = history
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
        self._link.command(
            (
                b"XREAD",
                b"COUNT",
                _COUNT,
                b"BLOCK",
                int(_BLOCK_S * 1000),
                b"STREAMS",
                *[stream.key for stream in streams],
                *[b"0-%d" % stream.ask() for stream in streams],
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
                    stream.move(int(found[-1][0][2:]))
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
            self._link.command(stream.trim(b"0-%d" % (stream.cursor + 1)))
        stream.read_entries = stream.read_bytes = 0
