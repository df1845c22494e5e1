"""What lies in the store: every key of a namespace, for docs/store-keys.md and the test that compares it with a store.

Between hash tag and suffix stand the names of `cluster.keys`. SID and GID are the 16 raw bytes that stand for a client
id and for a shared subscription, ID those of a message, NAME those of a counter; MEMBER is `<node>:<incarnation>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

HASH, STRING, ZSET, SET, STREAM = "hash", "string", "zset", "set", "stream"

#: How the tags of a kind look, and what lies there.
TAGS: Final = {
    "{c}": (rb"c", "members, documents and places"),
    "{r}": (rb"r", "the route table"),
    "{pN}": (rb"p\d+", "a partition of sessions and groups, 0 to `partitions` - 1"),
    "{tN}": (rb"t\d+", "a shard of the retained messages, 0 to 15"),
    "{n:MEMBER}": (rb"n:.+:\d+", "what belongs to one incarnation of a node"),
    "{wN}": (rb"w\d+", "one for each server, where acknowledgements wait for replicas or the disk"),
}

_PARTS: Final = {
    "SID": rb".{16}",
    "GID": rb".{16}",
    "ID": rb".{16}",
    "NAME": rb".{16}",
    "MEMBER": rb".+:\d+",
    "PART": rb"\d+",
    "KIND": rb"[a-z_]+",
}


@dataclass(frozen=True)
class StoredKey:
    """One kind of key. `owner`: whose it is, so who removes it; `ends`: its time to live, or when it goes without one.
    `expires`: the store may remove it by itself."""

    tag: str
    suffix: str
    type: str
    owner: str
    contents: str
    ends: str
    expires: bool = False


def _keys(tag: str, *rows: tuple[str, str, str, str, str]) -> tuple[StoredKey, ...]:
    """`TTL` in front of an end says that it is one."""
    return tuple(
        StoredKey(tag, suffix, kind, owner, contents, ends, ends.startswith("TTL"))
        for suffix, kind, owner, contents, ends in rows
    )


_FENCE: Final = (
    "fence",
    HASH,
    "the place",
    "`f:` and `z:` with a node: its last dead incarnation and since when; `l:` its last numbered call with the answer",
    "stays; what tells of the dead goes an hour after they died, and with the next to die",
)

CATALOGUE: Final[tuple[StoredKey, ...]] = (
    *_keys(
        "{c}",
        ("meta", HASH, "the namespace", "`layout`, `partitions`, last incarnation, number of the member list", "stays"),
        ("nodes", ZSET, "each member", "members by the end of their leases (ms)", "a member's place ends with it"),
        ("dead", ZSET, "who reaps them", "dead members that still own something", "taken out when all is reaped"),
        ("seen", HASH, "each member", "the number of the member list that it has acted on", "as in `nodes`"),
        ("level", HASH, "each member", "its feature level", "as in `nodes`"),
        ("build", HASH, "each member", "its version and function library", "as in `nodes`, or when the next one joins"),
        (
            "mig",
            HASH,
            "`rookery store migrate`",
            "how far it is, and who is at it until when",
            "ends with the migration",
        ),
        ("docver", STRING, "the namespace", "the version of all documents", "stays"),
        ("docvers", HASH, "the namespace", "the version at which each kind of documents changed last", "stays"),
        (
            "doc:KIND",
            HASH,
            "operators; nodes for bans and logins",
            "documents by name: users, rules, bans, keys, logins, topic_metrics",
            "until they are removed; bans and logins that ended are removed by nodes",
        ),
        (
            "pl:MEMBER:PART",
            HASH,
            "the member",
            "connections there that a limit of the whole cluster counts, by user or IP address (hashed)",
            "TTL 1 h, renewed; removed when the member is reaped",
        ),
    ),
    *_keys(
        "{r}",
        (
            "f",
            HASH,
            "sessions and members",
            "routes: filter and session, or node, with what was asked for",
            "with them",
        ),
        ("ver", STRING, "the route table", "number and tag of its last change", "stays"),
        ("log", STREAM, "the route table", "its last changes", "stays; about 100,000 entries"),
        ("nr:MEMBER", SET, "the member", "its routes in `f`", "removed one by one, or when the member is reaped"),
        _FENCE,
    ),
    *_keys(
        "{pN}",
        (
            "s:SID",
            HASH,
            "the session",
            "owner, token of its connection, expiry, client id, identity, counters (field `c`)",
            "with the session: a timer (`e`) in `t` ends it, since routes and group members go with it",
        ),
        ("sub:SID", HASH, "the session", "subscriptions by filter", "with the session"),
        ("q:SID", HASH, "the session", "queued messages by number", "when acknowledged; with the session"),
        ("rel:SID", SET, "the session", "numbers past PUBREC", "with PUBCOMP; with the session"),
        ("in:SID", HASH, "the session", "message ids of QoS 2 packets of the client", "with PUBREL; with the session"),
        ("will:SID", HASH, "the session", "will and its delay", "with DISCONNECT, when it is due, at the next CONNECT"),
        ("own:MEMBER", SET, "the member", "sessions connected there", "one by one, or when the member is reaped"),
        ("ix", ZSET, "the partition", "client ids of persistent sessions, in the order of their bytes", "with them"),
        (
            "t",
            ZSET,
            "the partition",
            "timers by when they are due: `w` + SID will, `x` will on its way, `e` + SID session, `d` + ID delayed one",
            "with what they are for",
        ),
        ("wx", HASH, "the partition", "wills that go out", "when published"),
        ("dly", HASH, "the partition", "delayed messages by ID", "when published or deleted"),
        ("tr", ZSET, "the partition", "sessions whose routes must be brought in line", "when that is done"),
        ("rp:SID", HASH, "the session", "filters whose routes must be brought in line", "when that is done"),
        (
            "d:ID",
            SET,
            "the message",
            "who got it already: sessions and groups of a QoS 2 message",
            "TTL 1 h, some minutes from PUBREL on",
        ),
        ("n:MEMBER", STREAM, "the member", "deliveries for sessions and groups that it serves", "when it is reaped"),
        ("gs", SET, "the partition", "groups (shared subscriptions) that have members", "with the groups"),
        ("gt", HASH, "the partition", "what they are called", "with the groups"),
        ("g:GID", STREAM, "the group", "its queue, with a consumer for each node", "with the last of its sessions"),
        ("gn:GID", STRING, "the group", "how its entries are given out, and its nodes", "with the group"),
        ("gm:GID", HASH, "the group", "its sessions", "with the group"),
        ("ga:GID", HASH, "the group", "entries that belong to one session for good", "when acknowledged"),
        ("ng:MEMBER", SET, "the member", "groups that it serves", "one by one, or when the member is reaped"),
        (
            "cn:NAME",
            HASH,
            "the counter",
            "events in slices of time: connects and failed logins for bans",
            "TTL of the counter's window",
        ),
        ("tb:NAME", HASH, "the bucket", "tokens of a rate of the whole cluster", "TTL until it is full, at most a day"),
        (
            "fence",
            HASH,
            "the partition",
            _FENCE[3] + "; `s:` its last settling call; generation, counters of sessions, connections and wills",
            _FENCE[4],
        ),
    ),
    *_keys(
        "{tN}",
        ("ret", HASH, "the shard", "retained messages by topic", "when removed, or expired and looked at"),
        ("rver", STRING, "the shard", "how often its names changed", "stays"),
        ("rlog", STREAM, "the shard", "the last changes of its names", "stays; about 100,000 entries"),
        _FENCE,
    ),
    *_keys(
        "{n:MEMBER}",
        ("in", STREAM, "the member", "messages of other nodes for its ephemeral sessions", "when the member is reaped"),
        ("fence", HASH, "the member", "bytes in `in`; the rest as elsewhere", "when the member is reaped"),
    ),
    *_keys("{wN}", ("mark", STRING, "the server", "1: what is written to be waited for", "TTL 10 years, renewed")),
)


@cache
def _pattern(key: StoredKey) -> re.Pattern[bytes]:
    suffix = re.escape(key.suffix).encode()
    for name, form in _PARTS.items():
        suffix = re.sub(rb"\b" + name.encode() + rb"\b", lambda _, form=form: form, suffix)  # type: ignore[misc]
    return re.compile(rb"\{" + TAGS[key.tag][0] + rb"\}:" + suffix, re.DOTALL)


def declared(namespace: str, key: bytes) -> StoredKey | None:
    """What this key of a store is; None if it is none of this namespace."""
    prefix = namespace.encode() + b":"
    if not key.startswith(prefix):
        return None
    return next((each for each in CATALOGUE if _pattern(each).fullmatch(key[len(prefix) :])), None)
