"""Who may come in, and who may do what: authenticators, rule sources and hooks of a node, made from its settings."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from broker.auth.api import Authenticator
from broker.auth.chain import Chain
from broker.config import Settings
from broker.errors import ConfigError
from broker.options import Options
from broker.options.authentication import ClientAttribute, PasswordFile
from cluster.registry import Registry


class Access:
    """Made anew for every life of a node. Making it checks all files that are named (ConfigError), and does no more.

    `registry` is None where only the configuration is checked.
    """

    def __init__(self, settings: Settings, registry: Registry | None) -> None:
        attributes = [each for each in settings.client_attributes if isinstance(each, ClientAttribute)]
        self.chain = Chain(settings.allow_anonymous, make_authenticators(settings, registry), attributes)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Whatever works in the background."""
        await self.chain.serve(task_status=task_status)

    def reload(self) -> None:
        """Read all files again. ConfigError for the first that is wrong."""
        self.chain.reload()


def make_authenticators(settings: Settings, registry: Registry | None) -> Sequence[Authenticator]:
    """In the order of the configuration."""
    return [make_authenticator(each, registry) for each in settings.authentication]


def make_authenticator(options: Options, registry: Registry | None) -> Authenticator:
    """Libraries that only one kind needs are imported here, so that others do without."""
    match options:
        case PasswordFile():
            from broker.auth.password_file import PasswordFileUsers

            return PasswordFileUsers(options)
    raise ConfigError(f"authentication of type {options.TYPE} is not supported by this build")
