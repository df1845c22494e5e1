"""What a TLS listener shows to clients and accepts of them: certificates, authorities, revocation lists, keys."""

from __future__ import annotations

import hashlib
import re
import ssl
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import trio

from broker.errors import ConfigError
from broker.log import get_logger
from broker.options.listener import Listener
from broker.peer import Certificate, Peer
from broker.transport.expiry import expiry_of

_log = get_logger("tls")

#: Cipher suites of TLS 1.2 with pre-shared keys, forward secrecy first. (DHE needs parameters that nobody makes.)
PSK_CIPHERS = (
    "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256:"
    "PSK-AES256-GCM-SHA384:PSK-CHACHA20-POLY1305:PSK-AES128-GCM-SHA256"
)

#: Python's own for TLS 1.2.
CIPHERS = "@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"

#: Attributes of names in the short form of RFC 4514; others are written as OpenSSL calls them.
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}

#: What a client may ask for; other names are as none.
_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}")

_ALTERNATIVES = {"DNS": "DNS", "email": "email", "URI": "URI", "IP Address": "IP"}


class ServerTls(ssl.SSLObject):
    """The server's side of one connection, with what the client asked for."""

    server_name: str | None = None
    psk_identity: str | None = None


class Certificates:
    """Those of one listener. Raises ConfigError if a file is missing or wrong."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._keys: dict[str, bytes] = {}
        #: Identities that clients named in the present step.
        self._asked: list[str | None] = []
        self._by_name: dict[str, ssl.SSLContext] = {}
        #: When the certificate of each name ends, in seconds since the epoch; "": where no other is for the client.
        self.expiries: dict[str, float] = {}
        self._context: ssl.SSLContext
        #: The same once more, for clients that would resume a session of the first one.
        self._anew: ssl.SSLContext
        self.reload()

    def files(self) -> Sequence[Path]:
        """All that `reload` reads."""
        options = self._listener.options
        found = [options.certfile, options.keyfile, options.ca_certs, options.crl_file, options.psk_file]
        for _, certfile, keyfile in self._named():
            found += [certfile, keyfile]
        return [path for path in found if path is not None]

    def reload(self) -> None:
        """Read all files again: handshakes that begin from now on use them. ConfigError: everything stays as it was.

        May be called in another thread.
        """
        options = self._listener.options
        keys = self._read_keys()
        by_name = {name: self._make(certfile, keyfile or certfile) for name, certfile, keyfile in self._named()}
        context = self._make(options.certfile, options.keyfile or options.certfile)
        anew = (
            context if options.tls_min == "1.3" else self._make(options.certfile, options.keyfile or options.certfile)
        )
        self._keys, self._by_name, self._context, self._anew = keys, by_name, context, anew
        self.expiries = self._read_expiries()

    def server_side(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, anew: bool = False) -> ServerTls:
        """The server's end of a new connection; with `anew` it knows no session that one without it has made.

        OpenSSL keeps sessions of TLS 1.2 by their ids, which Python cannot switch off."""
        tls = (self._anew if anew else self._context).wrap_bio(incoming, outgoing, server_side=True)
        assert isinstance(tls, ServerTls)
        return tls

    def step(self, tls: ServerTls) -> None:
        """One step of its handshake, as `SSLObject.do_handshake`."""
        self._asked.clear()
        try:
            with _DecodingErrorsUntold():
                tls.do_handshake()
        finally:
            if self._asked:
                tls.psk_identity = self._asked[-1]

    def tell(self, tls: ServerTls, peer: Peer) -> None:
        """Note in `peer` what the handshake told. ValueError if the client's certificate cannot be read.

        What a trusted proxy said of the client comes first: the certificate on this connection is then the proxy's.
        """
        peer.secure = True
        peer.server_name = peer.server_name or tls.server_name
        cipher = tls.cipher()
        if cipher is not None and "PSK" in cipher[0]:  # else the key was named, and not proven
            peer.psk_identity = tls.psk_identity
        if peer.certificate is None:
            peer.certificate = certificate_of(tls)

    # -- making

    def _named(self) -> Iterator[tuple[str, Path, Path | None]]:
        for item in self._listener.options.sni:
            name, _, files = item.partition("=")
            certfile, _, keyfile = files.partition(":")
            yield name.lower(), Path(certfile), Path(keyfile) if keyfile else None

    def _read_expiries(self) -> dict[str, float]:
        """OpenSSL has taken the files already: what cannot be read here is left out."""
        found: dict[str, float] = {}
        for name, path in [("", self._listener.options.certfile), *((name, path) for name, path, _ in self._named())]:
            try:
                if path is not None:
                    found[name] = expiry_of(path)
            except (OSError, ValueError) as error:
                _log.warning("certificates.end_unknown", file=str(path), error=str(error))
        return found

    def _make(self, certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext:
        """A context with one certificate. All of a listener are alike in everything else: OpenSSL takes some settings
        from the one that a connection began with, and some from the one that the client's SNI chose."""
        options = self._listener.options
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = ServerTls
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if options.tls_min == "1.3" else ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION
        # Every node has ticket keys of its own, which Python can neither read nor set: a client that resumes at another
        # node has its ticket refused. Without tickets it does not try, and a certificate that was revoked meanwhile is
        # looked at in every handshake.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"] if self._listener.web else ["mqtt"])
        context.sni_callback = self._choose
        try:
            context.set_ciphers(options.ciphers or (f"{CIPHERS}:{PSK_CIPHERS}" if options.psk_file else CIPHERS))
        except ssl.SSLError:
            raise self._wrong(f"ciphers = {options.ciphers!r}: OpenSSL knows none of them") from None
        if certfile is not None:
            for path in (certfile, keyfile):
                self._look_at(path)
            try:
                context.load_cert_chain(certfile, keyfile, lambda: options.keyfile_password)
            except (ssl.SSLError, ValueError, OSError) as error:
                raise self._wrong(f"certfile = {certfile}, keyfile = {keyfile}: {_reason(error)}") from None
        if options.psk_file is not None:
            self._offer_keys(context)
        if options.client_certificates != "none":
            self._trust(context)
        return context

    def _trust(self, context: ssl.SSLContext) -> None:
        options = self._listener.options
        required = options.client_certificates == "required"
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        assert options.ca_certs is not None
        self._load(context, options.ca_certs, "ca_certs")
        if options.crl_file is None:
            return
        authorities = context.cert_store_stats()["x509"]
        self._load(context, options.crl_file, "crl_file")
        stats = context.cert_store_stats()
        if not stats["crl"] or stats["x509"] != authorities:  # a certificate in there would be trusted as an authority
            raise self._wrong(f"crl_file = {options.crl_file}: must have revocation lists, and nothing else")
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF

    def _load(self, context: ssl.SSLContext, path: Path, name: str) -> None:
        self._look_at(path)
        try:
            context.load_verify_locations(path)
        except (ssl.SSLError, OSError) as error:
            raise self._wrong(f"{name} = {path}: {_reason(error)}") from None

    def _look_at(self, path: Path | None) -> None:
        """OpenSSL does not say which file it cannot read."""
        if path is not None:
            try:
                path.open("rb").close()
            except OSError as error:
                raise self._wrong(f"cannot read {path}: {error.strerror}") from None

    def _wrong(self, text: str) -> ConfigError:
        return ConfigError(f"listen = {self._listener.url}: {text}")

    # -- pre-shared keys

    def _offer_keys(self, context: ssl.SSLContext) -> None:
        offer = getattr(context, "set_psk_server_callback", None)
        if offer is None or not getattr(ssl, "HAS_PSK", False):
            raise self._wrong("psk_file: pre-shared keys need Python 3.13 or newer, with an OpenSSL that has them")
        # In TLS 1.3 a client may name a key, not prove that it has it, and go on with a certificate.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        offer(self._key_of, self._listener.options.psk_hint or None)

    def _key_of(self, identity: str | None) -> bytes:
        """Empty: no such identity."""
        self._asked.append(identity)
        return self._keys.get(identity or "", b"")

    def _read_keys(self) -> dict[str, bytes]:
        path = self._listener.options.psk_file
        if path is None:
            return {}
        keys: dict[str, bytes] = {}
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise self._wrong(f"psk_file = {path}: {_reason(error)}") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            identity, separator, text = line.strip().rpartition(":")
            try:
                key = bytes.fromhex(text)
            except ValueError:
                key = b""
            if not (separator and identity and 1 <= len(key) <= 256):  # never the line: it may have most of a key
                raise self._wrong(f"{path}:{number}: expected IDENTITY:HEX, with a key of 1 to 256 bytes")
            keys[identity] = key
        return keys

    # -- asked by OpenSSL

    def _choose(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        assert isinstance(tls, ServerTls)
        if name and _HOST.fullmatch(name):
            name = name.lower().rstrip(".")
            tls.server_name = name
            by_name = self._by_name
            context = by_name.get(name) or by_name.get("*." + name.partition(".")[2])
            if context is not None:
                tls.context = context


class _DecodingErrorsUntold:
    """A server name that is no ASCII or an identity that is no UTF-8 fails its handshake; Python prints a traceback as
    well, which a stranger shall not be able to fill the log with."""

    def __enter__(self) -> None:
        self._before = sys.unraisablehook
        sys.unraisablehook = self._tell

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.unraisablehook = self._before

    def _tell(self, unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError):
            self._before(unraisable)


def certificate_of(tls: ssl.SSLObject) -> Certificate | None:
    """The verified certificate of the client, None if it has none. ValueError if it cannot be read."""
    try:
        told: dict[str, Any] = dict(tls.getpeercert() or {})
        encoded = tls.getpeercert(True)
        if not told or not encoded:
            return None
        subject = told.get("subject", ())
        names = told.get("subjectAltName", ())
        expires = told.get("notAfter", "")
        common_names = [value for pairs in subject for name, value in pairs if name == "commonName"]
        return Certificate(
            common_names[0] if common_names else "",
            distinguished_name(subject),
            tuple((_ALTERNATIVES[kind], value) for kind, value in names if kind in _ALTERNATIVES),
            str(told.get("serialNumber", "")).lower(),
            hashlib.sha256(encoded).hexdigest(),
            float(ssl.cert_time_to_seconds(expires)) if expires else 0.0,
        )
    except ssl.SSLError as error:
        raise ValueError(_reason(error)) from None


def distinguished_name(subject: Sequence[Sequence[tuple[str, str]]]) -> str:
    """In the form of RFC 4514: the last part first."""
    return ",".join(
        "+".join(f"{_SHORT.get(name, name)}={_escaped(value)}" for name, value in pairs) for pairs in reversed(subject)
    )


def _escaped(value: str) -> str:
    text = "".join(
        f"\\{char}" if char in '"+,;<>\\' else f"\\{ord(char):02X}" if char < " " or char == "\x7f" else char
        for char in value
    )
    if text.startswith(("#", " ")):
        text = "\\" + text
    if text.endswith(" ") and len(value) > 1:
        text = text[:-1] + "\\ "
    return text


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "cannot be read: no PEM file, or a wrong password").lower().replace("_", " ")
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


