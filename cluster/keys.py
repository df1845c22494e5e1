"""The names of everything in the store: key names, hash tags and the ids that stand for what clients chose."""

from __future__ import annotations

import hashlib
import zlib
from typing import Final

from broker.errors import ConfigError

MAX_PARTITIONS: Final = 1024

#: Shards of the retained set.
RETAINED_SHARDS: Final = 16


def session_id(client_id: str) -> bytes:
    """The 16 bytes that stand for a client id."""
    return hashlib.blake2b(client_id.encode("utf-8", "surrogatepass"), digest_size=16, person=b"client").digest()


def identity_id(identity: str) -> bytes:
    """The 16 bytes that stand for the identity that owns a session."""
    return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16, person=b"identity").digest()


def name_id(name: str) -> bytes:
    """The 16 bytes that stand for the name of a counter or of a place."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16, person=b"name").digest()


class Keys:
    """The prefixes of all keys of one namespace; each has one hash tag, so one slot.

    The functions of the store (`cluster/redis/scripts`) get a prefix and append the suffixes below.
    """

    __slots__ = ("_namespace", "members", "partitions", "retained", "routes")

    def __init__(self, namespace: str, partitions: int) -> None:
        if "{" in namespace or "}" in namespace or not namespace:
            # It would be taken for the hash tag.
            raise ConfigError(f"namespace {namespace[:40]!r}: must not be empty, nor contain {{ or }}")
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(f"{partitions} partitions: must be 1 to {MAX_PARTITIONS}")
        self._namespace = namespace
        self.partitions = [self._prefix(f"p{number}") for number in range(partitions)]
        self.retained = [self._prefix(f"t{number}") for number in range(RETAINED_SHARDS)]
        self.routes = self._prefix("r")
        self.members = self._prefix("c")

    def _prefix(self, tag: str) -> bytes:
        return f"{self._namespace}:{{{tag}}}:".encode()

    def node(self, member: bytes) -> bytes:
        """The prefix of what belongs to one incarnation of one node; node names have no braces."""
        return b"%b:{n:%b}:" % (self._namespace.encode(), member)


def partition_of(identifier: bytes, partitions: int) -> int:
    """The partition of a session id or group id."""
    return (identifier[0] << 8 | identifier[1]) % partitions


def shard_of(topic: bytes) -> int:
    """The retained shard of a topic name."""
    return zlib.crc32(topic) % RETAINED_SHARDS


#: Suffix: retained messages of a shard (hash).
RETAINED: Final = b"ret"
#: Suffix: the route table (hash).
ROUTES: Final = b"f"
#: Suffixes: the number and random tag of the last change of the route table (string), and its log (stream).
ROUTES_VERSION: Final = b"ver"
ROUTES_LOG: Final = b"log"
#: Suffixes, before a session id: a session, its subscriptions (hashes).
SESSION: Final = b"s:"
SUBSCRIPTIONS: Final = b"sub:"
#: Suffix: client ids of the persistent sessions (zset, in the order of their bytes).
SESSION_INDEX: Final = b"ix"
#: Suffix: records of delayed messages by message id (hash).
DELAYED: Final = b"dly"
#: Suffix: what other nodes pushed to this one, under its own prefix (stream).
NODE_STREAM: Final = b"in"
#: Suffix, before a member: deliveries for the sessions of a partition that the member owns (stream).
OWNER_STREAM: Final = b"n:"
#: Suffixes: how often the names of a retained shard changed (number), and the changes (stream).
RETAINED_VERSION: Final = b"rver"
RETAINED_LOG: Final = b"rlog"
#: Suffix: groups that have members (set), and, before a group id, a group's queue (stream).
GROUPS: Final = b"gs"
GROUP_QUEUE: Final = b"g:"
GROUP_KEPT: Final = b"ga:"
#: Suffix, before a group id: its sessions (hash).
GROUP_MEMBERS: Final = b"gm:"
#: Suffix: sessions whose routes must be brought in line (zset).
ROUTES_MARKED: Final = b"tr"
#: Suffix, before a message id: who got it already (set).
SERVED: Final = b"d:"
#: Suffix: what other nodes tell this one, under its own prefix (sharded pub/sub channel).
SIGNALS: Final = b"k"
#: Suffixes, of members: the version of all documents (number), those at which each kind changed last (hash) and, before
#: a kind, its documents (hash).
DOCUMENTS_VERSION: Final = b"docver"
DOCUMENTS_VERSIONS: Final = b"docvers"
DOCUMENTS: Final = b"doc:"
#: Suffix: what is due when (zset); before a message id, the timer of a delayed message.
TIMERS: Final = b"t"
DELAYED_TIMER: Final = b"d"
