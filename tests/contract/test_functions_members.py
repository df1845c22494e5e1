"""Functions of the store: leases, member lists, who is buried and who reaps."""

from __future__ import annotations

from typing import cast

import pytest

from tests.kit.redis_server import RedisServer
from tests.kit.store_functions import Functions, load_library

LEASE_MS = 600_000
NEVER, ALWAYS = 0, 1 << 52


@pytest.fixture
def functions(store: RedisServer) -> Functions:
    client = store.client()
    load_library(client)
    return Functions(client)


def join(f: Functions, node: str, level: int = 1) -> tuple[int, int]:
    """Incarnation and number of the member list."""
    what, inc, now, number = cast("list[object]", f.call("join", node, "1", "16", LEASE_MS, level))
    assert what == b"joined"
    assert abs(cast(int, now) - f.now_ms()) < 5000
    return cast(int, inc), cast(int, number)


def beat(f: Functions, node: str, inc: int, seen: int = 0, bury: int = NEVER, level: int = 1) -> list[object]:
    """Status, number of the member list, lowest level, members, dead ones to reap."""
    reply = cast("list[object]", f.call("beat", node, inc, LEASE_MS, "1", "16", seen, bury, level))
    reply[4] = sorted(cast("list[bytes]", reply[4]))
    return reply[1:]


def let_lease_end(f: Functions, member: str) -> None:
    assert f.client.zadd(f.key("nodes"), {member: f.now_ms() - 1}, xx=True) == 0


def test_a_store_made_for_others(functions: Functions) -> None:
    f = functions
    join(f, "a")
    assert f.call("join", "b", "2", "16", LEASE_MS, 1) == [b"layout", b"1"]
    assert f.call("join", "b", "1", "8", LEASE_MS, 1) == [b"partitions", b"16"]
    assert beat(f, "a", 1)[3] == [b"a:1"]


def test_who_joins_is_seen(functions: Functions) -> None:
    f = functions
    assert join(f, "a", 3) == (1, 1)
    assert join(f, "b", 2) == (2, 2)
    assert f.call("unseen", 2, "b:2") == 1
    assert beat(f, "a", 1, 1, level=3) == [0, 2, 2, [b"a:1", b"b:2"], []]
    assert f.call("unseen", 2, "b:2") == 1
    assert beat(f, "a", 1, 2, level=3)[0] == 0
    assert f.call("unseen", 2, "b:2") == 0
    # One whose lease is over acts on no list, but is a member until it is buried.
    join(f, "c")
    let_lease_end(f, "a:1")
    assert f.call("unseen", 3, "c:3") == 1
    assert beat(f, "b", 2, 3)[1:4] == [3, 1, [b"a:1", b"b:2", b"c:3"]]
    assert f.call("unseen", 3, "c:3") == 0


def test_the_dead_are_buried_once(functions: Functions) -> None:
    f = functions
    for node in "abc":
        join(f, node)
    let_lease_end(f, "a:1")
    assert beat(f, "b", 2, bury=NEVER)[1:] == [3, 1, [b"a:1", b"b:2", b"c:3"], []]
    # This beat was long under way.
    assert beat(f, "b", 2, bury=f.now_ms() - 1)[4] == []
    assert beat(f, "b", 2, bury=ALWAYS) == [0, 4, 1, [b"b:2", b"c:3"], [b"a:1"]]
    # One reaps at a time; if it does not end, another one does.
    assert beat(f, "c", 3, bury=ALWAYS)[1:] == [4, 1, [b"b:2", b"c:3"], []]
    assert beat(f, "a", 1)[0] == 3
    assert f.client.zadd(f.key("dead"), {"a:1": f.now_ms() - 1}) == 0
    assert beat(f, "c", 3)[4] == [b"a:1"]
    assert f.call("buried", "a:1", "x:9") == 1
    assert beat(f, "a", 1)[0] == 3
    assert f.client.hkeys(f.key("seen")) == [b"b:2", b"c:3"]
    assert set(f.client.hkeys(f.key("level"))) == {b"b:2", b"c:3"}


def test_late_but_not_buried(functions: Functions) -> None:
    f = functions
    join(f, "a")
    let_lease_end(f, "a:1")
    assert beat(f, "a", 1, bury=ALWAYS) == [0, 1, 1, [b"a:1"], []]


def test_a_newer_process_of_the_same_name(functions: Functions) -> None:
    f = functions
    join(f, "a")
    join(f, "ab")
    inc, number = join(f, "a")
    assert (inc, number) == (3, 4)
    assert beat(f, "a", 1)[0] == 1
    assert beat(f, "ab", 2)[3:] == [[b"a:3", b"ab:2"], [b"a:1"]]
    # Once that left, it is as if the old one was taken for dead.
    assert f.call("leave", "a:3") == 1
    assert f.call("leave", "a:3") == 0
    assert beat(f, "a", 1)[0] == 3
    assert beat(f, "ab", 2)[1:] == [5, 1, [b"ab:2"], [b"a:3"]]


def test_a_store_that_lost_its_data(functions: Functions) -> None:
    f = functions
    for node in "abcde":
        join(f, node)
    f.client.unlink(*cast("list[bytes]", f.client.keys(f.key("*"))))
    assert beat(f, "d", 4, seen=5) == [2, 6, 1, [b"d:4"], []]
    assert f.call("unseen", 6, "x:9") == 1
    assert beat(f, "e", 5, seen=5)[:2] == [2, 7]
    # This one's number is not above all that the store knows any more: it has to join again.
    assert beat(f, "a", 1, seen=5)[0] == 3
    assert join(f, "a") == (1006, 8)
    assert f.call("join", "b", "2", "16", LEASE_MS, 1) == [b"layout", b"1"]
