"""The reactor and its streams over real socket pairs."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
import trio.testing

from broker.peer import Peer
from broker.transport.reactor import LATE_S, TICK_S, Reactor
from broker.transport.stream import READ_BYTES, TcpStream
from tests.node.kit import serving

BOUND = 100_000


class Recorder:
    """A protocol that keeps what it is told."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.chunks: list[int] = []
        self.lost: list[str] = []
        self.gone = 0
        self.congestion: list[bool] = []
        self.resumed = 0
        self.error: Exception | None = None

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.chunks.append(len(data))
        if self.error is not None:
            raise self.error

    def resume(self) -> None:
        self.resumed += 1
        if self.error is not None:
            raise self.error

    def connection_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def peer_gone(self) -> None:
        self.gone += 1

    def output_congested(self) -> None:
        self.congestion.append(True)

    def output_drained(self) -> None:
        self.congestion.append(False)


class Pair:
    """A stream, its protocol, and the peer's socket."""

    def __init__(self, reactor: Reactor) -> None:
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.protocol = Recorder()
        self.stream = TcpStream(ours, reactor, BOUND, Peer("pair"))
        self.stream.start(self.protocol)

    def read(self, size: int = 1 << 20) -> bytes:
        """What the peer can read now; b"" also at the end."""
        try:
            return self.peer.recv(size)
        except BlockingIOError:
            return b""


class Harness:
    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.pairs: list[Pair] = []

    def pair(self) -> Pair:
        self.pairs.append(Pair(self.reactor))
        return self.pairs[-1]

    async def turn(self) -> None:
        """Let the reactor do what there is to do."""
        self.reactor.wake()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    reactor = Reactor()
    made = Harness(reactor)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        yield made
        nursery.cancel_scope.cancel()
    for pair in made.pairs:
        pair.stream.abort()
        pair.peer.close()
    reactor.close()


async def test_bytes_go_both_ways(harness: Harness) -> None:
    pair = harness.pair()
    pair.peer.send(b"hello")
    await harness.turn()
    assert pair.protocol.data == b"hello"
    pair.stream.write(b"one ")
    pair.stream.write_parts(b"two", b" ", b"three")
    await harness.turn()
    assert pair.read() == b"one two three"
    assert pair.stream.pending_bytes() == 0


async def test_a_peer_that_ends_while_it_is_not_read(harness: Harness) -> None:
    pair = harness.pair()
    pair.stream.pause_reading(True)
    pair.peer.send(b"last")
    await harness.turn()
    assert (pair.protocol.gone, bytes(pair.protocol.data)) == (0, b"")
    pair.peer.shutdown(socket.SHUT_WR)
    await harness.turn()
    turns = harness.reactor.turns
    await harness.turn()
    assert (pair.protocol.gone, bytes(pair.protocol.data), pair.protocol.lost) == (1, b"", [])
    assert harness.reactor.turns <= turns + 1  # told once
    pair.stream.pause_reading(False)
    await harness.turn()
    assert (pair.protocol.gone, bytes(pair.protocol.data), pair.protocol.lost) == (1, b"last", ["closed by peer"])


class Link:
    """A connection to the store."""

    def __init__(self) -> None:
        self.ours, self.peer = socket.socketpair()
        self.data = b""

    def readable(self) -> None:
        self.data += self.ours.recv(100)

    def writable(self) -> None: ...


async def test_held_clients_wait_and_the_store_does_not(harness: Harness) -> None:
    """What a client sent stays where it is, and what is for it too, until the reactor may go on."""
    pair = harness.pair()
    link = Link()
    harness.reactor.register(link.ours.fileno(), link)
    held = True
    harness.reactor.hold = lambda: held
    pair.peer.send(b"from the client")
    pair.stream.write(b"for the client")
    pair.stream.call_again()
    link.peer.send(b"from the store")
    harness.reactor.wake()
    with trio.fail_after(5):
        while not link.data:
            await trio.sleep(0.01)
    assert pair.protocol.data == b""
    assert pair.protocol.resumed == 0
    assert pair.read() == b""
    held = False
    with trio.fail_after(5):
        while not (pair.protocol.data and pair.protocol.resumed and pair.read()):
            await trio.sleep(0.01)
    harness.reactor.unregister(link.ours.fileno())
    link.ours.close()
    link.peer.close()


