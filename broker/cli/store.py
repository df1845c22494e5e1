"""`rookery store`: what lies in the store, and its move to the layout of this version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from broker.cli.documents import store_options, store_settings
from cluster import layout

if TYPE_CHECKING:
    from broker.config import Settings
    from cluster.layout import StoreStatus


@click.group("store")
def store_group() -> None:
    """The store's layout: look at it, and move it to that of this version.

    These commands work on the store itself, with the configuration of a node. Where it is embedded and no node runs on
    its data folder, they start it for as long as they need.
    """


@store_group.command()
@store_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(as_json: bool, **store: object) -> None:
    """Print layout, feature level, members with their versions, and function libraries."""
    from broker.stores import store_status

    with _settings(store) as settings:
        found = store_status(settings)
    if as_json:
        shown = asdict(found) | {"level": found.level, "own_layout": layout.LAYOUT, "own_level": layout.FEATURES}
        print(json.dumps(shown, indent=2))
        return
    for line in _lines(found):
        print(line)


@store_group.command()
@store_options
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def migrate(dry_run: bool, **store: object) -> None:
    """Move the store to the layout of this version; all nodes have to be stopped.

    Make a backup first: there is no way back. What was interrupted goes on when the command is run again; no node
    starts before it has come to its end.
    """
    from broker.stores import migrate_store

    with _settings(store) as settings:
        done = migrate_store(settings, lambda line: print(line, flush=True), dry_run)
    if not done:
        print(f"nothing to do: layout {layout.LAYOUT} is that of this version")


@store_group.command("remove-library")
@store_options
@click.argument("name")
def remove(name: str, **store: object) -> None:
    """Remove the function library NAME of another version.

    All namespaces and databases of a server share its libraries: make sure that no node of that version uses it.
    """
    from broker.stores import remove_library

    with _settings(store) as settings:
        for server in remove_library(settings, name):
            print(f"{server}: removed {name}")


@contextmanager
def _settings(store: dict[str, object]) -> Iterator[Settings]:
    from broker.log import configure

    with store_settings(store) as settings:
        configure("warning", settings.log_format)
        yield settings


def _lines(found: StoreStatus) -> list[str]:
    facts = [
        ("namespace", found.namespace),
        ("layout", f"{found.layout or 'none: no data yet'} (this version: {layout.LAYOUT})"),
        ("partitions", str(found.partitions or "none yet")),
        ("feature level", f"{'no members' if found.level is None else found.level} (this version: {layout.FEATURES})"),
        ("generation", " to ".join(str(each) for each in dict.fromkeys(found.generation))),
    ]
    if found.migration:
        done = found.migration
        facts.append(("migration", f"at {done.get('step', 'the beginning')}, {done.get('done', 0)} entries done"))
    if found.dead:
        facts.append(("to be reaped", f"{found.dead} dead members"))
    for each in found.members:
        lease = f"lease {each.lease_s:.1f} s" if each.lease_s > 0 else "lease over"
        facts.append(
            (
                "member",
                f"{each.node}:{each.incarnation} version {each.version} level {each.level} {each.library} {lease}",
            )
        )
    for server, names in found.libraries.items():
        facts += [("library", f"{name} {of} ({server})") for name, of in sorted(names.items())]
    return [f"{name:<14} {text}" for name, text in facts]
