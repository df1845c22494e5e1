"""Who is not let in: documents of the registry, mirrored on every node.

A document's name is `KIND:VALUE`; it is JSON with `until` (epoch in seconds, or null for ever), `reason` (for the log
and for those who list bans; clients are not told), `by`, and `new_only` (true: whoever is connected may stay). Kinds:

- `client_id`, `username`: that one
- `client_id_prefix`, `username_prefix`: all that begin so
- `ip`: an address or a network (CIDR) in its usual form
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from broker.errors import BrokerError
from broker.peer import network_of

CLIENT_ID: Final = "client_id"
USERNAME: Final = "username"
CLIENT_ID_PREFIX: Final = "client_id_prefix"
USERNAME_PREFIX: Final = "username_prefix"
IP: Final = "ip"
KINDS: Final = (CLIENT_ID, USERNAME, CLIENT_ID_PREFIX, USERNAME_PREFIX, IP)

#: What those are prefixes of.
_PREFIXED: Final = {CLIENT_ID_PREFIX: CLIENT_ID, USERNAME_PREFIX: USERNAME}

#: Longer reasons are cut.
_TEXT: Final = 200

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class BanError(BrokerError):
    """No ban can be made of this."""


class Ban:
    """One ban. `until_s` None: for ever."""

    __slots__ = ("by", "kind", "new_only", "reason", "until_s", "value")

    def __init__(
        self,
        kind: str,
        value: str,
        until_s: float | None = None,
        reason: str = "",
        by: str = "",
        new_only: bool = False,
    ) -> None:
        """Raises BanError for an unknown kind, for nothing, and for an address that is none."""
        if kind not in KINDS:
            raise BanError(f"{kind!r:.40} cannot be banned: {', '.join(KINDS)} can")
        if kind == IP:
            value = _usual(value)
        elif not value:
            raise BanError(f"{kind}: nothing is named")
        self.kind = kind
        self.value = value
        self.until_s = until_s
        self.reason = reason[:_TEXT]
        self.by = by[:_TEXT]
        self.new_only = new_only

    @property
    def name(self) -> str:
        """Of its document."""
        return f"{self.kind}:{self.value}"

    def holds(self, now_s: float) -> bool:
        """Whether it is not over."""
        return self.until_s is None or now_s < self.until_s

    def document(self) -> bytes:
        """What is kept."""
        found: dict[str, object] = {"until": self.until_s, "reason": self.reason, "by": self.by}
        if self.new_only:
            found["new_only"] = True
        return json.dumps(found).encode()


def read_ban(name: str, document: bytes) -> Ban:
    """Raises BanError for what was not written by this or a similar version."""
    kind, _, value = name.partition(":")
    try:
        found = json.loads(document)
        until_s = found.get("until")
        if until_s is not None and math.isnan(until_s := float(until_s)):
            raise ValueError("until: not a number")
        return Ban(
            kind,
            value,
            until_s,
            str(found.get("reason") or ""),
            str(found.get("by") or ""),
            found.get("new_only") is True,
        )
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise BanError(f"the ban {name!r:.80} cannot be read: {error}") from None


def _usual(text: str) -> str:
    try:
        network = network_of(text.strip())
    except ValueError:
        raise BanError(f"{text!r:.60} is no IP address or network") from None
    return str(network.network_address) if network.num_addresses == 1 else str(network)


def address_of(host: str) -> Address | None:
    """The address of a peer, that of an IPv4 client as such; None for a Unix socket."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


class Bans:
    """All of them, made to be asked for each client: what that costs does not grow with their number."""

    def __init__(self, bans: Iterator[Ban] | list[Ban] | tuple[Ban, ...] = ()) -> None:
        self._named: dict[str, dict[str, Ban]] = {kind: {} for kind in KINDS}
        #: Lengths of the prefixes that there are, of each kind.
        self._lengths: dict[str, Counter[int]] = {CLIENT_ID: Counter(), USERNAME: Counter()}
        #: By IP version and length of the network's prefix: networks as numbers.
        self._networks: dict[tuple[int, int], dict[int, Ban]] = {}
        for ban in bans:
            self.add(ban)

    def __len__(self) -> int:
        return sum(map(len, self._named.values()))

    def __bool__(self) -> bool:
        return any(self._named.values())

    def __iter__(self) -> Iterator[Ban]:
        for bans in self._named.values():
            yield from bans.values()

    def add(self, ban: Ban) -> None:
        """One more, or another one of the same name."""
        if ban.value not in self._named[ban.kind] and ban.kind in _PREFIXED:
            self._lengths[_PREFIXED[ban.kind]][len(ban.value)] += 1
        self._named[ban.kind][ban.value] = ban
        if ban.kind == IP:
            networks, number = _place(ban)
            self._networks.setdefault(networks, {})[number] = ban

    def remove(self, ban: Ban) -> None:
        """This very one, if another one of its name has not taken its place."""
        if self._named[ban.kind].get(ban.value) is not ban:
            return
        del self._named[ban.kind][ban.value]
        if ban.kind in _PREFIXED:
            lengths = self._lengths[_PREFIXED[ban.kind]]
            lengths[len(ban.value)] -= 1
            if not lengths[len(ban.value)]:
                del lengths[len(ban.value)]
        elif ban.kind == IP:
            networks, number = _place(ban)
            del self._networks[networks][number]
            if not self._networks[networks]:
                del self._networks[networks]

    def of_client_id(self, client_id: str, now_s: float) -> Ban | None:
        """The first that holds."""
        return self._of(CLIENT_ID, CLIENT_ID_PREFIX, client_id, now_s)

    def of_username(self, username: str | None, now_s: float) -> Ban | None:
        """The first that holds."""
        return None if username is None else self._of(USERNAME, USERNAME_PREFIX, username, now_s)

    def _of(self, kind: str, prefixes: str, value: str, now_s: float) -> Ban | None:
        ban = self._named[kind].get(value)
        if ban is not None and ban.holds(now_s):
            return ban
        known = self._named[prefixes]
        for length in self._lengths[kind]:
            ban = known.get(value[:length])
            if ban is not None and ban.holds(now_s):
                return ban
        return None

    def of_host(self, host: str, now_s: float) -> Ban | None:
        """The first that holds; `host` as `Peer` has it."""
        if not self._networks:
            return None
        address = address_of(host)
        if address is None:
            return None
        number, bits = int(address), address.max_prefixlen
        for (version, length), networks in self._networks.items():
            if version == address.version:
                ban = networks.get(number >> (bits - length))
                if ban is not None and ban.holds(now_s):
                    return ban
        return None


def _place(ban: Ban) -> tuple[tuple[int, int], int]:
    network = ipaddress.ip_network(ban.value)
    number = int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
    return (network.version, network.prefixlen), number


def read_bans(documents: Mapping[str, bytes], now_s: float) -> tuple[Bans, dict[str, bytes], list[str]]:
    """Those that hold, the documents of those that are over, and what is wrong with others."""
    bans, over, wrong = Bans(), {}, []
    for name, document in documents.items():
        try:
            ban = read_ban(name, document)
        except BanError as error:
            wrong.append(str(error))
            continue
        if ban.holds(now_s):
            bans.add(ban)
        else:
            over[name] = document
    return bans, over, wrong