#: Between two looks at the files.
LOOK_S = 2.0


def load_certificates(listeners: Sequence[Listener]) -> list[Certificates | None]:
    """Those of each listener, None without TLS. Raises ConfigError."""
    return [Certificates(listener) if listener.secure else None for listener in listeners]


def reload_all(loaded: Sequence[Certificates | None]) -> None:
    """Read all files again; a listener of which one is wrong goes on with what it has, and says so in the log."""
    for each in loaded:
        if each is not None:
            _log_reload(each, each.files())


def _log_reload(certificates: Certificates, files: Sequence[Path]) -> None:
    try:
        certificates.reload()
    except ConfigError as error:
        _log.warning("certificates.not_reloaded", error=str(error))
    else:
        _log.info("certificates.reloaded", files=[str(path) for path in files])


async def watch(loaded: Sequence[Certificates | None]) -> None:
    """Read the files of a listener again when one changes. What is wrong is told once, and tried again at the next
    change: whoever replaces a certificate and its key does it one after the other."""
    watched = [each for each in loaded if each is not None]
    seen = [_stamps(each.files()) for each in watched]
    while watched:
        await trio.sleep(LOOK_S)
        for index, certificates in enumerate(watched):
            stamps = _stamps(certificates.files())
            if stamps != seen[index]:
                seen[index] = stamps
                # Large lists take a while.
                await trio.to_thread.run_sync(_log_reload, certificates, certificates.files())


def _stamps(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """What is another where a file is."""
    found: list[tuple[int, int, int] | None] = []
    for path in files:
        try:
            told = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((told.st_mtime_ns, told.st_size, told.st_ino))
    return found
