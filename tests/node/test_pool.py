"""Connections of synchronous drivers: bounded, cut when nobody waits any more, thrown away when broken."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from broker.auth import pool as module
from broker.auth.api import BackendError
from broker.auth.pool import BACKOFF_S, IDLE_S, Pool


class Broken(Exception):
    """What the driver raises."""


class Connection:
    """Asking it blocks until the other side says something, as with a real one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.mine, self.other = socket.socketpair()
        self.closed = False
        self.usable = True

    def ask(self) -> bytes:
        answer = self.mine.recv(1)
        if not answer:
            self.usable = False
            raise Broken("the connection ended")
        return answer

    def end(self) -> None:
        self.mine.close()
        self.other.close()


class Driver:
    """Counts."""

    errors = (Broken,)

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.down = False
        self.tries = 0

    def connect(self, timeout_s: float) -> Connection:
        self.tries += 1
        if self.down:
            raise Broken("nobody listens")
        connection = Connection(len(self.made))
        self.made.append(connection)
        return connection

    def usable(self, connection: Connection) -> bool:
        return connection.usable

    def fileno(self, connection: Connection) -> int:
        return connection.mine.fileno()

    def close(self, connection: Connection) -> None:
        connection.closed = True


class Clock:
    """Stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    for connection in made.made:
        connection.end()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def number(connection: Connection) -> int:
    return connection.number


async def until(condition: object, value: object) -> None:
    """Threads are on their way."""
    assert callable(condition)
    with trio.fail_after(10):
        while condition() != value:
            await trio.sleep(0.001)


async def test_a_connection_is_used_again(driver: Driver) -> None:
    pool = Pool(driver, 4, 10)
    assert [await pool.run(number) for _ in range(5)] == [0] * 5


async def test_no_more_than_the_size(driver: Driver) -> None:
    pool = Pool(driver, 2, 10)
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await pool.run(Connection.ask))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(ask)
        await until(lambda: len(driver.made), 2)
        await trio.testing.wait_all_tasks_blocked()
        for connection in driver.made:
            connection.other.send(b"x" * 6)
    assert answers == [b"x"] * 6
    assert len(driver.made) == 2


async def test_a_caller_that_goes_away_leaves_nothing_half_read(driver: Driver) -> None:
    pool = Pool(driver, 1, 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, Connection.ask)
        await until(lambda: len(driver.made), 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    # Its thread has come back, at once: the only place is free, and the connection gone.
    with trio.fail_after(5):
        assert await pool.run(number) == 1
    assert driver.made[0].closed
    assert not driver.made[1].closed


async def test_no_answer(driver: Driver) -> None:
    pool = Pool(driver, 1, 0.05)
    with pytest.raises(BackendError, match=r"no answer within 0\.05 s"):
        await pool.run(Connection.ask)
    await until(lambda: driver.made[0].closed, True)


async def test_waiting_for_its_turn_counts(driver: Driver) -> None:
    pool = Pool(driver, 1, 0.05)
    refused = 0

    async def ask() -> None:
        nonlocal refused
        with pytest.raises(BackendError):
            await pool.run(Connection.ask)
        refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert refused == 5


async def test_one_that_died_while_idle_is_replaced(driver: Driver) -> None:
    pool = Pool(driver, 2, 10)

    def answered(connection: Connection) -> int:
        connection.other.send(b"x") if connection.number else None
        connection.ask()
        return connection.number

    assert await pool.run(number) == 0
    driver.made[0].other.shutdown(socket.SHUT_RDWR)
    assert await pool.run(answered) == 1
    assert driver.made[0].closed


async def test_one_that_dies_at_once_is_not_tried_for_ever(driver: Driver) -> None:
    pool = Pool(driver, 2, 10)

    def cut(connection: Connection) -> bytes:
        connection.other.shutdown(socket.SHUT_RDWR)
        return connection.ask()

    with pytest.raises(BackendError, match="Broken: the connection ended"):
        await pool.run(cut)
    assert len(driver.made) == 1


async def test_an_error_that_leaves_the_connection_whole(driver: Driver) -> None:
    pool = Pool(driver, 2, 10)

    def wrong(connection: Connection) -> int:
        raise Broken("a wrong question")

    def refused(connection: Connection) -> int:
        raise BackendError("an answer that makes no sense")

    for work in (wrong, refused):
        with pytest.raises(BackendError):
            await pool.run(work)
    assert await pool.run(number) == 0


async def test_other_errors_pass(driver: Driver) -> None:
    pool = Pool(driver, 2, 10)

    def defect(connection: Connection) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await pool.run(defect)
    assert driver.made[0].closed
    assert await pool.run(number) == 1


async def test_back_off(driver: Driver, clock: Clock) -> None:
    pool = Pool(driver, 2, 10, clock=clock)
    driver.down = True
    for failures in range(1, 12):
        with pytest.raises(BackendError, match="Broken: nobody listens"):
            await pool.run(number)
        for _ in range(3):
            with pytest.raises(BackendError, match="not tried again yet after: Broken: nobody listens"):
                await pool.run(number)
        assert driver.tries == failures
        clock.now += min(BACKOFF_S[0] * 2 ** (failures - 1), BACKOFF_S[1]) * 1.26
    driver.down = False
    assert await pool.run(number) == 0


async def test_too_many_wait(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    pool = Pool(driver, 1, 10)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(pool.run, Connection.ask)
        await until(lambda: len(driver.made), 1)
        with pytest.raises(BackendError, match="3 questions wait already"):
            await pool.run(number)
        driver.made[0].other.send(b"abc")
    assert await pool.run(number) == 0


async def test_one_that_was_idle_for_long_is_not_used(driver: Driver, clock: Clock) -> None:
    pool = Pool(driver, 2, 10, clock=clock)
    assert await pool.run(number) == 0
    clock.now += IDLE_S + 1
    assert await pool.run(number) == 1
    assert driver.made[0].closed


async def test_close(driver: Driver) -> None:
    pool = Pool(driver, 2, 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, Connection.ask)
        await until(lambda: len(driver.made), 1)
        assert await pool.run(number) == 1
        await pool.close()
        assert [each.closed for each in driver.made] == [False, True]
        driver.made[0].other.send(b"x")
    await until(lambda: driver.made[0].closed, True)
    with contextlib.suppress(BackendError):
        await pool.run(number)
    assert len(driver.made) == 2


async def test_the_turn_goes_on_meanwhile(driver: Driver) -> None:
    pool = Pool(driver, 1, 10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.run, Connection.ask)
        await until(lambda: len(driver.made), 1)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        driver.made[0].other.send(b"x")
