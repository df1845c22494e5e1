"""Commands over what the nodes of a cluster share: users, rules, bans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Protocol, TypeVar

import click

from broker.cli.settings import load_options, option_of
from broker.config import DEFAULT, SETTINGS, Loaded, Settings
from broker.errors import ClusterError

#: The settings that say where documents are.
_SETTINGS = (
    "config",
    "store",
    "store_username",
    "store_password",
    "store_password_file",
    "sentinel_username",
    "sentinel_password",
    "sentinel_password_file",
)
_PLACES = ("namespace", "data_dir")

WITHOUT_CONFIGURATION = "without a configuration: name that of a node with --config or ROOKERY_CONFIG"

F = TypeVar("F", bound=Callable[..., object])


class Opened(Protocol):
    """What commands use; all methods raise ClusterError."""

    def document(self, kind: str, name: str) -> bytes | None:
        """One document."""
        ...

    def documents(self, kind: str) -> dict[str, bytes]:
        """All of a kind."""
        ...

    def change(self, kind: str, changes: Mapping[str, bytes | None]) -> int:
        """Set or (with None) remove; returns the new version."""
        ...


def store_options(command: F) -> F:
    """Gives a command the options that `serve` has for its store; the command gets them as `**store`.

    Stands above the command's other options and arguments."""
    for setting in reversed(SETTINGS):
        if setting.attribute in _SETTINGS + _PLACES:
            parameters = command.__dict__.setdefault("__click_params__", [])
            parameters.append(option_of(setting))
    return command


@contextmanager
def documents(store: Mapping[str, object]) -> Iterator[Opened]:
    """The documents of the store that these options, the environment and the file name.

    Raises ConfigError, ClusterError."""
    from broker.stores import open_documents  # here: it needs trio and all the rest

    with ExitStack() as stack:
        with store_settings(store) as settings:
            opened = stack.enter_context(open_documents(settings))
        yield opened


@contextmanager
def store_settings(store: Mapping[str, object]) -> Iterator[Settings]:
    """The settings that these options, the environment and the file give; where none of them says which store, a
    ClusterError says so too. Raises ConfigError."""
    loaded = load_options(store)
    try:
        yield loaded.settings
    except ClusterError as error:
        if is_given(loaded, "config", "store", "data_dir"):
            raise
        raise ClusterError(f"{error}; {WITHOUT_CONFIGURATION}{_of_a_node()}") from None


def is_given(loaded: Loaded, *attributes: str) -> bool:
    """Whether somebody set any of these settings."""
    return any(loaded.origins[attribute] != DEFAULT for attribute in attributes)


def _of_a_node() -> str:
    """How the same is asked of a node, if it can be."""
    path = click.get_current_context().command_path
    shared = path.startswith("rookery ctl ")
    return f", or ask a node: {path.replace(' ctl ', ' ctl api ', 1).rpartition(' ')[0]}" if shared else ""
