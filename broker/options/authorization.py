"""Where rules come from: one class of options per rule source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from broker.options import Words, option
from broker.options.backends import Named, Remote
from broker.options.web import HeaderLines
from broker.values import Choice, Duration, FilePath, Text, Url

# fmt: off


_LISTENERS = option(Words("names of listeners"), "", "Only for clients of these listeners; empty: for all.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Named):
    """What all rule sources have in common."""

    listeners: tuple[str, ...] = _LISTENERS


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSource(Remote):
    """The same for those that are asked over the network."""

    listeners: tuple[str, ...] = _LISTENERS


@dataclass(frozen=True, slots=True, kw_only=True)
class AclFile(Source):
    """Mosquitto's rules."""

    TYPE: ClassVar[str] = "acl_file"
    HELP: ClassVar[str] = "A file in the syntax of Mosquitto's acl_file."

    path: Path = option(FilePath(), None, "The file; it is read again when it changes.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesFile(Source):
    """Rules in TOML."""

    TYPE: ClassVar[str] = "rules_file"
    HELP: ClassVar[str] = "A TOML file with [[rule]] tables; the first that applies decides."

    path: Path = option(FilePath(), None, "The file; it is read again when it changes.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRules(Source):
    """Rules kept in the cluster's own store."""

    TYPE: ClassVar[str] = "store"
    HELP: ClassVar[str] = "Rules in the cluster's store, managed with `rookery ctl rules`: in force everywhere at once."


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisRules(RemoteSource):
    """Rules in a Redis database of somebody else's making."""

    TYPE: ClassVar[str] = "redis"
    HELP: ClassVar[str] = "Rules in any Redis or Valkey: a hash per user, filter to publish, subscribe, all or JSON."

    url: str = option(Url(), None, "redis://HOST:PORT/DB, or any other form that the setting store takes.")
    username: str = option(Text(), "", "User name for that Redis.")
    password: str = option(Text(), "", "Password for that Redis.", secret=True)
    key: str = option(Text(), "mqtt_acl:${username}", "Key of the hash of a user.")
    refresh_s: float = option(Duration(), "60s", "How long what was read of a client counts.", at_least=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRules(RemoteSource):
    """A web service."""

    TYPE: ClassVar[str] = "http"
    HELP: ClassVar[str] = ("A web service asked for each topic: answers 200 with JSON {result: allow|deny|ignore}, "
        "204 for allow, 403 for deny.")

    url: str = option(Url(), None, "URL; may contain placeholders in its path and query.")
    method: str = option(Choice("post", "get"), "post", "POST with a JSON body, or GET with a query.")
    body: str = option(Text(), "username=${username}&clientid=${clientid}&topic=${topic}&action=${action}",
        "Names and values of the body or query; values may contain placeholders.", secret=True)
    headers: tuple[str, ...] = option(HeaderLines(), "",
        "Further request headers; values may contain placeholders.", secret=True)
    ca_certs: Path | None = option(FilePath(), "", "PEM file of the authorities that sign the service's certificate.")
    refresh_s: float = option(Duration(), "60s", "How long an answer counts.", at_least=0.1, at_most=86400)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlRules(RemoteSource):
    """What PostgreSQL and MySQL have in common."""

    url: str = option(Url(), None, "postgresql://HOST:PORT/DATABASE or mysql://HOST:PORT/DATABASE.")
    username: str = option(Text(), "", "User name for the database.")
    password: str = option(Text(), "", "Password for the database.", secret=True)
    query: str = option(Text(), "SELECT permission, action, topic FROM mqtt_acl WHERE username = ${username}",
        "Query for the rules of a client; placeholders become parameters. Columns permission (allow, deny), action "
        "(publish, subscribe, all), topic, and maybe qos, retain.")
    refresh_s: float = option(Duration(), "60s", "How long what was read of a client counts.", at_least=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresqlRules(SqlRules):
    """Rules in PostgreSQL."""

    TYPE: ClassVar[str] = "postgresql"
    HELP: ClassVar[str] = "Rules of a client found by a query in PostgreSQL."


@dataclass(frozen=True, slots=True, kw_only=True)
class MysqlRules(SqlRules):
    """Rules in MySQL or MariaDB."""

    TYPE: ClassVar[str] = "mysql"
    HELP: ClassVar[str] = "Rules of a client found by a query in MySQL or MariaDB."


RULE_SOURCES = (AclFile, RulesFile, StoredRules, RedisRules, HttpRules, PostgresqlRules, MysqlRules)
