"""Functions of the store: entries of shared subscriptions given out, acknowledged, returned, kept and inherited."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import cast

import pytest
import redis

from cluster.api import STRATEGIES
from cluster.records import pack_arguments
from tests.kit.redis_server import RedisServer
from tests.kit.store_functions import Functions, body, load_library, payload

GID = b"g" * 16
BY_ROOM = ("round_robin", "random", "local", "least_inflight")
BY_SESSION = ("sticky", "hash_topic", "hash_clientid")

Given = list[tuple[bytes, bytes, bytes, str]]


class World:
    """One group. What was given to a member by any way is added to `held`: entry id -> (sid, kept sid, payload)."""

    def __init__(self, functions: Functions, strategy: str = "round_robin", members: str = "ab") -> None:
        self.f = functions
        self.strategy = strategy
        self.held: dict[str, dict[bytes, tuple[bytes, bytes, str]]] = {}
        for name in members:
            self.open(name)

    def open(self, name: str) -> None:
        self.f.call("open", f"n:{name}:1")
        self.held[name] = {}

    def collect(self) -> None:
        """Reads all streams."""
        for name in self.held:
            self.take(name, self.f.given(f"{name}:1"))

    def take(self, name: str, given: Given) -> None:
        for entry, sid, kept, text in given:
            self.held[name][entry] = (sid, kept, text)

    def members(self, name: str, *windows: int, persistent: int = 0, birth: int = 1) -> int:
        """Sessions "<name>0", "<name>1", ... with these windows. Returns the depth."""
        batch = [[session(name, number), birth, persistent, window] for number, window in enumerate(windows)]
        fenced, depth, entries = cast(
            "list[object]", self.f.call("group_members", GID, name, 1, self.strategy, pack_arguments(batch))
        )
        assert fenced == 0
        assert entries == []
        self.collect()
        return cast(int, depth)

    def add(self, name: str, texts: Iterable[str], topic: str = "t", publisher: bytes = b"p" * 16) -> list[int]:
        """Messages by a node; returns the depths."""
        bodies = [body(text, topic, publisher) for text in texts]
        answer = self.f.enqueue(name, bodies, groups=[(GID, place + 1, 0) for place in range(len(bodies))])
        for place, packed in enumerate(bodies):
            entry, sid, _ = cast("tuple[bytes, bytes, int]", tuple(answer[3 * place : 3 * place + 3]))
            if entry:
                self.held[name][entry] = (sid, b"", payload(packed))
        self.collect()
        return cast("list[int]", answer[2::3])

    def settle(
        self,
        name: str,
        acked: Sequence[bytes] = (),
        returned: Sequence[bytes] = (),
        kept: Sequence[bytes] = (),
        lose_answer: bool = False,
    ) -> int:
        """Returns the depth. A lost answer leaves what was settled as it was held."""
        reply = self.f.call("group_settle", name, 1, pack_arguments([[GID, acked, returned, kept]]))
        ((depth, entries),) = cast("list[tuple[int, list[bytes]]]", reply)
        if not lose_answer:
            for entry in (*acked, *returned):
                self.held[name].pop(entry, None)
            self.take(name, flat(entries))
        self.collect()
        return depth

    def texts(self, name: str) -> list[str]:
        """Payloads held, oldest entry first."""
        return [self.held[name][entry][2] for entry in self.ids(name)]

    def ids(self, name: str) -> list[bytes]:
        return sorted(self.held[name], key=lambda entry: tuple(map(int, entry.split(b"-"))))

    def info(self) -> list[object]:
        return cast("list[object]", self.f.call("group_info", GID))

    def pending(self) -> dict[str, int]:
        """What the stream says that each consumer holds."""
        rows = cast("list[dict[str, object]]", self.f.client.xinfo_consumers(self.f.key(b"g:" + GID), "m"))
        return {cast(bytes, row["name"]).decode(): cast(int, row["pending"]) for row in rows if row["pending"]}

    def check(self) -> None:
        """The store and the members agree on who holds what."""
        for name in self.held:
            after: bytes = b"-"
            found: set[bytes] = set()
            while page := cast("list[bytes]", self.f.call("group_held", GID, name, 1, after)):
                found.update(page[::4])
                after = page[-4]
            assert found == set(self.held[name]), name


def session(name: str, number: int) -> bytes:
    return f"{name}{number}".encode() * 8


def flat(entries: Sequence[bytes]) -> Given:
    result = []
    for at in range(0, len(entries), 4):
        entry, sid, kept, record = entries[at : at + 4]
        assert record[:1] == b"\x01"
        result.append((entry, sid, kept, payload(record[1:])))
    return result


@pytest.fixture
def functions(store: RedisServer) -> Functions:
    client = store.client()
    load_library(client)
    return Functions(client)


def numbers(start: int, stop: int) -> list[str]:
    return [str(number) for number in range(start, stop)]


def test_no_group_no_queue(functions: Functions) -> None:
    w = World(functions)
    assert w.add("a", ["x"]) == [-2]
    assert w.info() == [0, 0, b""]
    assert w.settle("a", [b"1-1"]) == -2
    assert functions.call("group_leave", GID, b"s" * 16, 1) == 0
    assert w.members("a") == -2
    assert functions.client.keys(functions.key("g*")) == []


@pytest.mark.parametrize("strategy", BY_ROOM)
def test_nobody_gets_more_than_has_room(functions: Functions, strategy: str) -> None:
    w = World(functions, strategy)
    w.members("a", 2, 1)
    w.members("b", 2)
    assert w.add("a", numbers(0, 8)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (len(w.held["a"]), len(w.held["b"])) == (3, 2)
    assert sorted(w.texts("a") + w.texts("b")) == numbers(0, 5)
    assert w.info() == [3, 5, min(w.ids("a")[0], w.ids("b")[0])]
    w.check()

    # Room goes to what waits, oldest first, and the depth tells.
    assert w.settle("b", w.ids("b")) == 6
    assert w.texts("b") == ["5", "6"]
    assert w.settle("a", w.ids("a")[:2]) == 4
    assert w.texts("a")[1:] == ["7"]
    assert w.settle("a", w.ids("a")) == 2
    assert w.settle("b", w.ids("b")) == 0
    assert w.info() == [0, 0, b""]
    assert w.pending() == {}
    w.check()


def test_a_larger_window_is_filled_at_once(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 1)
    w.add("b", numbers(0, 5))
    assert w.texts("a") == ["0"]
    assert w.members("a", 1, 2) == 5
    assert w.texts("a") == ["0", "1", "2"]
    # A smaller one takes nothing away, but nothing comes until there is room.
    w.members("a", 1)
    w.settle("a", w.ids("a")[:2])
    assert w.texts("a") == ["2"]
    w.settle("a", w.ids("a"))
    assert w.texts("a") == ["3"]


def test_more_than_one_call_gives_out(functions: Functions) -> None:
    w = World(functions)
    functions.call("group_join", GID, session("a", 0), 1)
    for start in range(0, 1000, 100):
        w.add("b", numbers(start, start + 100))
    w.members("a", 2000, persistent=1)
    assert w.texts("a") == numbers(0, 200)
    w.settle("a", w.ids("a")[:1])
    assert w.texts("a") == numbers(1, 400)
    while len(w.held["a"]) < 900:
        w.settle("a", w.ids("a")[:1])
    w.check()


def test_older_entries_come_to_the_publisher_by_its_stream(functions: Functions) -> None:
    w = World(functions)
    functions.call("group_join", GID, session("a", 0), 1)
    for start in range(0, 300, 100):
        w.add("b", numbers(start, start + 100))
    w.members("a", 1000, persistent=1)
    assert w.texts("a") == numbers(0, 200)
    # What waited goes out before what is new, and by the same way: the answer would overtake the stream.
    entry, *rest = functions.enqueue("a", [body("300")], groups=[(GID, 1, 0)])
    assert (entry, *rest) == (b"", b"", 301)
    given = functions.given("a:1")
    assert [text for *_, text in given] == numbers(200, 301)
    w.take("a", given)
    assert w.texts("a") == numbers(0, 301)
    w.check()


def test_large_messages_are_given_out_by_their_size(functions: Functions) -> None:
    w = World(functions)
    functions.call("group_join", GID, session("a", 0), 1)
    w.add("b", [str(number) * 100_000 for number in range(10)])
    w.members("a", 100, persistent=1)
    assert 3 <= len(w.held["a"]) <= 8
    while len(w.held["a"]) + 1 < 10:
        w.settle("a", w.ids("a")[:1])
        if w.info()[0] == 0:
            break
    assert w.info()[0] == 0


def test_the_queue_is_bounded(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 1)
    groups = [(GID, 1, 0)] * 3
    answer = functions.enqueue("b", [body("x")], groups=groups, limits=(1, 1, 2))
    assert answer[2::3] == [1, 2, -1]


def test_a_message_id_is_queued_once(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 10)
    first = functions.enqueue("b", [body("x")], groups=[(GID, 1, 1)], ids=[b"i" * 16])
    assert first == [b"", b"", 1]
    assert functions.enqueue("b", [body("x")], groups=[(GID, 1, 1)], ids=[b"i" * 16]) == [b"", b"", 0]
    w.collect()
    assert w.texts("a") == ["x"]


def test_a_repeated_enqueue_gives_the_same_answer(functions: Functions) -> None:
    w = World(functions, "local")
    w.members("a", 10)
    first = functions.enqueue("a", [body("x")], groups=[(GID, 1, 0)])
    assert first[0]
    assert functions.enqueue("a", [body("x")], groups=[(GID, 1, 0)], number=1) == first
    assert w.info()[:2] == [0, 1]


def test_round_robin_by_sessions(functions: Functions) -> None:
    w = World(functions, "round_robin", "abc")
    w.members("a", 1000, 1000, 1000)
    w.members("b", 1000)
    w.add("c", numbers(0, 100))
    assert (len(w.held["a"]), len(w.held["b"])) == (75, 25)
    # In each call the turn goes on, and a member that comes later does not catch up.
    w.members("c", 1000, 1000, 1000, 1000)
    for number in range(100):
        w.add("a", [str(number)])
    assert 49 <= len(w.held["c"]) <= 51
    assert 111 <= len(w.held["a"]) <= 114


def test_random_by_sessions(functions: Functions) -> None:
    w = World(functions, "random")
    w.members("a", 1000, 1000, 1000)
    w.members("b", 1000)
    for start in range(0, 400, 40):
        w.add("a", numbers(start, start + 40))
    assert 240 <= len(w.held["a"]) <= 360
    # Not the same in each call.
    assert len({tuple(int(text) % 40 for text in w.texts("b") if int(text) // 40 == call) for call in range(10)}) > 1


def test_local_first(functions: Functions) -> None:
    w = World(functions, "local")
    w.members("a", 3)
    w.members("b", 100)
    w.add("a", numbers(0, 5))
    assert w.texts("a") == numbers(0, 3)
    w.add("b", numbers(5, 8))
    assert w.texts("b") == numbers(3, 8)


def test_least_inflight_evens_out(functions: Functions) -> None:
    w = World(functions, "least_inflight")
    w.members("a", 5)
    w.members("b", 10)
    w.add("a", numbers(0, 5))
    assert w.texts("b") == numbers(0, 5)
    w.add("a", numbers(5, 13))
    assert (len(w.held["a"]), len(w.held["b"])) == (4, 9)


def test_sticky_keeps_its_session(functions: Functions) -> None:
    w = World(functions, "sticky")
    w.members("a", 1, 1)
    w.members("b", 1, 1)
    for number in range(4):
        w.add("a", [str(number)], topic=str(number))
    (name,) = [name for name in "ab" if w.held[name]]
    (chosen,) = {sid for sid, _, _ in w.held[name].values()}
    # More sessions change nothing; when it leaves, another one is chosen.
    other = "b" if name == "a" else "a"
    w.members(other, 1, 1, 1, 1)
    w.add("b", ["4"])
    assert {sid for sid, _, _ in w.held[name].values()} == {chosen}
    assert len(w.held[name]) == 5
    left = [1] if chosen == session(name, 1) else []
    w.members(name, *left)
    w.add("b", numbers(5, 8))
    after = {sid for held in w.held.values() for sid, _, text in held.values() if int(text) >= 5}
    assert len(after) == 1
    assert chosen not in after


@pytest.mark.parametrize("strategy", ["hash_topic", "hash_clientid"])
def test_hash_keeps_keys_together(functions: Functions, strategy: str) -> None:
    w = World(functions, strategy, "abc")
    for name in "ab":
        w.members(name, *[1] * 5)
    keys = numbers(0, 60)

    def place(start: int) -> dict[str, bytes]:
        for held in w.held.values():
            held.clear()
        for key in keys:
            topic, publisher = (f"long/{'x' * 40}/{key}", b"p" * 16)
            if strategy == "hash_clientid":
                topic, publisher = str(start), f"{key:>16}".encode()
            w.add("ab"[start % 2], [key], topic, publisher)
        return {text: sid for held in w.held.values() for sid, _, text in held.values()}

    first = place(0)
    assert len(first) == 60
    assert place(1) == first
    assert len(set(first.values())) >= 8
    for name in "ab":
        assert all(sid[:1] == name.encode() for sid, _, _ in w.held[name].values())
    # Where one leaves, only its keys move; where one comes, it takes some of each.
    w.members("b", *[1] * 4)
    moved = {key for key, sid in place(2).items() if sid != first[key]}
    assert moved == {key for key, sid in first.items() if sid == session("b", 4)}
    w.members("c", 1)
    third = place(3)
    assert {sid for key, sid in third.items() if sid != first[key] and key not in moved} <= {session("c", 0)}


@pytest.mark.parametrize("strategy", BY_SESSION)
def test_a_node_keeps_so_many_for_its_session(functions: Functions, strategy: str) -> None:
    w = World(functions, strategy)
    w.members("a", 1)
    for start in range(0, 1200, 100):
        w.add("b", numbers(start, start + 100))
    assert len(w.held["a"]) == 1000
    w.settle("a", w.ids("a")[:150])
    assert w.texts("a") == numbers(150, 1150)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_acks_that_come_twice(functions: Functions, strategy: str) -> None:
    w = World(functions, strategy)
    w.members("a", 3)
    w.add("b", numbers(0, 8))
    done = w.ids("a")[:2]
    assert w.settle("a", done, lose_answer=True) == 6
    assert w.settle("a", done) == 6
    for entry in done:
        assert entry not in w.held["a"]
    w.check()
    count = 6 if strategy in BY_SESSION else 3
    assert w.texts("a") == numbers(2, 2 + count)
    assert w.pending() == {"a:1": count}


def test_returns_that_come_twice(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 2)
    w.add("b", numbers(0, 4))
    w.members("b", 1)
    assert w.texts("b") == ["2"]
    # b has no room: it comes back to a. Then b has, and what a returned first comes before what is new.
    back = w.ids("a")[:1]
    w.settle("a", [], back, lose_answer=True)
    w.settle("a", [], back)
    assert w.texts("a") == ["0", "1"]
    w.check()
    w.members("b", 2)
    assert w.texts("b") == ["2", "3"]
    w.settle("b", w.ids("b")[:1], lose_answer=True)
    back = w.ids("a")[1:]
    w.settle("a", [], back, lose_answer=True)
    w.collect()
    assert w.texts("b") == ["1", "2", "3"]  # 2 was acknowledged, but b does not know
    w.settle("a", [], back)
    w.settle("b", w.ids("b")[1:2])
    assert (w.texts("a"), w.texts("b")) == (["0"], ["1", "3"])
    w.check()


def test_what_comes_back_goes_to_another_first(functions: Functions) -> None:
    w = World(functions, "local", "abc")
    w.members("a", 10)
    w.add("a", numbers(0, 4))
    w.members("b", 1)
    w.settle("a", [], w.ids("a")[:2])
    assert w.texts("b") == ["0"]
    assert w.texts("a") == ["1", "2", "3"]
    assert w.info()[:2] == [0, 4]


def test_what_comes_back_waits_for_room(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 3, persistent=1)
    w.add("b", numbers(0, 5))
    functions.call("group_join", GID, session("a", 0), 1)
    w.members("a")
    w.settle("a", w.ids("a")[1:2], [w.ids("a")[0], w.ids("a")[2]])
    assert w.held["a"] == {}
    assert w.pending() == {"o": 2}
    assert w.info()[:2] == [4, 0]
    # What arrives now comes behind it.
    w.add("b", ["5"])
    w.members("b", 1)
    assert w.texts("b") == ["0"]
    w.members("b", 4)
    assert w.texts("b") == ["0", "2", "3", "4"]
    assert w.pending() == {"b:1": 4}
    w.check()


def test_only_the_holder_settles(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 1)
    w.members("b", 1)
    w.add("a", numbers(0, 2))
    theirs = w.ids("a")
    w.settle("b", [], theirs, [theirs[0], b"k" * 16])
    assert functions.client.exists(functions.key(b"ga:" + GID)) == 0
    w.check()


def test_a_dead_node_leaves_all_to_others(functions: Functions) -> None:
    w = World(functions, members="abc")
    w.members("a", 50, persistent=1)
    w.members("b", 20)
    w.members("c", 20)
    w.add("a", numbers(0, 60))
    assert len(w.held["a"]) == 20
    before = {name: set(w.texts(name)) for name in "abc"}
    w.settle("b", w.ids("b")[:15])
    w.settle("c", w.ids("c")[:10])
    assert functions.call("reap", "a", 1, 0, 200, 164, 0) == 0
    w.held["a"].clear()
    w.collect()
    assert set(w.texts("b")) | set(w.texts("c")) >= before["a"]
    assert functions.client.exists(functions.key("ng:a:1"), functions.key("n:a:1")) == 0
    w.check()
    # Late calls of the dead change nothing.
    assert functions.call("group_settle", "a", 1, pack_arguments([[GID, w.ids("b"), [], []]])) == []
    assert functions.call("group_members", GID, "a", 1, "random", pack_arguments([])) == [1, 0, []]
    w.check()
    # Its persistent session is a member still, its others are not.
    for name in "bc":
        w.members(name)
    assert functions.client.hkeys(functions.key(b"gm:" + GID)) == [session("a", 0)]


def test_a_dead_node_with_much(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 500)
    for start in range(0, 500, 100):
        w.add("b", numbers(start, start + 100))
    w.members("b", 1000)
    assert w.held["b"] == {}
    calls = 0
    while functions.call("reap", "a", 1, 0, 200, 164, 0):
        calls += 1
    assert calls == 2
    w.held["a"].clear()
    w.collect()
    assert w.texts("b") == numbers(0, 500)
    w.check()


def test_the_last_node_dies(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 5, persistent=1)
    w.add("b", numbers(0, 7))
    w.settle("a", [], [], [w.ids("a")[3], session("a", 0)])
    assert functions.call("reap", "a", 1, 0, 200, 164, 0) == 0
    w.held["a"].clear()
    assert w.pending() == {"o": 4, "k": 1}
    assert w.info()[:2] == [7, 0]
    w.members("b", 0)
    # What belongs to a session needs no room, but takes some.
    assert w.texts("b") == ["3"]
    assert w.held["b"][w.ids("b")[0]][1] == session("a", 0)
    w.members("b", 3)
    assert w.texts("b") == ["0", "1", "3"]
    w.settle("b", w.ids("b"))
    assert w.texts("b") == ["2", "4", "5"]
    assert functions.client.exists(functions.key(b"ga:" + GID)) == 0


def test_all_ends_with_ephemeral_members(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 5)
    w.add("b", numbers(0, 7))
    assert functions.call("reap", "a", 1, 0, 200, 164, 0) == 0
    assert functions.client.keys(functions.key("*g*")) == []
    assert w.add("b", ["x"]) == [-2]


def test_kept_entries_go_where_the_session_is(functions: Functions) -> None:
    w = World(functions, members="abc")
    w.members("a", 5, 5, persistent=1)
    w.add("c", numbers(0, 4))
    mine, of_b, gone = session("a", 0), session("b", 0), session("x", 0)
    ids = w.ids("a")
    w.settle("a", [], [], [ids[0], mine, ids[1], of_b, ids[2], gone])
    w.members("b", 3)
    w.members("c", 3)
    functions.call("reap", "a", 1, 0, 200, 164, 0)
    w.held["a"].clear()
    w.collect()
    w.check()
    everything = {text: (name, kept) for name, held in w.held.items() for _, kept, text in held.values()}
    assert everything["1"] == ("b", of_b)
    assert everything["0"][1] == mine
    assert everything["2"][1] == gone
    assert everything["3"][1] == b""
    # Acknowledged, it is nobody's; returned, it stays that session's.
    (entry,) = [entry for entry, (_, kept, _) in w.held["b"].items() if kept == of_b]
    w.settle("b", [], [entry])
    assert {kept for held in w.held.values() for _, kept, _ in held.values()} == {mine, of_b, gone, b""}
    for name in "bc":
        w.settle(name, w.ids(name))
    assert functions.client.exists(functions.key(b"ga:" + GID)) == 0
    assert w.info() == [0, 0, b""]


def test_births(functions: Functions) -> None:
    f = functions
    w = World(f)
    sid = session("a", 0)
    assert f.call("group_join", GID, sid, 5) == 1
    assert f.call("group_join", GID, sid, 4) == 0
    assert f.call("group_leave", GID, sid, 4) == 0
    assert w.add("b", ["0"]) == [1]
    # An older session that shows up late is no member.
    w.members("a", 10, birth=4)
    assert w.held["a"] == {}
    w.members("a", 10, birth=5)
    assert w.texts("a") == ["0"]
    # It was persistent, so it stays when it is not connected; its successor is not, so that goes.
    w.settle("a", [], w.ids("a"))
    w.collect()
    assert w.members("a") == 1
    w.members("a", 10, birth=6)
    w.settle("a", w.ids("a"))
    assert w.members("a") == -2
    assert f.client.keys(f.key("*g*")) == []


def test_a_session_that_joins_where_it_is_connected(functions: Functions) -> None:
    f = functions
    w = World(f)
    w.members("a", 1)
    assert f.call("group_join", GID, session("a", 0), 1) == 1
    w.add("b", ["0", "1"])
    assert w.texts("a") == ["0"]
    w.settle("a", [], w.ids("a"))
    w.held["a"].clear()
    w.members("a")
    assert w.info()[:2] == [1, 1]
    # It comes back elsewhere; then it leaves for good, and the group ends.
    w.members("b", 5)
    assert f.call("group_leave", GID, session("b", 0), 1) == 1
    assert w.info()[0] == 0
    assert f.call("group_leave", GID, session("a", 0), 1) == 1
    assert f.client.keys(f.key("*g*")) == []
    assert w.settle("a", [b"1-1"]) == -2


def test_without_a_stream_the_answer_has_all(functions: Functions) -> None:
    f = functions
    f.call("group_join", GID, session("a", 0), 1)
    f.enqueue("b", [body("x")], groups=[(GID, 1, 0)])
    batch = pack_arguments([[session("a", 0), 1, 1, 5]])
    fenced, depth, entries = cast("list[object]", f.call("group_members", GID, "a", 1, "random", batch))
    assert (fenced, depth) == (0, 1)
    assert [given[1:] for given in flat(cast("list[bytes]", entries))] == [(b"", b"", "x")]


def test_pages_of_what_is_held(functions: Functions) -> None:
    w = World(functions)
    w.members("a", 250)
    w.add("b", numbers(0, 100))
    w.add("b", numbers(100, 200))
    w.add("b", numbers(200, 230))
    page = cast("list[bytes]", functions.call("group_held", GID, "a", 1, "-"))
    assert len(page) == 400
    assert [text for _, _, _, text in flat(page)] == numbers(0, 100)
    page = cast("list[bytes]", functions.call("group_held", GID, "a", 1, w.ids("a")[199]))
    assert [text for _, _, _, text in flat(page)] == numbers(200, 230)
    assert functions.call("group_held", GID, "a", 1, w.ids("a")[-1]) == []


def test_a_full_store_can_be_drained(functions: Functions) -> None:
    f = functions
    w = World(f)
    w.members("a", 2)
    w.add("b", numbers(0, 4))
    f.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            w.add("b", ["x"])
        assert w.settle("a", w.ids("a")) == 2
        w.members("b", 1)
        assert f.call("reap", "a", 1, 0, 200, 164, 0) == 0
        w.held["a"].clear()
        w.collect()
        assert w.texts("b") == ["2"]
        assert w.settle("b", w.ids("b")) == 1
    finally:
        f.client.config_set("maxmemory", "0")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_nor_given_twice(functions: Functions, strategy: str, seed: int) -> None:
    """Any calls in any order, with answers that are lost and nodes that die: each message is acknowledged once."""
    f = functions
    chance = random.Random(f"{strategy} {seed}")
    w = World(f, strategy, "abc")
    f.call("group_join", GID, b"stays" + b"." * 11, 1)
    sent, done, dead = 0, Counter[str](), set[str]()
    windows = dict.fromkeys("abc", 0)
    for step in range(250):
        name = chance.choice([each for each in "abc" if each not in dead])
        ids = w.ids(name)
        chance.shuffle(ids)
        what = chance.choice(["add", "add", "ack", "ack", "ack", "again", "keep", "members", "die"])
        if what == "add":
            count = chance.randrange(1, 6)
            w.add(name, numbers(sent, sent + count), topic=str(chance.randrange(9)))
            sent += count
        elif what in ("ack", "again", "keep"):
            some = ids[: chance.randrange(0, 5)]
            acked = some if what == "ack" else []
            returned = some if what == "again" else []
            kept = [part for entry in some if what == "keep" for part in (entry, session("a", 1))]
            done.update(w.held[name][entry][2] for entry in acked)
            if chance.random() < 0.3:
                w.settle(name, acked, returned, kept, lose_answer=True)
            w.settle(name, acked, returned, kept)
        elif what == "members":
            batch = [chance.randrange(0, 6) for _ in range(chance.randrange(0, 4))]
            windows[name] = sum(batch)
            w.members(name, *batch, persistent=chance.randrange(2))
        elif step > 150 and len(dead) < 2:
            while f.call("reap", name, 1, 0, 7, 164, 0):
                pass
            dead.add(name)
            w.held[name].clear()
            w.collect()
        w.check()
    (last, *_) = [each for each in "abc" if each not in dead]
    for each in sorted(set("abc") - dead - {last}):
        w.members(each)
        w.settle(each, [], w.ids(each))
    w.members(last, 50)
    while w.held[last]:
        done.update(w.texts(last))
        w.settle(last, w.ids(last))
    assert w.info() == [0, 0, b""]
    assert done == Counter(numbers(0, sent))
    assert w.pending() == {}
    assert f.client.exists(f.key(b"ga:" + GID)) == 0
