"""Functions of the store: what is given out and removed in one piece is what would be, entry by entry."""

from __future__ import annotations

import random
from typing import cast

import msgpack
import pytest

from tests.contract.test_functions_groups import BY_ROOM, GID, World, numbers
from tests.kit.redis_server import RedisServer
from tests.kit.store_functions import Functions, body, load_library


@pytest.fixture
def functions(store: RedisServer) -> Functions:
    client = store.client()
    load_library(client)
    return Functions(client)


@pytest.mark.parametrize("strategy", BY_ROOM)
def test_one_call_or_many_leave_the_same(functions: Functions, strategy: str) -> None:
    """With one node all that fits is given at once: as if it came one by one."""
    states, held = [], []
    for calls in ([numbers(0, 12)], [[text] for text in numbers(0, 12)], [numbers(0, 7), numbers(7, 12)]):
        f = Functions(functions.client)
        w = World(f, strategy, "a")
        w.members("a", 5, 9, 4, 2)
        for texts in calls:
            w.add("a", texts)
        w.check()
        held.append(w.texts("a"))
        state = msgpack.unpackb(cast(bytes, f.client.get(f.key(b"gn:" + GID))), raw=True)
        assert state[1] == w.ids("a")[-1]
        states.append([state[0], *state[2:]])
    assert held == [numbers(0, 12)] * 3
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("strategy", BY_ROOM)
def test_what_fits_only_in_part_waits(functions: Functions, strategy: str) -> None:
    w = World(functions, strategy, "a")
    w.members("a", 3, 2)
    w.add("a", numbers(0, 4))
    w.add("a", numbers(4, 8))
    w.check()
    assert w.texts("a") == numbers(0, 5)
    w.settle("a", w.ids("a")[1:4])
    assert w.texts("a") == ["0", *numbers(4, 8)]
    w.check()


@pytest.mark.parametrize("seed", range(8))
def test_only_what_is_acknowledged_leaves_the_queue(functions: Functions, seed: int) -> None:
    """Ids of one call differ in length: `-9` and `-10` behind the same millisecond."""
    rng, queue = random.Random(seed), functions.key(b"g:" + GID)
    w = World(functions, members="ab" if seed % 2 else "a")
    w.members("a", 200)
    if seed % 2:
        w.members("b", 100)
    added = 0
    for _ in range(12):
        count = rng.randrange(40)
        w.add("a", numbers(added, added + count))
        added += count
        for name in w.held:
            ids = w.ids(name)
            done = ids[: rng.randrange(len(ids) + 1)]
            if rng.random() < 0.5:
                done = rng.sample(ids, rng.randrange(len(ids) + 1))
            returned = [each for each in ids if each not in done and rng.random() < 0.1]
            w.settle(name, done, returned)
            there = {entry for entry, _ in cast("list[tuple[bytes, object]]", functions.client.xrange(queue))}
            held = {entry for each in w.held.values() for entry in each}
            assert held <= there
            assert not there & set(done)
    w.check()
    while any(w.held.values()):
        for name in w.held:
            w.settle(name, w.ids(name))
    assert functions.client.xlen(queue) == 0


def test_entries_come_by_the_stream_while_the_member_holds_one_that_came_so(functions: Functions) -> None:
    """G4: what comes with an answer would overtake what another node gave before."""
    w = World(functions)
    w.members("a", 1000)
    w.add("b", ["0"])  # by the stream: the publisher is another node
    w.take("a", functions.given("a:1"))
    entry, _, _ = functions.enqueue("a", [body("1")], groups=[(GID, 1, 0)])
    assert entry == b""
    given = functions.given("a:1")
    assert [text for *_, text in given] == ["1"]
    w.take("a", given)
    w.settle("a", w.ids("a"))
    entry, _, _ = functions.enqueue("a", [body("2")], groups=[(GID, 1, 0)])
    assert entry
    assert not functions.given("a:1")
