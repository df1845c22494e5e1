"""Which address a request came from, where trusted proxies stand before the listener."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from broker.peer import network_of

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: `for=` of one hop (RFC 7239); the value is a token or a quoted string.
_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*("[^"]*"|[^;,\s]+)', re.IGNORECASE)

#: Hops looked at, from the right; a client can send any number of them.
_HOPS = 32


class Trusted:
    """The networks of proxies whose word counts."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(network_of(each) for each in networks)

    def __contains__(self, host: object) -> bool:
        if not self._networks or not isinstance(host, str):
            return False
        address = _parse(host)
        return address is not None and any(address in network for network in self._networks)


def client_address(host: str, port: int, kind: str, values: Sequence[str], trusted: Trusted) -> tuple[str, int]:
    """The client's host and port (0: unknown) when the connection is from `host` and its request has `values` of the
    header `kind` (`x-forwarded-for`, `x-real-ip` or `forwarded`).

    From right to left each proxy vouches for the hop before it: the first one that is not trusted is the client. What
    stands left of it, or of something that is no address, is anybody's word and not looked at.
    """
    if not values or host not in trusted:
        return host, port
    hops = [hop for value in values for hop in value.split(",")][-_HOPS:]
    for hop in reversed(hops):
        text = hop.strip()
        if kind == "forwarded":
            found = _FOR.search(text)
            text = found.group(1).strip('"') if found else ""
        address, told_port = _endpoint(text)
        if address is None:
            break
        host, port = str(address), told_port
        if host not in trusted:
            break
    return host, port


def _endpoint(text: str) -> tuple[_Address | None, int]:
    """`192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`."""
    port = ""
    if text.startswith("["):
        text, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    return _parse(text), number if number < 65536 else 0


def _parse(text: str) -> _Address | None:
    if len(text) > 45 or "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
