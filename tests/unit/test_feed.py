"""A stream is followed without a gap, also where the store comes back with another history of it."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.redis.feed import Entries, Stream


class Reader:
    """A stream and what was told of it."""

    def __init__(self, **options: object) -> None:
        self.bodies: list[bytes] = []
        self.losses = 0
        self.anew: list[int] = []
        self.stream = Stream(b"s", self._handle, self._lost, lambda *_: (), anew=self.anew.append, **options)  # type: ignore[arg-type]

    def _handle(self, entries: Entries) -> None:
        self.bodies += [fields[1] for _, fields in entries]

    def _lost(self) -> None:
        self.losses += 1

    def read(self, first: int, *bodies: bytes) -> None:
        """A read found these."""
        self.stream.ask()
        self.take(first, *bodies)

    def take(self, first: int, *bodies: bytes) -> None:
        self.stream.take([(b"0-%d" % number, [b"b", body]) for number, body in enumerate(bodies, first)])


def tagged(number: int, fields: Sequence[bytes]) -> bool:
    """The entry that was read has its number for a body."""
    return fields[1] == b"%d" % number


def test_entries_in_turn_are_handled_and_a_jump_is_told() -> None:
    reader = Reader()
    reader.read(1, b"a", b"b")
    reader.read(3, b"c")
    assert (reader.bodies, reader.losses) == ([b"a", b"b", b"c"], 0)
    reader.read(7, b"g")
    assert (reader.bodies[-1], reader.losses, reader.stream.cursor) == (b"g", 1, 7)


def test_on_the_same_store_a_stream_goes_on() -> None:
    reader = Reader(again=True)
    reader.read(1, b"a", b"b")
    reader.stream.connected(4, False)
    assert (reader.stream.ask(), reader.losses) == (2, 0)


def test_on_another_store_what_was_not_read_is_read_again_from_the_beginning() -> None:
    reader = Reader(again=True)
    reader.read(1, *(b"old%d" % number for number in range(1, 9)))
    reader.stream.connected(9, True)
    assert (reader.stream.ask(), reader.losses) == (0, 1)
    # 1 to 4 were trimmed, 5 and 6 were read, the rest was written in place of what was lost.
    reader.take(5, b"old5", b"old6", b"new7", b"new8", b"new9")
    assert reader.bodies[8:] == [b"new7", b"new8", b"new9"]
    reader.read(10, b"old6")
    assert (reader.bodies[-1], reader.losses) == (b"old6", 1)


def test_on_an_emptied_store_all_is_new() -> None:
    reader = Reader(again=True)
    reader.read(1, b"a", b"b")
    reader.stream.connected(0, False)
    reader.read(1, b"c")
    reader.read(2, b"d")
    assert (reader.bodies, reader.losses) == ([b"a", b"b", b"c", b"d"], 1)


def test_on_another_store_what_is_found_in_queues_is_not_read() -> None:
    reader = Reader()
    reader.read(1, b"a", b"b", b"c")
    reader.stream.connected(5, True)
    assert (reader.losses, reader.anew, reader.stream.ask()) == (1, [5], 5)
    reader.take(6, b"f")
    assert reader.bodies == [b"a", b"b", b"c", b"f"]


def test_a_log_goes_on_where_its_last_entry_is_there_still() -> None:
    reader = Reader(continues=tagged)
    reader.stream.move(5)
    assert reader.stream.ask() == 4
    reader.take(5, b"5", b"6")
    assert (reader.bodies, reader.losses) == ([b"6"], 0)
    reader.stream.connected(6, True)
    assert reader.stream.ask() == 5
    reader.take(6, b"6")
    reader.read(7, b"7")
    assert (reader.bodies, reader.losses) == ([b"6", b"7"], 0)


def test_a_log_with_another_entry_in_the_place_of_the_last_is_lost() -> None:
    reader = Reader(continues=tagged)
    reader.stream.move(5)
    reader.read(5, b"other", b"6")
    assert (reader.bodies, reader.losses) == ([], 1)
    reader.stream.move(6)
    reader.take(7, b"7")  # asked for before
    assert reader.bodies == []
    reader.read(6, b"6", b"7")
    assert (reader.bodies, reader.losses) == ([b"7"], 1)


def test_a_log_that_ends_before_what_was_read_is_lost() -> None:
    reader = Reader(continues=tagged)
    reader.stream.move(5)
    reader.stream.connected(3, True)
    assert (reader.losses, reader.stream.cursor) == (1, 0)
