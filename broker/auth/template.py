"""Texts with placeholders: `${username}`, `${clientid}`, `${ip}`, `${cert_common_name}`, `${client_attrs.NAME}`, ..."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from broker.auth.api import ConnectRequest, Principal
from broker.peer import Peer

_PLACEHOLDER = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_.]*)\}")

#: What must not come from a client into a topic: it would move the rest to another level, or match more than meant.
TOPIC_FORBIDDEN = "/+#\0"

#: Names that mean the same.
_ALIASES = {"client_id": "clientid", "peerhost": "ip", "cert_subject_dn": "cert_subject"}

NAMES = frozenset(
    {"username", "clientid", "ip", "listener", "server_name", "cert_common_name", "cert_subject", "cert_fingerprint"}
    | {"cert_serial", "cert_san_dns", "cert_san_email", "cert_san_uri", "psk_identity"}
)

#: The value of a name, or None if there is none.
Lookup = Callable[[str], str | None]


class Unresolved(Exception):
    """A placeholder has no value, or one that may not stand where it is."""


class Template:
    """Text with placeholders, checked when made: ValueError for a placeholder that nobody knows.

    `more` are further names that are known where it is used, such as password, topic or action.
    """

    __slots__ = ("_parts", "names", "text")

    def __init__(self, text: str, more: frozenset[str] = frozenset()) -> None:
        self.text = text
        #: Literal text and names, in turn.
        parts = _PLACEHOLDER.split(text)
        self._parts = [part if index % 2 == 0 else _ALIASES.get(part, part) for index, part in enumerate(parts)]
        self.names = tuple(self._parts[1::2])
        for name in self.names:
            if name not in NAMES and name not in more and not name.startswith("client_attrs."):
                raise ValueError(f"unknown placeholder ${{{name}}}")
        if "${" in "".join(self._parts[0::2]):
            raise ValueError(f"a placeholder in {text!r:.80} is not of the form ${{name}}")

    def render(self, lookup: Lookup, forbidden: str = "", quote: Callable[[str], str] | None = None) -> str:
        """The text with its values; Unresolved if one is missing, empty, or has a character of `forbidden`."""
        out: list[str] = []
        for index, part in enumerate(self._parts):
            if index % 2 == 0:
                out.append(part)
                continue
            value = lookup(part)
            if not value or any(character in forbidden for character in value):
                raise Unresolved(part)
            out.append(value if quote is None else quote(value))
        return "".join(out)


def lookup_of(
    subject: ConnectRequest | Principal, attributes: Mapping[str, str] | None = None, **more: str | None
) -> Lookup:
    """Where placeholders get their values from: a client that connects or is connected, and `more`.

    `attributes` are the client attributes of a ConnectRequest, which has none of its own."""
    peer = subject.peer
    known = attributes if attributes is not None else getattr(subject, "attributes", {})

    def lookup(name: str) -> str | None:
        if name == "username":
            return subject.username
        if name == "clientid":
            return subject.client_id
        if name.startswith("client_attrs."):
            return known.get(name.removeprefix("client_attrs."))
        return more[name] if name in more else _of_peer(peer, name)

    return lookup


def _of_peer(peer: Peer, name: str) -> str | None:
    certificate = peer.certificate
    match name:
        case "ip":
            return peer.host
        case "listener":
            return peer.listener
        case "server_name":
            return peer.server_name
        case "psk_identity":
            return peer.psk_identity
        case "cert_common_name":
            return certificate.common_name if certificate else None
        case "cert_subject":
            return certificate.subject if certificate else None
        case "cert_fingerprint":
            return certificate.fingerprint if certificate else None
        case "cert_serial":
            return certificate.serial if certificate else None
        case "cert_san_dns" | "cert_san_email" | "cert_san_uri":
            kind = {"dns": "DNS", "email": "email", "uri": "URI"}[name.rpartition("_")[2]]
            values = [value for known, value in certificate.alternative_names if known == kind] if certificate else []
            return values[0] if values else None
    return None
