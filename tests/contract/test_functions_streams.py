"""Functions of the store: in-streams of nodes, the route table with its log, names of retained messages, timers."""

from __future__ import annotations

import struct
from typing import cast

import msgpack
import pytest
import redis

from cluster.records import pack_arguments, unpack_answer
from tests.kit.redis_server import RedisServer
from tests.kit.store_functions import Functions, execute, load_library

SID = b"s" * 16
MID = b"i" * 16


@pytest.fixture
def functions(store: RedisServer) -> Functions:
    client = store.client()
    load_library(client)
    return Functions(client)


def log(f: Functions, key: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return cast("list[tuple[bytes, dict[bytes, bytes]]]", f.client.xrange(f.key(key)))


def record(birth: int, text: bytes = b"") -> bytes:
    return b"\1" + struct.pack(">Q", birth) + text


def test_a_stream_begins_with_its_first_entry(functions: Functions) -> None:
    f = functions
    assert f.call("open", "in") == b"0-0"
    assert f.call("open", "in") == b"0-0"
    assert f.lane("push", "a", "one") == [0, b"1 3"]
    assert f.lane("push", "b", "three") == [0, b"2 8"]
    assert log(f, "in") == [(b"0-1", {b"b": b"one", b"n": b"3"}), (b"0-2", {b"b": b"three", b"n": b"8"})]
    assert f.call("open", "in") == b"0-2"
    assert f.call("trim", "0-2") == 1
    assert f.lane("push", "b", "four") == [0, b"2 9"]
    assert f.call("trim", "0-4") == 0
    assert f.lane("push", "a", "x") == [0, b"1 1"]
    assert log(f, "in")[0][0] == b"0-4"


def test_the_bytes_of_a_stream_are_what_is_in_it(functions: Functions) -> None:
    """However much of it a reader lost count of, and however often it trims."""
    f = functions
    f.call("open", "in")
    for number in range(1, 9):
        f.lane("push", "a", "x" * number)
    for before, left, size in ((1, 8, 36), (4, 5, 30), (4, 5, 30), (3, 5, 30), (8, 1, 8), (9, 0, 0), (9, 0, 0)):
        assert f.call("trim", f"0-{before}") == left
        assert f.client.hget(f.key("fence"), "bytes") == b"%d" % size
    assert f.lane("push", "a", "xyz") == [0, b"1 3"]
    assert f.lane("push", "b", "xy") == [0, b"2 5"]
    assert f.call("trim", "0-10") == 1
    assert f.lane("push", "b", "x") == [0, b"2 3"]


def test_a_repeated_push_adds_nothing(functions: Functions) -> None:
    f = functions
    f.call("open", "in")
    assert f.lane("push", "a", "one", number=1) == [0, b"1 3"]
    assert f.lane("push", "a", "one", number=1) == [0, b"1 3"]
    assert f.lane("push", "a", "one", number=3) == [1, b"1"]
    assert len(log(f, "in")) == 1


def test_a_stream_that_is_not_there(functions: Functions) -> None:
    f = functions
    assert f.lane("push", "a", "x", number=5) == [0, b"-1"]
    f.call("open", "in")
    f.lane("push", "a", "x", number=1)
    assert f.call("close") == 2
    assert f.lane("push", "a", "x", number=2) == [0, b"-1"]
    assert f.call("trim", "0-2") == 0
    assert f.client.keys(f.key("*")) == []


def test_a_full_stream_is_busy(functions: Functions) -> None:
    f = functions
    f.call("open", "in")
    big = b"x" * (1 << 20)
    for count in range(64):
        assert f.lane("push", "a", big) == [0, b"%d %d" % (count + 1, (count + 1) << 20)]
    assert f.lane("push", "a", "x", number=65) == [5, b"64 67108864"]
    assert f.call("trim", "0-2") == 63
    assert f.lane("push", "a", "x", number=65)[0] == 0
    f.client.unlink(f.key("fence"))
    f.call("trim", "1-0")
    script = "for _ = 1, 20000 do redis.call('XADD', KEYS[1], '0-*', 'b', 'x') end"
    execute(f.client, "EVAL", script, 1, f.key("in"))
    assert f.lane("push", "b", "x") == [5, b"20000 0"]


def test_routes_are_logged(functions: Functions) -> None:
    f = functions
    session, node = b"s" + SID + b"a/#", b"na:1\0a/#"
    assert f.lane("set_routes", "a", "tag00001", session, record(3), node, b"\1") == [0, b"1:tag00001"]
    assert f.client.get(f.key("ver")) == b"1:tag00001"
    ((number, fields),) = log(f, "log")
    assert (number, fields[b"t"], fields[b"o"]) == (b"0-1", b"tag00001", b"a:1")
    assert unpack_answer(fields[b"c"]) == [1, session, record(3), 1, node, b"\1"]
    assert f.client.smembers(f.key("nr:a:1")) == {node}

    # An older session neither takes the place of a younger one nor removes it.
    assert f.lane("set_routes", "b", "tag00002", session, record(2, b"old")) == [0, b"2:tag00002"]
    assert f.lane("remove_routes", "b", "tag00003", session, struct.pack(">Q", 2)) == [0, b"3:tag00003"]
    assert [unpack_answer(entry[b"c"]) for _, entry in log(f, "log")[1:]] == [[], []]
    assert f.client.hget(f.key("f"), session) == record(3)
    f.lane("set_routes", "b", "tag00004", session, record(3, b"new"))
    assert f.client.hget(f.key("f"), session) == record(3, b"new")

    birth = struct.pack(">Q", 3)
    assert f.lane("remove_routes", "a", "tag00005", session, birth, node, b"", b"s" + SID + b"x", birth)[0] == 0
    number, fields = log(f, "log")[-1]
    assert number == b"0-5"
    assert unpack_answer(fields[b"c"]) == [0, session, birth, 0, node, b""]
    assert f.client.exists(f.key("f"), f.key("nr:a:1")) == 0


def test_a_repeated_change_of_routes_is_one(functions: Functions) -> None:
    f = functions
    for _ in range(2):
        assert f.lane("set_routes", "a", "tag00001", b"na:1\0x", b"\1", number=1) == [0, b"1:tag00001"]
    assert len(log(f, "log")) == 1


def test_node_routes_of_the_dead_are_removed(functions: Functions) -> None:
    f = functions
    mine = [part for number in range(5) for part in (b"na:1\0f/%d" % number, b"\1")]
    f.lane("set_routes", "a", "tag00001", b"s" + SID + b"x", record(1), *mine)
    f.lane("set_routes", "a", "tag00002", b"na:2\0x", b"\1", inc=2)
    f.lane("set_routes", "b", "tag00001", b"nb:1\0f/1", b"\1")
    assert f.call("reap_routes", "a", 1, 3) == 2
    assert f.call("reap_routes", "a", 1, 3) == 0
    assert f.call("reap_routes", "a", 1, 3) == 0
    assert set(f.client.hkeys(f.key("f"))) == {b"s" + SID + b"x", b"na:2\0x", b"nb:1\0f/1"}
    entries = log(f, "log")
    assert [number for number, _ in entries] == [b"0-%d" % number for number in range(1, 6)]
    assert all(fields[b"o"] == b"" and len(fields[b"t"]) == 8 for _, fields in entries[3:])
    removed = unpack_answer(entries[3][1][b"c"]) + unpack_answer(entries[4][1][b"c"])
    assert set(removed[1::3]) == set(mine[::2])
    assert set(removed[::3]) == {0}
    assert f.client.get(f.key("ver")) == b"5:" + entries[4][1][b"t"]
    assert f.lane("set_routes", "a", "tag", b"na:1\0x", b"\1")[0] == 3


def test_retained_names_are_logged(functions: Functions) -> None:
    f = functions

    def changes() -> list[list[object]]:
        found = log(f, "rlog")
        assert [number for number, _ in found] == [b"0-%d" % (place + 1) for place in range(len(found))]
        assert f.client.get(f.key("rver")) in (None if not found else b"%d" % len(found), None)
        return [cast("list[object]", unpack_answer(fields[b"c"])) for _, fields in found]

    assert changes() == []
    assert f.lane("retain", "a", "x", "1", "y", "1") == [0, b""]
    assert changes() == [[1, b"x", 1, b"y"]]
    # A new value of a name that is there is none of its business.
    f.lane("retain", "b", "x", "2")
    f.lane("unretain", "b", "z")
    assert len(changes()) == 1
    f.lane("retain", "b", "x", "3", "z", "1")
    f.lane("unretain", "a", "y", "nothing")
    assert changes()[1:] == [[1, b"z"], [0, b"y"]]
    assert f.call("expire_retained", "x", "2") == 0
    assert f.call("expire_retained", "x", "3") == 1
    assert f.call("expire_retained", "x", "3") == 1
    assert changes()[3:] == [[0, b"x"]]
    assert f.client.hgetall(f.key("ret")) == {b"z": b"1"}
    # Elsewhere than in a partition, the dead are only fenced.
    assert f.call("reap", "a", 1, 0, 200, 164, 0) == 0
    assert f.lane("retain", "a", "x", "4")[0] == 3


def test_delayed_messages(functions: Functions) -> None:
    f = functions

    def delay(*items: tuple[bytes, int, bytes]) -> list[object]:
        return f.lane("delay", "a", 3, pack_arguments(items))

    now = f.now_ms()
    assert delay((MID, -1, b"late"), (b"j" * 16, 1_000_000, b"early")) == [0, b"11"]
    # One that comes again stays as it is; so many there are, and no more.
    assert delay((b"j" * 16, -5, b"again"), (b"k" * 16, 0, b"third"), (b"l" * 16, 0, b"x")) == [0, b"110"]
    found = cast("list[list[bytes]]", f.call("due", 100))
    assert found == [[b"d", MID, b"late"], [b"d", b"k" * 16, b"third"]]
    # Somebody is at them for a while; then they come again, unless they are done.
    assert f.call("due", 100) == []
    f.client.zadd(f.key("t"), {b"d" + MID: now - 1})
    assert f.call("due", 100) == [[b"d", MID, b"late"]]
    assert f.call("done", b"d" + MID, b"d" + b"k" * 16) == 2
    assert f.call("done", b"d" + MID) == 0
    assert f.client.hkeys(f.key("dly")) == [b"j" * 16]
    assert delay((MID, 0, b"x"))[0] == 0


def test_large_delayed_messages_come_by_and_by(functions: Functions) -> None:
    f = functions
    items = [(b"%16d" % number, 0, b"x" * 400_000) for number in range(6)]
    f.lane("delay", "a", 9, pack_arguments(items))
    first = cast("list[list[bytes]]", f.call("due", 100))
    rest = cast("list[list[bytes]]", f.call("due", 100))
    assert (len(first), len(rest)) == (3, 3)
    assert {item[1] for item in first + rest} == {item[0] for item in items}


def test_a_full_store_frees(functions: Functions) -> None:
    f = functions
    f.call("open", "in")
    f.lane("push", "a", "x")
    f.lane("set_routes", "a", "tag00001", b"na:1\0x", b"\1", b"na:1\0y", b"\1")
    f.lane("delay", "b", 3, pack_arguments([(MID, 1, b"late")]))
    f.client.config_set("maxmemory", "1")
    try:
        for name, arguments in (
            ("push", ("x",)),
            ("set_routes", ("tag", b"na:1\0z", b"\1")),
            ("retain", ("x", "1")),
            ("delay", (3, pack_arguments([(MID, 1, b"late")]))),
        ):
            with pytest.raises(redis.ResponseError, match="maxmemory"):
                f.lane(name, "c", *arguments)
        assert f.call("trim", "0-2") == 0
        assert f.lane("remove_routes", "a", "tag00002", b"na:1\0x", b"")[0] == 0
        assert f.call("reap_routes", "a", 1, 9) == 0
        assert f.lane("unretain", "d", "x") == [0, b""]
        assert f.call("due", 9) == [[b"d", MID, b"late"]]
        assert f.call("done", b"d" + MID) == 1
        assert f.call("open", "n:z:1") == b"0-0"
        assert f.call("close") == 2
    finally:
        f.client.config_set("maxmemory", "0")


def _fields(reply: object) -> dict[bytes, object]:
    """A reply of either protocol version."""
    if isinstance(reply, dict):
        return reply
    flat = cast("list[object]", reply)
    return dict(zip(cast("list[bytes]", flat[::2]), flat[1::2], strict=True))


def test_flags(functions: Functions) -> None:
    """Adding functions may not run in a full store, reading ones may run anywhere, and nothing else is there."""
    (library,) = cast("list[object]", execute(functions.client, "FUNCTION", "LIST"))
    found = {}
    for entry in cast("list[object]", _fields(library)[b"functions"]):
        fields = _fields(entry)
        found[cast(bytes, fields[b"name"]).decode().removeprefix("rk1_")] = list(cast("list[bytes]", fields[b"flags"]))
    adding = {"attach", "attach_as", "subscribe", "enqueue", "push", "retain", "set_routes", "delay"}
    adding |= {"change_documents", "create_document", "count", "draw", "attach_numbered", "change_subscriptions"}
    reading = {"outcome", "routes_wanted", "page", "unseen", "group_held", "group_info", "verify"}
    reading |= {"session_states", "group_states", "group_names", "delayed_part"}
    assert {name for name, flags in found.items() if not flags} == adding
    assert {name for name, flags in found.items() if flags == [b"no-writes"]} == reading
    rest = {name for name, flags in found.items() if flags == [b"allow-oom"]}
    assert rest == {
        *(
            "generation",
            "attach_full",
            "attach_as_full",
            "attach_numbered_full",
            "detach",
            "unsubscribe",
            "routes_done",
            "reap",
            "settle",
            "reserve",
        ),
        *("open", "trim", "close", "disown", "unretain", "expire_retained", "remove_routes", "reap_routes"),
        *("join", "beat", "leave", "buried", "due", "expire", "done"),
        *("group_join", "group_leave", "group_members", "group_settle"),
        *("remove_documents", "occupy", "vacate", "recount", "unplace"),
        *("layout_begin", "layout_fence", "layout_keep", "layout_finish", "layout_release"),
        *("end_session", "remove_subscriptions", "cancel_delayed", "forget_sessions"),
    }


def test_names_with_any_bytes(functions: Functions) -> None:
    """A filter may hold zero bytes and line ends: what a field belongs to is found all the same."""
    f = functions
    field = b"nno-de.1:7\0x/\0/\n/%s"
    f.lane("set_routes", "a", "tag00001", field, b"\1")
    assert f.client.smembers(f.key("nr:no-de.1:7")) == {field}
    assert unpack_answer(log(f, "log")[0][1][b"c"])[1] == field
    assert msgpack.unpackb(log(f, "log")[0][1][b"c"], raw=True)[1] == field
