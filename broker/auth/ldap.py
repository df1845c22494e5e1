"""LDAP: whoever can bind is who it says, with ldap3 in threads.

Without `base` the bind is made with the DN that `bind_dn` says. With it the entry is searched for first (as `bind_dn`,
or as nobody). Values are escaped where they stand (RFC 4514, RFC 4515). An empty password is refused before anybody
is asked: servers take a bind with one for an anonymous bind, and say yes to it. Referrals are not followed.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from broker.auth.api import ALLOW, DENIED, IGNORED, BackendError, ConnectRequest, Verdict
from broker.auth.base import BaseAuthenticator, told_of
from broker.auth.pool import Pool
from broker.auth.template import Template, Unresolved, lookup_of
from broker.errors import ConfigError
from broker.options.authentication import Ldap

try:
    import ldap3
except ImportError as error:
    raise ConfigError("LDAP needs the extra ldap: pip install 'rookery[ldap]'") from error

#: Result codes (RFC 4511) of a bind with a wrong password, or of an entry that may not bind now.
_REFUSED: Final = frozenset({19, 48, 49, 50, 53})
#: Of a bind as an entry that cannot exist.
_UNKNOWN: Final = frozenset({32, 34})
_SUCCESS: Final = 0
_NO_SUCH_OBJECT: Final = 32

_DN_SPECIAL: Final = frozenset('\\,+"<>;=#')
_FILTER_SPECIAL: Final = frozenset("\\*()\0")

Attributes = Mapping[str, list[str]]


class LdapDriver:
    """Implements `Driver`. What a connection is bound as is not remembered from one question to the next."""

    #: What it says of an answer that makes no sense can be anything.
    errors = (Exception,)

    def __init__(self, options: Ldap) -> None:
        try:
            parts = urlsplit(options.url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"url: {error}") from None
        if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigError("url: must be ldap://HOST:PORT or ldaps://HOST:PORT")
        if parts.username is not None:
            raise ConfigError("url: name and password stand in bind_dn and bind_password")
        if options.start_tls and parts.scheme == "ldaps":
            raise ConfigError("start_tls: ldaps:// uses TLS from the beginning")
        self._host = parts.hostname
        self._secure = parts.scheme == "ldaps"
        self._port = port or (636 if self._secure else 389)
        self._start_tls = options.start_tls
        self._timeout_s = math.ceil(options.timeout_s)
        self._tls: _Tls | None = None
        if self._secure or self._start_tls:
            try:
                self._tls = _Tls(ssl.create_default_context(cafile=options.ca_certs))
            except (OSError, ValueError) as error:
                raise ConfigError(f"ca_certs: {options.ca_certs}: {error}") from None

    def connect(self, timeout_s: float) -> Any:
        """See `Driver`."""
        server = ldap3.Server(
            self._host,
            self._port,
            use_ssl=self._secure,
            tls=self._tls,
            get_info=ldap3.NONE,
            connect_timeout=timeout_s,
        )
        connection = ldap3.Connection(
            server,
            auto_bind=ldap3.AUTO_BIND_NONE,
            client_strategy=ldap3.SYNC,
            auto_referrals=False,
            auto_escape=False,
            check_names=False,
            read_only=True,
            receive_timeout=self._timeout_s,
        )
        connection.open(read_server_info=False)
        if self._start_tls and not connection.start_tls(read_server_info=False):
            connection.unbind()
            raise OSError(f"no STARTTLS: {connection.result}")
        return connection

    def usable(self, connection: Any) -> bool:
        """See `Driver`: whatever went wrong, answers may still be on their way."""
        return False

    def fileno(self, connection: Any) -> int:
        """See `Driver`."""
        sock = connection.socket
        return -1 if sock is None else int(sock.fileno())

    def close(self, connection: Any) -> None:
        """See `Driver`."""
        connection.unbind()


class _Tls(ldap3.Tls):  # type: ignore[misc]
    """TLS as Python does it: ldap3's own check of host names is from before Python had one."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._context = context

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:
        connection.socket = self._context.wrap_socket(connection.socket, server_hostname=connection.server.host)


