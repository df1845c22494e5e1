"""What the store's error replies and its greeting mean."""

from __future__ import annotations

from typing import Final

import hiredis

from broker.errors import ClusterError, StoreFull, StoreUnavailable
from cluster.redis.address import StoreAddress

#: The oldest release that has all we use (functions, sharded pub/sub); Valkey reports 7.2 or more.
MINIMUM_MAJOR = 7

#: Not executed because this server is no writable primary (now): connect again.
NOT_HERE: Final[tuple[str, ...]] = ("READONLY", "LOADING", "MASTERDOWN", "UNBLOCKED")
#: Not executed because another server of the Redis Cluster has the slot, or none at the moment.
NOT_THIS_SHARD: Final[tuple[str, ...]] = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
#: Not executed, and connecting again would not help: try again later.
_LATER = (*NOT_HERE, *NOT_THIS_SHARD, "MISCONF", "NOREPLICAS", "BUSY")


def error_from(reply: hiredis.ReplyError) -> ClusterError:
    """The broker's error for an error reply: StoreFull, StoreUnavailable (may work later) or ClusterError."""
    text = str(reply)
    code = text.partition(" ")[0]
    if code == "OOM":
        return StoreFull(text)
    if code in _LATER:
        return StoreUnavailable(text)
    return ClusterError(text)


def login_error(error: ClusterError, address: StoreAddress) -> ClusterError:
    """A clear line for what HELLO, SELECT or PING was answered with."""
    text = str(error)
    code = text.partition(" ")[0]
    user = repr(address.username or "default")
    if code == "WRONGPASS":
        return ClusterError(f"store {address}: wrong password for user {user}, or the user is disabled")
    if code == "NOAUTH":
        return ClusterError(f"store {address}: it asks for a password")
    if "DB index" in text:
        return ClusterError(f"store {address}: there is no database {address.db}")
    if "unknown command" in text or code == "NOPROTO":
        return ClusterError(f"store {address}: too old or no Redis: Redis 7.0 or Valkey 7.2 is needed ({text[:80]})")
    return ClusterError(f"store {address}: {text[:200]}")


def check_hello(reply: object, address: StoreAddress) -> dict[str, object]:
    """The server's greeting with text keys. Raises ClusterError if it is of no use (StoreUnavailable: a replica)."""
    if not isinstance(reply, dict):
        raise ClusterError(f"unexpected answer to HELLO: {reply!r:.80}")
    hello = {_text(key): _text(value) if isinstance(value, bytes) else value for key, value in reply.items()}
    version = str(hello.get("version", ""))
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < MINIMUM_MAJOR:
        raise ClusterError(f"it is version {version}: Redis 7.0 or Valkey 7.2 is needed")
    if hello.get("mode") == "sentinel":
        raise ClusterError("it is a Sentinel, not a store")
    if hello.get("role") in ("replica", "slave"):
        raise StoreUnavailable(f"store {address}: it is a read-only replica")
    return hello


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