class Patient:
    """Ends what is silent for too long."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.heard: list[bytes] = []

    def check_deadline(self, now: float) -> float:
        self.heard.append(bytes(self.pair.protocol.data))
        return 0.0


async def test_after_a_pause_what_came_is_read_before_deadlines_are_looked_at(harness: Harness) -> None:
    pair = harness.pair()
    patient = Patient(pair)
    await harness.turn()
    harness.reactor.watch_deadline(patient, harness.reactor.now + 0.1)
    pair.peer.send(b"ping")
    time.sleep(LATE_S + TICK_S)  # the process stands still
    with trio.fail_after(5):
        while not patient.heard:
            await trio.sleep(0.01)
    assert patient.heard == [b"ping"]


async def test_a_closed_reactor_has_no_clients(harness: Harness) -> None:
    pair = harness.pair()
    harness.reactor.drop_clients()
    assert pair.stream.closed
    assert pair.protocol.lost == []
    with pytest.raises(ConnectionError):
        for _ in range(2):
            pair.peer.send(b"x")


async def test_a_turn_reads_a_bounded_part(harness: Harness) -> None:
    pair = harness.pair()
    pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_BYTES)
    sent = pair.peer.send(b"x" * 3 * READ_BYTES)
    await harness.turn()
    assert len(pair.protocol.data) == sent
    assert max(pair.protocol.chunks) <= READ_BYTES


async def test_a_turn_sends_once(harness: Harness) -> None:
    """What many writes of a turn collected leaves as one piece."""
    pair = harness.pair()
    dgram_like = pair.peer
    for n in range(100):
        pair.stream.write(b"%03d" % n)
    assert pair.read() == b""
    await harness.turn()
    assert dgram_like.recv(1000) == b"".join(b"%03d" % n for n in range(100))


async def test_partial_sends_keep_every_byte(harness: Harness) -> None:
    pair = harness.pair()
    expected = bytearray()
    got = bytearray()
    for n in range(50):
        piece = bytes([n]) * (7919 * (n % 5) + 1)
        expected += piece
        pair.stream.write(piece)
        await harness.turn()
        got += pair.read(10_007)
    for _ in range(10_000):
        if len(got) == len(expected):
            break
        got += pair.read(10_007)
        await harness.turn()
    assert got == expected
    assert pair.stream.pending_bytes() == 0
    assert pair.stream.stalled_since == 0.0


async def test_congestion_is_told_once_each_way(harness: Harness) -> None:
    pair = harness.pair()
    pair.stream.write(b"x" * 90_000)
    await harness.turn()
    assert pair.protocol.congestion == []
    assert pair.stream.stalled_since > 0
    pair.stream.write(b"y" * 200_000)
    await harness.turn()
    assert pair.stream.congested
    pair.stream.write(b"z")
    await harness.turn()
    assert pair.protocol.congestion == [True]
    total = 0
    for _ in range(10_000):
        if total == 290_001:
            break
        total += len(pair.read(5000))
        await harness.turn()
    assert pair.protocol.congestion == [True, False]
    assert total == 290_001


async def test_paused_reading_leaves_bytes_in_the_kernel(harness: Harness) -> None:
    pair = harness.pair()
    pair.stream.pause_reading(True)
    await harness.turn()
    pair.peer.send(b"later")
    await harness.turn()
    assert pair.protocol.data == b""
    pair.stream.pause_reading(False)
    await harness.turn()
    assert pair.protocol.data == b"later"


async def test_close_sends_what_is_pending(harness: Harness) -> None:
    pair = harness.pair()
    pair.stream.write(b"x" * 300_000)
    await harness.turn()
    pair.stream.write(b"end")
    pair.stream.close()
    pair.stream.close()
    await harness.turn()
    assert pair.stream.pending_bytes() > 0
    got = bytearray()
    for _ in range(10_000):
        got += pair.read()
        await harness.turn()
        if pair.stream.closed:
            break
    while data := pair.read():
        got += data
    assert got == b"x" * 300_000 + b"end"
    assert pair.protocol.lost == []
    assert pair.peer.recv(1) == b"", "the peer sees the end"


async def test_close_without_output(harness: Harness) -> None:
    pair = harness.pair()
    pair.stream.close()
    await harness.turn()
    assert pair.peer.recv(1) == b"", "the peer sees the end"
    pair.peer.close()
    await harness.turn()
    assert pair.stream.closed
    assert pair.protocol.lost == []


async def test_nothing_is_read_after_close(harness: Harness) -> None:
    pair = harness.pair()
    pair.stream.write(b"x" * 300_000)
    await harness.turn()
    pair.stream.close()
    pair.peer.send(b"more")
    await harness.turn()
    pair.stream.readable()  # as after a hang-up, which is told even if nothing was asked for
    assert pair.protocol.data == b""


async def test_abort_drops_what_is_pending(harness: Harness) -> None:
    pair = harness.pair()
    pair.stream.write(b"x")
    pair.stream.abort()
    pair.stream.abort()
    pair.stream.write(b"after")
    await harness.turn()
    assert pair.stream.closed
    assert pair.protocol.lost == []
    assert pair.peer.recv(10) == b""


async def test_the_peer_closes(harness: Harness) -> None:
    pair = harness.pair()
    pair.peer.send(b"last words")
    pair.peer.close()
    await harness.turn()
    await harness.turn()
    assert pair.protocol.data == b"last words"
    assert pair.protocol.lost == ["closed by peer"]
    assert pair.stream.closed


async def test_the_peer_is_gone_while_output_is_pending(harness: Harness) -> None:
    pair = harness.pair()
    pair.stream.write(b"x" * 300_000)
    await harness.turn()
    pair.peer.close()
    await harness.turn()
    await harness.turn()
    assert len(pair.protocol.lost) == 1
    assert pair.stream.closed


async def test_a_reset_of_a_tcp_peer(harness: Harness) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    ours.setblocking(False)
    protocol = Recorder()
    stream = TcpStream(ours, harness.reactor, BOUND, Peer("tcp"))
    stream.start(protocol)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    await harness.turn()
    assert protocol.lost == [os.strerror(errno.ECONNRESET)]
    listener.close()


async def test_a_defect_of_a_protocol_ends_its_stream_only(harness: Harness) -> None:
    broken, sound = harness.pair(), harness.pair()
    broken.protocol.error = RuntimeError("a defect")
    broken.peer.send(b"x")
    sound.peer.send(b"y")
    await harness.turn()
    assert broken.stream.closed
    assert broken.protocol.lost == ["internal error"]
    assert sound.protocol.data == b"y"
    again = harness.pair()
    again.protocol.error = RuntimeError("a defect")
    again.stream.call_again()
    await harness.turn()
    assert again.protocol.lost == ["internal error"]


async def test_call_again_comes_in_the_next_turn(harness: Harness) -> None:
    pair = harness.pair()
    await harness.turn()
    pair.stream.call_again()
    await harness.turn()
    assert pair.protocol.resumed == 1
    pair.stream.call_again()
    pair.stream.abort()
    await harness.turn()
    assert pair.protocol.resumed == 1, "not after the end"


async def test_call_again_from_a_deadline_needs_nothing_else_to_happen(harness: Harness) -> None:
    """As where a client that sent too much is read again."""
    pair = harness.pair()
    await harness.turn()
    resumed = trio.Event()
    pair.protocol.resume = resumed.set  # type: ignore[method-assign]

    class Alarm:
        def check_deadline(self, now: float) -> float:
            pair.stream.call_again()
            return 0.0

    harness.reactor.watch_deadline(Alarm(), harness.reactor.now)
    with trio.fail_after(10):
        await resumed.wait()


class Swapper(Recorder):
    """Closes another stream of the same turn and opens one that gets its descriptor."""

    def __init__(self, harness: Harness) -> None:
        super().__init__()
        self.harness = harness
        self.victim: Pair | None = None
        self.fresh: Pair | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.victim is not None and self.fresh is None and not self.victim.stream.closed:
            self.victim.stream.abort()
            self.fresh = self.harness.pair()


async def test_a_descriptor_that_is_used_again_within_a_turn(harness: Harness) -> None:
    """Events of the stream that had it before must not harm the new one."""
    one, two = harness.pair(), harness.pair()
    swappers = []
    for pair, other in ((one, two), (two, one)):
        swapper = Swapper(harness)
        swapper.victim = other
        pair.stream.protocol = swapper
        swappers.append(swapper)
    one.peer.send(b"1")
    two.peer.send(b"2")
    await harness.turn()
    [acted] = [swapper for swapper in swappers if swapper.data]
    fresh = acted.fresh
    assert fresh is not None
    assert acted.victim is not None
    assert fresh.stream.fd == acted.victim.stream.fd
    assert fresh.protocol.data == b""
    assert fresh.protocol.lost == []
    fresh.peer.send(b"hello")
    await harness.turn()
    assert fresh.protocol.data == b"hello"


async def test_hooks_run_before_the_flush_and_again_if_they_ask(harness: Harness) -> None:
    pair = harness.pair()
    runs: list[int] = []

    def hook() -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            harness.reactor.wake()
        pair.stream.write(b"h%d" % len(runs))

    await harness.turn()
    harness.reactor.turn_hooks.append(hook)
    pair.peer.send(b"x")
    await harness.turn()
    assert len(runs) >= 2
    assert pair.read() == b"".join(b"h%d" % (n + 1) for n in runs)


async def test_a_hook_that_fails_stops_nobody(harness: Harness) -> None:
    def broken() -> None:
        raise RuntimeError("a defect")

    pair = harness.pair()
    harness.reactor.turn_hooks.append(broken)
    pair.stream.write(b"x")
    await harness.turn()
    assert pair.read() == b"x"


class Alarm:
    def __init__(self, answers: Iterator[float]) -> None:
        self.answers = answers
        self.looks: list[float] = []

    def check_deadline(self, now: float) -> float:
        self.looks.append(now)
        return next(self.answers)


async def test_deadlines(autojump_clock: trio.abc.Clock) -> None:
    """Not before its time; again when it says so; never again after 0.0."""
    async with serving() as world:
        await trio.sleep(1)
        start = world.reactor.now
        alarm = Alarm(iter([start + 100.0, 1.0, 0.0]))  # 1.0 lies in the past: a tick later
        world.reactor.watch_deadline(alarm, start + 10.0)
        await trio.sleep(1000)
        first, second, third = alarm.looks
        assert start + 10.0 <= first <= start + 10.0 + 2 * TICK_S
        assert start + 100.0 <= second <= start + 100.0 + 2 * TICK_S
        assert second < third <= second + 2 * TICK_S
