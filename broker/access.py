"""Who may come in, and who may do what: authenticators, rule sources and hooks of a node, made from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from broker.auth.api import Authenticator, ConnectRequest, Principal, RuleSource
from broker.auth.cache import Cache
from broker.auth.chain import Chain
from broker.auth.permissions import Authorization, Permissions
from broker.config import Settings
from broker.errors import ConfigError
from broker.hooks.running import Hooks
from broker.metrics import Metrics
from broker.mount import check_mountpoints
from broker.options import Options
from broker.options.authentication import (
    CertificateNames,
    ClientAttribute,
    HttpAuthentication,
    Jwt,
    Ldap,
    MysqlUsers,
    PasswordFile,
    PostgresqlUsers,
    PresharedKeys,
    RedisUsers,
    StoredUsers,
)
from broker.options.authorization import (
    AclFile,
    HttpRules,
    MysqlRules,
    PostgresqlRules,
    RedisRules,
    RemoteSource,
    RulesFile,
    Source,
    StoredRules,
)
from broker.options.hooks import Hook
from broker.options.listener import ListenerOptions
from cluster.registry import Registry


class Access:
    """Made anew for every life of a node. Making it checks all files that are named (ConfigError), and does no more.

    `registry` is None where only the configuration is checked.
    """

    def __init__(self, settings: Settings, registry: Registry | None, metrics: Metrics | None = None) -> None:
        check_mountpoints(settings.listen)
        attributes = [each for each in settings.client_attributes if isinstance(each, ClientAttribute)]
        cache = Cache(settings.authentication_cache_size, settings.authentication_cache_s)
        self.hooks = Hooks([each for each in settings.hooks if isinstance(each, Hook)], metrics)
        authenticators = [*self.hooks.authenticators(), *make_authenticators(settings, registry)]
        self.chain = Chain(settings.allow_anonymous, authenticators, attributes, cache, metrics)
        _check_names(settings, set(self.chain.authenticators))
        every: tuple[str, ...] = ()
        sources: list[tuple[RuleSource, Sequence[str]]] = [(each, every) for each in self.hooks.sources()]
        sources += [(make_source(each, registry), listeners_of(each)) for each in settings.authorization]
        self.authorization = Authorization(sources, settings.no_match == "allow", metrics)
        self.authorization.system_open = settings.sys_access == "all"

    @property
    def sources(self) -> list[RuleSource]:
        """All rule sources, in order."""
        return [source for source, _ in self.authorization.sources]

    @property
    def _readers(self) -> list[Chain | RuleSource]:
        return [self.chain, *self.sources]

    def stranger(self, request: ConnectRequest, options: ListenerOptions) -> Principal | None:
        """Who sent a CONNECT and may do anything, where nobody is asked about either; else None."""
        if self.chain.asked(options):
            return None
        principal = self.chain.stranger(request, options)
        return principal if principal is not None and self.authorization.unrestricted(principal) else None

    async def permissions(self, principal: Principal) -> Permissions:
        """What a client may do. Raises BackendError if a source that has to be asked cannot be."""
        return await self.authorization.permissions(principal)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Whatever works in the background."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.hooks.serve)
            await nursery.start(self.chain.serve)
            for source in self.sources:
                await nursery.start(_served, source)
            task_status.started()
            await trio.sleep_forever()

    def files(self) -> list[Path]:
        """Files that `reload` reads."""
        return [path for each in self._readers for path in each.files()]

    def reload(self) -> None:
        """Read all files again, in whatever thread. ConfigError names those that are wrong: they count as before."""
        wrong: list[str] = []
        for each in self._readers:
            try:
                each.reload()
            except ConfigError as error:
                wrong.append(str(error))
        if wrong:
            raise ConfigError("; ".join(wrong))

    async def refresh(self) -> None:
        """Documents of the registry changed: what is kept of them in memory is read again. Raises ClusterError."""
        for each in self._readers:
            await each.refresh()


async def _served(source: RuleSource, *, task_status: trio.TaskStatus[None]) -> None:
    await source.serve(task_status=task_status)


def _check_names(settings: Settings, known: set[str]) -> None:
    """The configuration takes hooks for authenticators: here it is known whether they are."""
    for listener in settings.listen:
        options = listener.options
        missing = [name for name in options.authentication if name not in known and options.authentication != ("off",)]
        if missing:
            raise ConfigError(
                f"listen = {listener.url}: authentication has {missing[0]!r}, a hook without authenticate"
            )
        allowed = settings.allow_anonymous if options.anonymous == "default" else options.anonymous == "true"
        if not known and not allowed and not listener.is_loopback:
            raise ConfigError(
                f"listen = {listener.url!r}: other machines can reach it and neither authenticator nor hook checks"
                " clients; set authentication, or --allow-anonymous if that is meant"
            )


def listeners_of(options: Options) -> Sequence[str]:
    """The listeners whose clients a rule source is about; none: all."""
    assert isinstance(options, Source | RemoteSource)
    return options.listeners


def make_source(options: Options, registry: Registry | None) -> RuleSource:
    """As `make_authenticator`."""
    match options:
        case AclFile():
            from broker.auth.acl_file import AclFileRules

            return AclFileRules(options)
        case RulesFile():
            from broker.auth.rules_file import RulesFileRules

            return RulesFileRules(options)
        case StoredRules():
            from broker.auth.stored_rules import StoredRuleSource

            return StoredRuleSource(options, registry)
        case HttpRules():
            from broker.auth.http_rules import HttpRuleSource

            return HttpRuleSource(options)
        case PostgresqlRules():
            from broker.auth import postgresql

            return postgresql.make_rules(options)
        case MysqlRules():
            from broker.auth import mysql

            return mysql.make_rules(options)
        case RedisRules():
            from broker.auth.redis_rules import RedisRuleSource

            return RedisRuleSource(options)
        case _:
            raise ConfigError(f"authorization of type {options.TYPE} is not supported by this build")


def make_authenticators(settings: Settings, registry: Registry | None) -> Sequence[Authenticator]:
    """In the order of the configuration."""
    return [make_authenticator(each, registry) for each in settings.authentication]


def make_authenticator(options: Options, registry: Registry | None) -> Authenticator:
    """Libraries that only one kind needs are imported here, so that others do without."""
    match options:
        case PasswordFile():
            from broker.auth.password_file import PasswordFileUsers

            return PasswordFileUsers(options, registry)
        case StoredUsers():
            from broker.auth.stored_users import StoredUserAccounts

            return StoredUserAccounts(options, registry)
        case RedisUsers():
            from broker.auth.redis_users import RedisUserAccounts

            return RedisUserAccounts(options, registry)
        case CertificateNames():
            from broker.auth.certificate import CertificateUsers

            return CertificateUsers(options)
        case PresharedKeys():
            from broker.auth.psk import PresharedKeyUsers

            return PresharedKeyUsers(options)
        case Jwt():
            from broker.auth.jwt_tokens import JwtUsers

            return JwtUsers(options)
        case HttpAuthentication():
            from broker.auth.http_service import HttpUsers

            return HttpUsers(options)
        case PostgresqlUsers():
            from broker.auth import postgresql

            return postgresql.make_users(options, registry)
        case MysqlUsers():
            from broker.auth import mysql

            return mysql.make_users(options, registry)
        case Ldap():
            from broker.auth import ldap

            return ldap.make_users(options)
    raise ConfigError(f"authentication of type {options.TYPE} is not supported by this build")
