"""TLS records and ClientHellos by hand, for handshakes that no library would begin."""

from __future__ import annotations

import contextlib
import ssl

HANDSHAKE, ALERT, CHANGE_CIPHER, DATA, HEARTBEAT = 22, 21, 20, 23, 24

TLS_1_0, TLS_1_1, TLS_1_2, SSL_3 = b"\x03\x01", b"\x03\x02", b"\x03\x03", b"\x03\x00"

#: Alerts for versions that are not spoken any more: handshake_failure and protocol_version.
TOO_OLD = (40, 70)


def record(kind: int, body: bytes, version: bytes = TLS_1_2, length: int | None = None) -> bytes:
    """One record; `length` may lie."""
    return bytes((kind,)) + version + (len(body) if length is None else length).to_bytes(2, "big") + body


def hello(*extensions: bytes, version: bytes = TLS_1_2, ciphers: bytes = b"\xc0\x2b\xc0\x2f\xc0\x09\xc0\x13") -> bytes:
    """The message (no record): TLS 1.2 unless an extension says more."""
    body = version + bytes(range(32)) + b"\0" + len(ciphers).to_bytes(2, "big") + ciphers + b"\1\0"
    every = b"".join((extension(10, b"\0\4\0\x17\0\x1d"), extension(13, b"\0\6\4\3\4\1\2\3"), *extensions))
    body += len(every).to_bytes(2, "big") + every
    return b"\1" + len(body).to_bytes(3, "big") + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body


def server_name(*names: bytes) -> bytes:
    """SNI."""
    entries = b"".join(b"\0" + len(name).to_bytes(2, "big") + name for name in names)
    return extension(0, len(entries).to_bytes(2, "big") + entries)


def records(message: bytes, size: int = 16_384) -> bytes:
    """A handshake message in as many records as it takes."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(record(HANDSHAKE, piece, TLS_1_0) for piece in pieces)


def real_hello(context: ssl.SSLContext) -> bytes:
    """What OpenSSL sends first."""
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def alert(answer: bytes) -> int:
    """The number of the alert that an answer ends with, -1 if it does not."""
    at = answer.rfind(b"\x15\x03")
    return answer[-1] if at >= 0 and len(answer) == at + 7 else -1
