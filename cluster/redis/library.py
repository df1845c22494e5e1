"""The function library in the store: loaded once, checked at each connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from broker.errors import ClusterError
from broker.log import get_logger

if TYPE_CHECKING:
    from cluster.redis.links import Link

NAME = "rk1"

Call = Callable[..., Awaitable[object]]

_log = get_logger("cluster")


@cache
def source() -> bytes:
    """The library: all files of `scripts` in the order of their names."""
    folder = resources.files("cluster.redis") / "scripts"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".lua"))
    return b"\n".join((folder / name).read_bytes() for name in names)


async def ensure_loaded(call: Call) -> None:
    """Loads the library unless the store has this very code. A release that changes what a function means has a
    name of its own, so what is replaced here is an older build of the same version. Raises ClusterError."""
    found = await call("FUNCTION", "LIST", "LIBRARYNAME", NAME, "WITHCODE")
    if isinstance(found, list) and found:
        library = found[0]
        if isinstance(library, list):
            library = dict(zip(library[::2], library[1::2], strict=False))
        if library.get(b"library_code") == source():
            return
    try:
        await call("FUNCTION", "LOAD", "REPLACE", source())
    except ClusterError as error:
        raise ClusterError(f"the store does not load the function library: {str(error)[:200]}") from error


async def patched(link: Link, work: Callable[[], Awaitable[object]]) -> object:
    """Does `work`, again if the store has not got its function: see `reload_library`."""
    try:
        return await work()
    except ClusterError as error:
        if not is_missing(error):
            raise
    await reload_library(link)
    return await work()


def is_missing(error: Exception) -> bool:
    """Whether the store has not got the function that was called."""
    return "unction not found" in str(error)


async def reload_library(link: Link) -> None:
    """Puts this build's library where, in a rolling upgrade, a node of the version before has put its own back when it
    connected. Raises ClusterError."""
    _log.info("cluster.library_replaced")
    for primary in link.primaries():
        await ensure_loaded(primary.call)
