"""Where clients come in: the addresses of the MQTT listeners and the options of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from broker.options import Networks, Options, Words, option, read_options, read_query, show_query
from broker.values import Choice, Duration, Endpoint, FilePath, Flag, Integer, Size, Text, host_and_port

SCHEMES = ("tcp", "tls", "ws", "wss", "unix")
_PORTS = {"tcp": 1883, "tls": 8883, "ws": 8083, "wss": 8084}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions(Options):
    """What can be set for each listener. `check` sees them without their URL; `Listener.check` with it."""

    TYPE: ClassVar[str] = "listener"
    HELP: ClassVar[str] = "An address where clients connect."

    # fmt: off
    name: str = option(Text(), "", "Name in logs, rules and metrics; by default the URL without options.")
    authentication: tuple[str, ...] = option(Words("names of authenticators"), "",
        "Names of the authenticators asked here, in this order; empty: all, as configured; off: nobody is asked.")
    anonymous: str = option(Choice("default", "true", "false"), "default",
        "Whether clients without credentials are let in here; default: as allow_anonymous says.")
    versions: tuple[str, ...] = option(Words("of 3.1, 3.1.1, 5", r"3\.1(\.1)?|5"), "3.1,3.1.1,5",
        "MQTT versions that are accepted.")
    mountpoint: str = option(Text(), "",
        "Prefix of all topics of clients that come in here, which they do not see: may contain ${username}, "
        "${clientid}, ${cert_common_name} and ${client_attrs.NAME}.")
    max_connections: int = option(Integer(), "0", "Connections at a time; 0: as max_connections allows.", at_least=0)
    connection_rate: int = option(Integer(), "0",
        "New connections accepted per second, bursts of as many allowed; 0: no limit. Others wait.", at_least=0)
    max_packet_size: int = option(Size(), "0", "Largest packet; 0: as the setting max_packet_size.", at_least=0,
        at_most=268_435_460)
    message_rate: int = option(Integer(), "0", "Messages per second of one client; 0: as the setting.", at_least=0)
    byte_rate: int = option(Size(), "0", "Bytes per second of one client; 0: as the setting.", at_least=0)

    proxy_protocol: str = option(Choice("off", "on"), "off",
        "Expect a PROXY protocol header (version 1 or 2) from trusted_proxies, before anything else.")
    trusted_proxies: tuple[str, ...] = option(Networks(), "",
        "Whose PROXY header and X-Forwarded-For (WebSocket) are believed. With proxy_protocol, others are refused.")
    forwarded: str = option(Choice("x-forwarded-for", "x-real-ip", "forwarded"), "x-forwarded-for",
        "ws, wss: the header in which trusted_proxies tell the client's address; they must set it or take it away.")
    proxy_timeout_s: float = option(Duration(), "3s", "Time for the PROXY header.", at_least=0.1, at_most=60)

    certfile: Path | None = option(FilePath(), "", "tls, wss: PEM file with the certificate chain of the server.")
    keyfile: Path | None = option(FilePath(), "", "PEM file with its private key; by default in certfile.")
    keyfile_password: str = option(Text(), "", "Password of the private key.", secret=True)
    sni: tuple[str, ...] = option(Words("HOST=CERTFILE[:KEYFILE]", r"[^=\s,]+=[^=\s,]+"), "",
        "Other certificates by the host name that the client asks for (SNI); *.example.org is possible.")
    ca_certs: Path | None = option(FilePath(), "", "PEM file of the authorities of accepted client certificates.")
    client_certificates: str = option(Choice("none", "optional", "required"), "none",
        "Whether clients are asked for a certificate.")
    crl_file: Path | None = option(FilePath(), "", "PEM file with certificate revocation lists; needs ca_certs.")
    tls_min: str = option(Choice("1.2", "1.3"), "1.2", "Oldest TLS version.")
    ciphers: str = option(Text(), "", "OpenSSL cipher list for TLS 1.2; by default Python's.")
    handshake_timeout_s: float = option(Duration(), "10s", "Time for the TLS and WebSocket handshakes.", at_least=0.1,
        at_most=120)
    psk_file: Path | None = option(FilePath(), "",
        "tls: pre-shared keys, IDENTITY:HEX in each line (Python 3.13 or newer, TLS 1.2).")
    psk_hint: str = option(Text(), "", "Identity hint sent to clients with pre-shared keys.")

    origins: tuple[str, ...] = option(Words("origins"), "",
        "ws, wss: values of Origin that browsers may come from, such as https://app.example.org; empty: any.")
    require_subprotocol: bool = option(Flag(), "true", "ws, wss: refuse clients that do not offer mqtt as subprotocol.")

    mode: str = option(Text(), "0660", "unix: permissions of the socket file, in octal.")
    # fmt: on

    def check(self) -> None:
        if self.proxy_protocol == "on" and not self.trusted_proxies:
            raise ValueError("proxy_protocol: trusted_proxies must say whose headers are believed")
        if (self.crl_file or self.client_certificates != "none") and not self.ca_certs:
            raise ValueError("ca_certs is missing: it says whose client certificates are accepted")
        if not re.fullmatch(r"0?[0-7]{3}", self.mode):
            raise ValueError(f"mode = {self.mode!r}: must be permissions in octal, such as 0660")


@dataclass(frozen=True, slots=True)
class Listener(Endpoint):
    """One address to serve MQTT on. For `unix`, `path` is the file and the port 0; for `ws`, `wss` the URL's path."""

    path: str = ""
    options: ListenerOptions = field(default_factory=ListenerOptions)

    @property
    def secure(self) -> bool:
        """TLS."""
        return self.scheme in ("tls", "wss")

    @property
    def web(self) -> bool:
        """WebSocket."""
        return self.scheme in ("ws", "wss")

    @property
    def name(self) -> str:
        return self.options.name or self.url

    @property
    def is_loopback(self) -> bool:
        return self.scheme == "unix" or Endpoint(self.scheme, self.host, self.port).is_loopback

    @property
    def url(self) -> str:
        """Without options."""
        return f"unix://{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.authority}{self.path}"

    def shown(self, mask: bool) -> str:
        """The URL with its options."""
        return self.url + show_query(self.options, mask)

    def __str__(self) -> str:
        return self.shown(True)

    def check(self) -> None:
        """ValueError for options that do not go with the scheme."""
        options = self.options
        if self.secure and not options.certfile and not (options.psk_file and self.scheme == "tls"):
            raise ValueError(f"{self.url}: certfile is missing")
        for attribute, schemes in _ONLY.items():
            if self.scheme not in schemes and getattr(options, attribute) != getattr(_DEFAULTS, attribute):
                raise ValueError(f"{self.url}: {attribute.removesuffix('_s')} is only for {' and '.join(schemes)}")


