"""What operators want to know of a store before and after an upgrade: its layout, its members, and what they call."""

from __future__ import annotations

import re
from typing import Final, cast

from broker.errors import ClusterError
from cluster.keys import Keys
from cluster.layout import Member, StoreStatus
from cluster.redis.direct import Direct
from cluster.redis.library import NAME, source

_LIBRARY: Final = re.compile(rb"rk[0-9]+")

#: What a node tells of itself that is of a version which does not tell it: 0.1, with library rk1.
_SILENT: Final = "0.1.x rk1"


def read_status(store: Direct, namespace: str) -> StoreStatus:
    """As it is now. Raises ClusterError."""
    prefix = Keys(namespace, 1).members

    def ask(command: str, suffix: str, *arguments: object) -> object:
        return store.ask(prefix, command, prefix + suffix.encode(), *arguments)

    layout, partitions = cast("list[bytes | None]", ask("HMGET", "meta", "layout", "partitions"))
    count = int(partitions or 0)
    numbers = [
        int(cast("bytes | None", store.ask(each, "HGET", each + b"fence", "gen")) or 0)
        for each in (Keys(namespace, count).partitions if count else ())
    ]
    return StoreStatus(
        namespace,
        (layout or b"").decode(),
        count,
        (min(numbers, default=0), max(numbers, default=0)),
        _members(store, prefix),
        cast(int, ask("ZCARD", "dead")),
        _libraries(store),
        {name.decode(): value.decode() for name, value in cast("dict[bytes, bytes]", ask("HGETALL", "mig")).items()},
    )


def _members(store: Direct, prefix: bytes) -> list[Member]:
    seconds, micros = cast("tuple[int, int]", store.ask(prefix, "TIME"))
    now_s = int(seconds) + int(micros) / 1e6
    levels, builds = (
        cast("dict[bytes, bytes]", store.ask(prefix, "HGETALL", prefix + suffix)) for suffix in (b"level", b"build")
    )
    found: list[Member] = []
    for member in cast("list[bytes]", store.ask(prefix, "ZRANGE", prefix + b"nodes", 0, -1)):
        name, _, incarnation = member.rpartition(b":")
        version, _, library = builds.get(member, _SILENT.encode()).decode().partition(" ")
        until_ms = float(cast("bytes | float", store.ask(prefix, "ZSCORE", prefix + b"nodes", member) or 0))
        level = int(levels.get(member, b"0"))
        found.append(Member(name.decode(), int(incarnation), version, library, level, until_ms / 1000 - now_s))
    return sorted(found, key=lambda each: each.node)


def _libraries(store: Direct) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for server, reply in store.each("FUNCTION", "LIST", "LIBRARYNAME", "rk*", "WITHCODE").items():
        found[server] = {}
        for each in cast("list[list[object] | dict[object, object]]", reply):
            library = dict(zip(each[::2], each[1::2], strict=False)) if isinstance(each, list) else each
            name = cast(bytes, library[b"library_name"])
            if _LIBRARY.fullmatch(name) is None:
                continue
            own = "of this version" if library.get(b"library_code") == source() else "of another build"
            found[server][name.decode()] = own if name.decode() == NAME else "of another version"
    return found


def remove_library(store: Direct, namespace: str, name: str) -> list[str]:
    """Takes a function library of other versions of Rookery out of all servers; returns from which.

    Raises ClusterError: also if a member calls it. Other namespaces of the store are not looked at."""
    if _LIBRARY.fullmatch(name.encode()) is None:
        raise ClusterError(f"{name[:40]!r} is no function library of Rookery: these are called rk1, rk2 and so on")
    if name == NAME:
        raise ClusterError(f"{name} is the function library of this version")
    users = [each.node for each in _members(store, Keys(namespace, 1).members) if each.library == name]
    if users:
        raise ClusterError(f"{name} is called by {', '.join(users)}")
    having = [server for server, names in _libraries(store).items() if name in names]
    if not having:
        raise ClusterError(f"no server has a function library {name}")
    store.each("FUNCTION", "DELETE", name, only=having)
    return having
