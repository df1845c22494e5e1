"""The function library in the store: loaded once, checked at each connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from importlib import resources

from broker.errors import ClusterError

NAME = "rk1"

Call = Callable[..., Awaitable[object]]


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
