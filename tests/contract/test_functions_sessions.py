"""Functions of the store: sessions taken over, messages added for sessions of others, generations, unsubscribes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import cast

import pytest
import redis

from cluster.records import pack_arguments, unpack_answer
from tests.kit.redis_server import RedisServer
from tests.kit.store_functions import HEAD, Functions, body, execute, load_library, payload

SID, OTHER = b"s" * 16, b"o" * 16
JUMP = 28672


@pytest.fixture
def store_functions(store: RedisServer) -> Functions:
    client = store.client()
    load_library(client)
    functions = Functions(client)
    assert functions.call("generation", "history-1") == 1
    for member in ("a:1", "b:1"):
        assert functions.call("open", f"n:{member}") == b"0-0"
    return functions


def counters(functions: Functions, sid: bytes = SID) -> tuple[float, ...]:
    packed = cast(bytes, functions.client.hget(functions.key(b"s:" + sid), "c"))
    assert len(packed) == 64
    return struct.unpack("<dddddddd", packed)


def add(
    functions: Functions,
    node: str,
    count: int,
    *,
    sid: bytes = SID,
    birth: int = 1,
    limits: Sequence[int] = (1000, 1 << 23, 10_000),
    generation: int = 1,
    version: int = 0,
    number: int = 0,
) -> list[int | bytes]:
    """`count` messages 0, 1, ... for one session in one call."""
    bodies = [body(str(number)) for number in range(count)]
    items = [part for number in range(count) for part in (number + 1, HEAD, 0)]
    sessions = [[sid, birth, *items]]
    return functions.enqueue(
        node, bodies, sessions, limits=limits, generation=generation, version=version, number=number
    )


def test_attach_names_the_owner_unless_forced(store_functions: Functions) -> None:
    f = store_functions
    assert f.attach(SID, "a")[:3] == [0, 0, 1]
    before = f.client.hgetall(f.key(b"s:" + SID))
    assert f.attach(SID, "b") == [3, b"a:1"]
    assert f.attach(SID, "b", clean=1, will=b"will") == [3, b"a:1"]
    assert f.client.hgetall(f.key(b"s:" + SID)) == before
    assert f.client.smembers(f.key("own:a:1")) == {SID}
    assert f.client.exists(f.key(b"will:" + SID)) == 0

    # Nor if it is another one than that which was asked to let it go.
    assert f.attach(SID, "b", force="c:1") == [3, b"a:1"]
    assert f.attach(SID, "b", force="a:1")[:3] == [0, 1, 1]
    assert f.client.smembers(f.key("own:b:1")) == {SID}
    assert f.client.exists(f.key("own:a:1")) == 0
    # The token fences the first one.
    assert f.call("detach", SID, "token-a:1", 10, 0, 0) == [0, 0, 0]
    assert f.call("subscribe", SID, "token-a:1", "x", "record") == 0
    assert f.call("settle", pack_arguments([[SID, "token-a:1", 5, [1], [], []]])) == [1]
    # Its own owner takes it again without force, and so does anybody once it was left.
    assert f.attach(SID, "b")[:2] == [0, 1]
    assert f.call("detach", SID, "token-b:1", 10, 0, 0) == [1, 0, 0]
    assert f.attach(SID, "a")[:2] == [0, 1]


def test_a_dead_owner_is_not_asked(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    # The same node again, as a newer process; not the other way round.
    assert f.attach(SID, "a", inc=2)[:2] == [0, 1]
    assert f.attach(SID, "a", inc=1) == [3, b"a:2"]
    # An owner that is fenced here, but has not lost all it had yet.
    assert f.attach(OTHER, "a", inc=2)[:2] == [0, 0]
    assert f.call("reap", "a", 2, 0, 0, 164, 0) == 2
    assert f.attach(SID, "b")[:2] == [0, 1]
    assert f.attach(SID, "a", inc=2) == [1]


def test_a_full_store_takes_over(store_functions: Functions) -> None:
    f = store_functions
    assert f.attach(SID, "a", name="attach_full") == [2]
    f.attach(SID, "a")
    f.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            f.attach(OTHER, "a")
        assert f.attach(SID, "b", name="attach_full") == [3, b"a:1"]
        assert f.attach(SID, "b", name="attach_full", force="a:1")[:2] == [0, 1]
        assert f.call("generation", "history-2") == 2
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            add(f, "a", 1)
        assert f.call("reap", "b", 1, 0, 10, 164, 0) == 0
    finally:
        f.client.config_set("maxmemory", "0")


def test_what_others_own_goes_into_their_streams(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    f.attach(OTHER, "b")
    shared = body("x" * 100)
    sessions = [[SID, 1, 1, HEAD, 0, 2, HEAD, 0], [OTHER, 2, 1, HEAD, 0, 1, HEAD, -1]]
    assert f.enqueue("b", [shared, body("y")], sessions) == [1, 2, 1, 0]
    # The caller's own are told by the answer alone.
    assert f.entries("n:b:1") == []
    ((number, (bodies, listed, groups)),) = f.entries("n:a:1")
    assert (number, bodies, groups) == (b"0-1", [shared, body("y")], [])
    assert listed == [SID, 1, HEAD, 1, SID, 2, HEAD, 2]

    # One entry for all, bodies once, in the order of each session.
    f.enqueue("b", [shared], [[SID, 1, 1, HEAD, 0, 1, b"\1\4\0\0", -1, 1, HEAD, 0]])
    (_, (bodies, listed, _)) = f.entries("n:a:1")[1]
    assert bodies == [shared]
    assert listed == [SID, 3, HEAD, 1, SID, 0, b"\1\4\0\0", 1, SID, 4, HEAD, 1]
    assert len(cast("list[object]", f.call("page", SID, 1, 0, 100))) == 8

    # Nobody's: QoS 0 is gone, the rest waits.
    f.call("detach", SID, "token-a:1", 1000, 0, 0)
    assert f.enqueue("b", [shared], [[SID, 1, 1, HEAD, -1, 1, HEAD, 0]]) == [0, 5]
    assert len(f.entries("n:a:1")) == 2


def test_a_stream_that_is_gone_is_not_made_again(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    f.client.unlink(f.key("n:a:1"))
    assert add(f, "b", 2) == [1, 2]
    assert f.client.exists(f.key("n:a:1")) == 0


def test_a_long_stream_gets_no_bodies(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    for _ in range(1001):
        execute(f.client, "XADD", f.key("n:a:1"), "0-*", "b", b"\1\x93\x90\x90\x90")
    f.enqueue("b", [body("x")], [[SID, 1, 1, HEAD, 0, 1, HEAD, -1]])
    assert list(f.sent("a:1")) == [(SID, 1, None)]
    _, (bodies, _, _) = f.entries("n:a:1")[-1]
    assert bodies == []


def test_a_repeated_call_adds_nothing_anywhere(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    assert add(f, "b", 2) == [1, 2]
    assert add(f, "b", 2, number=1) == [1, 2]
    assert len(f.entries("n:a:1")) == 1
    assert counters(f)[1:3] == (2, 2)


def test_message_ids_that_were_served_go_nowhere_again(store_functions: Functions) -> None:
    """Its owner is only told to look: it may not have heard of the first one."""
    f = store_functions
    f.attach(SID, "a")
    assert f.enqueue("b", [body("x")], [[SID, 1, 1, HEAD, 1]], ids=[b"i" * 16]) == [1]
    assert f.enqueue("b", [body("x")], [[SID, 1, 1, HEAD, 1]], ids=[b"i" * 16]) == [0]
    assert [(sid, seq, found is None) for sid, seq, found in f.sent("a:1")] == [(SID, 1, False), (SID, 0, True)]
    assert counters(f)[1:3] == (1, 1)


def test_refused_targets(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    assert add(f, "b", 3, limits=(2, 1 << 20, 1)) == [1, 2, -1]
    assert add(f, "b", 2, birth=7) == [-2, -2]
    assert add(f, "b", 1, sid=OTHER) == [-2]
    assert [seq for _, seq, _ in f.sent("a:1")] == [1, 2]


@pytest.mark.parametrize("topic", ["t", "a/longer/topic/name/than/those/of/a/small/msgpack/string"])
def test_a_retained_message_comes_behind_no_newer_one_of_its_topic(store_functions: Functions, topic: str) -> None:
    f = store_functions
    f.attach(SID, "a")
    two_ids = b"\1\1\0\2" + bytes(8)  # the head with two subscription identifiers
    assert f.enqueue("b", [body("live", topic), body("x", "u")], [[SID, 1, 1, two_ids, 0, 2, HEAD, 0]]) == [1, 2]

    def retained(after: int) -> int | bytes:
        (answer,) = f.enqueue("a", [body("old", topic)], [[SID, 1, 1, HEAD, -2 - after]])
        return answer

    assert retained(0) == 0
    assert retained(1) == 3  # the live one was known when it was read: this one is newer
    assert retained(2) == 0  # there is a copy by now
    assert retained(3) == 4
    assert f.enqueue("a", [body("old", "v")], [[SID, 1, 1, HEAD, -2]]) == [5]


def test_unsubscribe_makes_older_matches_stale(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    f.call("subscribe", SID, "token-a:1", "x/#", "record", "y", "record")
    f.call("unsubscribe", SID, "token-a:1", "x/#")
    assert f.call("routes_done", SID, 7, "x/#", 1) == 1
    assert f.call("routes_wanted", SID) == [1, b"client", b"y", 1, b"record"]
    assert counters(f)[7] == 7
    assert add(f, "b", 2, version=6) == [-3, -3]
    assert f.enqueue("b", [body("x")], [[SID, 1, 1, HEAD, -1]], version=6) == [-3]
    assert f.entries("n:a:1") == []
    assert add(f, "b", 2, version=7) == [1, 2]
    # It never sinks, and 0 leaves it.
    f.call("routes_done", SID, 5, "y", 1)
    f.call("routes_done", SID, 0)
    assert counters(f)[7] == 7
    # All else that changes the counters keeps it.
    f.call("settle", pack_arguments([[SID, "token-a:1", 2, [1], [2], []]]))
    f.call("detach", SID, "token-a:1", 1000, 2, 0)
    f.attach(SID, "b")
    assert counters(f)[7] == 7
    # Of a session that is gone it is as good.
    assert f.call("routes_done", OTHER, 9) == 0
    assert f.client.exists(f.key(b"s:" + OTHER)) == 0


def test_generations(store_functions: Functions) -> None:
    f = store_functions
    assert f.call("generation", "history-1") == 1
    assert f.call("generation", "history-2") == 2
    assert f.call("generation", "history-2") == 2
    assert f.call("generation", "history-1") == 3


def test_another_generation_skips_packet_ids(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    assert add(f, "b", 3) == [1, 2, 3]
    f.call("settle", pack_arguments([[SID, "token-a:1", 2, [1], [], []]]))
    assert add(f, "b", 2, generation=2) == [4 + JUMP, 5 + JUMP]
    assert counters(f) == (1, 5 + JUMP, 4, counters(f)[3], 0, 2, 2, 0)
    # A call of before comes late: nothing jumps twice, which would be once around.
    assert add(f, "a", 1, generation=1) == [6 + JUMP]
    assert [seq for _, seq, _ in f.sent("a:1")] == [1, 2, 3, 4 + JUMP, 5 + JUMP]

    # Pages go over the gap, in order.
    page = cast("list[int | bytes]", f.call("page", SID, 1, 0, 100))
    assert page[::2] == [2, 3, 4 + JUMP, 5 + JUMP, 6 + JUMP]
    page = cast("list[int | bytes]", f.call("page", SID, 1, 3, 1))
    assert page[::2] == [4 + JUMP]
    assert payload(cast(bytes, page[1])[4:]) == "0"

    # Attach finds the lowest, and who may have sent what over the gap: here two messages.
    answer = f.attach(SID, "b", margin=2, force="a:1", generation=2)
    assert answer[:6] == [0, 1, 1, 6 + JUMP, 2, 4 + JUMP]


@pytest.mark.parametrize("waiting", [0, 3])
def test_attach_in_another_generation(store_functions: Functions, waiting: int) -> None:
    f = store_functions
    f.attach(SID, "a")
    add(f, "b", 3)
    if not waiting:
        f.call("settle", pack_arguments([[SID, "token-a:1", 3, [1, 2, 3], [], []]]))
    f.call("routes_done", SID, 9)
    f.call("detach", SID, "token-a:1", 1000, 1, 0)
    answer = f.attach(SID, "b", generation=2)
    assert answer[:4] == [0, 1, 1, 3 + JUMP]
    # What it said of how far it came may be lost.
    assert answer[4:6] == [1, 3] if waiting else [4 + JUMP, 3]
    assert f.attach(SID, "b", generation=2)[3] == 3 + JUMP
    assert counters(f)[6:] == (2, 0)
    assert add(f, "a", 1, generation=2) == [4 + JUMP]


def test_reap_frees_sessions_and_defers_wills(store_functions: Functions) -> None:
    f = store_functions
    never, ephemeral = b"n" * 16, b"e" * 16
    f.attach(SID, "a", will=b"will", delay=0)
    f.attach(never, "a", expiry=4294967295)
    f.attach(ephemeral, "a", expiry=0, will=b"late", delay=100)
    f.attach(OTHER, "b")
    add(f, "b", 5)
    start = f.now_ms()
    assert f.call("reap", "a", 1, 10_000, 2, 3, 0) == 1
    assert f.call("reap", "a", 1, 10_000, 2, 3, 0) == 0
    assert f.client.exists(f.key("n:a:1"), f.key("own:a:1"), f.key(b"s:" + ephemeral)) == 0
    assert f.client.hmget(f.key(b"s:" + SID), "token", "owner") == [None, None]
    assert counters(f)[5] == 3
    timers = dict(cast("list[tuple[bytes, float]]", f.client.zrange(f.key("t"), 0, -1, withscores=True)))
    assert set(timers) == {b"w" + SID, b"w" + ephemeral, b"e" + SID}
    assert all(10_000 <= timers[b"w" + sid] - start < 20_000 for sid in (SID, ephemeral))
    # Its calls are refused, its stream stays away, others go on.
    assert f.lane("enqueue", "a", 9, 9999, 9, 1, 0, pack_arguments(([], [], [], [])))[0] == 3
    assert f.call("open", "n:a:1") is None
    assert f.call("open", "n:a:2") == b"0-0"
    assert add(f, "b", 1, sid=OTHER, birth=4) == [1]
    assert f.call("reap", "a", 1, 10_000, 2, 3, 0) == 0


def test_reap_lets_no_reconnect_cancel_wills(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a", will=b"at once")
    f.attach(OTHER, "a", will=b"delayed", delay=50)
    assert f.call("reap", "a", 1, 0, 100, 164, 1) == 0
    f.attach(SID, "b")
    f.attach(OTHER, "b")
    found = cast("list[list[bytes]]", f.call("due", 100))
    assert [(item[0], item[2]) for item in found] == [(b"x", b"at once")]


@pytest.mark.parametrize(
    ("expiry", "delay", "clean", "due"),
    [(60, 0, 0, True), (0, 0, 0, True), (0, 5, 0, True), (60, 5, 0, False), (60, 5, 1, True), (60, 0, 1, True)],
)
def test_robbing_a_live_owner_is_the_end_of_a_connection(
    store_functions: Functions, expiry: int, delay: int, clean: int, due: bool
) -> None:
    """Its will is due where the session ends, or where it has no delay."""
    f = store_functions
    f.attach(SID, "a", expiry=expiry, will=b"bye", delay=delay)
    assert f.attach(SID, "b", clean=clean) == [3, b"a:1"]
    assert f.call("due", 100) == []
    assert f.attach(SID, "b", clean=clean, force="a:1", will_after="0", will=b"newer", delay=7)[0] == 0
    found = cast("list[list[bytes]]", f.call("due", 100))
    assert [(item[0], item[2]) for item in found] == [(b"x", b"bye")] * due
    assert f.client.hgetall(f.key(b"will:" + SID)) == {b"m": b"newer", b"d": b"7"}
    # The old connection's end adds none.
    assert f.call("detach", SID, "token-a:1", expiry, 0, 1) == [0, 0, 0]


def test_one_call_reaches_a_hundred_sessions(store_functions: Functions) -> None:
    f = store_functions
    sids = [struct.pack(">QQ", 1, number) for number in range(100)]
    for number, sid in enumerate(sids):
        f.attach(sid, "ab"[number % 2])
    one = body("x")
    answer = f.enqueue("a", [one], [[sid, number + 1, 1, HEAD, 0] for number, sid in enumerate(sids)])
    assert answer == [1] * 100
    assert list(f.sent("b:1")) == [(sid, 1, one) for sid in sids[1::2]]


def test_outcome_of_a_call(store_functions: Functions) -> None:
    f = store_functions
    f.attach(SID, "a")
    add(f, "b", 1)
    answer = cast("list[object]", f.call("outcome", "b", 1, f.now_ms() + 5000, 1))
    assert (answer[0], unpack_answer(cast(bytes, answer[1]))) == (0, [1])
    assert f.call("outcome", "b", 1, f.now_ms() + 5000, 2) == [4, b""]
    assert f.call("outcome", "b", 1, f.now_ms() + 5000, 4) == [1, b"1"]
    assert cast("list[object]", f.call("outcome", "b", 1, f.now_ms() - 1, 2))[0] == 2


@pytest.mark.parametrize(
    ("clean", "delay", "after", "fired"),
    [(0, 0, "0", True), (0, 5, "0", False), (1, 5, "0", True), (1, 0, "", False), (0, 0, "60000", False)],
)
def test_the_will_of_an_owner_that_was_robbed(
    store_functions: Functions, clean: int, delay: int, after: str, fired: bool
) -> None:
    """Due where its connection is what ended, and not cancelled [MQTT-3.1.3-9]; or after the time that is given."""
    f = store_functions
    f.attach(SID, "a", will=b"will of a", delay=delay)
    f.attach(SID, "b", clean=clean, force="a:1", will=b"will of b", will_after=after)
    found = cast("list[list[bytes]]", f.call("due", 100))
    assert [item[2] for item in found] == ([b"will of a"] if fired else [])
    assert f.client.hget(f.key(b"will:" + SID), "m") == b"will of b"
    assert len(f.client.hkeys(f.key("wx"))) == (1 if fired or after == "60000" else 0)
