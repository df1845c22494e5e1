"""Operations on their way between the parent of workers and one of them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import trio

from broker.admin.api import VIEWER, AdminError, Caller
from broker.admin.relay import WAITING_MAX, Relay, RelayEnd, Silent
from broker.config import Settings
from broker.http.report import DRAINING, READY, Report
from broker.supervisor import Supervisor

ANNA = Caller("anna", VIEWER)


class Told:
    """A desk that tells what it was asked."""

    def __init__(self) -> None:
        self.left = 0
        self.more = trio.Event()

    async def call(self, operation: str, arguments: Mapping[str, Any], caller: Caller) -> Any:
        if operation == "refuse":
            raise AdminError(404, "no such thing", "there is no thing")
        if operation == "fail":
            raise RuntimeError("a defect")
        if operation == "wait":
            try:
                await trio.sleep_forever()
            finally:
                self.left += 1
        return [operation, dict(arguments), caller.name, caller.scope]

    @asynccontextmanager
    async def stream(
        self, operation: str, arguments: Mapping[str, Any], caller: Caller
    ) -> AsyncIterator[AsyncIterator[Any]]:
        if operation == "refuse":
            raise AdminError(403, "not allowed", "")

        async def items() -> AsyncGenerator[Any, None]:
            for number in range(int(arguments["count"])):
                yield number
            if operation == "cut_off":
                raise AdminError(503, "cut off", "the node was taken for dead")
            if operation == "endless":
                await trio.sleep_forever()

        try:
            async with aclosing(items()) as told:
                yield told
        finally:
            self.left += 1


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Relay, Told]]:
    """A relay and the desk at its other end; what passes between them passes as JSON."""
    desk = Told()
    relay = Relay(lambda message: end.asked(json.loads(json.dumps(message))))
    end = RelayEnd(desk, lambda message: relay.answered(json.loads(json.dumps(message))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.serve)
        yield relay, desk
        nursery.cancel_scope.cancel()


async def test_a_call_and_its_answer() -> None:
    async with relayed() as (relay, _):
        assert await relay.call("do", {"x": 1}, ANNA) == ["do", {"x": 1}, "anna", "viewer"]


async def test_a_refusal_is_the_same_at_the_other_end() -> None:
    async with relayed() as (relay, _):
        with pytest.raises(AdminError) as refused:
            await relay.call("refuse", {}, ANNA)
        assert (refused.value.status, refused.value.title) == (404, "no such thing")
        assert refused.value.detail == "there is no thing"


async def test_a_defect_is_told_as_one_and_no_more() -> None:
    async with relayed() as (relay, _):
        with pytest.raises(AdminError) as refused:
            await relay.call("fail", {}, ANNA)
        assert refused.value.status == 500
        assert "defect" not in refused.value.detail
        assert await relay.call("do", {}, ANNA)


async def test_a_call_that_is_given_up() -> None:
    async with relayed() as (relay, desk):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.call, "wait", {}, ANNA)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert desk.left == 1


async def test_a_stream_that_is_given_up_before_it_is_open() -> None:
    asked: list[dict[str, Any]] = []
    relay = Relay(asked.append)

    async def follow() -> None:
        async with relay.stream("some", {"count": 1}, ANNA):
            raise AssertionError("entered")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [message["admin"] for message in asked] == ["open", "close"]


async def test_what_was_answered_is_not_taken_back() -> None:
    desk, asked = Told(), list[dict[str, Any]]()

    def send(message: dict[str, Any]) -> None:
        asked.append(message)
        end.asked(message)

    relay = Relay(send)
    end = RelayEnd(desk, relay.answered)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.serve)
        await relay.call("do", {}, ANNA)
        with pytest.raises(AdminError):
            await relay.call("refuse", {}, ANNA)
        async with relay.stream("some", {"count": 1}, ANNA) as items:
            assert [item async for item in items] == [0]
        nursery.cancel_scope.cancel()
    assert [message["admin"] for message in asked] == ["call", "call", "open"]


async def test_a_stream_to_its_end() -> None:
    async with relayed() as (relay, desk):
        async with relay.stream("some", {"count": 3}, ANNA) as items:
            assert [item async for item in items] == [0, 1, 2]
        await trio.testing.wait_all_tasks_blocked()
        assert desk.left == 1


async def test_a_stream_that_is_left() -> None:
    async with relayed() as (relay, desk):
        async with relay.stream("endless", {"count": 3}, ANNA) as items:
            assert await anext(items) == 0
        await trio.testing.wait_all_tasks_blocked()
        assert desk.left == 1


async def test_a_stream_that_is_refused() -> None:
    async with relayed() as (relay, _):
        with pytest.raises(AdminError) as refused:
            async with relay.stream("refuse", {}, ANNA):
                raise AssertionError("entered")
        assert refused.value.status == 403


async def test_a_reader_that_is_too_slow_is_cut_off() -> None:
    async with relayed() as (relay, _), relay.stream("some", {"count": WAITING_MAX + 10}, ANNA) as items:
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(AdminError, match="it has ended"):
            await _count(items)


async def _count(items: AsyncIterator[Any]) -> int:
    return sum([1 async for _ in items])


async def test_the_end_of_the_worker_ends_a_stream_with_an_error() -> None:
    async with relayed() as (relay, _), relay.stream("endless", {"count": 1}, ANNA) as items:
        assert await anext(items) == 0
        relay.gone()
        with pytest.raises(AdminError, match="it has ended"):
            await anext(items)


async def test_an_error_in_the_middle_of_a_stream_is_the_same_at_the_other_end() -> None:
    async with relayed() as (relay, _), relay.stream("cut_off", {"count": 1}, ANNA) as items:
        assert await anext(items) == 0
        with pytest.raises(AdminError) as cut:
            await anext(items)
        assert (cut.value.status, cut.value.title) == (503, "cut off")


async def test_a_worker_that_takes_nothing_carries_out_nothing(autojump_clock: trio.abc.Clock) -> None:
    """It was stopped: what it finds when it goes on was given to another one."""
    desk = Told()
    waiting: list[dict[str, Any]] = []
    relay = Relay(waiting.append)
    with pytest.raises(Silent):
        await relay.call("do", {}, ANNA)
    with pytest.raises(Silent):
        async with relay.stream("some", {"count": 1}, ANNA):
            raise AssertionError("entered")
    answers: list[dict[str, Any]] = []
    end = RelayEnd(desk, answers.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.serve)
        for message in waiting:
            end.asked(message)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [set(answer) - {"admin", "id"} for answer in answers] == [{"taken"}, {"taken"}]


async def test_a_worker_that_took_nothing_is_silent_until_it_says_something(autojump_clock: trio.abc.Clock) -> None:
    waiting: list[dict[str, Any]] = []
    relay = Relay(waiting.append)
    silent = [relay.silent]
    with pytest.raises(Silent):
        await relay.call("do", {}, ANNA)
    silent.append(relay.silent)
    relay.answered({"id": waiting[0]["id"], "taken": True})  # late
    assert [*silent, relay.silent] == [False, True, False]


async def test_who_took_nothing_is_asked_last(autojump_clock: trio.abc.Clock) -> None:
    asleep: list[dict[str, Any]] = []
    async with relayed() as (relay, _):
        parent = Supervisor(Settings(node_name="n", workers=2))
        first, second = parent._workers
        first.relay, first.last = Relay(asleep.append), Report("n-1", READY)
        second.relay, second.last = relay, Report("n-2", DRAINING)
        for _ in range(3):
            assert await parent.call("do", {}, ANNA)
            async with parent.stream("some", {"count": 2}, ANNA) as items:
                assert [item async for item in items] == [0, 1]
        assert [message["admin"] for message in asleep] == ["call", "close"]
        first.relay.answered({"id": asleep[0]["id"], "taken": True})
        assert await parent.call("do", {}, ANNA)
        assert [message["admin"] for message in asleep[2:]] == ["call", "close"]
        second.relay = None
        with pytest.raises(AdminError) as refused:
            await parent.call("do", {}, ANNA)
        assert refused.value.status == 503


async def test_the_end_of_the_worker_ends_what_waits() -> None:
    async with relayed() as (relay, _), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(AdminError) as refused:
                await relay.call("wait", {}, ANNA)
            assert refused.value.status == 503

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        relay.gone()
