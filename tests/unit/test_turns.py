"""Clients of one tenant take turns, whatever one of them sends."""

from __future__ import annotations

from typing import cast

import trio

from broker.limits.meter import Meter
from broker.limits.tenants import Tenant
from cluster.registry import Registry


class Store:
    """Gives `each` tokens for every question."""

    def __init__(self, each: int) -> None:
        self.each = each

    async def draw(self, name: str, wanted: int, rate: int, burst: float) -> int:
        return min(wanted, self.each)


def clients(tenant: Tenant, count: int) -> list[Meter]:
    return [Meter(0, 0, 0.0, tenant) for _ in range(count)]


def handle(meter: Meter, most: int, size: int = 10) -> int:
    """What a connection does with so many messages at hand."""
    count = min(most, meter.budget(0.0))
    if count:
        meter.take(count, count * size, 0.0)
    meter.wait_s(0.0)
    return count


def rounds(tenant: Tenant, store: Store, count: int, wants: dict[Meter, int], size: int = 10) -> list[int]:
    """How many each got; the first looks most often, and before all others."""
    got = dict.fromkeys(wants, 0)
    first = next(iter(wants))
    for _ in range(count):
        trio.run(tenant.fill, cast(Registry, store))
        for meter, most in wants.items():
            got[first] += handle(first, wants[first], size)
            got[meter] += handle(meter, most, size)
    return list(got.values())


def test_a_flood_leaves_the_others_their_turns() -> None:
    tenant = Tenant("t", 100, 0, set())
    flood, *others = clients(tenant, 4)
    got = rounds(tenant, Store(10), 100, {flood: 256, **dict.fromkeys(others, 5)})
    assert 950 <= sum(got) <= 1100
    assert min(got) >= 180


def test_more_clients_than_tokens() -> None:
    tenant = Tenant("t", 100, 0, set())
    got = rounds(tenant, Store(3), 200, dict.fromkeys(clients(tenant, 30), 256))
    assert 580 <= sum(got) <= 720
    assert min(got) >= 12 and max(got[1:]) <= 40


def test_bytes_by_turns() -> None:
    tenant = Tenant("t", 0, 100_000, set())
    flood, other = clients(tenant, 2)
    got = rounds(tenant, Store(10_000), 100, {flood: 60, other: 1}, 1000)
    assert got[1] >= 10
    assert sum(got) <= 1000 + 200


def test_what_is_given_and_not_used_comes_back() -> None:
    tenant = Tenant("t", 100, 0, set())
    store = Store(100)
    gone, there = clients(tenant, 2)
    assert not gone.budget(0.0) and not there.budget(0.0)
    trio.run(tenant.fill, cast(Registry, store))
    assert gone.budget(0.0) == there.budget(0.0) == 50
    handle(there, 50)
    store.each = 0
    for _ in range(3):
        trio.run(tenant.fill, cast(Registry, store))
    assert there.budget(0.0) == 50


def test_nobody_waits_below_the_rate() -> None:
    tenant = Tenant("t", 100, 0, set())
    trio.run(tenant.fill, cast(Registry, Store(100)))
    one, other = clients(tenant, 2)
    assert (handle(one, 40), handle(other, 40)) == (40, 40)
