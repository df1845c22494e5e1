"""Noticing that users, rules or bans changed: documents by the version of the registry, files by looking at them.

What was read counts at once; then `on_change` is called, which looks at all connections again. What is wrong (a file
that is half written, a store that does not answer) leaves everything as it was, is logged once, and is tried again
when the file is another one, and always for the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio

from broker.errors import ClusterError, ConfigError
from broker.log import get_logger
from cluster.registry import Registry

#: Pauses between two looks. A file has to be the same at two of them: one that is being written is left alone.
VERSION_S: Final = 0.5
FILES_S: Final = 0.25

_log = get_logger("policy")

#: What changes when a file does, also when a link on the way leads elsewhere; None for a file that is not there.
_Stamp = tuple[int, ...] | None


class Readers(Protocol):
    """What has to be read again; `broker.access.Access` is one."""

    def files(self) -> Sequence[Path]:
        """The files."""
        ...

    def reload(self) -> None:
        """Read them, in a thread; ConfigError for those that are wrong."""
        ...

    async def refresh(self) -> None:
        """Read documents; ClusterError."""
        ...


class PolicyWatch:
    """`serve` it as long as there are clients. `on_change` is called in the node's thread and must not take long."""

    def __init__(self, readers: Readers, registry: Registry, on_change: Callable[[], None]) -> None:
        self._readers = readers
        self._registry = registry
        self._on_change = on_change
        self._unavailable = False

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_files)
            nursery.start_soon(self._watch_documents)
            task_status.started()

    async def _watch_documents(self) -> None:
        # The first look reads everything again: it may have changed since it was read.
        seen: int | None = None
        while True:
            try:
                version = await self._registry.version()
                if version != seen:
                    await self._readers.refresh()
                    seen = version
                    self._on_change()
            except ClusterError as error:
                if not self._unavailable:
                    self._unavailable = True
                    _log.warning("policy.documents_not_read", error=str(error))
            else:
                self._unavailable = False
            await trio.sleep(VERSION_S)

    async def _watch_files(self, task_status: trio.TaskStatus[None]) -> None:
        before = self._stamps()
        # As above: they were read before the first look.
        read: Mapping[Path, _Stamp] = {}
        task_status.started()
        while True:
            await trio.sleep(FILES_S)
            now = self._stamps()
            if now != read and now == before:
                await self._read_files(again=bool(read))
                read = now
            before = now

    async def _read_files(self, again: bool) -> None:
        try:
            # Large files take their time; readers change nothing until they have read all.
            await trio.to_thread.run_sync(self._readers.reload)
        except ConfigError as error:
            _log.error("policy.files_not_read", error=str(error))
        else:
            if again:
                _log.info("policy.files_read")
        self._on_change()  # in either case: other files may have been read

    def _stamps(self) -> Mapping[Path, _Stamp]:
        return {path: _stamp(path) for path in self._readers.files()}


def _stamp(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
