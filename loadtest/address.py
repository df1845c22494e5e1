"""Where brokers are: `mqtt://host:port`, `mqtts://host:port`, and how to get in."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

PORTS = {"mqtt": 1883, "tcp": 1883, "mqtts": 8883, "ssl": 8883, "tls": 8883}
_READ_BYTES = 65_536


@dataclass(frozen=True)
class Address:
    """One node of a broker; `family` and `resolved` are what sockets want."""

    host: str
    port: int
    family: int
    resolved: tuple[object, ...]
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


@dataclass(frozen=True)
class Credentials:
    """What clients give with CONNECT."""

    username: str | None = None
    password: bytes | None = None


@dataclass(frozen=True)
class TlsOptions:
    """How the certificate of a node is checked, and which one clients show."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure: bool = False

    def context(self) -> ssl.SSLContext:
        """Return what connections are made with; ValueError if a file is not as it should be."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ValueError(f"--ca {self.ca_file}: {error.strerror or error}") from None
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert_file:
            try:
                context.load_cert_chain(self.cert_file, self.key_file)
            except OSError as error:
                files = " ".join(file for file in (self.cert_file, self.key_file) if file)
                raise ValueError(f"--cert, --key {files}: {error.strerror or error}") from None
        return context


def resolve(url: str, options: TlsOptions | None = None) -> Address:
    """Read one URL (or HOST:PORT, or HOST); ValueError says what is wrong with it."""
    parts = urlsplit(url if "://" in url else f"mqtt://{url}")
    if parts.scheme in ("ws", "wss"):
        raise ValueError(f"{url}: the load tester does not speak WebSocket; give mqtt:// or mqtts://")
    if parts.scheme not in PORTS:
        raise ValueError(f"{url}: {parts.scheme}:// is unknown; give mqtt:// or mqtts://")
    if parts.username or parts.password:
        raise ValueError("no user and password in a URL, which others may see: --username, --password-file")
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.netloc.endswith(":") or parts.port == 0:
        raise ValueError(f"{url} is not mqtt://HOST:PORT")
    port = parts.port or PORTS[parts.scheme]
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"{url}: {error.strerror}") from None
    tls = (options or TlsOptions()).context() if PORTS[parts.scheme] == 8883 else None
    return Address(parts.hostname, port, found[0], tuple(found[4]), tls)


def resolve_all(texts: Iterable[str], options: TlsOptions | None = None) -> tuple[Address, ...]:
    """Read URLs, each text one or several with commas between."""
    return tuple(resolve(url.strip(), options) for text in texts for url in text.split(",") if url.strip())


class Tls:
    """The TLS of one connection, without its socket: bytes in, bytes out."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._shaken = False

    def opened(self, data: bytes) -> bytes:
        """Take what came; return what it says. Raises OSError (ssl.SSLError) if the peer is not to be trusted."""
        self._in.write(data)
        self._shake()
        chunks = []
        while self._shaken:
            try:
                chunk = self._object.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break
            if not chunk:
                break
            chunks.append(chunk)
        return b"".join(chunks)

    def sealed(self, out: list[bytes]) -> bytes:
        """Take what is to be said, as soon as the peer is known; return what is to be sent now."""
        self._shake()
        if self._shaken and out:
            self._object.write(b"".join(out))
            out.clear()
        return self._out.read()

    @property
    def pending(self) -> bool:
        """Whether there is something to be sent."""
        return bool(self._out.pending)

    def _shake(self) -> None:
        if not self._shaken:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                return
            self._shaken = True