_DEFAULTS = ListenerOptions()
_TLS = ("tls", "wss")
_ONLY = {
    **dict.fromkeys(
        (
            "certfile",
            "keyfile",
            "keyfile_password",
            "sni",
            "ca_certs",
            "client_certificates",
            "crl_file",
            "tls_min",
            "ciphers",
        ),
        _TLS,
    ),
    "psk_file": ("tls",),
    "psk_hint": ("tls",),
    "forwarded": ("ws", "wss"),
    "origins": ("ws", "wss"),
    "require_subprotocol": ("ws", "wss"),
    "mode": ("unix",),
    "proxy_protocol": ("tcp", "tls", "ws", "wss"),
}


class Listeners:
    """A list of listeners: URLs, with options after a question mark, or tables with `url` and options."""

    label = "list of URLs, or of tables with url and options"
    metavar = "URL"

    def parse(self, raw: object) -> tuple[Listener, ...]:
        items = re.split(r"[,\s]+(?=\w+://)|\s+", raw.strip(" ,\t\r\n")) if isinstance(raw, str) else raw
        if not isinstance(items, (list, tuple)) or not items or items == [""]:
            raise ValueError("must be one or more URLs such as tcp://127.0.0.1:1883")
        listeners = [self._listener(item) for item in items]
        seen: set[tuple[str, int, str]] = set()
        names: set[str] = set()
        for listener in listeners:
            where = (listener.host, listener.port, listener.path if listener.scheme == "unix" else "")
            if where in seen and (listener.port or listener.scheme == "unix"):
                raise ValueError(f"has {listener.url} twice")
            if listener.options.name and listener.options.name in names:
                raise ValueError(f"has two listeners of the name {listener.options.name!r}")
            seen.add(where)
            names.add(listener.options.name)
        return tuple(listeners)

    def _listener(self, item: object) -> Listener:
        table: dict[str, object] = {}
        if isinstance(item, Listener):
            return item
        if isinstance(item, dict):
            table = dict(item)
            item = table.pop("url", "")
        text = item.strip() if isinstance(item, str) else ""
        scheme, separator, rest = text.partition("://")
        scheme = scheme.lower()
        if not separator:
            raise ValueError(f"has {item!r:.80}, which is no URL; write tcp://HOST:PORT")
        if scheme not in SCHEMES:
            raise ValueError(f"has {text[:80]!r}; there are tcp://, tls://, ws://, wss:// and unix://")
        rest, _, query = rest.partition("?")
        found = read_query(query)
        for name in table:
            if name in found:
                raise ValueError(f"has {name} twice")
        options = read_options(ListenerOptions, {**found, **table})
        if scheme == "unix":
            if not rest.startswith("/"):
                raise ValueError(f"has {text[:80]!r}; write unix:///PATH")
            listener = Listener(scheme, "", 0, rest, options)
        else:
            where, slash, path = rest.partition("/")
            web = scheme in ("ws", "wss")
            if path and not web:
                raise ValueError(f"has {text[:80]!r}; {scheme}:// takes no path")
            endpoint = host_and_port(scheme, where, default_port=_PORTS[scheme])
            shown = ("/" + path if slash and path else "/mqtt") if web else ""
            listener = Listener(scheme, endpoint.host, endpoint.port, shown, options)
        listener.check()
        return listener

    def show(self, value: object) -> str:
        assert isinstance(value, tuple)
        return " ".join(listener.shown(False) for listener in value)

    def masked(self, value: object) -> str:
        """As `show`, without secrets."""
        assert isinstance(value, tuple)
        return " ".join(listener.shown(True) for listener in value)


__all__ = ["SCHEMES", "Listener", "ListenerOptions", "Listeners"]
