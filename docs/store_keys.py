"""docs/store-keys.md: every key of the store."""

from __future__ import annotations

from itertools import groupby

from cluster.catalogue import CATALOGUE, TAGS

_HEAD = """# Keys in the store

<!-- Generated from cluster/catalogue.py by `make generate`. -->

What a cluster keeps in Redis or Valkey, for those who look into it, size it or write ACLs. All keys begin with the
`namespace` (`rookery`) and a hash tag, which decides on the slot in a Redis Cluster: `rookery:{p3}:ix`. A function of
the store touches keys of one tag only. A test drives nodes through their features and compares what it finds with this
page.

- SID and GID are the 16 raw bytes that stand for a client id and for a shared subscription (BLAKE2b), ID those of a
  message, NAME those of a counter. MEMBER is `NODE:INCARNATION`.
- Only functions of the library `rk1` may write here: records have versions, and several keys belong together. Look with
  the API, `rookery ctl` or `rookery store status`; reading with `redis-cli` is harmless (not `KEYS` or `MONITOR` under
  load).
- Few keys have a TTL. What a session owns ends by a timer of the broker, since its routes, its will and its place in
  groups go with it; what a node owns is reaped by the others when it is dead. With `maxmemory-policy noeviction`, which
  a node asks for, nothing else disappears.
- The layout of all this has a version (`layout` in `rookery:{c}:meta`): see [Upgrading](upgrading.md).
- `{n:MEMBER}:k` is no key but a channel (sharded pub/sub): what other nodes tell this one.
"""


def store_keys() -> str:
    """The page."""
    parts = [_HEAD]
    for tag, keys in groupby(CATALOGUE, key=lambda each: each.tag):
        parts.append(
            f"\n## `{tag}`: {TAGS[tag][1]}\n\n| key | type | owner | contents | ends |\n|---|---|---|---|---|\n"
        )
        parts += [
            f"| `{each.suffix}` | {each.type} | {each.owner} | {each.contents} | {each.ends} |\n" for each in keys
        ]
    return "".join(parts)
