"""The names of everything in the store: key names, hash tags and the ids that stand for what clients chose."""

from __future__ import annotations

import hashlib
from typing import Final

#: Shards of the retained set.
RETAINED_SHARDS: Final = 16


def session_id(client_id: str) -> bytes:
    """The 16 bytes that stand for a client id."""
    return hashlib.blake2b(client_id.encode("utf-8", "surrogatepass"), digest_size=16, person=b"client").digest()


def group_id(topic_filter: str) -> bytes:
    """The 16 bytes that stand for a shared subscription; `topic_filter` is the whole `$share/name/filter`."""
    return hashlib.blake2b(topic_filter.encode("utf-8", "surrogatepass"), digest_size=16, person=b"group").digest()


def is_shared(topic_filter: str) -> bool:
    """Whether the filter is that of a shared subscription."""
    return topic_filter.startswith("$share/")
