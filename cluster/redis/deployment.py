"""Links to whatever the store is: one server, a primary that Sentinels know, or a Redis Cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from broker.errors import StoreUnavailable
from cluster.api import Poller
from cluster.redis import library
from cluster.redis.address import ClusterAddress, Deployment, SentinelAddress, StoreAddress
from cluster.redis.barrier import MARK_S, Barrier
from cluster.redis.durability import Demand, durability
from cluster.redis.link import RedisLink
from cluster.redis.links import Link
from cluster.redis.sentinel import Finder
from cluster.redis.shards import ClusterLink
from cluster.redis.slots import SlotOwner, slot_of
from cluster.telemetry import LinkCounters

OnUp = Callable[[RedisLink], Awaitable[None]]

_DEFAULT_DEMAND = Demand()
#: Names tried for a key on a given primary: enough for one that has a single slot.
_MARK_NAMES = 100_000


def make_link(
    address: Deployment,
    poller: Poller,
    *,
    demand: Demand = _DEFAULT_DEMAND,
    namespace: str = "rookery",
    on_up: OnUp | None = None,
    on_ready: Callable[[], None] | None = None,
    on_down: Callable[[Exception], None] | None = None,
    on_part: Callable[[], None] | None = None,
    answer_timeout_s: float = 5.0,
    counters: LinkCounters | None = None,
) -> Link:
    """The link for commands. On each new connection to a primary it checks the store's settings, loads the library and
    then calls `on_up`; `on_ready` tells that all primaries are up, `on_part` that one more of several is, and `on_down`
    that one is not any more."""

    started = False

    async def prepared(link: RedisLink) -> None:
        await _prepare(link, demand, namespace, not started)
        if on_up is not None:
            await on_up(link)

    def ready() -> None:
        nonlocal started
        started = True
        if on_ready is not None:
            on_ready()

    if isinstance(address, ClusterAddress):
        return ClusterLink(
            address,
            poller,
            on_up=prepared,
            on_ready=ready,
            on_down=on_down,
            on_part=on_part,
            answer_timeout_s=answer_timeout_s,
            counters=counters,
        )
    first, locate = _place(address)
    return RedisLink(
        first,
        poller,
        on_up=prepared,
        on_ready=ready,
        on_down=on_down,
        answer_timeout_s=answer_timeout_s,
        locate=locate,
        counters=counters,
    )


def feed_groups(address: Deployment, keys: Iterable[bytes]) -> list[list[bytes]]:
    """Which keys may be read by one XREAD: all of them, or in a Redis Cluster those of one slot."""
    if not isinstance(address, ClusterAddress):
        return [found] if (found := list(keys)) else []
    groups: dict[int, list[bytes]] = {}
    for key in keys:
        groups.setdefault(slot_of(key), []).append(key)
    return list(groups.values())


def make_feed_link(
    address: Deployment,
    poller: Poller,
    key: bytes,
    *,
    on_up: OnUp | None = None,
    on_down: Callable[[Exception], None] | None = None,
    answer_timeout_s: float = 5.0,
) -> RedisLink:
    """A link for commands that block, on one group of keys (`feed_groups`) of which `key` is any."""
    return _bound_link(address, poller, key, on_up, on_down, None, answer_timeout_s)


def make_push_link(
    address: Deployment,
    poller: Poller,
    channel: bytes,
    *,
    on_push: Callable[[list[object]], None],
    on_up: OnUp | None = None,
    on_down: Callable[[Exception], None] | None = None,
    answer_timeout_s: float = 5.0,
) -> RedisLink:
    """A link for SSUBSCRIBE, which belongs into `on_up`: to `channel` and others of its hash tag."""
    return _bound_link(address, poller, channel, on_up, on_down, on_push, answer_timeout_s)


def _bound_link(
    address: Deployment,
    poller: Poller,
    key: bytes,
    on_up: OnUp | None,
    on_down: Callable[[Exception], None] | None,
    on_push: Callable[[list[object]], None] | None,
    answer_timeout_s: float,
) -> RedisLink:
    if isinstance(address, ClusterAddress):
        first = address.seeds[0]
        locate: Callable[[], Awaitable[StoreAddress]] | None = SlotOwner(address.seeds, slot_of(key)).find
    else:
        first, locate = _place(address)
    return RedisLink(
        first,
        poller,
        on_up=on_up,
        on_down=on_down,
        on_push=on_push,
        answer_timeout_s=answer_timeout_s,
        locate=locate,
        bound=isinstance(address, ClusterAddress),
    )


def _place(
    address: StoreAddress | SentinelAddress,
) -> tuple[StoreAddress, Callable[[], Awaitable[StoreAddress]] | None]:
    if isinstance(address, SentinelAddress):
        return address.store, Finder(address).find
    return address, None


async def _prepare(link: RedisLink, demand: Demand, namespace: str, first: bool) -> None:
    """Before anything else on a new connection: the class it has, what makes that true, and the library."""
    call = link.setup_call
    promise = await durability(call, demand, first)
    before, link.barrier = link.barrier, None
    if promise.waits:
        key = _mark_key(link, namespace)
        if not await call("EXPIRE", key, MARK_S):
            await call("SET", key, "1", "EX", MARK_S)
        short_since_s = before.short_since_s if before is not None else None
        link.barrier = Barrier(key, promise.local, promise.replicas, demand.timeout_s, promise.aof, short_since_s)
    await library.ensure_loaded(call)
    link.durability = promise.durability


def _mark_key(link: RedisLink, namespace: str) -> bytes:
    for number in range(_MARK_NAMES):
        key = f"{namespace}:{{w{number}}}:mark".encode()
        if link.serves(key):
            return key
    raise StoreUnavailable(f"store {link.address}: it has no slots")
