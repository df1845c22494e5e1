"""Where the store is and how to log in there: URLs such as `rediss://user:secret@host:6380/1`."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from broker.errors import ConfigError

DEFAULT_PORT = 6379

_FORM = "redis://[user:password@]host[:port][/db], rediss://... or unix:///path[?db=0]"
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
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{user}{host}:{self.port}/{self.db}"

    def ssl_context(self) -> ssl.SSLContext:
        """A client context for `rediss://`. Reads files: call it in a thread. Raises OSError, ssl.SSLError included."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file or None)
        return context


def parse_store_url(url: str, *, username: str | None = None, password: str | None = None) -> StoreAddress:
    """The address in `url`; `username` and `password`, if given, win over those of the URL.

    Query: `db`, and for TLS `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`, `ssl_cert_reqs` (required, none).
    Raises ConfigError. No message contains what stands where a password may stand.
    """
    scheme = url.partition(":")[0].lower()
    if scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(f"store URL: the scheme must be redis, rediss or unix, as in {_FORM}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "127.0.0.1", parts.port
        user, secret = unquote(parts.username or ""), unquote(parts.password or "")
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        # The text of urllib's errors quotes the URL, which may hold a password.
        raise ConfigError(
            f"store URL: not of the form {_FORM} (percent-encode special characters of the password)"
        ) from None
    if parts.fragment or port == 0:
        raise ConfigError(f"store URL: not of the form {_FORM} (percent-encode special characters of the password)")
    address = StoreAddress(
        username=user if username is None else username, password=secret if password is None else password
    )
    if scheme == "unix":
        path = unquote(parts.path)
        if not path or parts.hostname:
            raise ConfigError("store URL: unix:// needs an absolute path, as in unix:///run/redis.sock")
        return _with_query(replace(address, path=path), query)
    address = replace(address, host=host, port=DEFAULT_PORT if port is None else port, tls=scheme == "rediss")
    db = parts.path.strip("/")
    if db:
        address = replace(address, db=_database(db))
    return _with_query(address, query)


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