class LdapUsers(BaseAuthenticator):
    """Implements `Authenticator`."""

    def __init__(self, options: Ldap) -> None:
        super().__init__(options.label)
        try:
            self._bind_dn = Template(options.bind_dn)
            self._base = Template(options.base)
            self._filter = Template(options.filter)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not options.base and not self._bind_dn.names:
            raise ConfigError("bind_dn: must contain ${username}, or base has to say where users are searched for")
        if options.base and self._bind_dn.names:
            raise ConfigError("bind_dn: is who searches, as base is given; it may contain no placeholder")
        if options.base and bool(options.bind_dn) != bool(options.bind_password):
            raise ConfigError("bind_dn and bind_password: who searches needs both, or neither")
        if options.base and "username" not in self._filter.names + self._base.names:
            raise ConfigError("filter: must contain ${username}, else it finds the same for everybody")
        self._bind_password = options.bind_password.encode()
        self._superuser_attribute = options.superuser_attribute
        self._username_attribute = options.username_attribute
        self._wanted = [each for each in (options.superuser_attribute, options.username_attribute) if each]
        self._pool = Pool(LdapDriver(options), options.pool, options.timeout_s)
        names = self._base.names + self._filter.names if options.base else self._bind_dn.names
        self.cached = frozenset(names) - {"username"}

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Authenticator`."""
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            await self._pool.close()

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        username, password = request.username, request.password
        if not username:
            return IGNORED
        if not password or not _is_text(password):
            return DENIED
        lookup = lookup_of(request)
        try:
            if self._base.text:
                base = self._base.render(lookup, quote=escape_dn)
                wanted = self._filter.render(lookup, quote=escape_filter)
                return await self._pool.run(lambda each: self._search(each, base, wanted, username, password))
            dn = self._bind_dn.render(lookup, quote=escape_dn)
        except Unresolved:
            return IGNORED
        return await self._pool.run(lambda each: self._direct(each, dn, username, password))

    # In threads.

    def _direct(self, connection: Any, dn: str, username: str, password: bytes) -> Verdict:
        code = _bind(connection, dn, password)
        if code != _SUCCESS:
            return _refusal(code)
        found: Attributes = {}
        if self._wanted:
            entries = _search(connection, dn, "(objectClass=*)", ldap3.BASE, self._wanted)
            found = entries[0][1] if len(entries) == 1 else {}
        return self._verdict(username, found)

    def _search(self, connection: Any, base: str, wanted: str, username: str, password: bytes) -> Verdict:
        code = _bind(connection, self._bind_dn.text, self._bind_password)
        if code != _SUCCESS:
            raise BackendError(f"the bind of who searches gave result {code}")
        entries = _search(connection, base, wanted, ldap3.SUBTREE, self._wanted)
        if len(entries) > 1:
            raise BackendError("the search for a user found more than one entry")
        if not entries:
            # A bind more, as for those who are known.
            _bind(connection, f"cn={escape_dn(username)},{base}", password)
            return IGNORED
        dn, found = entries[0]
        code = _bind(connection, dn, password)
        return self._verdict(username, found) if code == _SUCCESS else _refusal(code)

    def _verdict(self, username: str, found: Attributes) -> Verdict:
        truths = _values(found, self._superuser_attribute)
        return Verdict(
            ALLOW,
            spelling(username, _values(found, self._username_attribute)),
            superuser=any(value.upper() == "TRUE" for value in truths),
        )


def make_users(options: Ldap) -> LdapUsers:
    """The authenticator."""
    with told_of("authentication", options.label):
        return LdapUsers(options)


def _is_text(password: bytes) -> bool:
    """LDAP would take any bytes, ldap3 does not."""
    try:
        password.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bind(connection: Any, dn: str, password: bytes) -> int:
    """The result code. An empty DN binds as nobody."""
    _check_open(connection)
    connection.user, connection.password = (dn, password) if dn else (None, None)
    connection.authentication = ldap3.SIMPLE if dn else ldap3.ANONYMOUS
    connection.bind(read_server_info=False)
    return int(connection.result["result"])


def _search(connection: Any, base: str, wanted: str, scope: str, attributes: list[str]) -> list[tuple[str, Attributes]]:
    """DN and attributes of at most two entries; references to other servers are not among them."""
    _check_open(connection)
    connection.search(base, wanted, scope, ldap3.DEREF_NEVER, attributes or [ldap3.NO_ATTRIBUTES], size_limit=2)
    code = int(connection.result["result"])
    entries = [each for each in connection.response or () if each["type"] == "searchResEntry"]
    if code == _NO_SUCH_OBJECT:
        return []
    if code != _SUCCESS and len(entries) < 2:
        raise BackendError(f"the search for a user gave result {code}")
    return [(str(each["dn"]), _texts(each["raw_attributes"])) for each in entries]


def _check_open(connection: Any) -> None:
    """ldap3 opens a connection again that was closed: without STARTTLS, and with the password to follow."""
    if connection.closed:
        raise OSError("the connection is closed")


def _texts(raw: Mapping[str, list[bytes]]) -> Attributes:
    return {name.lower(): [value.decode(errors="replace") for value in values] for name, values in raw.items()}


def _values(found: Attributes, name: str) -> list[str]:
    return found.get(name.lower(), []) if name else []


def _refusal(code: int) -> Verdict:
    if code in _REFUSED:
        return DENIED
    if code in _UNKNOWN:
        return IGNORED
    raise BackendError(f"a bind gave result {code}")


def spelling(username: str, values: list[str]) -> str:
    """The name as the directory spells it: it compares without case and superfluous spaces, we do not."""
    same = [value for value in values if _folded(value) == _folded(username)]
    return same[0] if same else username


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def escape_dn(value: str) -> str:
    """A value within a DN (RFC 4514)."""
    last = len(value) - 1
    out: list[str] = []
    for index, character in enumerate(value):
        if character in _DN_SPECIAL or (character == " " and index in (0, last)):
            out.append("\\" + character)
        elif character < " " or character == "\x7f":
            out.append(f"\\{ord(character):02x}")
        else:
            out.append(character)
    return "".join(out)


def escape_filter(value: str) -> str:
    """A value within a filter (RFC 4515)."""
    return "".join(f"\\{ord(each):02x}" if each in _FILTER_SPECIAL else each for each in value)
