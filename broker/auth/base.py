"""What authenticators and rule sources have in common: most have nothing to read again and nothing to do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

from broker.auth.api import ConnectRequest, EnhancedAuthenticator, Judge, Principal, Verdict
from broker.errors import ConfigError


@contextmanager
def told_of(what: str, label: str) -> Iterator[None]:
    """Errors of the configuration say which block they are about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {label}: {error}") from None


class Base:
    """No files, no documents, no background work."""

    def __init__(self, name: str) -> None:
        self.name = name

    def files(self) -> Sequence[Path]:
        """Files that `reload` reads: it is called after one of them changed."""
        return ()

    def reload(self) -> None:
        """Read files again; on ConfigError everything stays as it was."""

    async def refresh(self) -> None:
        """Documents of the registry changed: those that are kept in memory are read again."""

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Background work until cancelled; started before the first CONNECT."""
        task_status.started()
        await trio.sleep_forever()


class BaseAuthenticator(Base):
    """An authenticator that knows no Authentication Method, and whose clients stay valid until they go."""

    cached: frozenset[str] | None = None

    async def spend(self, request: ConnectRequest) -> None:
        """See `Authenticator`."""

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        raise NotImplementedError

    async def still_valid(self, principal: Principal) -> bool:
        """See `Authenticator`."""
        return True

    def exchanges(self) -> Mapping[str, EnhancedAuthenticator]:
        """See `Authenticator`."""
        return {}


class BaseSource(Base):
    """A rule source whose judges are asked each time."""

    steady = False
    generation = 0

    async def open(self, principal: Principal) -> Judge:
        """See `RuleSource`."""
        raise NotImplementedError
