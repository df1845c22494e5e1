"""What the store's settings mean for the broker: whether it can be used, how durable it is, and what makes it so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from broker.errors import ClusterError, StoreUnavailable

Call = Callable[..., Awaitable[object]]

AUTO: Final = "auto"
#: From the weakest to the strongest (GUARANTEES section 2).
CLASSES: Final = ("memory", "aof", "fsync", "replicated", "replicated-fsync")
_REPLICATED = ("replicated", "replicated-fsync")


@dataclass(frozen=True)
class Demand:
    """What the operator asks for: a class or auto; for the replicated ones how many replicas must have a write, and
    how long one question for that may take."""

    durability: str = AUTO
    replicas: int = 1
    timeout_s: float = 2.0


@dataclass(frozen=True)
class Promise:
    """The class that a connection has, and what must be waited for: `local` and `replicas` of WAITAOF if `aof`, else
    `replicas` of WAIT; nothing if both are 0."""

    durability: str
    local: int = 0
    replicas: int = 0
    aof: bool = False

    @property
    def waits(self) -> bool:
        return bool(self.local or self.replicas)


@dataclass(frozen=True)
class _Settings:
    """Of the store; None for what it does not let us see."""

    eviction: str | None
    aof: bool | None
    appendfsync: str | None
    replicas: int | None


async def durability(call: Call, demand: Demand, first: bool = True) -> Promise:
    """Checks the store's settings against the class that is asked for, or takes the class they give (auto).

    What cannot be seen is believed to be as the operator says; auto takes the weaker class. `first`: the node starts,
    so a replicated class needs its replicas there. Raises ClusterError with the setting of the store to change."""
    found = await _read(call)
    if found.eviction not in (None, "", "noeviction"):
        raise ClusterError(
            f"the store may evict data: maxmemory-policy is {found.eviction!r}; it must be noeviction "
            "(redis.conf: maxmemory-policy noeviction, or CONFIG SET maxmemory-policy noeviction)"
        )
    wanted = demand.durability
    if wanted == AUTO:
        return Promise(_class_of(found))
    if wanted != "memory" and wanted != "replicated":
        _check_aof(found, wanted)
    if wanted == "fsync" and found.appendfsync != "always":
        if await _has_waitaof(call):
            return Promise(wanted, local=1, aof=True)
        if found.appendfsync is not None:
            raise _contradiction(wanted, f"appendfsync is {found.appendfsync}", "appendfsync always")
    if wanted not in _REPLICATED:
        return Promise(wanted)
    if first and found.replicas is not None and found.replicas < demand.replicas:
        raise ClusterError(
            f"durability is {wanted} with {demand.replicas} replica(s), but the store has {found.replicas} connected: "
            "start replicas (redis.conf there: replicaof HOST PORT), or set durability_replicas or durability lower"
        )
    if wanted == "replicated":
        return Promise(wanted, replicas=demand.replicas)
    if not await _has_waitaof(call):
        raise ClusterError(
            f"durability is {wanted}, which needs WAITAOF: Redis 7.2 or Valkey, or durability replicated"
        )
    return Promise(wanted, local=1, replicas=demand.replicas, aof=True)


def weakest(classes: list[str]) -> str:
    """The weakest of some classes, "" if there is none."""
    return min(classes, key=CLASSES.index, default="")


def _check_aof(found: _Settings, wanted: str) -> None:
    if found.aof is False:
        raise _contradiction(wanted, "its append-only file is off", "appendonly yes")
    if found.appendfsync == "no":
        raise _contradiction(wanted, "appendfsync is no", "appendfsync everysec")


def _contradiction(wanted: str, why: str, line: str) -> ClusterError:
    name, _, value = line.partition(" ")
    return ClusterError(
        f"durability is {wanted}, but the store gives less: {why} "
        f"(redis.conf: {line}, or CONFIG SET {name} {value}; or set durability lower)"
    )


def _class_of(found: _Settings) -> str:
    if not found.aof or found.appendfsync == "no":
        return "memory"
    return "fsync" if found.appendfsync == "always" else "aof"


async def _read(call: Call) -> _Settings:
    memory = await _fields(call, "memory")
    persistence = await _fields(call, "persistence")
    replication = await _fields(call, "replication")
    setting = await _allowed(call, "CONFIG", "GET", "appendfsync")
    values = list(setting.values()) if isinstance(setting, dict) else setting
    appendfsync = values[-1].decode() if isinstance(values, list) and values else None
    replicas = replication.get("connected_slaves")
    return _Settings(
        memory.get("maxmemory_policy"),
        None if "aof_enabled" not in persistence else persistence["aof_enabled"] == "1",
        appendfsync,
        int(replicas) if replicas is not None else None,
    )


async def _has_waitaof(call: Call) -> bool:
    """Asked for nothing, it answers at once. Not allowed to ask counts as not there."""
    return await _allowed(call, "WAITAOF", 0, 0, 0) is not None


async def _fields(call: Call, section: str) -> dict[str, str]:
    """The lines of an INFO section; none where it may not be seen."""
    return info_fields(await _allowed(call, "INFO", section))


def info_fields(reply: object) -> dict[str, str]:
    """The lines of an answer to INFO."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply or "")
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


async def _allowed(call: Call, *parts: object) -> object:
    """The reply, or None where the store does not let us ask."""
    try:
        return await call(*parts)
    except StoreUnavailable:
        raise
    except ClusterError:
        return None
