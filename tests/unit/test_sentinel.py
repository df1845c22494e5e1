"""Which of several answers of Sentinels is taken for the primary."""

from __future__ import annotations

import pytest
import trio

from broker.errors import StoreUnavailable
from cluster.redis import sentinel
from cluster.redis.address import SentinelAddress, StoreAddress
from cluster.redis.sentinel import Finder

OLD, NEW = 6379, 6380


class Sentinels:
    """What each of them says: port of the primary, config epoch, flags; None: nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> None:
        self.said: list[tuple[int, int, str] | None] = [(OLD, 0, "master")] * count
        seeds = tuple(StoreAddress(port=number) for number in range(count))
        self.finder = Finder(SentinelAddress(seeds, "m", StoreAddress()))
        monkeypatch.setattr(sentinel, "ask", self._ask)

    async def _ask(self, seed: StoreAddress, *parts: object, timeout_s: float) -> object:
        await trio.lowlevel.checkpoint()
        said = self.said[seed.port]
        if said is None:
            raise StoreUnavailable("away")
        port, epoch, flags = said
        return {
            b"ip": b"127.0.0.1",
            b"port": b"%d" % port,
            b"config-epoch": b"%d" % epoch,
            b"flags": flags.encode(),
        }

    async def find(self) -> int:
        return (await self.finder.find()).port


async def test_the_latest_failover_counts_more_than_most_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Sentinels(monkeypatch)
    assert await world.find() == OLD
    world.said = [(OLD, 0, "master"), (OLD, 0, "master"), (NEW, 1, "master")]
    assert await world.find() == NEW


async def test_of_equals_most_answers_count_then_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Sentinels(monkeypatch)
    world.said = [(OLD, 1, "master"), (NEW, 1, "master"), (NEW, 1, "master")]
    assert await world.find() == NEW
    world.said = [None, (OLD, 1, "master"), (NEW, 1, "master")]
    assert await world.find() == OLD


async def test_a_sentinel_that_was_cut_off_does_not_bring_the_old_primary_back(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Sentinels(monkeypatch)
    world.said = [(NEW, 3, "master")] * 3
    assert await world.find() == NEW
    world.said = [(OLD, 2, "master"), None, None]
    with pytest.raises(StoreUnavailable, match="last failover"):
        await world.find()
    world.said = [(NEW, 2, "master"), None, None]
    assert await world.find() == NEW


async def test_sentinels_that_were_set_up_anew_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Sentinels(monkeypatch)
    world.said = [(NEW, 3, "master")] * 3
    assert await world.find() == NEW
    world.said = [(OLD, 0, "master"), (OLD, 0, "master"), None]
    assert await world.find() == OLD


async def test_nobody_is_the_primary_while_a_failover_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Sentinels(monkeypatch)
    world.said[2] = (OLD, 0, "master,o_down")
    with pytest.raises(StoreUnavailable, match="at a failover"):
        await world.find()
