"""Where the store is and how to log in there: URLs such as `rediss://user:secret@host:6380/1`.

One server, a primary that Sentinels know (`redis+sentinel://h1,h2/name`), or a Redis Cluster (`redis+cluster://h1,h2`).
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field, replace
from typing import TypeAlias
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from broker.errors import ConfigError

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379

_FORM = (
    "redis://[user:password@]host[:port][/db], rediss://..., unix:///path[?db=0], "
    "redis+sentinel://[user:password@]host[:port],.../master_name[?db=0] or redis+cluster://[user:password@]host[:port],..."
)
_WRONG = f"store URL: not of the form {_FORM} (percent-encode special characters of the password)"
_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_CERT_REQS = {"required": True, "none": False}


@dataclass(frozen=True)
class StoreAddress:
    """One Redis server. Either `path` (a Unix socket) or `host` and `port`; `str()` shows no secret."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    tls: bool = False
    #: Files in PEM format; "" for the system's trust store, and for no client certificate.
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True

    def __str__(self) -> str:
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        if self.path:
            return f"unix://{user}{quote(self.path)}" + (f"?db={self.db}" if self.db else "")
        return f"{'rediss' if self.tls else 'redis'}://{user}{_bracketed(self.host)}:{self.port}/{self.db}"

    def ssl_context(self) -> ssl.SSLContext:
        """A client context for `rediss://`. Reads files: call it in a thread. Raises OSError, ssl.SSLError included."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None)
        return context


@dataclass(frozen=True)
class SentinelAddress:
    """A primary that Sentinels know by a name. `seeds`: the Sentinels, with how to log in there, in the order of the
    URL; `store`: how to log in to the primary, whose host and port are theirs to tell. `str()` shows no secret."""

    seeds: tuple[StoreAddress, ...]
    master: str
    store: StoreAddress

    def __str__(self) -> str:
        scheme = "rediss" if self.store.tls else "redis"
        return f"{scheme}+sentinel://{_hosts(self.seeds)}/{quote(self.master, safe='')}"


@dataclass(frozen=True)
class ClusterAddress:
    """A Redis Cluster. `seeds`: some of its servers, all with the login of every one. `str()` shows no secret."""

    seeds: tuple[StoreAddress, ...]

    def __str__(self) -> str:
        return f"{'rediss' if self.seeds[0].tls else 'redis'}+cluster://{_hosts(self.seeds)}"


Deployment: TypeAlias = StoreAddress | SentinelAddress | ClusterAddress


def _hosts(seeds: tuple[StoreAddress, ...]) -> str:
    return ",".join(f"{_bracketed(seed.host)}:{seed.port}" for seed in seeds)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_store_url(url: str, *, username: str | None = None, password: str | None = None) -> Deployment:
    """The address in `url`; `username` and `password`, if given, win over those of the URL.

    Query: `db`, for TLS `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs` (required, none), and for
    Sentinels `sentinel_username`, `sentinel_password`.
    Raises ConfigError. No message contains what stands where a password may stand.
    """
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme not in _SCHEMES:
        raise ConfigError(f"store URL: the scheme must be one of {', '.join(_SCHEMES)}, as in {_FORM}")
    tls, _, kind = scheme.partition("+")
    hosts = _split_hosts(rest) if kind else ()
    if hosts:
        before, _, after = rest.partition(",".join(hosts))
        rest = f"{before}{hosts[0]}{after}"  # what is left is a URL with one host
    try:
        parts = urlsplit(f"{tls}:{rest}")
        places = [_place(host) for host in hosts] or [(parts.hostname or "127.0.0.1", parts.port)]
        user, secret = unquote(parts.username or ""), unquote(parts.password or "")
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        # The text of urllib's errors quotes the URL, which may hold a password.
        raise ConfigError(_WRONG) from None
    if parts.fragment or any(port == 0 for _, port in places):
        raise ConfigError(_WRONG)
    login = StoreAddress(
        username=user if username is None else username,
        password=secret if password is None else password,
        tls=tls == "rediss",
    )
    if kind == "sentinel":
        return _sentinels(login, places, parts, query)
    if kind == "cluster":
        return _cluster(login, places, parts, query)
    return _single(login, places[0], parts, query)


def _single(
    address: StoreAddress, place: tuple[str, int | None], parts: SplitResult, query: list[tuple[str, str]]
) -> StoreAddress:
    if parts.scheme == "unix":
        path = unquote(parts.path)
        if not path or parts.hostname:
            raise ConfigError("store URL: unix:// needs an absolute path, as in unix:///run/redis.sock")
        return _with_query(replace(address, path=path), query)
    db = parts.path.strip("/")
    return _with_query(_at(address, place, DEFAULT_PORT, _database(db) if db else 0), query)


def _sentinels(
    login: StoreAddress, places: list[tuple[str, int | None]], parts: SplitResult, query: list[tuple[str, str]]
) -> SentinelAddress:
    master = unquote(parts.path.strip("/"))
    if not master or "/" in master:
        raise ConfigError("store URL: the path of redis+sentinel:// is the name of the primary, such as /mymaster")
    of_sentinel = {name: value for name, value in query if name in ("sentinel_username", "sentinel_password")}
    store = _with_query(login, [pair for pair in query if pair[0] not in of_sentinel])
    at_sentinel = replace(
        store,
        username=of_sentinel.get("sentinel_username", ""),
        password=of_sentinel.get("sentinel_password", ""),
        db=0,
    )
    seeds = tuple(_at(at_sentinel, place, DEFAULT_SENTINEL_PORT) for place in places)
    return SentinelAddress(seeds, master, store)


def _cluster(
    login: StoreAddress, places: list[tuple[str, int | None]], parts: SplitResult, query: list[tuple[str, str]]
) -> ClusterAddress:
    login = _with_query(login, query)
    if parts.path.strip("/") not in ("", "0") or login.db:
        raise ConfigError("store URL: a Redis Cluster has only database 0")
    return ClusterAddress(tuple(_at(login, place, DEFAULT_PORT) for place in places))


def _at(address: StoreAddress, place: tuple[str, int | None], default_port: int, db: int = 0) -> StoreAddress:
    host, port = place
    return replace(address, host=host, port=default_port if port is None else port, db=db)


def _split_hosts(rest: str) -> tuple[str, ...]:
    """The hosts, with their ports, of the part of a URL behind its scheme."""
    authority = re.split(r"[/?#]", rest.removeprefix("//"), maxsplit=1)[0]
    return tuple(authority.rpartition("@")[2].split(","))


def _place(text: str) -> tuple[str, int | None]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port


def _with_query(address: StoreAddress, query: list[tuple[str, str]]) -> StoreAddress:
    for name, value in query:
        if name == "db":
            address = replace(address, db=_database(value))
        elif name == "ssl_ca_certs" and address.tls:
            address = replace(address, ca_file=value)
        elif name == "ssl_certfile" and address.tls:
            address = replace(address, cert_file=value)
        elif name == "ssl_keyfile" and address.tls:
            address = replace(address, key_file=value)
        elif name == "ssl_cert_reqs" and address.tls:
            if value not in _CERT_REQS:
                raise ConfigError(f"store URL: ssl_cert_reqs is {value[:40]!r}; required or none")
            address = replace(address, verify=_CERT_REQS[value])
        else:
            raise ConfigError(f"store URL: unknown query parameter {name[:40]!r}")
    return address


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ConfigError(f"store URL: the database must be a small number, not {text[:40]!r}")
    return int(text)
