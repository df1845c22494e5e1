"""Who is at the other end of a network connection, as the transport knows it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from types import MappingProxyType

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Certificate:
    """A client certificate that was verified (by this node's TLS, or by a trusted proxy that told of it).

    `common_name` and `subject` (RFC 4514, such as `CN=d1,O=Example`) are "" if unknown; `alternative_names` are
    (kind, value) pairs, kind one of DNS, email, URI, IP; `fingerprint` is SHA-256 in lower-case hex, "" if unknown.
    """

    __slots__ = ("alternative_names", "common_name", "expires_at_s", "fingerprint", "serial", "subject")

    def __init__(
        self,
        common_name: str,
        subject: str = "",
        alternative_names: tuple[tuple[str, str], ...] = (),
        serial: str = "",
        fingerprint: str = "",
        expires_at_s: float = 0.0,
    ) -> None:
        self.common_name = common_name
        self.subject = subject
        self.alternative_names = alternative_names
        self.serial = serial
        self.fingerprint = fingerprint
        self.expires_at_s = expires_at_s


class Peer:
    """The client's address and what the listener found out before the first MQTT packet.

    `host` is an IP address in its usual form ("" for a Unix socket), taken from a trusted proxy where there is one.
    `listener` is the listener's name. `certificate`, `psk_identity` and `server_name` (SNI) are None without.
    `headers` are those of the WebSocket request, names in lower case.
    """

    __slots__ = ("certificate", "headers", "host", "listener", "port", "psk_identity", "secure", "server_name")

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        listener: str = "",
        secure: bool = False,
        certificate: Certificate | None = None,
        psk_identity: str | None = None,
        server_name: str | None = None,
        headers: Mapping[str, str] = _NOTHING,
    ) -> None:
        self.host = host
        self.port = port
        self.listener = listener
        self.secure = secure
        self.certificate = certificate
        self.psk_identity = psk_identity
        self.server_name = server_name
        self.headers = headers

    def __str__(self) -> str:
        if not self.host:
            return f"local:{self.listener}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def network_of(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A network or an address as somebody wrote it, that of IPv4 in IPv6 (`::ffff:192.0.2.1`) as what it means: clients
    are known by their IPv4 addresses. ValueError for what is none."""
    found = ipaddress.ip_network(text, strict=False)
    if isinstance(found, ipaddress.IPv6Network) and found.prefixlen >= 96:
        mapped = found.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, found.prefixlen - 96))
    return found
