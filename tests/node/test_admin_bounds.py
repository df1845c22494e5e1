"""Answers to operators are bounded in bytes, whatever clients chose for ids, filters, topics and payloads; nothing is
left out: it comes in more parts. What is large is read from the store little at a time, and not by many at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from broker.admin import asking
from broker.admin.api import AdminError
from broker.admin.asking import ANSWER, ANSWER_BYTES, ASK, MUTE_S, OPEN_MAX, Asking
from broker.admin.office import Office
from broker.admin.paging import PAGE_BYTES, PART_BYTES, Key, Part, Smallest, cut, merged, part_bytes
from broker.admin.questions import LOOKS, QUESTIONS
from broker.admin.reading import ANSWER_BYTES as READ_FOR_AN_ANSWER
from broker.admin.turns import ANSWERING, LOOKING, READERS, WAIT_S, Turns
from broker.codec.packets import Publish, Subscribe, SubscriptionRequest
from broker.message import Message
from broker.session.quotas import Quotas
from tests.node.admin_kit import Desk, desk

LONG = 60_000
ROOMY = Quotas(max_topic_bytes=65535, max_packet_size=8 * 1024 * 1024, max_packet_size_before_auth=8 * 1024 * 1024)


def _size(value: object) -> int:
    return len(msgspec.json.encode(value))


async def _parts(ask: Desk, operation: str, one: int, **arguments: Any) -> list[Any]:
    """All items; no part is larger than a page and one item of `one` bytes."""
    found: list[Any] = []
    cursor = ""
    for _ in range(1000):
        part = await ask(operation, cursor=cursor, **arguments)
        assert part["items"] or part["cursor"] is None, "parts that bring nothing"
        assert _size(part["items"]) <= PAGE_BYTES + one
        found += part["items"]
        cursor = part["cursor"]
        if cursor is None:
            return found
        assert len(cursor) <= 200_000
    raise AssertionError("no end")


def test_the_first_of_many_large_ones() -> None:
    for seed in range(20):
        random.seed(seed)
        names = [f"{random.randrange(10_000):05}" + "x" * random.randrange(2000) for _ in range(500)]
        after: Key | None = None
        told: list[str] = []
        while True:
            found: Smallest[None] = Smallest(100, after, 10_000)
            for name in names:
                if found.wants((name,)):
                    found.put((name,), None)
            assert sum(len(key[0]) for key in found._found) <= 50_000
            part = found.part()
            assert sum(len(key[0]) for key, _ in part.items) <= 10_000
            told += [key[0] for key, _ in part.items]
            if part.until is None:
                break
            after = part.until
        assert told == sorted(set(names)), seed


async def test_one_that_is_too_large_comes_alone() -> None:
    part = Part([((name,), name * 50) for name in "abc"], None)
    short = await cut(part, 10)
    assert [key for key, _ in short.items] == [("a",)] and short.until == ("a",)
    assert await cut(part, 1000) is part
    items, until = merged([part], 3, None, 10)
    assert (len(items), until) == (1, ("a",))


def test_many_nodes_tell_less_each() -> None:
    assert [part_bytes(nodes) for nodes in (0, 1, 3, 8, 1000)] == [PART_BYTES] * 3 + [PAGE_BYTES // 8, 32 * 1024]


async def _large_filters(ask: Desk, expiry_s: int) -> list[str]:
    peer = await ask.world.connect("c" * 1000, expiry_s=expiry_s)
    filters = [f"{number:02}/" + '"' * LONG for number in range(40)]
    for number, topic_filter in enumerate(filters, 1):
        await peer.send(Subscribe(number, [SubscriptionRequest(topic_filter, 0)]))
        await ask.world.settle()
    await peer.received()
    return filters


@pytest.mark.parametrize("expiry_s", [0, 100])
async def test_long_filters_come_in_parts(autojump_clock: object, expiry_s: int) -> None:
    async with desk(ROOMY) as ask:
        filters = await _large_filters(ask, expiry_s)
        for operation, arguments in (
            ("subscriptions.list", {}),
            ("subscriptions.of_client", {"client_id": "c" * 1000}),
            ("topics.list", {}),
        ):
            found = await _parts(ask, operation, 4 * LONG, limit=1000, **arguments)
            assert [each["topic_filter"] for each in found] == filters, operation
        asked = {"filters": {"limit": 1000}, "stored_at": "a", "most_bytes": PART_BYTES}
        told = await ask.office.at("a", "subscriptions.page", asked)
        assert _size(told) <= 2 * PART_BYTES and told["until"]


async def test_long_client_ids_come_in_parts(autojump_clock: object) -> None:
    async with desk(ROOMY) as ask:
        names = [f"{number:02}" + "c" * LONG for number in range(40)]
        for number, name in enumerate(names):
            peer = await ask.world.subscriber(name, "t", expiry_s=100 * (number % 2))
            if number % 4 == 1:
                peer.socket.finish()
        await ask.world.settle()
        assert [each["client_id"] for each in await _parts(ask, "clients.list", LONG, limit=1000)] == names
        assert [each["client_id"] for each in await _parts(ask, "sessions.list", LONG, limit=1000)] == names[1::2]
        shown = await ask("topics.show", topic="t", limit=1000)
        assert shown["total"] == 40 and 0 < len(shown["items"]) < 40 and _size(shown) < 1.2 * PAGE_BYTES


async def test_long_topics_with_retained_messages_come_in_parts(autojump_clock: object) -> None:
    async with desk(ROOMY) as ask:
        topics = [f"r/{number:02}" + "t" * LONG for number in range(40)]
        for topic in topics:
            await ask("messages.publish", topic=topic, payload="x", retain=True, qos=1)
        for operation, arguments in (("retained.list", {}), ("retained.browse", {"prefix": "r"})):
            found = await _parts(ask, operation, 2 * LONG, limit=1000, **arguments)
            assert [each["topic"] for each in found] == topics, operation


# -- payloads


class Watch:
    """What is read of the store: bytes at a time, and reads at a time."""

    def __init__(self) -> None:
        self.largest = self.under_way = self.most = 0

    def around(self, read: Callable[..., Any], payload: Callable[[Any], int]) -> Callable[..., Any]:
        async def watched(*arguments: Any) -> Any:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                await trio.sleep(0.01)
                found = await read(*arguments)
            finally:
                self.under_way -= 1
            self.largest = max(self.largest, sum(map(payload, found)))
            return found

        return watched


async def test_large_payloads_are_read_little_at_a_time(autojump_clock: object) -> None:
    async with desk(ROOMY) as ask:
        watch = Watch()
        payload = "p" * 300_000
        away = await ask.world.subscriber("away", "q/#", expiry_s=100, qos=1)
        away.socket.finish()
        await ask.world.settle()
        for number in range(20):
            await ask("messages.publish", topic=f"r/{number:02}", payload=payload, retain=True, qos=1)
            await ask("messages.publish", topic=f"q/{number:02}", payload=payload, qos=1)
            await ask("messages.publish", topic=f"$delayed/{number + 100}/d/{number:02}", payload=payload, qos=1)
        cluster, inspection = cast(Any, ask.world.cluster), cast(Any, ask.office.inspection)
        cluster.retained_values = watch.around(cluster.retained_values, lambda each: len(each.payload))
        inspection.queue = watch.around(inspection.queue, lambda each: len(each.message.payload))
        inspection.delayed = watch.around(inspection.delayed, lambda each: len(each.message.payload))
        lists: list[tuple[str, dict[str, Any]]] = [
            ("retained.list", {"topic_filter": "r/+", "details": True}),
            ("sessions.messages", {"client_id": "away"}),
            ("delayed.list", {}),
        ]
        for operation, arguments in lists:
            found = await _parts(ask, operation, 1000, limit=100, **arguments)
            assert [each.get("message", each)["topic"][-2:] for each in found] == [
                f"{number:02}" for number in range(20)
            ]
            part = await ask(operation, limit=100, **arguments)
            assert len(part["items"]) <= READ_FOR_AN_ANSWER // 300_000 + 2
        assert watch.largest <= 2 * len(payload)
        watch.most = 0
        async with trio.open_nursery() as nursery:
            for operation, arguments in lists * 10:
                nursery.start_soon(lambda operation, arguments: ask(operation, **arguments), operation, arguments)
        assert watch.most == READERS


async def test_small_payloads_are_read_in_few_steps(autojump_clock: object) -> None:
    async with desk() as ask:
        for number in range(100):
            await ask("messages.publish", topic=f"r/{number:03}", payload="x", retain=True, qos=1)
        watch = Watch()
        cluster = cast(Any, ask.world.cluster)
        cluster.retained_values = watch.around(cluster.retained_values, lambda each: 1)
        found = await ask.all("retained.list", topic_filter="r/+", details=True)
        assert len(found) == 100 and watch.largest == 16


async def test_a_delayed_message_is_found_among_many(autojump_clock: object) -> None:
    async with desk() as ask:
        for number in range(30):
            await ask("messages.publish", topic=f"$delayed/100/d/{number}", payload="x")
        for each in await ask.all("delayed.list", limit=7):
            assert await ask("delayed.show", id=each["id"]) == each
            wrong = each["id"][:-2] + ("00" if each["id"][-2:] != "00" else "01")
            assert (await ask.refused("delayed.show", id=wrong))[0] == 404


async def test_a_turn_that_does_not_come(autojump_clock: object, nursery: trio.Nursery) -> None:
    turns = Turns(1)

    async def hang() -> None:
        async with turns.turn():
            await trio.sleep_forever()

    nursery.start_soon(hang)
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    with pytest.raises(AdminError) as caught:
        async with turns.turn():
            raise AssertionError("it came")
    assert caught.value.status == 503 and trio.current_time() == began + WAIT_S
    nursery.cancel_scope.cancel()


# -- nodes asking each other


class Nodes:
    """Nodes that have nothing but each other. A silent one hears nothing."""

    def __init__(self, nursery: trio.Nursery, *names: str) -> None:
        self.members = {f"{name}:1": name for name in names}
        self.heard: dict[tuple[str, str], Callable[[Message], None]] = {}
        self.silent: set[str] = set()
        self.sent: list[tuple[float, str, bytes, bytes]] = []
        self.asking = {name: Asking(cast(Office, self._office(nursery, name))) for name in names}

    def _office(self, nursery: trio.Nursery, name: str) -> Any:
        def publish(publication: Any) -> None:
            message = publication.message
            for target in publication.nodes:
                node = self.members[target.node.decode()]
                self.sent.append((trio.current_time(), node, message.topic, message.payload))
                if node not in self.silent:
                    self.heard[node, message.topic.decode()](message)

        return SimpleNamespace(
            name=name,
            looking=Turns(LOOKING),
            inside=SimpleNamespace(listen=lambda topic, hear: self.heard.update({(name, topic): hear})),
            cluster=SimpleNamespace(
                health=lambda: SimpleNamespace(members=list(self.members)),
                now_ms=lambda: round(1000 * trio.current_time()),
                publish=publish,
            ),
            server=SimpleNamespace(start=nursery.start_soon, reactor=SimpleNamespace(wake=lambda: None)),
        )

    def count(self, topic: str) -> int:
        return sum(each[2] == topic.encode() for each in self.sent)


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Questions of a test; those that look have names that begin so."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(asking, "QUESTIONS", found)
    monkeypatch.setattr(asking, "LOOKS", {"looks", "looks.too"})
    return found


async def test_few_questions_are_open_between_two_nodes(
    autojump_clock: object, nursery: trio.Nursery, questions: dict[str, Any]
) -> None:
    questions["q"] = lambda office, arguments: office.name
    nodes = Nodes(nursery, "a", "b", "c")
    nodes.silent.add("b")
    found: list[dict[str, Any]] = []

    async def ask() -> None:
        answers, _ = await nodes.asking["a"].ask("q", {}, None, 2.0)
        assert answers.missing == ["b"]
        found.append(answers.by_node)

    async with trio.open_nursery() as askers:
        for _ in range(3 * OPEN_MAX):
            askers.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert sum(each[1] == "b" for each in nodes.sent) == OPEN_MAX
        assert sum(each[1] == "c" for each in nodes.sent) == 3 * OPEN_MAX, "the silent one holds up nobody else"
    assert found == [{"a": "a", "c": "c"}] * (3 * OPEN_MAX)
    assert not nodes.asking["a"]._lines
    nodes.silent.clear()
    answers, _ = await nodes.asking["a"].ask("q", {}, None, 2.0)
    assert sorted(answers.by_node) == ["a", "b", "c"] and not nodes.asking["a"]._lines


async def test_a_node_that_never_says_anything_is_waited_for_once(
    autojump_clock: object, nursery: trio.Nursery, questions: dict[str, Any]
) -> None:
    """Nodes of an older version know no questions; but who answered once is waited for."""

    async def answer(office: Any, arguments: dict[str, Any]) -> str:
        await trio.sleep(arguments["s"])
        return cast(str, office.name)

    questions["q"] = answer
    nodes = Nodes(nursery, "a", "b", "c")
    nodes.silent.add("b")

    async def took(
        by: str = "a", of: list[str] | None = None, s: float = 0.0, patience_s: float = 2.0
    ) -> tuple[float, list[str]]:
        begun = trio.current_time()
        answers, _ = await nodes.asking[by].ask("q", {"s": s}, of, patience_s)
        return round(trio.current_time() - begun, 3), answers.missing

    assert await took(patience_s=0.8) == (0.8, ["b"])
    assert await took() == (2.0, ["b"])
    for _ in range(3):
        assert await took() == (MUTE_S, ["b"])
    assert await took(of=["b"]) == (MUTE_S, ["b"])
    assert await took(s=0.7, of=["b", "c"]) == (0.7, ["b"]), "others are waited for"
    assert await took("c") == (2.0, ["b"])
    # It answers, late at first: now it is waited for, and whoever was heard and is silent as well.
    nodes.silent.clear()
    assert await took(s=0.5, of=["b"]) == (MUTE_S, ["b"])
    await trio.sleep(1)
    nodes.silent.add("b")
    assert await took() == await took() == (2.0, ["b"])
    # It asks.
    nodes.silent.clear()
    assert await took("b") == (0.0, [])
    nodes.silent.add("b")
    assert await took("c") == (2.0, ["b"])
    # It comes again, perhaps as another version.
    nodes.members = {"a:1": "a", "b:2": "b"}
    assert [await took() for _ in range(3)] == [(2.0, ["b"]), (MUTE_S, ["b"]), (MUTE_S, ["b"])]


@pytest.mark.parametrize(("name", "most"), [("looks", LOOKING), ("q", ANSWERING)])
async def test_a_node_answers_few_at_a_time(
    autojump_clock: object, nursery: trio.Nursery, questions: dict[str, Any], name: str, most: int
) -> None:
    under_way: list[int] = [0, 0]
    ended: list[str] = []

    async def answer(office: Any, arguments: dict[str, Any]) -> str:
        under_way[0] += 1
        under_way[1] = max(under_way)
        try:
            await trio.sleep(1.5)
            ended.append("whole")
        finally:
            under_way[0] -= 1
        return "done"

    questions[name] = answer
    nodes = Nodes(nursery, "a", "b", "c", "d")
    results: list[list[str]] = []

    async def ask(node: str) -> None:
        answers, refusals = await nodes.asking[node].ask(name, {}, ["d"], 2.0)
        results.append(answers.missing + list(refusals))

    async with trio.open_nursery() as askers:
        for node in "abc":
            for _ in range(4):
                askers.start_soon(ask, node)
    assert under_way == [0 if name == "looks" else 12 - most, most]
    assert sorted(results) == [[]] * most + [["d"]] * (12 - most)
    await trio.sleep(3)
    # What only looks is given up with whoever asked; what was begun otherwise is brought to its end.
    assert len(ended) == (most if name == "looks" else 12)


async def test_what_nobody_waits_for_is_not_begun(
    autojump_clock: object, nursery: trio.Nursery, questions: dict[str, Any]
) -> None:
    begun: list[str] = []
    questions["q"] = lambda office, arguments: begun.append(office.name)
    nodes = Nodes(nursery, "a", "b")
    nodes.silent.add("b")
    await nodes.asking["a"].ask("q", {}, ["b"], 2.0)
    [(_, _, _, payload)] = nodes.sent
    nodes.heard["b", ASK](Message(ASK.encode(), payload, 0, False))
    await trio.testing.wait_all_tasks_blocked()
    assert not begun and nodes.count(ANSWER) == 0


async def test_large_answers_leave_one_after_the_other(
    autojump_clock: object, nursery: trio.Nursery, questions: dict[str, Any]
) -> None:
    questions["looks"] = lambda office, arguments: "x" * (2 * PAGE_BYTES)
    questions["small"] = lambda office, arguments: "x"
    questions["huge"] = lambda office, arguments: "x" * ANSWER_BYTES
    nodes = Nodes(nursery, "a", "b")
    async with trio.open_nursery() as askers:
        for _ in range(6):
            askers.start_soon(nodes.asking["a"].ask, "looks", {}, ["b"], 2.0)
    left = [at for at, _, topic, payload in nodes.sent if topic == ANSWER.encode()]
    assert [round(later - earlier, 2) for earlier, later in pairwise(left)] == [0.25] * 5
    answers, refusals = await nodes.asking["a"].ask("huge", {}, ["b"], 2.0)
    assert not answers.by_node and "too large" in refusals["b"].detail
    assert len(nodes.sent[-1][3]) < 1000


def test_all_lists_look() -> None:
    assert {name for name in QUESTIONS if name.endswith(".page")} <= LOOKS


async def test_lines_of_a_trace_come_in_parts(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk() as ask:
        monkeypatch.setattr(ask.office, "part_bytes", lambda: 1000)
        monkeypatch.setattr(ask.world.server.traces, "_node", "a")  # as it is in a real node
        trace = await ask("trace.start", client_id="c", payload=True)
        peer = await ask.world.connect("c")
        for number in range(20):
            await peer.send(Publish(f"t/{number}", b"x" * 100, 0))
        await ask.world.settle()
        await ask("trace.stop", id=trace["id"])
        told: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            part = await ask("trace.lines", id=trace["id"], cursor=cursor)
            assert part["items"] and _size(part["items"]) < 2000
            told += part["items"]
            cursor = part["cursor"]
        assert [each["seq"] for each in told] == list(range(told[0]["seq"], told[0]["seq"] + len(told)))
        assert len(told) >= 20 and "t/19" in told[-1]["text"] + told[-2]["text"]
