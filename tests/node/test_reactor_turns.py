"""How the reactor shares its time: among those that are ready, and with the other tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from broker.transport.others import trio_epoll
from broker.transport.reactor import BRISK_WAKES, Reactor
from tests.node.test_reactor import Harness, Link, Pair, harness

__all__ = ["harness"]


async def test_a_turn_reads_only_so_much(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one turn read reaches every receiver before its buffer is judged: the rest comes in later turns."""

    async def turns_for(pairs: list[Pair]) -> int:
        before = harness.reactor.turns
        for pair in pairs:
            pair.peer.send(b"x" * 10)
        while not all(pair.protocol.data for pair in pairs):
            await harness.turn()
        return harness.reactor.turns - before

    assert await turns_for([harness.pair() for _ in range(3)]) == 1
    monkeypatch.setattr("broker.transport.reactor.BYTES_PER_TURN", 15)
    assert await turns_for([harness.pair() for _ in range(4)]) >= 2
    assert harness.reactor.received_bytes == 70


class Endless(Pair):
    """A peer that sends more whenever something of it was read."""

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self.served = 0
        self.protocol.data_received = self.data_received  # type: ignore[method-assign]
        self.peer.send(b"x" * 10)

    def data_received(self, data: bytes) -> None:
        self.served += 1
        self.peer.send(b"x" * 10)


