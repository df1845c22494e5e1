"""Commands over what the nodes of a cluster share: users, rules, bans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from broker.cli.settings import load_options, option_of
from broker.config import SETTINGS

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

    with open_documents(load_options(store).settings) as opened:
        yield opened
