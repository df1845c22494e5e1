"""What the store's settings mean for the broker: whether it can be used, and how durable it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from broker.errors import ClusterError, StoreUnavailable

Call = Callable[..., Awaitable[object]]


async def durability(call: Call) -> str:
    """The durability class of GUARANTEES section 2 that the store's settings give.

    Raises ClusterError if the store might throw data away."""
    memory = _fields(await call("INFO", "memory"))
    policy = memory.get("maxmemory_policy", "")
    if policy and policy != "noeviction":
        raise ClusterError(
            f"the store may evict data: maxmemory-policy is {policy!r}; it must be noeviction "
            "(redis.conf: maxmemory-policy noeviction, or CONFIG SET maxmemory-policy noeviction)"
        )
    persistence = _fields(await call("INFO", "persistence"))
    if persistence.get("aof_enabled") != "1":
        return "memory"
    try:
        setting = await call("CONFIG", "GET", "appendfsync")
    except StoreUnavailable:
        raise
    except ClusterError:
        return "aof"  # not allowed to look: the weaker promise
    values = list(setting.values()) if isinstance(setting, dict) else setting
    return "fsync" if isinstance(values, list) and b"always" in values else "aof"


def _fields(reply: object) -> dict[str, str]:
    """The lines of an INFO section."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in pairs}