async def test_peers_that_always_have_more_do_not_keep_a_cut_turn_from_the_others(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that is ready is served once before any is served again."""
    monkeypatch.setattr("broker.transport.reactor.BYTES_PER_TURN", 15)
    pairs = [Endless(harness.reactor) for _ in range(5)]
    harness.pairs += pairs
    with trio.fail_after(5):
        while sum(pair.served for pair in pairs) < 50:
            await trio.lowlevel.checkpoint()
    served = [pair.served for pair in pairs]
    assert max(served) - min(served) <= 1


class Unfinished(Pair):
    """Whatever it does, there is more of it."""

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self.resumed = 0
        self.protocol.resume = self.resume  # type: ignore[method-assign]
        self.stream.call_again()

    def resume(self) -> None:
        self.resumed += 1
        self.stream.call_again()


async def test_a_turn_takes_only_so_long_and_all_have_their_share(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short a turn is, those that go on and those that are ready come in turns."""
    monkeypatch.setattr("broker.transport.reactor.TURN_S", 0.0)
    unfinished = [Unfinished(harness.reactor) for _ in range(3)]
    ready = [Endless(harness.reactor) for _ in range(3)]
    harness.pairs += [*unfinished, *ready]
    turns = harness.reactor.turns
    with trio.fail_after(5):
        while sum(pair.served for pair in ready) < 30:
            await trio.lowlevel.checkpoint()
    shares = [pair.resumed for pair in unfinished] + [pair.served for pair in ready]
    assert max(shares) - min(shares) <= 2
    assert harness.reactor.turns - turns >= sum(shares) - 1  # one each


async def test_a_cut_turn_that_is_held_loses_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.transport.reactor.TURN_S", 0.0)
    pairs = [harness.pair() for _ in range(6)]
    asked: list[int] = []

    def done() -> list[int]:
        return [pair.protocol.resumed + len(pair.protocol.data) for pair in pairs]

    def hold() -> bool:
        asked.append(sum(done()))
        return len(asked) in (4, 5, 10, 11)  # while they go on, and while they are read

    for pair in pairs:
        pair.stream.call_again()
        pair.peer.send(b"x")
    harness.reactor.hold = hold
    with trio.fail_after(5):
        while sum(done()) < 12:
            await trio.lowlevel.checkpoint()
    assert done() == [2] * 6
    assert asked[3] == asked[4] == asked[5]
    assert asked[9] == asked[10] == asked[11]


async def test_who_is_not_to_be_read_any_more_is_not_read_later_in_the_round(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.transport.reactor.TURN_S", 0.0)
    links = [Link(), Link()]
    for link in links:
        harness.reactor.register(link.ours.fileno(), link)
        link.peer.send(b"x")

    def other_waits() -> None:
        for link in links:
            if not link.data:
                harness.reactor.watch_readable(link.ours.fileno(), False)

    harness.reactor.turn_hooks.append(other_waits)
    await harness.turn()
    assert sorted(link.data for link in links) == [b"", b"x"]
    harness.reactor.turn_hooks.clear()
    for link in links:
        harness.reactor.watch_readable(link.ours.fileno(), True)
    await harness.turn()
    assert [link.data for link in links] == [b"x", b"x"]
    for link in links:
        harness.reactor.unregister(link.ours.fileno())
        link.ours.close()
        link.peer.close()


async def test_a_task_makes_all_its_steps_between_long_turns(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.transport.reactor.WAKE_S", 0.0)
    monkeypatch.setattr("broker.transport.reactor.LONG_S", 0.0)
    monkeypatch.setattr("broker.transport.reactor.OTHERS_S", 60.0)
    pair = Endless(harness.reactor)
    harness.pairs.append(pair)
    await trio.lowlevel.checkpoint()
    turns = harness.reactor.turns
    for _ in range(100):
        await trio.lowlevel.checkpoint()
    assert harness.reactor.turns - turns <= 1
    with trio.fail_after(5):
        served = pair.served
        while pair.served < served + 10:  # others that wait do not stop it
            await trio.sleep(0.001)


async def test_tasks_that_never_wait_do_not_stop_the_reactor(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.transport.reactor.WAKE_S", 0.0)
    monkeypatch.setattr("broker.transport.reactor.LONG_S", 0.0)
    monkeypatch.setattr("broker.transport.reactor.OTHERS_S", 0.0)
    pair = Endless(harness.reactor)
    harness.pairs.append(pair)
    with trio.fail_after(5):
        while pair.served < 10:
            await trio.lowlevel.checkpoint()


@pytest.fixture
async def lingering() -> AsyncIterator[Harness]:
    """A reactor that has just got used to waiting for its descriptors itself."""
    reactor = Reactor(lingers=True)
    made = Harness(reactor)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        yield made
        nursery.cancel_scope.cancel()
    for pair in made.pairs:
        pair.stream.abort()
        pair.peer.close()
    reactor.close()


class Passes(trio.abc.Instrument):
    """Counts how often trio looks for something to do."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_small_turns_that_follow_each_other_do_without_trio(lingering: Harness) -> None:
    """A peer that answers what it gets: hundreds of turns, and hardly a pass of the trio loop."""
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    pair = Endless(lingering.reactor)
    lingering.pairs.append(pair)
    done = trio.Event()

    def received(data: bytes) -> None:
        pair.data_received(data)
        if pair.served == 1000:
            done.set()

    pair.protocol.data_received = received  # type: ignore[method-assign]
    with trio.fail_after(5):
        await done.wait()
    trio.lowlevel.remove_instrument(passes)
    assert trio_epoll() is not None
    assert lingering.reactor.turns >= 1000
    assert passes.count < 300


async def test_other_tasks_do_not_wait_while_the_reactor_waits(lingering: Harness) -> None:
    """What trio watches, what a turn woke and what another thread asks for is served between its turns."""
    rounds = BRISK_WAKES * 20
    pair = lingering.pair()
    ours, theirs = trio.socket.socketpair()
    with ours, theirs, trio.fail_after(5):
        for number in range(rounds):
            pair.peer.send(b"x")
            await theirs.send(b"%d" % number)
            assert await ours.recv(10) == b"%d" % number
            if number % 10 == 0:
                assert await trio.to_thread.run_sync(lambda: 7) == 7
                await trio.sleep(0)
        while len(pair.protocol.data) < rounds:
            await trio.lowlevel.checkpoint()


async def test_nothing_is_served_that_comes_while_turns_are_held(lingering: Harness) -> None:
    """`hold` is asked after the reactor has waited, not before: the lease may have ended meanwhile."""
    busy = Endless(lingering.reactor)
    pair = lingering.pair()
    lingering.pairs.append(busy)
    held = False
    asked = trio.Event()

    def hold() -> bool:
        if held:
            asked.set()
        return held

    lingering.reactor.hold = hold
    with trio.fail_after(5):
        while busy.served < BRISK_WAKES * 20:
            await trio.lowlevel.checkpoint()
        held = True
        pair.peer.send(b"x")
        await asked.wait()
        served = busy.served
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert busy.served == served
        assert pair.protocol.data == b""
        held = False
        while not pair.protocol.data or busy.served == served:
            await trio.lowlevel.checkpoint()


async def test_deadlines_are_kept_while_the_reactor_waits(lingering: Harness) -> None:
    pair = Endless(lingering.reactor)
    lingering.pairs.append(pair)
    with trio.fail_after(5):
        for _ in range(20):
            with trio.move_on_after(0.005) as scope:
                await trio.sleep_forever()
            assert scope.cancelled_caught
    assert pair.served > 20


def test_who_hides_what_it_waits_for_is_done_without() -> None:
    """As here, where there is no trio loop: the reactor goes back to it for each wake then."""
    assert trio_epoll() is None
