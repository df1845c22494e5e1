"""Functions of the store: what operators look at, a bounded part at a time."""

from __future__ import annotations

import random
from typing import cast

import pytest

from tests.contract.test_functions_groups import World
from tests.kit.redis_server import RedisServer
from tests.kit.store_functions import Functions, execute, load_library

GID = b"g" * 16

Timer = tuple[int, bytes]


@pytest.fixture
def functions(store: RedisServer) -> Functions:
    client = store.client()
    load_library(client)
    return Functions(client)


def fill(f: Functions, timers: list[Timer]) -> list[Timer]:
    """Sets timers; returns the delayed messages among them in their order."""
    delayed = [(due, member[1:]) for due, member in timers if member[:1] == b"d"]
    f.client.zadd(f.key("t"), {member: due for due, member in timers})
    f.client.hset(f.key("dly"), mapping=dict.fromkeys((name for _, name in delayed), b""))
    return sorted(delayed)


def part(f: Functions, due: int, after: bytes, limit: int) -> tuple[Timer, list[Timer]]:
    """Where to go on (behind nothing: these are all), and what was found."""
    answer = cast("list[int | bytes]", f.call("delayed_part", due, after, limit))
    pairs = cast("list[Timer]", list(zip(answer[::2], answer[1::2], strict=True)))
    return (pairs[0][0] or 0, pairs[0][1]), pairs[1:]


def everything(f: Functions, due: int, after: bytes, limit: int) -> list[Timer]:
    found: list[Timer] = []
    while True:
        (due, after), more = part(f, due, after, limit)
        assert len(more) <= limit
        found += more
        if after == b"":
            return found


def test_delayed_messages_in_parts(functions: Functions) -> None:
    """Some at a time among many other timers, many of them of one time; from any place, be anything there or not."""
    f = functions
    chance = random.Random(5)
    dues = [chance.choice((1000, 1000 + number, 1500)) for number in range(6000)]
    timers = [(due, chance.choice((b"d", b"e", b"w", b"x")) + chance.randbytes(16)) for due in dues]
    wanted = fill(f, timers)
    assert everything(f, 0, b"", 7) == everything(f, 0, b"", 1000) == wanted
    for due, name in [*chance.sample(wanted, 30), (1000, b""), (1500, b"\xff" * 17), (900, b"\0"), (9000, b"z")]:
        behind = [each for each in wanted if each > (due, name)]
        assert everything(f, due, b"d" + name, 300) == behind
        assert everything(f, due, b"", 300) == [each for each in wanted if each[0] >= due]
    # Behind a timer that is gone.
    f.client.zrem(f.key("t"), b"d" + wanted[700][1])
    assert everything(f, wanted[700][0], b"d" + wanted[700][1], 100) == wanted[701:]


def test_few_delayed_messages_among_many_timers(functions: Functions) -> None:
    f = functions
    chance = random.Random(6)
    wanted = fill(
        f,
        [
            *((1000 + number, b"e" + chance.randbytes(16)) for number in range(20_000)),
            *((50_000 + number, b"d" + chance.randbytes(16)) for number in range(300)),
        ],
    )
    end, found = part(f, 0, b"", 1)
    assert end == (0, b"")
    assert sorted(found) == wanted
    assert sorted(part(f, 50_250, b"d", 1)[1]) == wanted[250:]
    f.client.hset(f.key("dly"), b"gone", b"")
    assert part(f, 0, b"", 10)[1] == []
    assert everything(f, 0, b"", 10) == wanted


def test_no_part_holds_the_store_up(functions: Functions) -> None:
    """Thousands of delayed messages behind ten thousands of other timers."""
    f = functions
    chance = random.Random(7)
    wanted = fill(
        f,
        [
            *((1000 + number % 50, b"e" + chance.randbytes(16)) for number in range(20_000)),
            *((2000, b"d" + chance.randbytes(16)) for number in range(5000)),
        ],
    )
    execute(f.client, "CONFIG", "RESETSTAT")
    assert everything(f, 0, b"", 500) == wanted
    stats = cast("dict[str, dict[str, float]]", f.client.info("commandstats"))
    looked = stats["cmdstat_fcall"]["calls"]
    assert 25_000 / 300 <= looked < 25_000 / 300 + 3


def test_the_beginnings_of_names(functions: Functions) -> None:
    f = functions
    f.client.hset(f.key("gt"), mapping={b"a": b"$share/x", b"b": b"y" * 1000})
    assert f.call("group_names", 10, b"a", b"c", b"b") == [b"$share/x", b"", b"y" * 10]


def test_states_of_groups_are_told_until_they_are_too_large(functions: Functions) -> None:
    world = World(functions)
    f = functions
    world.members("a", 2, 3, persistent=1)
    world.members("b", 1)
    world.add("a", [str(number) for number in range(8)])
    ((name, strategy, length, oldest, sessions, members),) = cast("list[list[object]]", f.call("group_states", GID))
    assert (name, strategy, length, sessions) == (b"", b"round_robin", 8, 3)
    assert oldest == cast("list[list[bytes]]", f.client.xrange(f.key(b"g:" + GID), count=1))[0][0]
    assert sorted(zip(*[iter(cast("list[object]", members))] * 3, strict=True)) == [(b"a:1", 5, 2), (b"b:1", 1, 1)]
    assert f.call("group_states", b"n" * 16, GID, b"m" * 16)[::2] == [[], []]  # type: ignore[index]
    f.client.hset(f.key("gt"), GID, b"x" * 100_000)
    assert len(cast("list[object]", f.call("group_states", *[GID] * 10))) == 3
