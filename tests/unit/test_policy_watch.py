"""Changes of files and documents are noticed once, and what is wrong leaves everything as it was."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from broker.auth.rules import RuleSet
from broker.auth.rules_file import read_rules
from broker.auth.watch import PolicyWatch
from broker.errors import StoreUnavailable
from cluster.memory.registry import MemoryRegistry

DEADLINE_S = 20.0


class Reader:
    """Reads one file or none, counts what it was told."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rules = RuleSet()
        self.refreshed = 0

    def files(self) -> list[Path]:
        return [self.path] if self.path else []

    def reload(self) -> None:
        assert self.path
        self.rules = read_rules(self.path)

    async def refresh(self) -> None:
        self.refreshed += 1


class Registry(MemoryRegistry):
    """One that can be out of reach."""

    gone = False

    async def version(self) -> int:
        if self.gone:
            raise StoreUnavailable("gone")
        return await super().version()


class World:
    def __init__(self, path: Path | None) -> None:
        self.reader = Reader(path)
        self.registry = Registry()
        self.changes = 0
        self._news = trio.Event()

    def changed(self) -> None:
        self.changes += 1
        self._news.set()
        self._news = trio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(DEADLINE_S):
            while not holds():
                await self._news.wait()


@asynccontextmanager
async def watched(path: Path | None) -> AsyncIterator[World]:
    world = World(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(PolicyWatch(world.reader, world.registry, world.changed).serve)
        yield world
        nursery.cancel_scope.cancel()


def rules(count: int) -> str:
    return '[[rule]]\npermission = "allow"\ntopics = "a"\n' * count


def replace(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


@pytest.mark.parametrize("change", [replace, Path.write_text])
async def test_a_file_that_changes(tmp_path: Path, change: Callable[[Path, str], object]) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(rules(1))
    async with watched(path) as world:
        for count in (1, 3, 2):
            change(path, rules(count))
            await world.until(lambda count=count: len(world.reader.rules.rules) == count)  # type: ignore[misc]


async def test_a_link_that_leads_elsewhere(tmp_path: Path) -> None:
    for name, count in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rules.toml").write_text(rules(count))
    link = tmp_path / "data"
    link.symlink_to("one")
    (tmp_path / "rules.toml").symlink_to("data/rules.toml")
    async with watched(tmp_path / "rules.toml") as world:
        await world.until(lambda: len(world.reader.rules.rules) == 1)
        (tmp_path / "new").symlink_to("two")
        os.replace(tmp_path / "new", link)
        await world.until(lambda: len(world.reader.rules.rules) == 2)


async def test_what_is_wrong_changes_nothing_and_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(rules(2))
    async with watched(path) as world:
        await world.until(lambda: len(world.reader.rules.rules) == 2)
        changes = world.changes
        replace(path, rules(3) + "[[rule]]\nperm")
        await world.until(lambda: world.changes > changes)
        assert len(world.reader.rules.rules) == 2
        changes = world.changes
        path.unlink()
        await world.until(lambda: world.changes > changes)
        assert len(world.reader.rules.rules) == 2
        path.write_text(rules(4))
        await world.until(lambda: len(world.reader.rules.rules) == 4)


async def test_documents(autojump_clock: trio.testing.MockClock) -> None:
    # No files: they are read in a thread, which this clock does not wait for.
    async with watched(None) as world:
        await world.until(lambda: world.reader.refreshed == 1)  # what was read before may be old
        await trio.sleep(10)
        assert world.reader.refreshed == 1
        changes = world.changes
        await world.registry.change("rules", {"a": b"{}"})
        await world.until(lambda: world.reader.refreshed == 2)
        world.registry.gone = True
        await world.registry.change("rules", {"a": None})
        await trio.sleep(10)
        assert world.reader.refreshed == 2
        world.registry.gone = False
        await world.until(lambda: world.reader.refreshed == 3)
        assert world.changes == changes + 2
