"""When a certificate ends: as much of X.509 as that takes (RFC 5280, 4.1)."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

_END = "-----END CERTIFICATE-----"
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def expiry_of(path: Path) -> float:
    """Of the first certificate in a PEM file, in seconds since the epoch. Raises OSError, ValueError if it has none."""
    text = path.read_text("ascii", "replace")
    begin = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find(_END, begin)
    if begin < 0 or end < 0:
        raise ValueError("no certificate")
    return expiry_of_der(ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)]))


def expiry_of_der(data: bytes) -> float:
    """`notAfter`, in seconds since the epoch. Raises ValueError."""
    try:
        certificate, _ = _part(data, 0, _SEQUENCE)
        signed, _ = _part(data, certificate, _SEQUENCE)
        at = signed
        if data[at] == _VERSION:
            at = _part(data, at, _VERSION)[1]
        for _ in range(3):  # serial number, signature, issuer
            at = _part(data, at, data[at])[1]
        validity, _ = _part(data, at, _SEQUENCE)
        _, at = _part(data, validity, data[validity])
        start, end = _part(data, at, data[at])
        return _time(data[at], data[start:end].decode("ascii"))
    except IndexError:
        raise ValueError("a certificate that ends early") from None


def _part(data: bytes, at: int, tag: int) -> tuple[int, int]:
    """Where the content of the element at `at` starts and ends."""
    if data[at] != tag:
        raise ValueError(f"tag {data[at]:#x} in a certificate, expected {tag:#x}")
    length = data[at + 1]
    start = at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    return start, start + length


def _time(tag: int, text: str) -> float:
    if tag == _UTC_TIME:  # two digits of the year: up to 49 it is 20xx
        text = ("20" if text[:2] < "50" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"tag {tag:#x} for a time")
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()
